"""An answer as a piece of HTML, for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from hmer.mathml import math_or_source

if TYPE_CHECKING:
    from hmer.recognition import Recognition


def table(answer: Recognition) -> str:
    """The formula, its LaTeX, its confidence, and the alternatives, best first."""
    told = "unknown" if answer.confidence is None else f"{answer.confidence:.0%}"
    rows = [_row("confidence " + told, answer.latex)]
    rows += [_row(f"score {other.score:.3g}", other.latex) for other in answer.alternatives]
    return f"<table>{''.join(rows)}</table>"


def _row(note: str, latex: str) -> str:
    return (
        f"<tr><td>{math_or_source(latex)}</td><td><code>{escape(latex)}</code></td>"
        f"<td>{escape(note)}</td></tr>"
    )
