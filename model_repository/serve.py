"""The command ``hmer-serve``: the embedded Triton in the foreground."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from hmer.errors import HmerError, MissingBundle, ServerSetupError
from hmer.serving import JSON, LOG_FORMATS, TEXT, cache_bytes
from model_repository.docker import IMAGE, check_engines, docker_line
from model_repository.endpoints import Endpoints
from model_repository.foreground import Output, run
from model_repository.log_lines import event
from model_repository.repository import Repository, open_repository
from model_repository.server import READY_TIMEOUT_S, EmbeddedServer
from model_repository.settings import ServerSettings
from model_repository.supervise import Policy
from model_repository.tracing import check_installed

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
@click.option(
    "--shared-memory",
    is_flag=True,
    help="Let clients on this machine hand inputs over in shared memory "
    "(hmer-client recognize --shared-memory).",
)
@click.option("--verbose", is_flag=True, help="Show the server's log on the terminal too.")
@click.option(
    "--log-requests/--no-log-requests",
    default=True,
    show_default=True,
    help="Write a line for every request to the log: its id, result, size, tokens and times "
    "(model_repository.recognize.request_log has the names).",
)
@click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS),
    default=TEXT,
    show_default=True,
    help="Of the lines of --log-requests and of what is shown on the terminal.",
)
@click.option(
    "--trace-url",
    metavar="URL",
    default=None,
    help="OpenTelemetry collector to send traces to, such as http://localhost:4318/v1/traces.",
)
@click.option(
    "--trace-rate",
    type=click.FloatRange(0, 1),
    default=ServerSettings.trace_rate,
    show_default=True,
    help="Part of the requests to trace, of those that come without a traceparent.",
)
@click.option(
    "--supervise",
    is_flag=True,
    help="Start again what died or hangs, at the same ports; without it the command ends then.",
)
@click.option(
    "--max-restarts",
    type=click.IntRange(min=1),
    default=Policy.restarts,
    show_default=True,
    help="Of --supervise, within ten minutes; then it gives up.",
)
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
    shared_memory: bool,
    verbose: bool,
    log_requests: bool,
    log_format: str,
    trace_url: str | None,
    trace_rate: float,
    supervise: bool,
    max_restarts: int,
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
        if trace_url:
            check_installed()
        settings = ServerSettings(
            cache=cache_bytes(cache),
            model_control=model_control,
            shared_memory=shared_memory,
            log_requests=log_format if log_requests else None,
            trace_url=trace_url,
            trace_rate=trace_rate,
        )
        server = EmbeddedServer(checked, endpoints, log=log, settings=settings)
        said = Output(as_json, log_format == JSON, verbose)
        code = run(server, timeout, said, Policy(max_restarts) if supervise else None)
    except HmerError as error:
        line = event("failed", "error", message=str(error)) if log_format == JSON else None
        click.echo(line or f"error: {error}", err=True)
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
    line = docker_line(repository.folder, endpoints, gpu=gpu, image=image)
    click.echo(json.dumps({"docker": line}) if as_json else line)


if __name__ == "__main__":
    main()
