"""``hmer-serve --supervise``: what died is started again, at the same ports.

Triton 2.51 mends nothing by itself: a worker that was killed stays away, and clients wait (see
``model_repository.workers``). So the whole server is ended by force, at which clients notice at
once and try again, and started anew. The first restart comes at once, the next ones after pauses
that double; more than ``Policy.restarts`` within ``Policy.window_s`` is given up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import click

from hmer.errors import HmerError, ServerSetupError
from model_repository.log_lines import event
from model_repository.workers import Fault


@dataclass(frozen=True)
class Policy:
    """How often and how fast: at most ``restarts`` within ``window_s`` seconds.

    ``first_s``: the pause before the second restart within the window, doubled for each further
    one up to ``longest_s``; there is none before the first.
    """

    restarts: int = 5
    window_s: float = 600.0
    first_s: float = 1.0
    longest_s: float = 30.0

    def pause(self, number: int) -> float:
        """Seconds before restart ``number`` (from 1) within the window."""
        return 0.0 if number <= 1 else min(self.longest_s, self.first_s * 2.0 ** (number - 2))


class Served(Protocol):
    """What is supervised (``model_repository.server.EmbeddedServer``)."""

    def kill(self) -> None:
        """End it by force, if it runs."""

    def restart(self) -> None:
        """Start it where it was. Raises ``HmerError``."""

    def wait_ready(
        self, timeout: float, on_progress: Callable[[set[str]], bool] | None = None
    ) -> None:
        """Return when it serves. Raises ``HmerError``."""


@dataclass
class Supervisor:
    """Restarts a server, and says so: a JSON line each on stderr if ``lines``, else text."""

    server: Served
    policy: Policy
    lines: bool
    timeout: float  # seconds until it must be ready
    stop: threading.Event
    clock: Callable[[], float] = time.monotonic
    _restarts: deque[float] = field(default_factory=deque)  # when

    def mend(self, fault: Fault) -> bool:
        """Restart until the server serves; ``False`` if ``stop`` was set meanwhile.

        Raises ``ServerSetupError`` when it dies too often.
        """
        died = self.clock()
        while True:
            self.server.kill()
            number = self._count(fault)
            pause = self.policy.pause(number)
            self._tell(
                "died",
                "error",
                f"{fault.sentence} Restart {number} of at most {self.policy.restarts} in "
                f"{self.policy.window_s:g} s" + (f", in {pause:g} s." if pause else "."),
                **_about(fault),
                restart=number,
                pause_s=pause,
            )
            if self.stop.wait(pause):
                return False
            began = self.clock()
            try:
                self.server.restart()
                self.server.wait_ready(self.timeout, lambda loaded: not self.stop.is_set())
            except HmerError as error:
                fault = Fault("start_failed", f"The server did not start again: {error}")
                continue
            if self.stop.is_set():
                return False
            down, took = self.clock() - died, self.clock() - began
            self._tell(
                "restarted",
                "info",
                f"The server serves again: {down:.1f} s after its end, {took:.1f} s of them for "
                "the start.",
                down_s=round(down, 2),
                start_s=round(took, 2),
                restart=number,
            )
            return True

    def _count(self, fault: Fault) -> int:
        """The number of the next restart within the window. Raises ``ServerSetupError``."""
        now = self.clock()
        while self._restarts and now - self._restarts[0] > self.policy.window_s:
            self._restarts.popleft()
        if len(self._restarts) >= self.policy.restarts:
            raise ServerSetupError(
                f"The server was started again {len(self._restarts)} times within "
                f"{self.policy.window_s:g} s and died each time, so it is given up. "
                f"The last time: {fault.sentence}"
            )
        self._restarts.append(now)
        return len(self._restarts)

    def _tell(self, name: str, level: str, sentence: str, **values: object) -> None:
        line = event(name, level, message=sentence, **values) if self.lines else sentence
        click.echo(line, err=True)


def _about(fault: Fault) -> dict[str, object]:
    found: dict[str, object] = {"fault": fault.kind}
    if fault.model:
        found["model"] = fault.model
    if fault.pid is not None:
        found["pid"] = fault.pid
    return found
