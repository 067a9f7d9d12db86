"""Device memory and one stream, through NVIDIA's ``cuda-bindings``: what running a plan needs.

No torch: a serving process would spend one to two gigabytes on it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

from numpy.typing import NDArray

from hmer.errors import InferenceFailed, MissingDependency, ServerSetupError

Array = NDArray[Any]


class Cuda(Protocol):
    """Device memory and a stream of its own; every method but ``synchronize`` may return early.

    All raise ``InferenceFailed`` with CUDA's name of the error.
    """

    stream: int

    def compute_capability(self) -> str:
        """Of the current device, like "8.9"."""

    def allocate(self, size: int) -> int:
        """Address of ``size`` new bytes on the device."""

    def free(self, address: int) -> None:
        """Give back what ``allocate`` gave."""

    def to_device(self, address: int, source: Array) -> None:
        """Copy the contiguous ``source``, which must live until ``synchronize``."""

    def to_host(self, target: Array, address: int) -> None:
        """Fill the contiguous ``target``, which must live until ``synchronize``."""

    def synchronize(self) -> None:
        """Wait for everything on the stream."""

    def close(self) -> None:
        """Destroy the stream."""


class CudaBindings:
    """``Cuda`` over ``cuda.bindings.runtime``, on the current device."""

    def __init__(self) -> None:
        """Raises ``MissingDependency``, or ``ServerSetupError`` without a GPU or driver."""
        try:
            self._api: Any = import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise MissingDependency(
                f"Running a TensorRT engine needs cuda-bindings ({error}). Install it with: "
                "pip install 'hmer[gpu]'"
            ) from error
        status, count = self._api.cudaGetDeviceCount()
        if int(status) or not count:
            raise ServerSetupError(
                f"There is no usable NVIDIA GPU ({self._name(status)}). Check that nvidia-smi "
                "works; in a container, start it with --gpus all. Without a GPU use the target "
                "onnxruntime or openvino."
            )
        self.stream = int(self._call(self._api.cudaStreamCreate())[0])

    def compute_capability(self) -> str:
        """See ``Cuda``."""
        (device,) = self._call(self._api.cudaGetDevice())
        attributes = self._api.cudaDeviceAttr
        major, minor = (
            self._call(self._api.cudaDeviceGetAttribute(attribute, device))[0]
            for attribute in (
                attributes.cudaDevAttrComputeCapabilityMajor,
                attributes.cudaDevAttrComputeCapabilityMinor,
            )
        )
        return f"{major}.{minor}"

    def allocate(self, size: int) -> int:
        """See ``Cuda``."""
        return int(self._call(self._api.cudaMalloc(size))[0])

    def free(self, address: int) -> None:
        """See ``Cuda``."""
        self._call(self._api.cudaFree(address))

    def to_device(self, address: int, source: Array) -> None:
        """See ``Cuda``."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, source.ctypes.data, source, kind)

    def to_host(self, target: Array, address: int) -> None:
        """See ``Cuda``."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(target.ctypes.data, address, target, kind)

    def synchronize(self) -> None:
        """See ``Cuda``."""
        self._call(self._api.cudaStreamSynchronize(self.stream))

    def close(self) -> None:
        """See ``Cuda``."""
        self._call(self._api.cudaStreamDestroy(self.stream))

    def _copy(self, target: int, source: int, array: Array, kind: Any) -> None:
        if not array.flags.c_contiguous:
            raise ValueError("Only contiguous arrays are copied.")
        self._call(self._api.cudaMemcpyAsync(target, source, array.nbytes, kind, self.stream))

    def _call(self, result: tuple[Any, ...]) -> tuple[Any, ...]:
        status, *values = result
        if int(status):
            raise InferenceFailed(f"CUDA failed: {self._name(status)}.")
        return tuple(values)

    def _name(self, status: Any) -> str:
        return str(getattr(status, "name", status))
