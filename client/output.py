"""The answers of ``hmer-client recognize`` as lines, JSON lines or a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import click

from client.inputs import describe
from hmer.errors import BadParameter, HmerError, MissingInput
from hmer.latex import LatexError, canonical, tokenize
from hmer.recognizer import Recognition
from hmer.tables import render_table


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
    """``NAME<TAB>LATEX``, or only the LaTeX of a single input; errors go to stderr.

    Alternatives follow on lines of their own: ``<TAB>SCORE<TAB>LATEX``.
    """

    def __init__(self, named: bool) -> None:
        """``named``: whether a line begins with the input's name."""
        self._named = named

    def show(self, name: str, outcome: Recognition | HmerError) -> None:
        """See ``Printer``."""
        if isinstance(outcome, HmerError):
            complain(name, outcome)
        else:
            prefix = f"{click.format_filename(name)}\t" if self._named else ""
            click.echo(prefix + outcome.latex)
            for other in outcome.alternatives:
                click.echo(f"\t{other.score:.3f}\t{other.latex}")

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
        "score": outcome.score,
        "confidence": outcome.confidence,
        "alternatives": [other.to_dict() for other in outcome.alternatives],
        "ms": milliseconds(outcome),
    }


class Table:
    """Aligned columns, printed at the end; with true LaTeX by file name, a verdict."""

    def __init__(self, truths: dict[str, str] | None = None) -> None:
        """``truths``: what ``read_truths`` gives, or ``None`` for no such column."""
        self._truths = truths
        self._rows: list[tuple[str, ...]] = []
        self._known = self._equal = 0

    def show(self, name: str, outcome: Recognition | HmerError) -> None:
        """See ``Printer``."""
        cells = [click.format_filename(name)]
        if isinstance(outcome, HmerError):
            complain(name, outcome)
            cells += [f"({outcome.code})", "", ""]
        else:
            cells += [outcome.latex, f"{outcome.score:.3f}", f"{milliseconds(outcome):.1f}"]
        if self._truths is not None:
            cells.append(self._verdict(self._truths.get(Path(name).name), outcome))
        self._rows.append(tuple(cells))
        if isinstance(outcome, Recognition):
            empty = [""] * (len(cells) - 3)
            for other in outcome.alternatives:
                self._rows.append(("", other.latex, f"{other.score:.3f}", *empty))

    def finish(self) -> None:
        """See ``Printer``."""
        titles = ["picture", "LaTeX", "score", "ms"]
        if self._truths is not None:
            titles.append("truth")
        click.echo(render_table(titles, self._rows, right={2, 3}))
        if self._truths is not None:
            click.echo(f"{self._equal} of {self._known} equal the truth.")

    def _verdict(self, truth: str | None, outcome: Recognition | HmerError) -> str:
        """ "equal", the truth where the outcome is another, or "" where none is known."""
        if truth is None:
            return ""
        self._known += 1
        if isinstance(outcome, Recognition) and same_formula(outcome.tokens, tokenize(truth)):
            self._equal += 1
            return "equal"
        return truth


def same_formula(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether two token sequences have one canonical form; one that can't be parsed has none."""
    try:
        return canonical(a) == canonical(b)
    except LatexError:
        return False


def read_truths(path: Path) -> dict[str, str]:
    """LaTeX by file name: ``[{"files": [NAME, ...], "latex": ...}, ...]``, as the samples have it.

    Raises ``MissingInput`` or ``BadParameter``.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(entry["latex"]) for entry in document for name in entry["files"]}
    except FileNotFoundError:
        raise MissingInput(f"There is no file {path}.") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadParameter(
            f"{path} does not tell true LaTeX by file name ({type(error).__name__}: {error}). "
            "Give a file such as samples.json, which lies with the samples."
        ) from None
