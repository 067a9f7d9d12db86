"""ONNX Runtime on an NVIDIA GPU: the same graphs as on a CPU, without TensorRT's builder.

For machines where ``onnxruntime-gpu`` is installed and CUDA's libraries can be found. That
package lists CUDA among its providers on every machine, and falls back to the CPU without
a word where the libraries or the GPU are missing: so the session itself is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hmer.errors import MissingDependency, ServerSetupError
from hmer.runtime import Array, BaseRunner

CUDA_PROVIDER = "CUDAExecutionProvider"


class OnnxRuntimeCudaRunner(BaseRunner):
    """A graph in ONNX Runtime's CUDA provider; feeds and results are arrays on the host.

    float32 stays float32: TF32, which keeps 10 bits of the mantissa, is off.
    """

    def __init__(self, path: str | Path, device: int = 0) -> None:
        """Load the graph on GPU number ``device``.

        Raises ``MissingBundle``, ``CorruptBundle``, ``MissingDependency``, or
        ``ServerSetupError`` if the GPU cannot be used.
        """
        super().__init__(path)
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependency(
                f"onnxruntime cannot be imported ({error}). Install it with: "
                "pip install 'onnxruntime-gpu[cuda,cudnn]'"
            ) from error
        if CUDA_PROVIDER not in onnxruntime.get_available_providers():
            raise MissingDependency(
                f"onnxruntime {onnxruntime.__version__} was built for the CPU. Uninstall it, and "
                "install: pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        if hasattr(onnxruntime, "preload_dlls"):  # CUDA's libraries from pip's packages
            onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        provider = {
            "device_id": device,
            "use_tf32": 0,
            # Trying out algorithms takes seconds for every new shape.
            "cudnn_conv_algo_search": "HEURISTIC",
        }
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(self._path), options, providers=[(CUDA_PROVIDER, provider)]
            )
        except Exception as error:
            raise self._corrupt(error) from error
        if self._session.get_providers()[0] != CUDA_PROVIDER:
            raise ServerSetupError(
                f"ONNX Runtime {onnxruntime.__version__} cannot use GPU {device}: its CUDA "
                "provider did not load. Check nvidia-smi, and that the CUDA and cuDNN libraries of "
                "the version it was built for are installed (pip install "
                "'onnxruntime-gpu[cuda,cudnn]')."
            )
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        if self._session is None:
            raise RuntimeError("the runner is closed")
        results: Sequence[Array] = self._session.run(self.outputs, dict(feeds))
        return results

    def close(self) -> None:
        """See ``hmer.runtime.Runner``."""
        self._session = None
