"""The network in PyTorch on the GPU, behind the runners' interface: for want of TensorRT."""

from __future__ import annotations

from pathlib import Path

import torch

from export.graphs import DecoderStepGraph, EncoderGraph, fold_batch_norm
from export.torch_runner import TorchRunner
from hmer import contract
from hmer.bundle import Bundle
from hmer.errors import ServerSetupError
from hmer.runtime import Runner
from training.checkpoint import load_checkpoint


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
        TorchRunner(EncoderGraph(network), specs[contract.ENCODER], device),
        TorchRunner(DecoderStepGraph(network, bundle.k), specs[contract.DECODER_STEP], device),
    )
