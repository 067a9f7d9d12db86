"""Other recognisers of handwriting that install from PyPI with their weights, beside ours.

What is fair in it, and what is not:

- A rival gets only expressions whose truth is made of its own symbols, by its own list, and ours
  gets the same ones. Its structures are taken to be all that LaTeX has with these symbols.
- Both run as they come, with their own number of threads, each alone on the machine, in turn,
  round after round; ratios are made within a round. Time is that of recognition: starting,
  decoding PNG for the rival and scaling its strokes don't count against it. Ours counts all.
- ``pmsh-ocr`` says that it was made for primary school expressions written on a screen, of at most
  40 tokens. ``mathnote-ocr`` calls itself a system for interactive use; its parser is seeded, so
  that it reads the same ink in the same way.
- Ours was trained on CROHME's training set, with other writers than a test set's; neither rival
  says that it saw CROHME. So the score tells which to take for such writing, not which method is
  the better one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.crohme import Expression
from benchmarks.figures import ratios, spread
from benchmarks.in_process import Timed, Worker
from benchmarks.rival_process import RivalProcess, Tokens
from hmer.latex import canonical_or_same
from hmer.score import Summary, compare, summarise
from hmer.tables import Table


def within(tokens: frozenset[str], expressions: Sequence[Expression]) -> list[Expression]:
    """The expressions that are made of ``tokens`` alone."""
    return [e for e in expressions if tokens.issuperset(canonical_or_same(e.truth))]


@dataclass
class Turns:
    """One side: answers to every expression, and of each round the milliseconds of those."""

    answers: list[Tokens | None] = field(default_factory=list)
    rounds: list[list[float]] = field(default_factory=list)

    def medians(self) -> list[float | None]:
        """Of the milliseconds, a round each."""
        found = [spread(list(values)) for values in self.rounds]
        return [seen.median if seen else None for seen in found]


def measure(
    process: RivalProcess,
    ours: Callable[[Sequence[int]], Timed],
    expressions: Sequence[Expression],
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Both over all ``expressions``, in turn, ``rounds`` times after one that does not count.

    ``ours`` recognises the expressions of these indices one by one.
    """
    order = list(range(len(expressions)))
    them, us = Turns(), Turns()

    def their_turn() -> None:
        answers = [process.read(expression.data) for expression in expressions]
        them.answers = [tokens for tokens, _ in answers]
        them.rounds.append([s * 1e3 for _, s in answers if s is not None])

    def our_turn() -> None:
        timed = ours(order)
        us.answers = [reply if isinstance(reply, tuple) else None for reply in timed.replies]
        us.rounds.append([s * 1e3 for s in timed.seconds])

    began = time.perf_counter()
    for turn in range(rounds + 1):
        say(f"  {process.rival.name}: round {turn} of {rounds} ..." if turn else "  warming up ...")
        for take in (their_turn, our_turn) if turn % 2 else (our_turn, their_turn):
            take()
    ready = process.ready
    return {
        "about": process.rival.about,
        "takes": process.rival.takes,
        "version": ready.version,
        "license": ready.license,
        "python": ready.python,
        "load_s": ready.load_s,
        "symbols": len(ready.tokens),
        "n": len(expressions),
        "theirs": _side(them, expressions),
        "ours": _side(us, expressions),
        "time_ratio": _dict(spread(ratios(them.medians()[1:], us.medians()[1:]))),
        "wall_s": time.perf_counter() - began,
    }


def _side(turns: Turns, expressions: Sequence[Expression]) -> dict[str, Any]:
    score: Summary = summarise(
        compare(e.id, e.truth, answer) for e, answer in zip(expressions, turns.answers, strict=True)
    )
    return {
        "exprate": score.exprate,
        "exprate_95": list(score.interval),
        "failed": sum(answer is None for answer in turns.answers),
        "ms": _dict(spread(turns.medians()[1:])),
    }


def _dict(found: Any) -> dict[str, float] | None:
    return found.to_dict() if found else None


def ours_on(worker: Worker) -> Callable[[Sequence[int]], Timed]:
    """Ours as ``measure`` wants it, by a process that has the same inputs."""

    def take(order: Sequence[int]) -> Timed:
        worker.ask(order, together=False)
        return worker.answer()

    return take


NOTES = (
    "Expressions made of the rival's own symbols only; time of recognition alone, median of the "
    "rounds' medians, each as it comes. Ours was trained on CROHME's training set; no rival says "
    "that it was."
)


def table(rivals: Mapping[str, Mapping[str, Any]], missing: Iterable[str]) -> Table:
    """A row for each side of every rival, and for each that is missing."""
    rows: list[tuple[str, ...]] = []
    for name, found in rivals.items():
        for title, side in ((f"{name} {found['version']}", "theirs"), ("ours, in process", "ours")):
            one = found[side]
            low, high = (100 * bound for bound in one["exprate_95"])
            ratio = found["time_ratio"] if side == "theirs" else None
            rows.append(
                (
                    title,
                    found["takes"],
                    str(found["n"]),
                    f"{100 * one['exprate']:.1f}",
                    f"{low:.1f}-{high:.1f}",
                    f"{one['ms']['median']:.1f}" if one["ms"] else "-",
                    f"x {ratio['median']:.2f}" if ratio else "-",
                    found["license"] if side == "theirs" else "Apache-2.0",
                )
            )
    rows += [(name, "missing", *["-"] * 6) for name in missing]
    header = ("recogniser", "reads", "n", "ExpRate %", "95 %", "ms", "time / ours", "licence")
    return Table("Rivals on their own symbols", header, tuple(rows), figures=2)
