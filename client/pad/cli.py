"""``hmer-client pad``."""

from __future__ import annotations

import contextlib
import functools
import socket
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from client.api import DEFAULT_TIMEOUT, Recognizer
from client.local import SHIPPED
from client.options import model_option, server_options
from hmer.console import sentences
from hmer.errors import BadParameter, MissingDependency

if TYPE_CHECKING:
    from client.pad.backend import Backend

PORT = 8765


@click.command()
@server_options
@model_option
@click.option("--local", is_flag=True, help="Recognise in this process, without a server.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="With --local: a bundle of graphs, instead of the one that comes with hmer.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    help="Seconds for each request to the server.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="The port to listen on; 0: a free one.",
)
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
@sentences
def pad(
    connect: functools.partial[Recognizer],
    model: str,
    local: bool,
    bundle: Path | None,
    timeout: float,
    host: str,
    port: int,
    show: bool,
) -> None:
    """A page to draw formulas on, and POST /v1/recognize for programs.

    The page shows the formula as one writes; pictures can be pasted or dropped on it. The REST
    end point takes pictures, InkML and JSON strokes; /openapi.json describes it. Ctrl-C stops.

    \b
    Examples:
      hmer-client pad --open
      hmer-client pad --local --port 9000
      curl --data-binary @formula.png http://127.0.0.1:8765/v1/recognize
    """
    if bundle is not None and not local:
        raise click.UsageError("--bundle needs --local.")
    try:
        import uvicorn
    except ImportError as error:
        raise MissingDependency(
            f"The pad needs starlette and uvicorn ({error}): pip install 'hmer[pad]'."
        ) from error
    from client.pad.app import LOOPBACK, make_app

    listener = _listen(host, port)
    with listener:
        backend = _backend(connect, model, timeout, local, bundle)
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}/"
        hosts = LOOPBACK if host in LOOPBACK else ("*",)
        config = uvicorn.Config(make_app(backend, hosts), log_level="warning", access_log=False)
        click.echo(f"The pad is at {address} (Ctrl-C stops it)")
        if show:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise BadParameter(
            f"The pad cannot listen on {host} port {port}: {error.strerror or error}. Choose "
            "another with --port (0 takes a free one)."
        ) from None


def _backend(
    connect: functools.partial[Recognizer],
    model: str,
    timeout: float,
    local: bool,
    bundle: Path | None,
) -> Backend:
    from client.pad.backend import LocalBackend, ServerBackend

    if local:
        return LocalBackend(bundle or SHIPPED)
    return ServerBackend(*connect.args, model=model, timeout=timeout, **connect.keywords)
