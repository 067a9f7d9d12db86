"""The answers of ``hmer-client recognize`` as lines, JSON lines or a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import click

from client.inputs import describe
from hmer.errors import BadParameter, HmerError, MissingInput
from hmer.latex import LatexError, canonical, tokenize
from hmer.recognizer import Recognition


class Printer(Protocol):
    """Takes the outcomes in the order of the inputs."""

    def show(self, name: str, outcome: Recognition | HmerError) -> None:
        """One input's outcome."""
        ...

    def finish(self) -> None:
        """All outcomes have been shown."""
        ...


def milliseconds(answer: Recognition) -> float:
    """The time of the request, seen from the client."""
    return round(answer.timings["request"], 1)


def complain(name: str, error: HmerError) -> None:
    """``error: SENTENCE`` on stderr, with the input's name in it."""
    click.echo(f"error: {describe(click.format_filename(name), error)}", err=True)


class Lines:
    """``NAME<TAB>LATEX``, or only the LaTeX of a single input; errors go to stderr."""

    def __init__(self, named: bool) -> None:
        self._named = named

    def show(self, name: str, outcome: Recognition | HmerError) -> None:
        """See ``Printer``."""
        if isinstance(outcome, HmerError):
            complain(name, outcome)
        else:
            prefix = f"{click.format_filename(name)}\t" if self._named else ""
            click.echo(prefix + outcome.latex)

    def finish(self) -> None:
        """See ``Printer``."""


class JsonLines:
    """One JSON object a line, for errors too."""

    def show(self, name: str, outcome: Recognition | HmerError) -> None:
        """See ``Printer``."""
        click.echo(json.dumps(as_object(name, outcome)))

    def finish(self) -> None:
        """See ``Printer``."""


def as_object(name: str, outcome: Recognition | HmerError) -> dict[str, Any]:
    """The JSON object of one input; ``ms`` is the request's time, seen from the client."""
    if isinstance(outcome, HmerError):
        return {"input": name, "error": outcome.to_dict()}
    return {
        "input": name,
        "latex": outcome.latex,
        "tokens": list(outcome.tokens),
        "score": round(outcome.score, 6),
        "alternatives": [
            {"latex": other.latex, "tokens": list(other.tokens), "score": round(other.score, 6)}
            for other in outcome.alternatives
        ],
        "ms": milliseconds(outcome),
    }


class Table:
    """Aligned columns, printed at the end; with ``expected`` LaTeX by file name, a verdict."""

    def __init__(self, expected: dict[str, str] | None = None) -> None:
        self._expected = expected
        self._rows: list[tuple[str, ...]] = []
        self._known = self._matching = 0

    def show(self, name: str, outcome: Recognition | HmerError) -> None:
        """See ``Printer``."""
        if isinstance(outcome, HmerError):
            complain(name, outcome)
            latex, score, ms = f"({outcome.code})", "", ""
        else:
            latex, score = outcome.latex, f"{outcome.score:.3f}"
            ms = f"{milliseconds(outcome):.1f}"
        row = (click.format_filename(name), latex, score, ms)
        if self._expected is not None:
            row += (self._verdict(name, outcome),)
        self._rows.append(row)

    def finish(self) -> None:
        """See ``Printer``."""
        titles: tuple[str, ...] = ("picture", "LaTeX", "score", "ms")
        if self._expected is not None:
            titles += ("truth",)
        click.echo(render_table(titles, self._rows, right={2, 3}))
        if self._expected is not None:
            click.echo(f"{self._matching} of {self._known} equal the truth.")

    def _verdict(self, name: str, outcome: Recognition | HmerError) -> str:
        truth = (self._expected or {}).get(Path(name).name)
        if truth is None:
            return ""
        self._known += 1
        if isinstance(outcome, Recognition) and same_formula(outcome.tokens, tokenize(truth)):
            self._matching += 1
            return "equal"
        return truth


def same_formula(a: tuple[str, ...] | list[str], b: tuple[str, ...] | list[str]) -> bool:
    """Whether two token sequences have one canonical form; what cannot be parsed equals nothing."""
    try:
        return canonical(a) == canonical(b)
    except LatexError:
        return False


def render_table(
    titles: tuple[str, ...],
    rows: list[tuple[str, ...]],
    right: set[int] = frozenset(),  # type: ignore[assignment]
) -> str:
    """Rows of text as aligned columns; those whose index is in ``right`` end flush."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = []
    for row in (titles, tuple("-" * width for width in widths), *rows):
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def read_expected(path: Path) -> dict[str, str]:
    """LaTeX by file name from a ``samples.json``. Raises ``MissingInput`` or ``BadParameter``."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingInput(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise BadParameter(f"{path} cannot be read as JSON: {error}.") from None
    raise NotImplementedError(document)
