"""Several processes, one run: ``torchrun --nproc-per-node N -m training train ...``.

Every process makes and computes its rows of the same batch; the sum of all is what one process
with the whole batch would compute: losses are divided by the counts of all rows, batch
normalisation uses the statistics of all rows, and every process pads to the size of all
rows. Only dropout draws differ. Process 0 alone writes files; all others need to see
them to resume, so the folder of a run lies where every machine can read it.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class World:
    """The processes that share a run, as ``torchrun`` describes them; one without it."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.shared = self.size > 1

    def join(self, device: torch.device) -> None:
        """Meet the other processes; on a GPU tensors travel by NCCL, all else by gloo."""
        if self.shared and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
            atexit.register(dist.destroy_process_group)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, without a gradient."""
        if self.shared:
            values = values.detach().clone()
            dist.all_reduce(values)
        return values

    def most(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over all processes."""
        if not self.shared:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return list(map(float, tensor))

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """``module`` with gradients averaged over the processes and global normalisation."""
        if not self.shared:
            return module
        if device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(  # type: ignore[no-untyped-call]
                module
            )
            ids = [device.index]
        else:
            use_global_normalisation(module, dist.new_group())
            ids = None
        return nn.parallel.DistributedDataParallel(
            module, ids, forward_sync_buffers=False, gradient_as_bucket_view=True
        )


class _Sum(torch.autograd.Function):
    """A sum over processes whose gradient is summed over processes as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        values = values.clone()
        dist.all_reduce(values, group=group)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the rows of all processes; ``SyncBatchNorm`` needs a GPU."""

    group: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, h, w), where B may be zero; h and w are the same in all processes."""
        if not self.training:
            return super().forward(x)
        shape = (1, -1, 1, 1)
        values = x.float()
        here = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        dist.all_reduce(here, group=self.group)
        mean = self._sum(values.sum((0, 2, 3))) / here
        centred = values - mean.view(shape)
        variance = self._sum(centred.square().sum((0, 2, 3))) / here
        with torch.no_grad():
            share = 0.1 if self.momentum is None else self.momentum
            running_mean, running_var = (
                self.get_buffer("running_mean"),
                self.get_buffer("running_var"),
            )
            running_mean.lerp_(mean, share)
            running_var.lerp_(variance * (here / (here - 1)), share)
            self.get_buffer("num_batches_tracked").add_(1)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        normal = centred * scale.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)

    def _sum(self, values: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(values, self.group)  # type: ignore[no-untyped-call]
        return total


def use_global_normalisation(module: nn.Module, group: Any) -> None:
    """Replace every ``BatchNorm2d`` inside ``module``; parameters and their names stay."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            other = GlobalBatchNorm2d(child.num_features, child.eps, child.momentum)
            other.weight, other.bias = child.weight, child.bias
            for buffer, value in child.named_buffers():
                other.register_buffer(buffer, value)
            other.group = group
            setattr(module, name, other.train(child.training))
        else:
            use_global_normalisation(child, group)


def padded(image: Tensor, height: int, width: int) -> Tensor:
    """``image`` (..., h, w) with zeros below and to the right."""
    more = (0, width - image.shape[-1], 0, height - image.shape[-2])
    return F.pad(image, more) if any(more) else image
