"""A device in host memory, and TensorRT's runtime on it: what a stream is told runs at the end.

Nothing runs before ``synchronize``, as late as CUDA may run it. An array that was freed
by then, a buffer that is too small, a use after freeing: each fails the test.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from hmer.engine_cuda import Array
from hmer.errors import InferenceFailed

STRIDE = 8
_DEVICES: dict[int, FakeCuda] = {}


class FakeCuda:
    """``hmer.engine_cuda.Cuda`` on a dict of byte arrays."""

    def __init__(self, capability: str = "8.9", memory: int = 1 << 30) -> None:
        self.stream = 1000 + len(_DEVICES)
        _DEVICES[self.stream] = self
        self.capability, self.memory = capability, memory
        self.held: dict[int, Array] = {}
        self.queue: list[Callable[[], None]] = []
        self.log: list[str] = []
        self.closed = False
        self._next = 4096

    def compute_capability(self) -> str:
        return self.capability

    def allocate(self, size: int) -> int:
        assert size > 0
        if sum(array.nbytes for array in self.held.values()) + size > self.memory:
            raise InferenceFailed("CUDA failed: cudaErrorMemoryAllocation.")
        self._next += 1 << 32
        self.held[self._next] = np.zeros(size, np.uint8)
        self.log.append(f"allocate {size}")
        return self._next

    def free(self, address: int) -> None:
        assert not self.queue, "memory freed while the stream still works"
        del self.held[address]
        self.log.append("free")

    def to_device(self, address: int, source: Array) -> None:
        ref = weakref.ref(source)

        def copy() -> None:
            array = ref()
            assert array is not None, "the source was freed before it was copied"
            self.held[address][: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

        self.queue.append(copy)
        self.log.append("to_device")

    def to_host(self, target: Array, address: int) -> None:
        ref = weakref.ref(target)

        def copy() -> None:
            array = ref()
            assert array is not None, "the target was freed before it was filled"
            data = self.held[address][: array.nbytes].tobytes()
            array[...] = np.frombuffer(data, array.dtype).reshape(array.shape)

        self.queue.append(copy)
        self.log.append("to_host")

    def synchronize(self) -> None:
        queue, self.queue = self.queue, []
        for work in queue:
            work()
        self.log.append("synchronize")

    def close(self) -> None:
        assert not self.queue
        self.closed = True


def answer(name: str, shape: tuple[int, ...], dtype: str, feeds: dict[str, Array]) -> Array:
    """What the fake engine computes: the same number everywhere, from all inputs."""
    total = sum(int(array.astype(np.int64).sum()) for array in feeds.values())
    return np.full(shape, (total + len(name)) % 97, dtype)


def add_runtime(trt: Any, strict: Callable[[str], Any]) -> None:
    """Give the fake module ``trt`` its ``Runtime``."""

    class Context(strict("IExecutionContext")):  # type: ignore[misc]
        def __init__(self, engine: Any) -> None:
            self._engine = engine
            self._profile = 0
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}

        def set_optimization_profile_async(self, index: int, stream: int) -> bool:
            self._profile = index
            self._shapes.clear()
            _DEVICES[stream].log.append(f"profile {index}")
            _DEVICES[stream].queue.append(lambda: None)
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self._engine._profiles[self._profile][name]
            if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                return False
            self._shapes[name] = tuple(shape)
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            assert set(self._shapes) == {tensor[0] for tensor in self._engine._inputs}
            axes: dict[str, int] = {}
            for tensor, _, dims in self._engine._inputs:
                axes.update(zip(map(str, dims), self._shapes[tensor], strict=True))
            for side in ("height", "width"):
                if side in axes:
                    axes[f"feature_{side}"] = axes[side] // STRIDE
            (dims,) = (dims for tensor, _, dims in self._engine._outputs if tensor == name)
            return tuple(d if isinstance(d, int) else axes[d] for d in dims)

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            device, engine = _DEVICES[stream], self._engine
            names = {t[0] for t in (*engine._inputs, *engine._outputs)}
            if set(self._addresses) != names:
                return False
            addresses = dict(self._addresses)
            shapes = {t[0]: self.get_tensor_shape(t[0]) for t in engine._outputs} | self._shapes

            def work() -> None:
                feeds = {}
                for name, dtype, _ in engine._inputs:
                    size = int(np.prod(shapes[name])) * np.dtype(dtype).itemsize
                    held = device.held[addresses[name]]
                    assert held.nbytes >= size, f"the buffer of {name} is too small"
                    feeds[name] = np.frombuffer(held[:size].tobytes(), dtype)
                for name, dtype, _ in engine._outputs:
                    data = np.frombuffer(
                        answer(name, shapes[name], dtype, feeds).tobytes(), np.uint8
                    )
                    held = device.held[addresses[name]]
                    assert held.nbytes >= data.nbytes, f"the buffer of {name} is too small"
                    held[: data.nbytes] = data

            device.queue.append(work)
            device.log.append("execute")
            return True

    class Engine(strict("ICudaEngine")):  # type: ignore[misc]
        def __init__(self, document: dict[str, Any]) -> None:
            self._inputs, self._outputs = document["inputs"], document["outputs"]
            self._profiles = document["profiles"]

        @property
        def num_io_tensors(self) -> int:
            return len(self._inputs) + len(self._outputs)

        @property
        def num_optimization_profiles(self) -> int:
            return len(self._profiles)

        def get_tensor_name(self, index: int) -> str:
            return str([*self._inputs, *self._outputs][index][0])

        def get_tensor_mode(self, name: str) -> Any:
            inputs = {tensor[0] for tensor in self._inputs}
            return trt.TensorIOMode.INPUT if name in inputs else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            from tests.fake_tensorrt import DTYPES

            (dtype,) = (t[1] for t in (*self._inputs, *self._outputs) if t[0] == name)
            return getattr(trt.DataType, DTYPES[dtype])

        def create_execution_context(self) -> Any:
            return Context(self)

    class Runtime(strict("Runtime")):  # type: ignore[misc]
        engine_host_code_allowed = False

        def __init__(self, log: Any) -> None:
            trt._calls.append(("runtime", log))

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            trt._calls.append(("deserialize", self.engine_host_code_allowed))
            try:
                return Engine(json.loads(data))
            except ValueError:
                return None

    trt.Runtime = Runtime
