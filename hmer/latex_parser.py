"""Tokens -> a small tree of a formula: rows of symbols, commands and scripts.

The tree is what a reader sees: braces that only group are gone, ``'`` is a superscript
``\\prime``, ``\\limits`` is dropped and the order of ``_`` and ``^`` no longer matters. So
two spellings of one formula give equal trees, and the canonical LaTeX is the tree written out
(``hmer.latex.canonical``).

::

    Row       a tuple of nodes
    Node      Symbol(token)                     one token
              Command(name, arguments, index)   \\frac, \\sqrt (index: the n of an n-th root), ...
              Script(base, sub, sup)            base None: a script of nothing, {}^2
              Group(row)                        braces that cannot be left out: {x^2}^3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from hmer.errors import InputError

ARITY = {"\\frac": 2, "\\sqrt": 1, "\\binom": 2} | dict.fromkeys(
    (
        "\\overline",
        "\\underline",
        "\\hat",
        "\\bar",
        "\\vec",
        "\\tilde",
        "\\dot",
        "\\ddot",
    ),
    1,
)
"""Commands that take arguments and how many; only ``\\frac`` and ``\\sqrt`` occur in CROHME."""

MAX_DEPTH = 100
"""Deepest nesting that is parsed: far above any formula, below Python's recursion limit."""

PRIME = "\\prime"
_SCRIPTS = frozenset({"_", "^", "'"})
_IGNORED = frozenset({"\\limits", "\\nolimits"})
_UNSUPPORTED = frozenset({"\\begin", "\\end", "&", "\\\\", "\\over"})


class LatexError(InputError):
    """LaTeX that cannot be parsed: a brace, an argument or a base is missing, ..."""

    code = "bad_latex"


@dataclass(frozen=True)
class Symbol:
    """One token that is a symbol of its own."""

    token: str


@dataclass(frozen=True)
class Command:
    """A command with its arguments; ``index`` is the n of an n-th root."""

    name: str
    arguments: tuple[Row, ...]
    index: Row | None = None


@dataclass(frozen=True)
class Script:
    """A base with a subscript, a superscript, or both."""

    base: Node | None
    sub: Row | None = None
    sup: Row | None = None


@dataclass(frozen=True)
class Group:
    """A group whose braces mean something: it carries a script its last node carries too."""

    row: Row


Node: TypeAlias = Symbol | Command | Script | Group
Row: TypeAlias = tuple[Node, ...]


def parse(tokens: Sequence[str]) -> Row:
    """The tree of ``tokens``. Raises ``LatexError`` with what is wrong and where."""
    parser = _Parser(tokens)
    row = parser.row(None)
    if parser.at < len(parser.tokens):
        raise parser.error("it closes a group that was never opened")
    return row


class _Parser:
    """Recursive descent over the tokens; ``at`` is the next token's position."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = [token for token in tokens if token not in _IGNORED]
        self.at = 0
        self.depth = 0

    def error(self, problem: str, at: int | None = None) -> LatexError:
        at = self.at if at is None else at
        if at >= len(self.tokens):
            return LatexError(f"The LaTeX ends too early: {problem}.")
        near = " ".join(self.tokens[max(0, at - 3) : at + 4])
        return LatexError(
            f"The LaTeX cannot be parsed at token {at + 1}, {self.tokens[at]!r} "
            f"(in '{near}'): {problem}."
        )

    def peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def row(self, end: str | None) -> Row:
        """Nodes up to ``end`` ('}' or ']'), which is left in place; without it, up to the end."""
        nodes: list[Node] = []
        while (token := self.peek()) is not None and token != end and token != "}":
            # A script that nothing precedes has an empty base.
            base = None if token in _SCRIPTS else self.atom()
            scripted = self.peek() in _SCRIPTS
            if isinstance(base, Group):  # its braces alone mean nothing
                nodes.extend(base.row)
                if not scripted:
                    continue
                base = nodes.pop() if base.row else None
            node = self.scripts(base)
            if node is not None:
                nodes.append(node)
        return tuple(nodes)

    def atom(self) -> Node:
        """One symbol, a command with its arguments, or a group in braces."""
        token = self.peek()
        if token is None:
            raise self.error("an argument is missing")
        if token in ("_", "^", "}"):
            raise self.error("a symbol or a group was expected")
        if token in _UNSUPPORTED:
            raise self.error(f"{token} is not supported; only single-line formulas are")
        self.at += 1
        if token == "{":
            return Group(self.closed("}"))
        if token not in ARITY:
            return Symbol(token)
        index = None
        if token == "\\sqrt" and self.peek() == "[":
            self.at += 1
            index = self.closed("]")
            if not index:
                raise self.error("the index of the root is empty", self.at - 1)
        return Command(token, tuple(self.filled_argument() for _ in range(ARITY[token])), index)

    def closed(self, end: str) -> Row:
        """A row and its closing ``end``, which is consumed."""
        opened = self.at - 1
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"groups are nested more than {MAX_DEPTH} deep", opened)
        row = self.row(end)
        self.depth -= 1
        if self.peek() != end:
            raise self.error(f"it is never closed by {end!r}", opened)
        self.at += 1
        return row

    def argument(self) -> Row:
        """The argument of a command or script: a group's row, or one symbol or command."""
        start = self.at
        if self.peek() == "'":  # x^' is no LaTeX, but what it means is plain
            self.at += 1
            return (Symbol(PRIME),)
        self.depth += 1  # \sqrt \sqrt \sqrt ... nests without a brace
        if self.depth > MAX_DEPTH:
            raise self.error(f"commands are nested more than {MAX_DEPTH} deep", start)
        node = self.atom()
        self.depth -= 1
        return node.row if isinstance(node, Group) else (node,)

    def filled_argument(self) -> Row:
        """The argument of a command, which an empty group doesn't satisfy."""
        start = self.at
        row = self.argument()
        if not row:
            raise self.error("the argument is empty", start)
        return row

    def scripts(self, base: Node | None) -> Node | None:
        """``base`` with all scripts that follow it; empty scripts leave no trace."""
        sub: Row | None = None
        sup: Row | None = None
        primes: Row = ()
        while (token := self.peek()) in _SCRIPTS:
            start = self.at
            self.at += 1
            if token == "_":
                if sub is not None:
                    raise self.error("this base has a subscript already", start)
                sub = self.argument()
            elif sup is not None:
                raise self.error("this base has a superscript already", start)
            elif token == "^":
                sup = _bare_primes(self.argument())
            else:
                primes += (Symbol(PRIME),)
        return _scripted(base, sub or None, primes + (sup or ()) or None)


def _scripted(base: Node | None, sub: Row | None, sup: Row | None) -> Node | None:
    """The script node, merged with the base's own scripts where they go together."""
    if sub is None and sup is None:
        return base
    if isinstance(base, Script):
        if base.sup and sup and _all_primes(base.sup):  # {x'}^2 is x'^2
            sup = base.sup + sup
            base = Script(base.base, base.sub)
        if (base.sub and sub) or (base.sup and sup):  # {x^2}^3 keeps its braces
            return Script(Group((base,)), sub, sup)
        return Script(base.base, sub or base.sub, sup or base.sup)  # {x_1}^2 is x_1^2
    return Script(base, sub, sup)


def _all_primes(row: Row) -> bool:
    return all(node == Symbol(PRIME) for node in row)


def _bare_primes(row: Row) -> Row:
    """``^{'}`` and ``^{^{\\prime}}``, as some labels have it, mean ``^{\\prime}``."""
    if len(row) == 1 and isinstance(row[0], Script):
        only = row[0]
        if only.base is None and only.sub is None and only.sup and _all_primes(only.sup):
            return only.sup
    return row
