"""LaTeX -> one line of readable text: ``\\frac{a+b}{2}`` is ``(a+b)/2``, ``x^{2}`` is ``x²``.

For reading, searching and speech; it is not meant to be parsed back.
"""

# ruff: noqa: RUF001 - the signs are meant
from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from hmer.latex_parser import Command, Group, LatexError, Node, Row, Script, Symbol, parse

_SYMBOLS = {
    "\\cdot": "·",
    "\\cdots": "⋯",
    "\\ldots": "…",
    "\\div": "÷",
    "\\times": "×",
    "\\pm": "±",
    "\\mp": "∓",
    "\\leq": "≤",
    "\\geq": "≥",
    "\\neq": "≠",
    "\\approx": "≈",
    "\\equiv": "≡",
    "\\in": "∈",
    "\\notin": "∉",
    "\\subset": "⊂",
    "\\subseteq": "⊆",
    "\\cup": "∪",
    "\\cap": "∩",
    "\\emptyset": "∅",
    "\\exists": "∃",
    "\\forall": "∀",
    "\\infty": "∞",
    "\\int": "∫",
    "\\oint": "∮",
    "\\sum": "∑",
    "\\prod": "∏",
    "\\partial": "∂",
    "\\nabla": "∇",
    "\\prime": "′",
    "\\rightarrow": "→",
    "\\leftarrow": "←",
    "\\Rightarrow": "⇒",
    "\\{": "{",
    "\\}": "}",
    "\\|": "‖",
    "\\%": "%",
    "\\phi": "φ",
}
_RAISED = dict(zip("0123456789+-=()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", strict=True)) | {"′": "′"}
_LOWERED = dict(zip("0123456789+-=()aeijkmnx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑᵢⱼₖₘₙₓ", strict=True))
_MARKS = {"\\hat": "\u0302", "\\bar": "\u0304", "\\vec": "\u20d7", "\\tilde": "\u0303"}
_LIMITS = frozenset({"\\lim", "\\max", "\\min", "\\sup", "\\inf"})


def to_text(tokens: Sequence[str]) -> str:
    """The formula in Unicode; the tokens as they are where they cannot be parsed."""
    try:
        return _row(parse(tokens)).strip()
    except LatexError:
        return " ".join(tokens)


def _row(row: Row) -> str:
    parts: list[str] = []
    for node in row:
        part, word = _node(node), _is_word(node)
        before = parts[-1][-1:] if parts else ""
        if word and before.isalnum():
            parts.append(" ")
        parts.append(part + " " if word else part)
    return "".join(parts)


def _is_word(node: Node) -> bool:
    """Whether the node is a function's name: sin, lim with its limit."""
    if isinstance(node, Script) and node.base is not None:
        return _is_word(node.base)
    if not isinstance(node, Symbol) or not node.token.startswith("\\"):
        return False
    return len(_symbol(node.token)) > 1


def _symbol(token: str) -> str:
    if token in _SYMBOLS:
        return _SYMBOLS[token]
    if not token.startswith("\\"):
        return token
    name = token[1:]
    greek = name.lower().replace("lambda", "lamda")  # Unicode's spelling
    size = "CAPITAL" if name[:1].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {size} LETTER {greek.upper()}")
    except KeyError:
        return name  # sin, lim, log


def _node(node: Node) -> str:
    match node:
        case Symbol(token):
            return _symbol(token)
        case Group(row):
            return _row(row)
        case Command("\\frac", (top, bottom)):
            return f"{_one(top)}/{_one(bottom)}"
        case Command("\\binom", (top, bottom)):
            return f"C({_row(top)}, {_row(bottom)})"
        case Command("\\sqrt", (inner,), index):
            return f"{'' if index is None else _script(index, _RAISED, '')}√{_one(inner)}"
        case Command(name, arguments, _):
            inside = "".join(map(_row, arguments))
            mark = _MARKS.get(name)
            return inside + mark if mark and len(inside) == 1 else f"{name[1:]}({inside})"
        case Script(base, sub, sup):
            text = "" if base is None else _node(base)
            if isinstance(base, Symbol) and base.token in _LIMITS and sub is not None:
                return f"{text}({_row(sub)})"
            lower = "" if sub is None else _script(sub, _LOWERED, "_")
            return text + lower + ("" if sup is None else _script(sup, _RAISED, "^"))


def _script(row: Row, small: dict[str, str], mark: str) -> str:
    """In small letters where Unicode has them all, else after ``mark``."""
    text = _row(row)
    if text and all(letter in small for letter in text):
        return "".join(small[letter] for letter in text)
    return mark + _one(row)


def _one(row: Row) -> str:
    """In brackets unless it is one thing: a number, a letter, a root."""
    text = _row(row).strip()
    alone = len(row) == 1 and not (isinstance(row[0], Command) and row[0].name == "\\frac")
    return text if alone or text.isdigit() else f"({text})"
