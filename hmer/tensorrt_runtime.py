"""A TensorRT engine in this process, behind the ``Runner`` interface of ``hmer.runtime``.

::

    with TensorRtRunner("engines/encoder.plan") as runner:
        outputs = runner.infer(feeds)

Written against the API of TensorRT 10 and 11 and tested with a stand-in for it: running an
engine needs a GPU.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hmer.engine import EngineInfo, EngineProfile, check_runtime, read_sidecar
from hmer.engine_cuda import Array, Cuda, CudaBindings
from hmer.errors import CorruptBundle, InferenceFailed, MissingDependency
from hmer.runtime import BaseRunner


@functools.cache
def _logger(trt: Any) -> Any:
    """The process's one logger of this library: TensorRT keeps pointers to it for ever."""
    return trt.Logger(trt.Logger.Severity.ERROR)


class TensorRtRunner(BaseRunner):
    """The engine ``path`` (a ``.plan`` with its sidecar) on the current GPU.

    One execution context, one stream; calls from several threads take turns. Device buffers grow
    to the largest call and stay. A call uses the narrowest profile that takes its shapes.
    """

    info: EngineInfo

    def __init__(self, path: str | Path, *, cuda: Cuda | None = None) -> None:
        """Load the engine; ``cuda`` stands in for the device in tests.

        Raises ``MissingBundle``, ``CorruptBundle``, ``BundleError`` for an engine of another
        TensorRT or GPU, ``MissingDependency``, ``ServerSetupError`` without a GPU.
        """
        info = read_sidecar(path)
        super().__init__(path)
        trt = self._library(info)
        self._cuda = cuda or CudaBindings()
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> address, bytes
        self._lock = threading.Lock()
        self._context: Any = None
        try:
            check_runtime(info, self._path, str(trt.__version__), self._cuda.compute_capability())
            self._runtime: Any = trt.Runtime(_logger(trt))
            if info.version_compatible:  # the plan carries a runtime of its own, which is code
                self._runtime.engine_host_code_allowed = True
            engine = self._runtime.deserialize_cuda_engine(self._path.read_bytes())
            if engine is None:
                raise CorruptBundle(
                    f"TensorRT {trt.__version__} cannot load {self._path}; its messages above say "
                    "why. Build it again with hmer-export engine."
                )
            self._engine: Any = engine
            self._check_tensors(trt, info)
            self._context = engine.create_execution_context()
            if self._context is None:
                raise InferenceFailed(
                    f"The GPU has not enough free memory to run {self._path}. Free some, or build "
                    "the engine with a smaller --max-batch."
                )
        except BaseException:
            self._cuda.close()
            raise
        self.info = info
        self.inputs = tuple(tensor.name for tensor in info.inputs)
        self.outputs = tuple(tensor.name for tensor in info.outputs)
        self._profile = 0

    @staticmethod
    def _library(info: EngineInfo) -> Any:
        try:
            return importlib.import_module(info.flavour)
        except (ImportError, OSError) as error:
            raise MissingDependency(
                f"{info.flavour} cannot be imported ({error}), and the engine needs its version "
                f"{info.version}. Install it with: pip install '{info.flavour}=={info.version}'"
            ) from error

    def _check_tensors(self, trt: Any, info: EngineInfo) -> None:
        engine = self._engine
        found = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            mode = engine.get_tensor_mode(name)
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
            found[name] = (mode == trt.TensorIOMode.INPUT, dtype)
        wanted = {tensor.name: (True, tensor.dtype) for tensor in info.inputs}
        wanted |= {tensor.name: (False, tensor.dtype) for tensor in info.outputs}
        if found != wanted or engine.num_optimization_profiles != len(info.profiles):
            raise CorruptBundle(
                f"{self._path} has other tensors or profiles than its sidecar says. Build it again "
                "with hmer-export engine."
            )

    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        with self._lock:
            if self._context is None:
                raise RuntimeError("the runner is closed")
            # TensorRT and the copies read these while they run: they live until the end.
            sources = {
                tensor.name: np.ascontiguousarray(feeds[tensor.name], tensor.dtype)
                for tensor in self.info.inputs
            }
            self._use_profile(sources)
            results = self._bind(sources)
            cuda = self._cuda
            try:
                for name, array in sources.items():
                    cuda.to_device(self._buffers[name][0], array)
                if not self._context.execute_async_v3(cuda.stream):
                    raise RuntimeError("TensorRT could not enqueue the call")
                for name, array in results.items():
                    cuda.to_host(array, self._buffers[name][0])
            finally:  # nothing may still use the arrays when this returns
                cuda.synchronize()
            return [results[name] for name in self.outputs]

    def _bind(self, sources: Mapping[str, Array]) -> dict[str, Array]:
        """Set shapes and addresses, and make room; returns empty arrays for the outputs.

        All before the first copy: no buffer is replaced while the stream works.
        """
        context = self._context
        for name, array in sources.items():
            if not context.set_input_shape(name, array.shape):
                raise RuntimeError(f"TensorRT refuses the shape {array.shape} of {name}")
        results = {}
        for tensor in self.info.outputs:
            shape = tuple(context.get_tensor_shape(tensor.name))
            if min(shape, default=0) < 0:
                raise RuntimeError(f"TensorRT does not know the shape of {tensor.name}")
            results[tensor.name] = np.empty(shape, tensor.dtype)
        for name, array in {**sources, **results}.items():
            # CUDA allocates no nothing.
            context.set_tensor_address(name, self._buffer(name, max(1, array.nbytes)))
        return results

    def _use_profile(self, sources: Mapping[str, Array]) -> None:
        """Switch to the narrowest profile that takes these inputs."""
        sizes = self._axes(sources)
        fitting = [i for i, profile in enumerate(self.info.profiles) if profile.holds(sizes)]
        if not fitting:
            shown = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
            limits = ", ".join(
                f"{axis} {low} to {high}"
                for axis, (low, _, high) in self.info.profiles[0].axes.items()
            )
            raise RuntimeError(f"the engine takes {limits}, and got {shown}")
        best = min(fitting, key=lambda index: _volume(self.info.profiles[index]))
        if best != self._profile:
            if not self._context.set_optimization_profile_async(best, self._cuda.stream):
                raise RuntimeError(f"TensorRT cannot switch to profile {best}")
            # The switch runs on the stream before the shapes that depend on it are read.
            self._cuda.synchronize()
            self._profile = best

    def _axes(self, sources: Mapping[str, Array]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for tensor in self.info.inputs:
            shape = sources[tensor.name].shape
            if len(shape) != len(tensor.dims):
                raise RuntimeError(f"{tensor.name} has {len(shape)} axes, not {len(tensor.dims)}")
            for dim, size in zip(tensor.dims, shape, strict=True):
                if size != (sizes.setdefault(dim, size) if isinstance(dim, str) else dim):
                    raise RuntimeError(f"{tensor.name} has the shape {shape}, not {tensor.dims}")
        return sizes

    def _buffer(self, name: str, size: int) -> int:
        """The device buffer of a tensor, grown to ``size`` bytes if it is smaller."""
        address, held = self._buffers.get(name, (0, 0))
        if held < size:
            if held:
                # Forgotten first: if the new one does not fit, it must not be freed twice.
                del self._buffers[name]
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._buffers[name] = (address, size)
        return address

    def close(self) -> None:
        """Free the context, the engine, the runtime and the device memory, in this order."""
        with self._lock:
            if self._context is None:
                return
            self._cuda.synchronize()
            self._context = self._engine = self._runtime = None
            for address, _ in self._buffers.values():
                self._cuda.free(address)
            self._buffers.clear()
            self._cuda.close()


def _volume(profile: EngineProfile) -> int:
    result = 1
    for _, _, high in profile.axes.values():
        result *= high
    return result
