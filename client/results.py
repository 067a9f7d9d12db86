"""What comes back, beside ``Recognition``: partial answers and a server's health."""

from __future__ import annotations

from dataclasses import dataclass, field

from client.transport import ModelState
from hmer.errors import HmerError
from hmer.recognition import Partial

__all__ = ["Health", "Partial"]


@dataclass(frozen=True)
class Health:
    """How a server is. ``error`` says why it isn't live, ready or serving ``model``."""

    url: str
    model: str
    live: bool = False
    ready: bool = False
    server: str = ""
    models: list[ModelState] = field(default_factory=list)
    error: HmerError | None = None

    @property
    def serving(self) -> bool:
        """Whether the server is ready and some version of the model is, too."""
        return self.ready and any(
            state.name == self.model and state.state == "READY" for state in self.models
        )
