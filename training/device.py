"""Where a run computes, and in which precision."""

from __future__ import annotations

import torch

from hmer.errors import BadParameter

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "bf16")


def find_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of ``auto``, ``cpu`` or ``cuda`` for this process; raises ``BadParameter``."""
    if name not in DEVICES:
        raise BadParameter(f"There is no device {name!r}: --device is one of {', '.join(DEVICES)}.")
    found = torch.cuda.is_available()
    if name == "cpu" or (name == "auto" and not found):
        return torch.device("cpu")
    if not found:
        raise BadParameter(
            "--device cuda: PyTorch finds no usable NVIDIA GPU. Check nvidia-smi and that the "
            "installed torch was built for CUDA, or train with --device cpu."
        )
    if local_rank >= torch.cuda.device_count():
        raise BadParameter(
            f"Process {local_rank} of this machine has no GPU of its own: there are "
            f"{torch.cuda.device_count()}. Give torchrun that many with --nproc-per-node."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of the encoder's convolutions, ``None`` for fp32; raises ``BadParameter``.

    A CPU without bf16 units computes it too, maybe slower than fp32.
    """
    if precision not in PRECISIONS:
        raise BadParameter(
            f"There is no precision {precision!r}: --precision is one of {', '.join(PRECISIONS)}."
        )
    if precision == "fp32":
        return None
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise BadParameter(
                f"--precision bf16: {torch.cuda.get_device_name(device)} cannot compute in "
                "bfloat16 (Ampere and newer can). Train with --precision fp32."
            )
        # What stays float32 beside it may use the tensor cores' TF32: still finer than bf16.
        torch.set_float32_matmul_precision("high")
    return torch.bfloat16
