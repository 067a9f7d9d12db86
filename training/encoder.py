"""The encoder of the recogniser: a ResNet-18 for images of any size in one batch.

Shapes: B images, H x W pixels, h x w feature positions (h = H / stride), D feature channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def size_mask(size: Tensor, height: int, width: int, stride: int = 1) -> Tensor:
    """Which positions lie inside the true size: bool (B, height, width).

    ``size`` (B, 2) is in units of ``1 / stride`` positions. The comparison multiplies
    instead of dividing, because an integer division becomes four ONNX nodes.
    """
    rows = torch.arange(height, device=size.device) * stride < size[:, :1]
    columns = torch.arange(width, device=size.device) * stride < size[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016), zero outside the mask."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``x`` (B, C, h, w) and the mask (B, 1, h', w') of the *output's* positions."""
        y = F.relu(self.bn1(self.conv1(x))) * mask
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x)) * mask


class Encoder(nn.Module):
    """ResNet-18 whose padded positions stay zero, so that padding never changes a feature.

    Every convolution reads zeros outside the true size, as it does beyond the border of
    an unpadded image; a batch of images of several sizes gives what each gives alone.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int]) -> None:
        """Channels of the four stages; strides of stem, pooling and stages two to four."""
        super().__init__()
        self.strides = strides
        self.stem = nn.Conv2d(1, widths[0], 7 if strides[0] > 1 else 3, strides[0],
                              3 if strides[0] > 1 else 1, bias=False)  # fmt: skip
        self.stem_bn = nn.BatchNorm2d(widths[0])
        stages, previous = [], widths[0]
        for width, stride in zip(widths, (1, *strides[2:]), strict=True):
            stages.append(
                nn.ModuleList(
                    [ResidualBlock(previous, width, stride), ResidualBlock(width, width, 1)]
                )
            )
            previous = width
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor, size: Tensor) -> Tensor:
        """Features (B, D, h, w) of ``image`` float (B, 1, H, W) in [0, 1], zero outside ``size``.

        ``size`` int32 (B, 2) holds the true height and width in pixels, multiples of
        the stride.
        """
        stride = self.strides[0]
        x = self.stem_bn(self.stem(image))
        mask = self._mask(x, size, stride)
        x = F.relu(x) * mask
        if self.strides[1] > 1:
            x = F.max_pool2d(x, self.strides[1])  # non-negative input: zeros never win over ink
            stride *= self.strides[1]
            mask = self._mask(x, size, stride)
        for stage, step in zip(self.stages, (1, *self.strides[2:]), strict=True):
            if step > 1:
                stride *= step
            blocks: list[ResidualBlock] = list(stage.children())  # type: ignore[arg-type]
            for index, block in enumerate(blocks):
                if index == 0 and step > 1:
                    mask = size_mask(size, -(-x.shape[2] // step), -(-x.shape[3] // step), stride)
                    mask = mask[:, None].to(x.dtype)
                x = block(x, mask)
        features: Tensor = x
        return features

    @staticmethod
    def _mask(x: Tensor, size: Tensor, stride: int) -> Tensor:
        return size_mask(size, x.shape[2], x.shape[3], stride)[:, None].to(x.dtype)


def position_embedding(
    rows: int, columns: int, channels: int, device: torch.device | None = None
) -> Tensor:
    """2-D sinusoidal embedding of absolute positions, float32 (rows, columns, channels).

    The first half of the channels encodes the row, the second the column, each as in
    "Attention Is All You Need" (sine, then cosine, wavelengths 2 pi to 10,000 * 2 pi).
    """
    quarter = channels // 4
    frequency = torch.exp(
        torch.arange(quarter, device=device, dtype=torch.float32) * (-math.log(10000.0) / quarter)
    )
    y = torch.arange(rows, device=device, dtype=torch.float32)[:, None] * frequency
    x = torch.arange(columns, device=device, dtype=torch.float32)[:, None] * frequency
    rows_part = torch.cat([y.sin(), y.cos()], dim=-1)[:, None, :].expand(rows, columns, -1)
    columns_part = torch.cat([x.sin(), x.cos()], dim=-1)[None, :, :].expand(rows, columns, -1)
    return torch.cat([rows_part, columns_part], dim=-1)
