"""In-process runtimes for the graphs of a bundle: ONNX Runtime and OpenVINO, on the CPU.

::

    with open_runner("onnxruntime", bundle.file(STEP_FILE), threads=1) as runner:
        outputs = runner.infer(feeds)

Numbers of threads are explicit and idle threads sleep: two pools that spin on the same cores
slow each other to a fraction. ``ONNX Runtime`` computes in the graph's own precision, OpenVINO
in fp32 or, where the CPU has units for it, in bf16. So graphs of a fp16 or int8 bundle run in
both, and those of a bf16 bundle in OpenVINO alone.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from hmer.errors import (
    BadParameter,
    BundleError,
    CorruptBundle,
    InferenceFailed,
    MissingBundle,
    MissingDependency,
)

Array = NDArray[Any]

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
TARGETS = (ONNXRUNTIME, OPENVINO)
# A bundle's precision, or OpenVINO's own name -> what OpenVINO is asked to compute in. What a
# graph does in int8 it does in int8 anyway; fp16 has no units on most CPUs.
PRECISIONS = {"fp32": "f32", "f32": "f32", "fp16": "f32", "int8": "f32", "bf16": "bf16"}
_EXTRA = {ONNXRUNTIME: "serve", OPENVINO: "openvino"}

_Self = TypeVar("_Self", bound="BaseRunner")


class Runner(Protocol):
    """A loaded graph; a context manager that frees it. ``infer`` may be called by any thread."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, which are the caller's to keep. Raises ``InferenceFailed``."""

    def close(self) -> None:
        """Free the graph; more calls do nothing."""

    def __enter__(self) -> Runner:
        """The runner itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""


def open_runner(target: str, path: str | Path, threads: int = 1, precision: str = "fp32") -> Runner:
    """Load the graph at ``path`` with the runtime ``target`` (one of ``TARGETS``).

    ``threads`` 0 means every CPU that the process may use. ``precision`` is the bundle's, or
    bf16 to let OpenVINO compute an fp32 graph so. Raises ``BadParameter``,
    ``MissingDependency``, ``MissingBundle``, ``CorruptBundle``, or ``BundleError`` for a graph
    that the runtime has no operators for.
    """
    if target == ONNXRUNTIME:
        if PRECISIONS.get(precision) != "f32":
            raise BadParameter(
                f"ONNX Runtime computes in the graph's own precision on a CPU, and has no "
                f"{precision} there. Use fp32, or the target openvino."
            )
        return OnnxRuntimeRunner(path, threads)
    if target == OPENVINO:
        return OpenVinoRunner(path, threads, precision)
    if target == "tensorrt":  # on a GPU; `path` is an engine
        from hmer.tensorrt_runtime import TensorRtRunner  # it builds on this module

        return TensorRtRunner(path)
    raise BadParameter(f"There is no runtime {target!r} here. Choose one of {', '.join(TARGETS)}.")


class BaseRunner:
    """What the runners share: the context, the checks and the wording of failures."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(self, path: str | Path) -> None:
        """Note the path. Raises ``MissingBundle``."""
        self._path = Path(path)
        if not self._path.is_file():
            raise MissingBundle(f"There is no graph {self._path}. Export the checkpoint again.")

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See ``Runner``."""
        if feeds.keys() != set(self.inputs):
            raise InferenceFailed(
                f"{self._path.name} takes the inputs {', '.join(self.inputs)}, but got "
                f"{', '.join(feeds) or 'none'}."
            )
        try:
            return dict(zip(self.outputs, self._run(feeds), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise InferenceFailed(
                f"{self._path.name} failed with {shapes}: {_first_line(error)}"
            ) from error

    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        """The outputs in the order of ``self.outputs``."""
        raise NotImplementedError

    def _corrupt(self, error: Exception) -> CorruptBundle:
        return CorruptBundle(
            f"{self._path} cannot be loaded ({_first_line(error)}). Copy the bundle again, or "
            "export the checkpoint again."
        )

    def close(self) -> None:
        """See ``Runner``."""

    def __enter__(self: _Self) -> _Self:
        """See ``Runner``."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See ``Runner``."""
        self.close()


class OnnxRuntimeRunner(BaseRunner):
    """A graph in ONNX Runtime's CPU provider."""

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        """Load the graph; errors as for ``open_runner``."""
        super().__init__(path)
        threads = thread_count(threads)
        try:
            import onnxruntime
        except ImportError as error:
            raise _missing(ONNXRUNTIME, error) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        # An arena keeps what the largest input ever needed, times the callers; measured with the
        # encoder and 95 sizes of picture: no faster, and 100 MB instead of 60.
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(self._path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            if "NOT_IMPLEMENTED" in str(error):
                raise BundleError(
                    f"ONNX Runtime has no CPU operators for {self._path} "
                    f"({_first_line(error)}), as for every graph in bf16. Use OpenVINO (the "
                    "target openvino), or export the checkpoint in another precision."
                ) from error
            raise self._corrupt(error) from error
        _give_memory_back()
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        if self._session is None:
            raise RuntimeError("the runner is closed")
        results: Sequence[Array] = self._session.run(self.outputs, dict(feeds))
        return results

    def close(self) -> None:
        """See ``Runner``."""
        self._session = None


@functools.cache
def openvino_core() -> Any:
    """The process's one OpenVINO core, never closed.

    Each core installs a signal stack and restores the one before it when it goes: cores
    closed in another order than last in, first out leave a dangling one, and the next signal
    ends the process.
    """
    import openvino

    return openvino.Core()


class OpenVinoRunner(BaseRunner):
    """A graph in OpenVINO's CPU plugin; ``precision`` as for ``open_runner``.

    Calls from several threads take turns. A shape that is new costs a preparation: prefer few.
    """

    def __init__(self, path: str | Path, threads: int = 1, precision: str = "fp32") -> None:
        """Load the graph; errors as for ``open_runner``."""
        super().__init__(path)
        if precision not in PRECISIONS:
            raise BadParameter(
                f"There is no precision {precision!r}. Choose one of fp32, fp16, bf16, int8."
            )
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(thread_count(threads)),
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            # Two runners of one process would pin their threads to the same first cores.
            "ENABLE_CPU_PINNING": "NO",
        }
        try:
            importlib.import_module("openvino")
        except ImportError as error:
            raise _missing(OPENVINO, error) from error
        core = openvino_core()
        self._lock = threading.Lock()
        try:
            model = core.read_model(str(self._path))
            # Before compiling: that merges an input with a cast of it, under both names.
            self.inputs = tuple(port.get_any_name() for port in model.inputs)
            self.outputs = tuple(port.get_any_name() for port in model.outputs)
            compiled = core.compile_model(model, "CPU", config)
            self._request: Any = compiled.create_infer_request()
        except Exception as error:
            raise self._corrupt(error) from error

    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        with self._lock:
            if self._request is None:
                raise RuntimeError("the runner is closed")
            # Inputs are read where they are; outputs are copied, for the next call overwrites them.
            results = self._request.infer(dict(feeds), share_inputs=True, share_outputs=False)
            return [results[index] for index in range(len(self.outputs))]

    def close(self) -> None:
        """See ``Runner``."""
        with self._lock:
            self._request = None


def _give_memory_back() -> None:
    """Return what loading needed for a while: of float16 weights it is twice what stays."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def thread_count(threads: int) -> int:
    """``threads``, or for 0 the number of CPUs that this process may use."""
    if threads < 0:
        raise BadParameter(f"threads is {threads}; it must be 0 (every CPU) or more.")
    if threads:
        return threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _missing(library: str, error: ImportError) -> MissingDependency:
    return MissingDependency(
        f"{library} cannot be imported ({_first_line(error)}). Install it with: "
        f"pip install 'hmer[{_EXTRA[library]}]'"
    )


def _first_line(error: Exception) -> str:
    """The first line of a runtime's message that tells something, without its punctuation."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [type(error).__name__])[0][:300].rstrip(".: ")
