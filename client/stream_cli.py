"""``hmer-client stream``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import click

from client.api import Recognizer
from client.items import items_of
from client.options import (
    Interrupted,
    beam_for,
    model_option,
    search_options,
    server_options,
    timeout_option,
    version_option,
)
from client.output import as_object
from hmer.console import sentences
from hmer.latex import to_latex
from hmer.recognition import Partial, Recognition


@click.command()
@click.argument("source", metavar="INPUT")
@server_options
@click.option("--json", "as_json", is_flag=True, help="JSON lines: tokens, then the answer.")
@search_options
@timeout_option
@model_option
@version_option
@sentences
def stream(
    connect: Callable[..., Recognizer],
    source: str,
    as_json: bool,
    beam: int | None,
    n_best: int | None,
    length_penalty: float | None,
    max_tokens: int | None,
    timeout: float,
    model: str,
    model_version: int | None,
) -> None:
    """Print the LaTeX of INPUT token by token, as it is decoded.

    INPUT is one input as of recognize: a file, FILE#page=2, http(s)://..., or - for standard
    input. The tokens of a beam are known only at its end.

    \b
    Example:
      hmer-client stream client/samples/quadratic.jpg
    """
    beam = beam_for(beam, n_best)
    try:
        items = items_of([source])
        if len(items) != 1:
            raise click.UsageError(f"{source} holds {len(items)} inputs, and a stream is of one.")
        item = items[0]
        with connect(model=model, version=model_version or "", timeout=timeout) as recognizer:
            printer = _JsonTokens() if as_json else _Growing()
            parts = recognizer.stream(
                item.read(),
                beam=beam,
                n_best=n_best,
                length_penalty=length_penalty,
                max_tokens=max_tokens,
            )
            try:
                for part in parts:
                    printer.show(item.name, part)
            finally:
                printer.finish()
    except KeyboardInterrupt:
        raise Interrupted("Interrupted before the formula was complete.") from None


class _Growing:
    """One line of LaTeX that grows."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, name: str, part: Partial | Recognition) -> None:
        """Print what is new."""
        latex = to_latex(part.tokens)
        if not latex.startswith(self._shown):  # a last answer that is another one
            click.echo()
            self._shown = ""
        click.echo(latex[len(self._shown) :], nl=False)
        self._shown = latex

    def finish(self) -> None:
        """End the line, also where an error follows."""
        if self._shown:
            click.echo()
            sys.stdout.flush()


class _JsonTokens:
    """``{"index", "token", "score"}`` for each token, then the object that ``recognize`` prints."""

    def show(self, name: str, part: Partial | Recognition) -> None:
        """Print one line."""
        if isinstance(part, Recognition):
            click.echo(json.dumps(as_object(name, part)))
            return
        document = {
            "index": len(part.tokens) - 1,
            "token": part.tokens[-1],
            "score": part.scores[-1],
        }
        click.echo(json.dumps(document))

    def finish(self) -> None:
        """Nothing is left."""
