"""The command ``hmer-serve``: the embedded Triton in the foreground."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from hmer.errors import HmerError, MissingBundle, ServerSetupError
from hmer.serving import cache_bytes
from model_repository.docker import IMAGE, check_engines, docker_line
from model_repository.endpoints import Endpoints
from model_repository.repository import Repository, open_repository
from model_repository.server import READY_TIMEOUT_S, EmbeddedServer

EPILOG = """
\b
Examples:
  hmer-export repository hmer/pretrained --output repository
  hmer-serve --repository repository
  hmer-client recognize formula.png
\b
  hmer-export repository hmer/pretrained --host container --output served
  hmer-serve --repository served --print-docker
"""
_NEEDED = (
    "Give the folder of a model repository with --repository. The shipped weights make one: "
    "hmer-export repository hmer/pretrained --output repository"
)


@click.command(epilog=EPILOG)
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=None,
    help="Model repository, written by hmer-export repository.",
)
@click.option(
    "--host",
    default=Endpoints.host,
    show_default=True,
    help="Address to listen on; 0.0.0.0 for every address of this machine.",
)
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    default=Endpoints.http_port,
    show_default=True,
    help="0 takes any free port; likewise below.",
)
@click.option(
    "--grpc-port", type=click.IntRange(0, 65535), default=Endpoints.grpc_port, show_default=True
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=Endpoints.metrics_port,
    show_default=True,
)
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    default=None,
    help="File for Triton's log. [default: a temporary one, kept if something fails]",
)
@click.option(
    "--cache",
    metavar="SIZE",
    default="0",
    show_default=True,
    help="Memory for answers to identical requests, such as 64M; 0: every request is decoded.",
)
@click.option(
    "--model-control",
    is_flag=True,
    help="Let whoever reaches the ports load and unload models: what a new version that takes "
    "over needs (python -m model_repository.versions).",
)
@click.option("--verbose", is_flag=True, help="Show Triton's log on the terminal too.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=READY_TIMEOUT_S,
    show_default=True,
    help="Seconds to wait until the server is ready.",
)
@click.option(
    "--print-docker",
    is_flag=True,
    help="Print how to serve the repository with NVIDIA's image, and exit.",
)
@click.option(
    "--image",
    default=IMAGE,
    show_default=True,
    help="Triton image for --print-docker. TensorRT engines must be of its TensorRT.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document when ready.")
def main(
    repository: Path | None,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    log: Path | None,
    cache: str,
    model_control: bool,
    verbose: bool,
    timeout: float,
    print_docker: bool,
    image: str,
    as_json: bool,
) -> None:
    """Serve a model repository with the Triton Inference Server, until Ctrl-C."""
    endpoints = Endpoints(host, http_port, grpc_port, metrics_port)
    try:
        if repository is None:
            raise MissingBundle(_NEEDED)
        checked = open_repository(repository)
        if print_docker:
            _print_docker(checked, endpoints, image, as_json)
            return
        server = EmbeddedServer(
            checked, endpoints, log=log, cache=cache_bytes(cache), model_control=model_control
        )
        code = _run(server, timeout, verbose, as_json)
    except HmerError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    sys.exit(code)


def _print_docker(repository: Repository, endpoints: Endpoints, image: str, as_json: bool) -> None:
    if repository.description.get("host") != "container":
        raise ServerSetupError(
            f"{repository.folder} was assembled for the embedded server. Assemble one for the "
            "container first: hmer-export repository BUNDLE --host container --output DIR"
        )
    gpu = repository.description.get("target") != "openvino"
    warning = check_engines(repository, image)
    if warning:
        click.echo(f"warning: {warning}", err=True)
    compatible = any(engine.version_compatible for engine in repository.engines.values())
    line = docker_line(
        repository.folder, endpoints, gpu=gpu, image=image, version_compatible=compatible
    )
    click.echo(json.dumps({"docker": line}) if as_json else line)


def _run(server: EmbeddedServer, timeout: float, verbose: bool, as_json: bool) -> int:
    """Serve until a signal (exit code 0) or until the server ends by itself (an error)."""
    with _stop_signals() as stop:
        began = time.monotonic()
        try:
            server.start()
            follower = _Follower(server.log) if verbose else None
            _wait(server, timeout, stop, follower)
            if not stop.is_set():
                _announce(server, time.monotonic() - began, as_json)
            while not stop.wait(0.2):
                if follower is not None:
                    follower.show()
                if server.returncode() is not None:
                    server.keep_log()
                    raise ServerSetupError(
                        f"The server ended by itself (exit code {server.returncode()}). Its log: "
                        f"{server.log}"
                    )
            if not as_json:
                click.echo("Stopping ...", err=True)
        finally:
            server.stop()
    return 0


def _wait(
    server: EmbeddedServer,
    timeout: float,
    stop: threading.Event,
    follower: _Follower | None,
) -> None:
    """Wait until the server is ready or ``stop`` is set, with a progress bar on a terminal."""
    models = server.repository.models
    hidden = not sys.stderr.isatty() or follower is not None
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


def _announce(server: EmbeddedServer, seconds: float, as_json: bool) -> None:
    e = server.endpoints
    if as_json:
        click.echo(
            json.dumps(
                {
                    "http": e.http,
                    "grpc": e.grpc,
                    "metrics": e.metrics,
                    "repository": str(server.repository.folder),
                    "models": list(server.repository.models),
                    "pid": server.pid,
                    "log": str(server.log),
                    "seconds": round(seconds, 2),
                }
            )
        )
    else:
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


class _Follower:
    """Shows what is new in a log file on stderr."""

    def __init__(self, path: Path) -> None:
        self._path, self._shown = path, 0

    def show(self) -> None:
        """Write what was added since the last call."""
        with self._path.open("rb") as stream:
            stream.seek(self._shown)
            added = stream.read()
        self._shown += len(added)
        click.echo(added, err=True, nl=False)


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


if __name__ == "__main__":
    main()
