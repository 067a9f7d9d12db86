"""The exported modules in PyTorch, behind the interface of the other runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from hmer.contract import ModelSpec
from hmer.errors import InferenceFailed

Array = NDArray[Any]


class TorchRunner:
    """A ``hmer.runtime.Runner`` over a module that takes and gives ``spec``'s tensors in order.

    Eager, on ``device``, in float32: what was traced, before any exporter or runtime saw it.
    """

    def __init__(self, module: nn.Module, spec: ModelSpec, device: str = "cpu") -> None:
        """``module`` is moved and put into evaluation mode."""
        self._module: nn.Module | None = module.eval().to(device)
        self._device = device
        self._name = spec.name
        self.inputs = tuple(tensor.name for tensor in spec.inputs)
        self.outputs = tuple(tensor.name for tensor in spec.outputs)

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See ``hmer.runtime.Runner``; the copy back waits for the device."""
        if feeds.keys() != set(self.inputs):
            raise InferenceFailed(
                f"{self._name} takes the inputs {', '.join(self.inputs)}, but got "
                f"{', '.join(feeds) or 'none'}."
            )
        if self._module is None:
            raise InferenceFailed(f"{self._name} is closed.")
        try:
            with torch.inference_mode():
                values = [torch.from_numpy(feeds[name]).to(self._device) for name in self.inputs]
                results = [tensor.cpu() for tensor in self._module(*values)]
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise InferenceFailed(f"{self._name} failed in PyTorch: {reason}") from error
        return {name: t.numpy() for name, t in zip(self.outputs, results, strict=True)}

    def close(self) -> None:
        """See ``hmer.runtime.Runner``."""
        self._module = None

    def __enter__(self) -> TorchRunner:
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
