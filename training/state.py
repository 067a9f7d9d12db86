"""The state of a run on disk: enough to go on at the very next step after a kill.

``state.safetensors`` holds weights, their moving average and the optimiser's moments (no
pickles); its metadata holds the counters. It is written beside and renamed, so a kill in
the middle of saving leaves the previous state.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hmer.errors import DatasetError

STATE_FILE = "state.safetensors"


@dataclass
class Progress:
    """Where a run stands. ``step`` counts optimiser steps, ``batch`` those of this epoch."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_score: float = -1.0
    best_step: int = 0
    seconds: float = 0.0  # of training, all runs together
    images: int = 0
    share: float | None = None  # of the peak learning rate, at the last step; None: unknown
    identity: dict[str, object] = field(default_factory=dict)  # what must not change on resume


class Average:
    """Exponential moving average of weights and normalisation statistics.

    ``model`` stays the same object on the same device for as long as it is followed.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        current = {name: value.detach() for name, value in model.state_dict().items()}
        self.values = {name: value.clone() for name, value in current.items()}
        self._pairs = [(self.values[name], value) for name, value in current.items()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the model; early steps count more, so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        moving = [pair for pair in self._pairs if pair[0].is_floating_point()]
        kept, current = ([pair[i] for pair in moving] for i in (0, 1))
        torch._foreach_lerp_(kept, current, 1.0 - decay)
        for value, now in self._pairs:
            if not value.is_floating_point():
                value.copy_(now)


def save_state(
    folder: Path,
    modules: dict[str, nn.Module],
    average: Average,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write the whole state of a run into ``folder``."""
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        tensors |= {f"{prefix}/{name}": value for name, value in module.state_dict().items()}
    tensors |= {f"average/{name}": value for name, value in average.values.items()}
    for index, entry in optimiser.state_dict()["state"].items():
        for name, value in entry.items():
            tensors[f"optimiser/{index}/{name}"] = torch.as_tensor(value)
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / (STATE_FILE + ".part")
    flat = {name: _plain(value) for name, value in tensors.items()}
    save_file(flat, draft, metadata={"progress": json.dumps(asdict(progress))})
    os.replace(draft, folder / STATE_FILE)


def load_state(
    folder: Path,
    modules: dict[str, nn.Module],
    average: Average,
    optimiser: torch.optim.Optimizer,
) -> Progress | None:
    """Restore what ``save_state`` wrote; ``None`` if the folder holds no state.

    Whatever device wrote it, the tensors go to where those of ``modules`` are.
    Raises ``DatasetError`` if the state cannot be read or belongs to another network.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            progress = Progress(**json.loads(file.metadata()["progress"]))
        for prefix, module in modules.items():
            start = prefix + "/"
            own = {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
            module.load_state_dict(own)
        for name in average.values:
            average.values[name].copy_(tensors[f"average/{name}"])
        state = optimiser.state_dict()
        state["state"] = {}
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        for name, value in tensors.items():
            if name.startswith("optimiser/"):
                _, index, key = name.split("/")
                if value.ndim:  # fused optimisers need the moments laid out as their parameter is
                    value = torch.empty_like(parameters[int(index)]).copy_(value)
                state["state"].setdefault(int(index), {})[key] = value
        optimiser.load_state_dict(state)
    except (
        SafetensorError,
        OSError,
        KeyError,
        IndexError,
        ValueError,
        TypeError,
        RuntimeError,
    ) as error:
        raise DatasetError(
            f"{path} cannot be resumed: {str(error).splitlines()[0]} Give another --save-dir to "
            "start anew, or the same options as before to go on."
        ) from error
    return progress


def _plain(value: Tensor) -> Tensor:
    """An own copy on the CPU, rows first: channels-last storage is a matter of speed alone."""
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
