"""Options that several commands share: where the server is, and how one is let in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from client.api import DEFAULT_TIMEOUT, Recognizer
from client.transport import DEFAULT_URL
from hmer.console import Failure
from hmer.contract import RECOGNIZE

_OPTIONS = (
    click.option(
        "--url",
        default=DEFAULT_URL,
        show_default=True,
        envvar="HMER_URL",
        show_envvar=True,
        help="The server: HOST:PORT for gRPC, http://HOST:PORT for HTTP, grpcs:// or https:// "
        "with TLS.",
    ),
    click.option(
        "--token",
        envvar="HMER_TOKEN",
        show_envvar=True,
        help="A bearer token. In the variable it stays out of the list of processes.",
    ),
    click.option(
        "--header", "headers", multiple=True, metavar="NAME:VALUE", help="One more header."
    ),
    click.option("--ca", type=click.Path(path_type=Path), help="TLS: trusted authorities, PEM."),
    click.option("--cert", type=click.Path(path_type=Path), help="TLS: own certificate, PEM."),
    click.option("--key", type=click.Path(path_type=Path), help="TLS: its key, PEM."),
)

model_option = click.option(
    "--model", default=RECOGNIZE, show_default=True, help="The served model."
)
version_option = click.option(
    "--model-version",
    type=click.IntRange(min=1),
    help="The model's version; the server chooses by default.",
)
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    help="Seconds for each input, waiting and further attempts included.",
)


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--beam``, ``--n-best``, ``--length-penalty`` and ``--max-tokens``."""
    for option in reversed(
        (
            click.option(
                "--beam",
                type=click.IntRange(min=1),
                help="Follow so many hypotheses at a time; by default one (greedy decoding).",
            ),
            click.option(
                "--n-best",
                type=click.IntRange(min=1),
                help="Give so many answers, best first; without --beam of a beam so wide.",
            ),
            click.option(
                "--length-penalty",
                type=click.FloatRange(min=0),
                help="Of a beam: how much long answers are favoured.",
            ),
            click.option("--max-tokens", type=click.IntRange(min=1), help="The longest answer."),
        )
    ):
        command = option(command)
    return command


class Interrupted(Failure):
    """Ctrl-C: the shell's own exit code for it."""

    exit_code = 130


def beam_for(beam: int | None, n_best: int | None) -> int | None:
    """The beam that is asked for, or the narrowest that has so many answers.

    Raises ``UsageError`` for a narrower one.
    """
    if n_best is None or n_best == 1:
        return beam
    if beam is not None and n_best > beam:
        raise click.UsageError(f"--n-best {n_best} needs --beam {n_best} or more.")
    return beam or n_best


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--url`` and what lets one in; the command gets ``connect``, and ``url``.

    ``connect(**options)`` is a ``Recognizer`` with the options of its constructor.
    """

    @functools.wraps(command)
    def wrapped(
        *,
        url: str,
        token: str | None,
        headers: tuple[str, ...],
        ca: Path | None,
        cert: Path | None,
        key: Path | None,
        **others: Any,
    ) -> Any:
        pairs = {}
        for header in headers:
            name, colon, value = header.partition(":")
            if not colon:
                raise click.UsageError(f"--header {name!r} has no colon. Write NAME:VALUE.")
            pairs[name.strip()] = value.strip()

        connect = functools.partial(
            Recognizer, url, headers=pairs, token=token or None, ca=ca, certificate=cert, key=key
        )
        return command(connect=connect, **others)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped
