"""What the command lines share: errors as one sentence, progress on a terminal only.

Only the commands import it; the core itself needs neither click nor tqdm.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, ParamSpec, TypeVar

import click

from hmer.errors import HmerError

P = ParamSpec("P")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
R = TypeVar("R")
T = TypeVar("T")


class Failure(click.ClickException):
    """Ends a command with ``error: SENTENCE`` on stderr and exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the sentence."""
        click.echo(f"error: {self.message}", file=file or sys.stderr)


def block(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order of ``--help``."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def sentences(command: Callable[P, R]) -> Callable[P, R]:
    """Turn an ``HmerError`` that ``command`` raises into a ``Failure``: no tracebacks."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except HmerError as error:
            raise Failure(str(error)) from error

    return wrapped


def progress(items: Iterable[T], total: int, label: str, wanted: bool = True) -> Iterator[T]:
    """``items``, with a bar on stderr if it is ``wanted`` and stderr is a terminal."""
    if not (wanted and sys.stderr.isatty()):
        return iter(items)
    from tqdm import tqdm  # costs a quarter of the start-up time, for a terminal only

    return iter(tqdm(items, desc=label, total=total, file=sys.stderr))
