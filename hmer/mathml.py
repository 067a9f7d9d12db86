"""LaTeX -> MathML, which browsers draw by themselves; by latex2mathml."""

from __future__ import annotations

import functools
from html import escape, unescape
from xml.etree.ElementTree import Element, tostring

from hmer.errors import BadParameter, MissingDependency

# Of what the converter writes; above all no links.
_NAMES = """
    xmlns display stretchy fence form linethickness mathvariant accent accentunder displaystyle
    scriptlevel largeop movablelimits separator columnalign rowspacing columnspacing
    width height depth lspace rspace minsize maxsize
"""
ATTRIBUTES = frozenset(_NAMES.split())


@functools.lru_cache(maxsize=4096)
def to_mathml(latex: str, display: str = "block") -> str:
    """The MathML of ``latex``; ``display`` is "block" or "inline".

    Raises ``MissingDependency`` without latex2mathml, ``BadParameter`` for what is no formula.
    """
    try:
        from latex2mathml.converter import convert_to_element
    except ImportError as error:
        raise MissingDependency(
            f"MathML needs latex2mathml ({error}): pip install 'hmer[report]'."
        ) from error
    try:
        element: Element = convert_to_element(latex, display=display)
    except Exception as error:  # an answer may be any nonsense, and the converter raises anything
        raise BadParameter(
            f"{latex!r} cannot be written in MathML ({type(error).__name__})."
        ) from None
    for part in element.iter():
        # Its text has entities in it, and its own writer would not escape "<".
        part.text = unescape(part.text) if part.text else part.text
        for name in [name for name in part.attrib if name not in ATTRIBUTES]:
            del part.attrib[name]
    return tostring(element, encoding="unicode")


def math_or_source(latex: str, display: str = "block") -> str:
    """MathML, or the escaped source in ``<code>`` where there is none."""
    try:
        return to_mathml(latex, display)
    except (MissingDependency, BadParameter):
        return f"<code>{escape(latex)}</code>"
