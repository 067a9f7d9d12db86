"""One optimisation step on one device: network, losses, optimiser and averaged weights.

Nothing in a step waits for a GPU: its results travel back while the next step is
queued (``Reading``), and a gradient that is not finite is skipped by the optimiser on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from hmer.vocab import Vocabulary
from training import losses
from training.data import Batch
from training.device import autocast_type
from training.distributed import World, padded
from training.network import NetworkConfig, Recogniser
from training.settings import TrainSettings
from training.state import Average
from training.unroll import Packing

Mark = Callable[[str], None]


class Reading:
    """Numbers on their way back from the device."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._event: Any = None
        if values.is_cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        if self._event:
            self._event.record()

    def get(self) -> list[float]:
        """The numbers; waits for them."""
        if self._event:
            self._event.synchronize()
        return list(map(float, self._values))


class Engine:
    """The tensors of a run and what a step does to them."""

    def __init__(
        self,
        network: NetworkConfig,
        vocabulary: Vocabulary,
        settings: TrainSettings,
        device: torch.device,
        world: World,
        initial: Recogniser | None = None,
    ) -> None:
        self.settings, self.device, self.world = settings, device, world
        autocast = autocast_type(settings.precision, device)
        torch.manual_seed(settings.seed)
        self.model = Recogniser(network)
        if initial is not None:
            self.model.load_state_dict(initial.state_dict())
        # Convolutions are half as fast again with the channels last. With fewer than 16 channels
        # PyTorch 2.13 (oneDNN) then writes outside its buffers on two threads: heap corruption.
        if all(width % 16 == 0 for width in network.widths):
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = losses.SymbolHead(network.features, len(vocabulary))
        objective = losses.Objective(
            self.model,
            self.head,
            losses.drawn_as_matrix(vocabulary),
            settings.label_smoothing,
            autocast,
            world.sum,
            settings.views,
        ).to(device)
        if settings.compile:
            self.model.encoder.compile(dynamic=True)
        self.parameters = [*self.model.parameters(), *self.head.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters if p.ndim > 1]},
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.average = Average(self.model, settings.average)
        self.modules = {"model": self.model, "head": self.head}
        self.objective = objective
        self.compute = world.wrap(objective, device)
        self.frozen = [
            module
            for module in self.model.modules()
            if settings.freeze_norm and isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        self._judge: Recogniser | None = None

    def set_mark(self, mark: Mark | None) -> None:
        """Tell ``mark`` when each part of a step is done: for a profile."""
        self.objective.mark = mark
        self._mark = mark

    _mark: Mark | None = None

    def step(
        self, batch: Batch, pack: Packing, step: int, rate: float, help_weight: float
    ) -> Reading:
        """One step with this learning rate; the auxiliary losses' weights times ``help_weight``.

        Returns the losses (label, attention, symbols, consistency), token accuracy, gradient norm.
        """
        mark = self._mark or (lambda name: None)
        settings = self.settings
        torch.manual_seed(settings.seed * 1_000_003 + step + self.world.rank * 7_368_787)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        for module in self.frozen:
            module.eval()
        found: losses.Losses = self.compute(batch, pack)
        total = (
            found.label
            + settings.attention_weight * help_weight * found.attention
            + settings.symbols_weight * help_weight * found.symbols
            + settings.consistency * found.consistency
        )
        self.optimiser.zero_grad(set_to_none=True)
        # Each process has its part of the sum, and DDP averages the gradients.
        cast(Any, total * self.world.size).backward()
        mark("encoder backward")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip)
        # The protocol of torch.amp.GradScaler: fused optimisers leave the weights as they are.
        cast(Any, self.optimiser).found_inf = (~torch.isfinite(norm)).float()
        self.optimiser.step()
        mark("optimiser")
        self.average.update(step)
        mark("average")
        values = torch.stack([value.detach().float() for value in found])
        return Reading(torch.cat([self.world.sum(values), norm[None]]))

    def load(self, batch: Batch, height: int, width: int) -> tuple[Batch, Packing]:
        """A batch on its way to the device, padded to ``height`` and ``width`` pixels."""
        stride = self.model.config.stride
        pack = losses.packing_of(batch)
        batch = batch._replace(
            image=padded(batch.image, height, width),
            symbols=padded(batch.symbols, height // stride, width // stride),
        )
        if self.device.type == "cpu":
            return batch, pack
        moved = [part.to(self.device, non_blocking=True) for part in batch]
        row, step = (
            part.pin_memory().to(self.device, non_blocking=True) for part in (pack.row, pack.step)
        )
        return Batch(*moved), Packing(row, step, pack.counts)

    def judge(self) -> Recogniser:
        """A network with the averaged weights, in evaluation mode, on the device."""
        if self._judge is None:
            self._judge = Recogniser(self.model.config).to(self.device).eval()
        self._judge.load_state_dict(self.average.values)
        return self._judge
