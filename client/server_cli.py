"""``hmer-client health``, ``models`` and ``metrics``: what a server says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from client.api import HEALTH_TIMEOUT, Recognizer
from client.metrics import METRICS_PORT, render
from client.options import model_option, server_options
from client.ordered import attempt
from client.results import Health
from client.transport import ModelInfo, TensorInfo
from hmer.console import Failure, sentences
from hmer.errors import HmerError, ServerUnavailable, UnknownModel
from hmer.tables import render_table

_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
_TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=HEALTH_TIMEOUT,
    show_default=True,
    help="Seconds for each question.",
)


@click.command()
@server_options
@model_option
@_JSON
@_TIMEOUT
@sentences
def health(connect: Callable[..., Recognizer], model: str, as_json: bool, timeout: float) -> None:
    """Tell whether the server is live and ready, and what it serves.

    The exit code is 0 only if it is ready and serves the model.

    \b
    Example:
      hmer-client health --url localhost:8001
    """
    with connect(model=model) as recognizer:
        state = recognizer.health(timeout)
    error = state.error
    if error is None and not state.serving:
        error = _not_serving(state)
    if as_json:
        click.echo(json.dumps(_as_document(state, error), indent=1))
    elif state.live:
        click.echo(_as_text(state))
    if error is not None:
        raise Failure(str(error))


def _not_serving(state: Health) -> HmerError:
    if not state.ready:
        return ServerUnavailable(
            f"The server at {state.url} is not ready: a model is still loading, or failed to load. "
            "The states above and its log say which."
        )
    return UnknownModel(f"The server at {state.url} has no model {state.model!r} that is ready.")


def _as_document(state: Health, error: HmerError | None) -> dict[str, object]:
    document: dict[str, object] = {
        "url": state.url,
        "live": state.live,
        "ready": state.ready,
        "serving": state.serving,
        "server": state.server,
        "models": [vars(model) for model in state.models],
    }
    if error is not None:
        document["error"] = error.to_dict()
    return document


def _as_text(state: Health) -> str:
    lines = [
        f"{state.server or 'server'} at {state.url}: live, "
        f"{'ready' if state.ready else 'not ready'}"
    ]
    if state.models:
        rows = [(model.name, model.version, model.state, model.reason) for model in state.models]
        lines.append(render_table(("model", "version", "state", "reason"), rows))
    return "\n".join(lines)


@click.command()
@server_options
@_JSON
@_TIMEOUT
@sentences
def models(connect: Callable[..., Recognizer], as_json: bool, timeout: float) -> None:
    """List the models that the server has: versions, states, and the tensors of each.

    \b
    Example:
      hmer-client models --url http://localhost:8000
    """
    documents: list[dict[str, Any]] = []
    with connect() as recognizer:
        state = recognizer.health(timeout)
        if state.error is not None:
            raise state.error
        for model in state.models:
            info = None
            if model.state == "READY":
                info = attempt(recognizer.model_info, model.name, model.version, timeout)
            documents.append(vars(model) | _tensors(info))
    if as_json:
        click.echo(json.dumps({"url": state.url, "models": documents}, indent=1))
        return
    rows = []
    for document in documents:
        told = (document["name"], document["version"], document["state"])
        rows.append((*told, document["reason"] or f"{document['takes']} -> {document['gives']}"))
    titles = ("model", "version", "state", "takes -> gives, or why it is not ready")
    click.echo(render_table(titles, rows))


def _tensors(info: ModelInfo | HmerError | None) -> dict[str, Any]:
    if not isinstance(info, ModelInfo):
        return {"takes": "", "gives": "", "inputs": [], "outputs": []}
    return {
        "takes": ", ".join(map(_short, info.inputs)),
        "gives": ", ".join(map(_short, info.outputs)),
        "inputs": [vars(tensor) for tensor in info.inputs],
        "outputs": [vars(tensor) for tensor in info.outputs],
    }


def _short(tensor: TensorInfo) -> str:
    return f"{tensor.name} {tensor.datatype.lower()}[{'x'.join(map(str, tensor.shape))}]"


@click.command()
@server_options
@click.option(
    "--metrics-url",
    envvar="HMER_METRICS_URL",
    show_envvar=True,
    help=f"The metrics page, http://HOST:PORT/metrics; by default at port {METRICS_PORT} of the "
    "server's host.",
)
@_JSON
@_TIMEOUT
@sentences
def metrics(
    connect: Callable[..., Recognizer], metrics_url: str | None, as_json: bool, timeout: float
) -> None:
    """Show the server's own figures: requests, times, slots, queue, processor, memory.

    \b
    Example:
      hmer-client metrics --metrics-url http://localhost:8002/metrics
    """
    with connect() as recognizer:
        figures, address = recognizer.metrics(metrics_url, timeout)
    if as_json:
        samples = [vars(sample) for sample in figures.samples]
        click.echo(json.dumps({"url": address, "metrics": samples}, indent=1))
    else:
        click.echo(f"{address}\n\n{render(figures)}")
