"""Coordinate descent by duels: a change of settings is kept if it wins most of its pairs.

A machine's speed drifts by more than most settings are worth, so no figure is compared with one
that was measured at another time. A challenger differs from the incumbent in one setting; both are
measured in turn (A B, B A, A B, ...), and the challenger becomes the incumbent once it has won
``WINS`` pairs with at most ``LOSSES`` lost, by ``GAIN`` or more in the median. If both were equal
that would happen by chance in 1 of 16 duels; most duels end early, with the second loss.

This module knows nothing of servers: it is given a space of values and something that measures.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hmer.errors import HmerError

WINS, LOSSES = 6, 1
GAIN = 0.01
INTERRUPTED = "it was interrupted"

# Names to values that JSON keeps: text, whole numbers, lists of text.
Settings = Mapping[str, Any]
Space = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Score:
    """One measurement: ``value`` is to be large; ``figures`` are what it was made from."""

    value: float
    figures: Mapping[str, Any] = field(default_factory=dict)


# Incumbent, challenger -> pairs of their scores, one by one, for as long as they are asked for.
Pairs = Callable[[Settings, Settings], Iterable[tuple[Score, Score]]]


@dataclass
class Duel:
    """A challenger and how it did. ``reason``: why it could not be measured."""

    incumbent: Settings
    challenger: Settings
    changed: str
    pairs: list[tuple[Score, Score]] = field(default_factory=list)
    kept: bool = False
    reason: str = ""

    @property
    def wins(self) -> int:
        """Pairs in which the challenger was better."""
        return sum(b.value > a.value for a, b in self.pairs)

    @property
    def gain(self) -> float | None:
        """Median of the pairs' relative gains."""
        gains = [(b.value - a.value) / abs(a.value) for a, b in self.pairs if a.value]
        return statistics.median(gains) if gains else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "incumbent": dict(self.incumbent),
            "challenger": dict(self.challenger),
            "changed": self.changed,
            "pairs": [[vars(a), vars(b)] for a, b in self.pairs],
            "wins": self.wins,
            "gain": self.gain,
            "kept": self.kept,
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Duel:
        """What ``to_dict`` made. Raises ``KeyError`` or ``TypeError`` for anything else."""
        pairs = [(Score(**a), Score(**b)) for a, b in found["pairs"]]
        return cls(
            found["incumbent"], found["challenger"], found["changed"], pairs,
            found["kept"], found["reason"],
        )  # fmt: skip


class Log:
    """The duels that were fought, in a file: the same question is not measured again."""

    def __init__(self, path: Path | None) -> None:
        """Read ``path`` if it is there; what is no log of duels is begun anew."""
        self._path = path
        self.duels: list[Duel] = []
        if path is not None and path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                self.duels = [Duel.from_dict(duel) for duel in found]
            except (OSError, ValueError, KeyError, TypeError):
                self.duels = []

    def find(self, incumbent: Settings, challenger: Settings) -> Duel | None:
        """The duel of these two, if it was fought."""
        for duel in self.duels:
            if duel.incumbent == incumbent and duel.challenger == challenger:
                return duel
        return None

    def add(self, duel: Duel) -> None:
        """Keep ``duel``, at once."""
        self.duels.append(duel)
        if self._path is not None:
            draft = self._path.with_suffix(".new")
            text = json.dumps([other.to_dict() for other in self.duels], indent=1)
            draft.write_text(text + "\n", encoding="utf-8")
            draft.replace(self._path)


@dataclass
class Found:
    """The best settings, every duel in order, and why the search ended."""

    best: Settings
    duels: list[Duel]
    ended: str


def search(
    space: Space,
    start: Settings,
    pairs: Pairs,
    *,
    unordered: Sequence[str] = (),
    applies: Callable[[str, Settings], bool] = lambda name, settings: True,
    expired: Callable[[], bool] = lambda: False,
    log: Log | None = None,
    on_duel: Callable[[Duel], None] = lambda duel: None,
) -> Found:
    """Descend from ``start``: one setting after the other, up and down its values, until nothing
    that is a step away wins, or the time is up.

    ``unordered``: settings whose values are all neighbours. ``applies``: whether a setting has
    an effect beside the others. Ctrl-C ends the search, not the program: the best so far is
    returned.
    """
    log = log or Log(None)
    found = Found(dict(start), [], "every single change was tried, and none is better")
    beaten: set[tuple[str, str]] = set()  # (better, worse)

    def try_one(name: str, value: Any) -> bool | None:
        """Whether ``value`` is kept; ``None`` if the time is up."""
        incumbent, challenger = found.best, {**found.best, name: value}
        if (_key(incumbent), _key(challenger)) in beaten:
            return False
        duel = log.find(incumbent, challenger)
        if duel is None:
            if expired():
                return None
            duel = fight(incumbent, challenger, name, pairs, expired)
            if duel is None:
                return None
            log.add(duel)
        found.duels.append(duel)
        on_duel(duel)
        better, worse = (challenger, incumbent) if duel.kept else (incumbent, challenger)
        beaten.add((_key(better), _key(worse)))
        if duel.kept:
            found.best = challenger
        return duel.kept

    try:
        improved = True
        while improved:
            improved = False
            for name in space:
                if not applies(name, found.best):
                    continue
                for value in _ways(space[name], name in unordered):
                    while (after := value(found.best[name])) is not None:
                        kept = try_one(name, after)
                        if kept is None:
                            found.ended = "the time was up"
                            return found
                        improved |= kept
                        if not kept or name in unordered:
                            break
    except KeyboardInterrupt:
        found.ended = INTERRUPTED
    return found


def fight(
    incumbent: Settings,
    challenger: Settings,
    changed: str,
    pairs: Pairs,
    expired: Callable[[], bool] = lambda: False,
) -> Duel | None:
    """Pairs until it is decided; ``None`` if the time is up before. A challenger that cannot be
    measured has lost."""
    duel = Duel(dict(incumbent), dict(challenger), changed)
    measured = iter(pairs(incumbent, challenger))
    try:
        for pair in measured:
            duel.pairs.append(pair)
            lost = len(duel.pairs) - duel.wins
            if duel.wins >= WINS or lost > LOSSES:
                duel.kept = lost <= LOSSES and (duel.gain or 0.0) >= GAIN
                return duel
            if expired():
                return None
    except HmerError as error:
        duel.reason = str(error)
    finally:
        if (close := getattr(measured, "close", None)) is not None:
            close()
    return duel


def _ways(values: Sequence[Any], unordered: bool) -> Iterator[Callable[[Any], Any | None]]:
    """From a value to the next to try: up, then down; or to each other value, once."""

    def step(by: int, now: Any) -> Any | None:
        place = values.index(now) + by
        return values[place] if 0 <= place < len(values) else None

    def other(value: Any, now: Any) -> Any | None:
        return None if now == value else value

    if unordered:
        yield from (partial(other, value) for value in values)
    else:
        yield from (partial(step, by) for by in (1, -1))


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)
