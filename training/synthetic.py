r"""Whole expressions that nobody wrote: new formulas, laid out, in symbols that people wrote.

A new formula is the tree of a training label with some of its parts (numerators, radicands,
scripts) taken from other labels and some of its symbols renamed within their kind, so that its
language stays that of the data. ``hmer.writing`` lays it out in a hand of its own (spacing,
slant, sizes), and every symbol is then replaced by one that a person wrote, cut from a segmented
expression and fitted to its place. Fraction bars, roots, minus signs and dots stay synthetic:
their length is part of the layout.

After "synthetic handwriting generation" of Le, Indurkhya and Nakagawa (2019, see
``training.recombine``) and the layouts of Deng et al., "Image-to-Markup Generation with
Coarse-to-Fine Attention" (2017), whose formulas come from labels too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

import numpy as np

from hmer.ink import Stroke
from hmer.latex import LatexError, write_row
from hmer.latex_parser import Command, Node, Row, Script, Symbol, parse
from hmer.writing.layout import Hand, Writer, Written
from training.cutting import matches
from training.data import Example
from training.recombine import FIXED, KINDS, Recombiner, RecombineSettings

_UNITS = 2.0  # of ink for one of the alphabet: digits become 200 high, as people's are
_SEGMENTED_AS = {"\\frac": "-"}  # the symbol that a token's ink is called in segmentations
_TRIES = 20


@dataclass(frozen=True)
class SynthesisSettings:
    """Probabilities: ``graft`` a part, ``rename`` a symbol of a formula; limits of its length.

    A grafted part has at most ``part`` tokens, a formula at most ``tokens``.
    """

    graft: float = 0.3
    rename: float = 0.3
    part: int = 12
    tokens: int = 70


class Synthesiser:
    """Makes expressions in the language and the hands of ``examples``.

    ``recombiner`` finds written symbols; labels in ``forbidden`` are never made.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        settings: SynthesisSettings | None = None,
        forbidden: Iterable[tuple[str, ...]] = (),
    ) -> None:
        self.settings = settings or SynthesisSettings()
        self.forbidden = frozenset(forbidden)
        self.recombiner = Recombiner(examples, RecombineSettings())
        self.labels: list[Row] = []
        self._parts: defaultdict[str, list[Row]] = defaultdict(list)
        for example in examples:
            try:
                row = parse(example.tokens)
            except LatexError:
                continue
            self.labels.append(row)
            for role, part in _parts(row):
                if len(write_row(part)) <= self.settings.part:
                    self._parts[role].append(part)

    def examples(self, seed: int) -> Iterator[Example]:
        """Expressions without end; the same ``seed`` gives the same ones.

        Ends at once where no example can be parsed or is segmented.
        """
        number = 0
        while self.labels and self.recombiner.examples:
            for attempt in range(_TRIES):
                random = Random(f"{seed} {number} {attempt}")
                made = self._draw(random, number)
                if made is not None:
                    yield made
                    break
            else:
                return  # a label set that cannot be written: no symbol has been cut from it
            number += 1

    def _draw(self, random: Random, number: int) -> Example | None:
        """One expression, or ``None`` where the drawn one cannot be written."""
        row = self._row(random.choice(self.labels), random)
        row = self._renamed(row, random)
        tokens = tuple(write_row(row))
        if not 0 < len(tokens) <= self.settings.tokens or tokens in self.forbidden:
            return None
        try:
            written = Writer(_hand(random), random).write(row)
        except KeyError:  # a symbol that the alphabet lacks
            return None
        example = self._in_other_hands(written, random)
        if example is None:
            return None
        example = replace(example, name=f"synthetic-{number}", tokens=tokens)
        return example if matches(example) else None

    def _row(self, row: Row, random: Random) -> Row:
        return tuple(self._node(node, random) for node in row)

    def _part(self, role: str, row: Row, random: Random) -> Row:
        """``row``, or a part of another label that had the same role there."""
        if random.random() < self.settings.graft and self._parts[role]:
            return random.choice(self._parts[role])
        return self._row(row, random)

    def _node(self, node: Node, random: Random) -> Node:
        match node:
            case Command(name, arguments, index):
                return Command(name, tuple(self._part(name, a, random) for a in arguments), index)
            case Script(base, sub, sup):
                return Script(
                    None if base is None else self._node(base, random),
                    None if sub is None else self._part(_role("_", base), sub, random),
                    None if sup is None else self._part(_role("^", base), sup, random),
                )
        return node

    def _renamed(self, row: Row, random: Random) -> Row:
        """Some symbols become others of their kind, the same one everywhere."""
        names: dict[str, str] = {}
        for token in dict.fromkeys(write_row(row)):
            kind = next((kind for kind in KINDS if token in kind), ())
            choices = [name for name in kind if self.recombiner.count(name)]
            if choices and random.random() < self.settings.rename:
                weights = [self.recombiner.count(name) ** -0.5 for name in choices]
                names[token] = random.choices(choices, weights)[0]
        return _map(row, names)

    def _in_other_hands(self, written: Sequence[Written], random: Random) -> Example | None:
        """The laid out strokes with people's symbols in place of the alphabet's."""
        rng = np.random.default_rng(random.getrandbits(64))
        symbols: dict[int, tuple[str, list[Written]]] = {}
        for stroke in written:
            symbols.setdefault(stroke.number, (stroke.symbol, []))[1].append(stroke)
        strokes: list[Stroke] = []
        segments = []
        for token, own in symbols.values():
            symbol = _SEGMENTED_AS.get(token, token)
            # The layout's y points up, ink's down.
            ink = [(s.points * (_UNITS, -_UNITS)).astype(np.float32) for s in own]
            if token not in FIXED:
                found = self.recombiner.written(symbol, ink, rng)
                if found is None:
                    return None
                ink = found
            segments.append((symbol, tuple(range(len(strokes), len(strokes) + len(ink)))))
            strokes += ink
        return Example("", "", (), strokes, tuple(segments), where="a synthetic expression")


def synthesise(
    examples: Sequence[Example],
    count: int,
    seed: int,
    forbidden: Iterable[tuple[str, ...]] = (),
    settings: SynthesisSettings | None = None,
) -> list[Example]:
    """``count`` synthetic expressions (fewer, even none, where ``examples`` give none)."""
    return list(islice(Synthesiser(examples, settings, forbidden).examples(seed), count))


def _hand(random: Random) -> Hand:
    """A hand: how far apart, how slanted and how unevenly somebody writes."""
    return Hand(
        wander=random.uniform(1.0, 7.0),
        sizes=random.uniform(0.03, 0.14),
        spacing=random.uniform(12.0, 36.0),
        slant=random.gauss(0.05, 0.08),
        tilt=random.gauss(0.0, 0.025),
        forms={"\\sqrt": random.randrange(2)},
    )


def _parts(row: Row) -> Iterator[tuple[str, Row]]:
    """All parts of a tree with the role that each has: a command's name, or a kind of script."""
    for node in row:
        match node:
            case Command(name, arguments, _):
                for argument in arguments:
                    yield name, argument
                    yield from _parts(argument)
            case Script(base, sub, sup):
                if base is not None:
                    yield from _parts((base,))
                for mark, script in (("_", sub), ("^", sup)):
                    if script is not None:
                        yield _role(mark, base), script
                        yield from _parts(script)


def _role(mark: str, base: Node | None) -> str:
    """Scripts of letters and limits of sums hold other things: a role each."""
    name = base.token if isinstance(base, Symbol) and base.token[0] == "\\" else ""
    return mark + (name if name in ("\\sum", "\\int", "\\lim") else "")


def _map(row: Row, names: dict[str, str]) -> Row:
    """The tree with its symbols renamed."""
    mapped: list[Node] = []
    for node in row:
        match node:
            case Symbol(token):
                mapped.append(Symbol(names.get(token, token)))
            case Command(name, arguments, index):
                mapped.append(Command(name, tuple(_map(a, names) for a in arguments), index))
            case Script(base, sub, sup):
                mapped.append(
                    Script(
                        None if base is None else _map((base,), names)[0],
                        None if sub is None else _map(sub, names),
                        None if sup is None else _map(sup, names),
                    )
                )
            case _:
                mapped.append(node)
    return tuple(mapped)
