"""The network in PyTorch on the GPU, behind the runners' interface: for want of TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from export.graphs import DecoderStepGraph, EncoderGraph, fold_batch_norm
from hmer import contract
from hmer.bundle import Bundle
from hmer.contract import ModelSpec
from hmer.errors import InferenceFailed, ServerSetupError
from hmer.runtime import Runner
from training.checkpoint import load_checkpoint


class DeviceRunner:
    """A module on ``device`` that takes and gives ``spec``'s tensors; eager, float32."""

    def __init__(self, module: nn.Module, spec: ModelSpec, device: str) -> None:
        """``module`` is moved and put into evaluation mode."""
        self._module, self._device = module.eval().to(device), device
        self.inputs = tuple(tensor.name for tensor in spec.inputs)
        self.outputs = tuple(tensor.name for tensor in spec.outputs)

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See ``hmer.runtime.Runner``; the copy back waits for the device."""
        try:
            with torch.inference_mode():
                values = [torch.from_numpy(feeds[name]).to(self._device) for name in self.inputs]
                results = [tensor.cpu().numpy() for tensor in self._module(*values)]
        except (RuntimeError, KeyError) as error:
            raise InferenceFailed(f"PyTorch failed: {str(error).splitlines()[0]}") from error
        return dict(zip(self.outputs, results, strict=True))

    def close(self) -> None:
        """Nothing to free: the modules go with their last reference."""

    def __enter__(self) -> DeviceRunner:
        """The runner itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def cuda_runners(checkpoint: Path, bundle: Bundle, device: str = "cuda") -> tuple[Runner, Runner]:
    """Encoder and step of ``checkpoint`` as the contract has them for ``bundle``.

    Raises ``ServerSetupError`` if PyTorch cannot use a GPU, and what loading raises.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ServerSetupError(
            f"PyTorch {torch.__version__} cannot use a GPU here: it is a CPU build, or there is no "
            "driver."
        )
    # Otherwise Ampere and later multiply float32 with 10 bits of mantissa.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    _, model = load_checkpoint(checkpoint)
    network = fold_batch_norm(model)[0]
    specs = contract.models(bundle.sizes)
    return (
        DeviceRunner(EncoderGraph(network), specs[contract.ENCODER], device),
        DeviceRunner(DecoderStepGraph(network, bundle.k), specs[contract.DECODER_STEP], device),
    )
