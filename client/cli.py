"""``hmer-client``: recognise files, or ask a server how it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from client.api import (
    DEFAULT_CONCURRENCY,
    DEFAULT_TIMEOUT,
    HEALTH_TIMEOUT,
    Health,
    Recognizer,
)
from client.inputs import Source, expand
from client.output import JsonLines, Lines, Printer, Table, read_truths
from client.transport import DEFAULT_URL
from hmer.console import Failure, progress, sentences
from hmer.contract import RECOGNIZE
from hmer.errors import HmerError, ServerUnavailable, UnknownModel
from hmer.tables import render_table

_URL = click.option(
    "--url",
    default=DEFAULT_URL,
    show_default=True,
    envvar="HMER_URL",
    show_envvar=True,
    help="The server: HOST:PORT for gRPC, http://HOST:PORT for HTTP.",
)
_MODEL = click.option("--model", default=RECOGNIZE, show_default=True, help="The served model.")


@click.group()
def main() -> None:
    """Handwritten formulas in, LaTeX out, from a running server (hmer-serve)."""


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@_URL
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each input.")
@click.option("--table", is_flag=True, help="A table: picture, LaTeX, score, milliseconds.")
@click.option(
    "--expect",
    type=click.Path(path_type=Path),
    help="With --table: a samples.json that tells the true LaTeX; adds a column.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    help="Seconds for each input, waiting and further attempts included.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=DEFAULT_CONCURRENCY,
    show_default=True,
    help="Requests under way at the same time.",
)
@click.option(
    "--beam",
    type=click.IntRange(min=1),
    help="Follow so many hypotheses at a time; by default one (greedy decoding).",
)
@click.option(
    "--n-best",
    type=click.IntRange(min=1),
    help="Give so many answers, best first; at most the beam's width. Needs --beam.",
)
@_MODEL
@click.option(
    "--model-version",
    type=click.IntRange(min=1),
    help="The model's version; the server chooses by default.",
)
@sentences
def recognize(
    files: tuple[str, ...],
    url: str,
    as_json: bool,
    table: bool,
    expect: Path | None,
    timeout: float,
    concurrency: int,
    beam: int | None,
    n_best: int | None,
    model: str,
    model_version: int | None,
) -> None:
    """Print the LaTeX of handwritten formulas, in the order of the FILEs.

    A FILE is a picture (PNG, JPEG, WebP, TIFF, BMP), ink (InkML, JSON strokes), a folder of
    them, a glob, or - for standard input. An input that fails does not keep the others from
    being answered; the exit code is then 1.

    \b
    Examples:
      hmer-client recognize formula.png
      hmer-client recognize scans/ notes.inkml --json --url http://localhost:8000
      hmer-client recognize formula.png --beam 5 --n-best 3
    """
    if as_json and table:
        raise click.UsageError("--json and --table exclude each other.")
    if expect is not None and not table:
        raise click.UsageError("--expect needs --table.")
    if (n_best or 1) > (beam or 1):
        raise click.UsageError(f"--n-best {n_best} needs --beam {n_best} or more.")
    truths = None if expect is None else read_truths(expect)
    names = expand(files)
    printer: Printer
    if as_json:
        printer = JsonLines()
    elif table:
        printer = Table(truths)
    else:
        printer = Lines(named=len(names) > 1)
    sources: list[Source] = [_stdin() if name == "-" else name for name in names]
    failed = 0
    with Recognizer(url, model=model, version=model_version or "", timeout=timeout) as recognizer:
        answers = recognizer.recognize_many(sources, concurrency, beam=beam, n_best=n_best)
        # Lines that scroll past on the same terminal are progress enough.
        bar = len(names) > 1 and (table or not sys.stdout.isatty())
        outcomes = progress(answers, len(names), "recognize", bar)
        for name, outcome in zip(names, outcomes, strict=True):
            failed += isinstance(outcome, HmerError)
            printer.show(name, outcome)
    printer.finish()
    if failed and len(names) > 1:
        raise Failure(f"{failed} of {len(names)} inputs failed.")
    if failed:
        click.get_current_context().exit(1)


def _stdin() -> bytes:
    return sys.stdin.buffer.read()


@main.command()
@_URL
@_MODEL
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=HEALTH_TIMEOUT,
    show_default=True,
    help="Seconds for each question.",
)
@sentences
def health(url: str, model: str, as_json: bool, timeout: float) -> None:
    """Tell whether the server is live and ready, and what it serves.

    The exit code is 0 only if it is ready and serves the model.

    \b
    Example:
      hmer-client health --url localhost:8001
    """
    with Recognizer(url, model=model) as recognizer:
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


if __name__ == "__main__":
    main()
