"""A server in the foreground: wait until it is ready, say so, show its log, end at a signal."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import click

from hmer.errors import ServerSetupError
from model_repository.log_lines import Follower, event
from model_repository.probe import Probe
from model_repository.server import EmbeddedServer
from model_repository.supervise import Policy, Supervisor
from model_repository.workers import Fault, Workers


@dataclass(frozen=True)
class Output:
    """What is said where: ``document`` on stdout when ready, ``lines`` of JSON on stderr."""

    document: bool
    lines: bool
    verbose: bool


def run(
    server: EmbeddedServer, timeout: float, output: Output, policy: Policy | None = None
) -> int:
    """Serve until a signal (exit code 0) or until the server or a worker of it dies (an error).

    With a ``policy`` what died is started again.
    """
    with _stop_signals() as stop:
        began = time.monotonic()
        try:
            server.start()
            follower = Follower(server.log, output.lines) if output.verbose else None
            _wait(server, timeout, stop, follower, output.lines)
            if not stop.is_set():
                _announce(server, time.monotonic() - began, output)
            _keep(server, timeout, output, policy, stop, follower)
            if output.lines:
                click.echo(event("stopping"), err=True)
            elif not output.document:
                click.echo("Stopping ...", err=True)
        finally:
            server.stop()
    return 0


def _keep(
    server: EmbeddedServer,
    timeout: float,
    output: Output,
    policy: Policy | None,
    stop: threading.Event,
    follower: Follower | None,
) -> None:
    """Return at ``stop``. Raises ``ServerSetupError`` for what died, or died too often."""
    workers = Workers(server)
    supervisor = policy and Supervisor(server, policy, output.lines, timeout, stop)
    while (fault := _fault(server, workers, stop, follower, supervisor is not None)) is not None:
        try:
            if not supervisor:
                raise ServerSetupError(fault.sentence)
            if not supervisor.mend(fault):
                return
        except ServerSetupError as error:
            server.keep_log()
            # By force: with a worker missing the server would wait for it, and clients with it.
            server.kill()
            raise ServerSetupError(f"{error} Its log: {server.log}") from None


def _fault(
    server: EmbeddedServer,
    workers: Workers,
    stop: threading.Event,
    follower: Follower | None,
    ask: bool,
) -> Fault | None:
    """Wait until something died, or, if ``ask``, answers no more; ``None`` at ``stop``."""
    with Probe(server) if ask else nullcontext() as probe:
        while not stop.wait(0.2):
            if follower is not None:
                follower.show()
            server.trim_log()
            fault = workers.look() or (probe.fault if probe is not None else None)
            if fault is not None:
                return fault
    return None


def _wait(
    server: EmbeddedServer,
    timeout: float,
    stop: threading.Event,
    follower: Follower | None,
    quiet: bool,
) -> None:
    """Wait until the server is ready or ``stop`` is set, with a progress bar on a terminal."""
    models = server.repository.models
    hidden = quiet or not sys.stderr.isatty() or follower is not None
    with click.progressbar(
        length=len(models),
        label="Loading models",
        file=sys.stderr,
        hidden=hidden,
        show_eta=False,
    ) as bar:

        def progress(loaded: set[str]) -> bool:
            bar.update(len(loaded & set(models)) - bar.pos)
            if follower is not None:
                follower.show()
            return not stop.is_set()

        server.wait_ready(timeout, progress)


def _announce(server: EmbeddedServer, seconds: float, output: Output) -> None:
    e = server.endpoints
    document: dict[str, Any] = {
        "http": e.http,
        "grpc": e.grpc,
        "metrics": e.metrics,
        "repository": str(server.repository.folder),
        "models": list(server.repository.models),
        "pid": server.pid,
        "log": str(server.log),
        "seconds": round(seconds, 2),
    }
    if output.lines:
        click.echo(event("ready", **document), err=True)
    if output.document:
        click.echo(json.dumps(document))
    elif not output.lines:
        click.echo(
            f"Ready after {seconds:.1f} s: {', '.join(server.repository.models)}\n"
            f"  gRPC     {e.grpc}\n"
            f"  HTTP     {e.http}\n"
            f"  metrics  {e.metrics}\n"
            f"  log      {server.log}\n"
            "With NVIDIA's image instead: hmer-serve --repository DIR --print-docker, for a DIR "
            "assembled with --host container.\n"
            "Ctrl-C stops the server."
        )
    sys.stdout.flush()


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM and a closed terminal set; a second one interrupts at once."""
    stop = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous: dict[int, Any] = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield stop
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
