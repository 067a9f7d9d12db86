r"""LaTeX <-> tokens, the canonical form of a label, and validity.

The canonical form is what the network is trained on and scored against: no ``\limits``, no
redundant braces, every argument of ``_ ^ \frac \sqrt`` in braces, ``_`` before ``^``, and ``'``
written ``^ { \prime }``. One formula has one canonical form, so comparing tokens compares formulas.

>>> " ".join(canonical(tokenize(r"$\sum\limits^n_1 {f'}(k)$")))
'\\sum _ { 1 } ^ { n } f ^ { \\prime } ( k )'
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from hmer.latex_parser import (
    Command,
    Group,
    LatexError,
    Node,
    Row,
    Script,
    Symbol,
    parse,
)

__all__ = [
    "LatexError",
    "canonical",
    "canonical_or_same",
    "is_valid",
    "to_latex",
    "tokenize",
    "write_row",
]

_TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|\S", re.DOTALL)

_SYNONYMS = {
    "\\le": "\\leq",
    "\\ge": "\\geq",
    "\\ne": "\\neq",
    "\\lt": "<",
    "\\gt": ">",
    "\\to": "\\rightarrow",
    "\\dots": "\\ldots",
    "\\lbrack": "[",
    "\\rbrack": "]",
    "\\lbrace": "\\{",
    "\\rbrace": "\\}",
    "\\vert": "|",
    "\\mid": "|",
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
}

_DELIMITER = frozenset({"\\left", "\\right", "\\middle"})
"""They size the delimiter that follows; it stays, unless it is the invisible ``.``."""

_DROPPED = (
    frozenset({"$", "~", "\\(", "\\)", "\\[", "\\]"})
    | frozenset({"\\,", "\\:", "\\;", "\\!", "\\ ", "\\\n", "\\\t", "\\/"})
    | frozenset({"\\" + size + side for size in ("big", "Big", "bigg", "Bigg") for side in "lrm"})
    | frozenset({"\\big", "\\Big", "\\bigg", "\\Bigg"})
    | frozenset({"\\quad", "\\qquad", "\\displaystyle", "\\textstyle", "\\scriptstyle"})
    | frozenset({"\\mathrm", "\\mathit", "\\mathbf", "\\mathsf", "\\mathnormal", "\\rm", "\\it"})
    | frozenset({"\\mbox", "\\text", "\\textrm", "\\hbox", "\\operatorname", "\\operatorname*"})
)
"""Spacing, sizes and fonts: handwriting doesn't show them. A font's braces become redundant."""


def tokenize(latex: str) -> list[str]:
    r"""Tokens of raw LaTeX as in CROHME: commands, braces and single characters.

    Drops ``$``, spaces, ``\left``, ``\right``, sizes and fonts, and replaces synonyms
    (``\to`` by ``\rightarrow``). Structure is left alone: see ``canonical``. Never raises.
    """
    tokens: list[str] = []
    after_delimiter = False
    for token in _TOKEN.findall(latex):
        if token in _DELIMITER:
            after_delimiter = True
            continue
        if token not in _DROPPED and not (after_delimiter and token == "."):
            tokens.append(_SYNONYMS.get(token, token))
        after_delimiter = False
    return tokens


def canonical(tokens: Sequence[str]) -> list[str]:
    """The canonical form of a tokenised formula. Raises ``LatexError`` if it cannot be parsed."""
    return write_row(parse(tokens))


def write_row(row: Row) -> list[str]:
    """The canonical tokens of a tree."""
    return list(_write_row(row))


def canonical_or_same(tokens: Sequence[str]) -> list[str]:
    """The canonical form, or the tokens as they are where a prediction cannot be parsed."""
    try:
        return canonical(tokens)
    except LatexError:
        return list(tokens)


def is_valid(tokens: Sequence[str]) -> bool:
    """Whether the braces of a formula balance, arguments are there, no base has a script twice."""
    try:
        return bool(parse(tokens))
    except LatexError:
        return False


def to_latex(tokens: Iterable[str]) -> str:
    r"""Compact LaTeX: spaces only between a command and a letter (``2\pi r``)."""
    parts: list[str] = []
    after_command = False
    for token in tokens:
        if after_command and token[0].isalpha():
            parts.append(" ")
        parts.append(token)
        after_command = token[0] == "\\" and token[-1].isalpha()
    return "".join(parts)


def _write_row(row: Row) -> Iterator[str]:
    for position, node in enumerate(row):
        if position and isinstance(node, Script) and node.base is None:
            yield from ("{", "}")  # or the script would belong to what comes before
        yield from _write(node)


def _write_argument(row: Row) -> Iterator[str]:
    yield "{"
    yield from _write_row(row)
    yield "}"


def _write(node: Node) -> Iterator[str]:
    match node:
        case Symbol(token):
            yield token
        case Group(row):
            yield from _write_argument(row)
        case Command(name, arguments, index):
            yield name
            if index is not None:
                written = list(_write_row(index))
                # LaTeX ends the index at the first ], wherever that came from
                yield from (
                    ("[", "{", *written, "}", "]") if "]" in written else ("[", *written, "]")
                )
            for argument in arguments:
                yield from _write_argument(argument)
        case Script(base, sub, sup):
            if base is not None:
                yield from _write(base)
            for mark, script in (("_", sub), ("^", sup)):
                if script is not None:
                    yield mark
                    yield from _write_argument(script)
