"""The answers of ``hmer-client recognize`` as lines, JSON lines, CSV or a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click

from client.formats import LATEX, MATHML, TEXT, written, written_or_latex
from client.inputs import describe
from hmer.errors import BadParameter, HmerError, MissingInput
from hmer.latex import LatexError, canonical, tokenize
from hmer.recognizer import Recognition
from hmer.tables import render_table


@dataclass(frozen=True)
class Style:
    """What printers show of an answer.

    ``format``: one of ``client.formats.FORMATS``. ``least``: the confidence below which an answer
    is marked, 0 to 1; one without a confidence is below any.
    """

    format: str = LATEX
    least: float | None = None

    def is_low(self, answer: Recognition) -> bool:
        """Whether the answer is to be marked."""
        return self.least is not None and (
            answer.confidence is None or answer.confidence < self.least
        )


def mark(answer: Recognition) -> str:
    """The words that mark an answer of low confidence."""
    told = "unknown" if answer.confidence is None else f"{answer.confidence:.2f}"
    return f"low confidence: {told}"


class Printer(Protocol):
    """Takes the outcomes in the order of the inputs."""

    def show(self, name: str, outcome: Recognition | HmerError) -> None:
        """One input's outcome."""
        ...

    def finish(self) -> None:
        """All outcomes have been shown, or no more will come."""
        ...


def milliseconds(answer: Recognition) -> float:
    """The time of the request, seen from the client."""
    return round(answer.timings["request"], 1)


def complain(name: str, error: HmerError) -> None:
    """``error: SENTENCE`` on stderr, with the input's name in it."""
    click.echo(f"error: {describe(click.format_filename(name), error)}", err=True)


class Lines:
    """``NAME<TAB>LATEX``, or only the LaTeX of a single input; errors go to stderr.

    Alternatives follow on lines of their own: ``<TAB>SCORE<TAB>LATEX``. The mark of a low
    confidence is a last field, or of a single input a line on stderr.
    """

    def __init__(self, named: bool, style: Style = Style()) -> None:
        """``named``: whether a line begins with the input's name."""
        self._named, self._style = named, style

    def show(self, name: str, outcome: Recognition | HmerError) -> None:
        """See ``Printer``."""
        if isinstance(outcome, HmerError):
            complain(name, outcome)
            return
        line = written(outcome, self._style.format)
        if self._named:
            line = f"{click.format_filename(name)}\t{line}"
        low = self._style.is_low(outcome)
        click.echo(f"{line}\t{mark(outcome)}" if low and self._named else line)
        if low and not self._named:
            click.echo(mark(outcome), err=True)
        for other in outcome.alternatives:
            click.echo(f"\t{other.score:.3f}\t{written_or_latex(other, self._style.format)}")

    def finish(self) -> None:
        """See ``Printer``."""


class JsonLines:
    """One JSON object a line, for errors too."""

    def __init__(self, style: Style = Style()) -> None:
        self._style = style

    def show(self, name: str, outcome: Recognition | HmerError) -> None:
        """See ``Printer``."""
        document = as_object(name, outcome)
        if isinstance(outcome, Recognition):
            if self._style.format != LATEX:
                document[self._style.format] = written(outcome, self._style.format)
            if self._style.least is not None:
                document["low_confidence"] = self._style.is_low(outcome)
        click.echo(json.dumps(document))

    def finish(self) -> None:
        """See ``Printer``."""


def as_object(name: str, outcome: Recognition | HmerError) -> dict[str, Any]:
    """The JSON object of one input; ``ms`` is the request's time, seen from the client."""
    if isinstance(outcome, HmerError):
        return {"input": name, "error": outcome.to_dict(), **_named(outcome)}
    return {
        "input": name,
        "latex": outcome.latex,
        "tokens": list(outcome.tokens),
        "score": outcome.score,
        "confidence": outcome.confidence,
        "alternatives": [other.to_dict() for other in outcome.alternatives],
        "ms": milliseconds(outcome),
        **_named(outcome),
    }


def _named(outcome: Recognition | HmerError) -> dict[str, str]:
    """What the server's log calls the request, of one that was sent."""
    return {"request_id": outcome.request_id} if outcome.request_id else {}


class Csv:
    """Comma-separated values with a title line; a row for each answer and alternative."""

    TITLES = ("input", "rank", "formula", "score", "confidence", "low_confidence", "ms", "error")

    def __init__(self, style: Style = Style()) -> None:
        self._style = style
        self._write(self.TITLES)

    def show(self, name: str, outcome: Recognition | HmerError) -> None:
        """See ``Printer``."""
        if isinstance(outcome, HmerError):
            self._write((name, "", "", "", "", "", "", f"{outcome.code}: {outcome}"))
            return
        style = self._style
        confidence = "" if outcome.confidence is None else f"{outcome.confidence:.6g}"
        low = "" if style.least is None else ("yes" if style.is_low(outcome) else "no")
        formula, score = written(outcome, style.format), f"{outcome.score:.6g}"
        self._write((name, "1", formula, score, confidence, low, f"{milliseconds(outcome)}", ""))
        for rank, other in enumerate(outcome.alternatives, 2):
            formula = written_or_latex(other, style.format)
            self._write((name, f"{rank}", formula, f"{other.score:.6g}", "", "", "", ""))

    @staticmethod
    def _write(cells: Sequence[str]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        click.echo(line.getvalue(), nl=False)

    def finish(self) -> None:
        """See ``Printer``."""


class Table:
    """Aligned columns, printed at the end; with true LaTeX by file name, a verdict."""

    def __init__(self, truths: dict[str, str] | None = None, style: Style = Style()) -> None:
        """``truths``: what ``read_truths`` gives, or ``None`` for no such column."""
        self._truths, self._style = truths, style
        self._rows: list[tuple[str, ...]] = []
        self._known = self._equal = 0

    def show(self, name: str, outcome: Recognition | HmerError) -> None:
        """See ``Printer``."""
        cells = [click.format_filename(name)]
        if isinstance(outcome, HmerError):
            complain(name, outcome)
            cells += [f"({outcome.code})", "", ""]
        else:
            formula = written(outcome, self._style.format)
            if self._style.is_low(outcome):
                formula += f"  ({mark(outcome)})"
            cells += [formula, f"{outcome.score:.3f}", f"{milliseconds(outcome):.1f}"]
        if self._truths is not None:
            cells.append(self._verdict(self._truths.get(Path(name).name), outcome))
        self._rows.append(tuple(cells))
        if isinstance(outcome, Recognition):
            empty = [""] * (len(cells) - 3)
            for other in outcome.alternatives:
                formula = written_or_latex(other, self._style.format)
                self._rows.append(("", formula, f"{other.score:.3f}", *empty))

    def finish(self) -> None:
        """See ``Printer``."""
        formula = {LATEX: "LaTeX", MATHML: "MathML", TEXT: "text"}[self._style.format]
        titles = ["picture", formula, "score", "ms"]
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
