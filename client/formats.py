"""How a formula is written: LaTeX, MathML or text."""

from __future__ import annotations

from client.plain_text import to_text
from hmer.errors import BadParameter
from hmer.mathml import to_mathml
from hmer.recognition import Alternative

LATEX, MATHML, TEXT = "latex", "mathml", "text"
FORMATS = (LATEX, MATHML, TEXT)


def written(answer: Alternative, format: str) -> str:
    """``answer`` in one of ``FORMATS``.

    MathML raises ``MissingDependency`` without latex2mathml, ``BadParameter`` for an answer that
    is no formula.
    """
    if format == MATHML:
        return to_mathml(answer.latex)
    return to_text(answer.tokens) if format == TEXT else answer.latex


def written_or_latex(answer: Alternative, format: str) -> str:
    """``answer`` in ``format``, or its LaTeX where that fails: alternatives may be nonsense."""
    try:
        return written(answer, format)
    except BadParameter:
        return answer.latex
