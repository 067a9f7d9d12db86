"""Everything that is said about the accuracy on a set, once: as JSON, as text, as Markdown.

``hmer-bench accuracy``, ``hmer-bench rescore`` and ``hmer-train eval`` all report through here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hmer.calibration import measure
from hmer.confusions import confusions, count_faults
from hmer.decode_types import SearchOptions
from hmer.score import Scored, by_length, by_structure, compare, summarise, wilson
from hmer.tables import Table

SCHEME = "token edit distance on canonical tokens"
LIMITS = "dropped by the canonical form"
UNKNOWN = "not told"
TOP = 30  # confusions in a report

Tokens = tuple[str, ...]


@dataclass(frozen=True)
class Conditions:
    """What a reader must know to compare a figure with another."""

    data: str
    label_set: str = UNKNOWN
    form: str = UNKNOWN  # of the input
    search: SearchOptions | None = None  # None: not told
    ensemble_size: int | None = 1
    selection: str = UNKNOWN  # the set that the weights and settings were chosen on
    looks: int = 1  # at each input (``hmer.looks``)

    def to_dict(self, n: int) -> dict[str, Any]:
        """The head of a JSON report on ``n`` expressions."""
        decoding: dict[str, Any] = {"decoding": UNKNOWN}
        if (search := self.search) is not None:
            decoding = {
                "decoding": search.describe() + f", {self.looks} looks" * (self.looks > 1),
                "looks": self.looks,
                "beam": search.beam,
                "length_penalty": search.length_penalty if search.beam > 1 else None,
                "n_best": search.n_best,
            }
        return {
            "data": self.data,
            "label_set": self.label_set,
            "limits": LIMITS,
            "scheme": SCHEME,
            "input": self.form,
            **decoding,
            "ensemble_size": UNKNOWN if self.ensemble_size is None else self.ensemble_size,
            "selection": self.selection,
            "n": n,
        }


def describe(head: Mapping[str, Any]) -> str:
    """The conditions, as ``Conditions.to_dict`` gives them, in two lines."""
    return (
        f"{head['data']}: n = {head['n']}, label set {head['label_set']}, \\limits "
        f"{head['limits']}, input {head['input']}, decoding {head['decoding']}, ensemble size "
        f"{head['ensemble_size']}\n"
        f"scheme: {head['scheme']}; weights and settings selected on: {head['selection']}"
    )


@dataclass(frozen=True)
class Answers:
    """Scored answers, and what else is known of each; a list is empty or as long as ``scored``."""

    scored: list[Scored]
    scores: list[float | None] = field(default_factory=list)  # sequence probabilities
    confidences: list[float | None] = field(default_factory=list)  # calibrated ones
    candidates: list[list[Tokens]] = field(default_factory=list)  # n best, the answer first


def figures(answers: Answers, top: int = TOP) -> dict[str, Any]:
    """All figures of a set, JSON-ready: rates are 0..1, intervals Wilson's of 95 %."""
    scored = answers.scored
    found = confusions(scored)
    result: dict[str, Any] = {
        **summarise(scored).to_dict(),
        "by_length": {name: part.to_dict() for name, part in by_length(scored).items()},
        "by_structure": {name: part.to_dict() for name, part in by_structure(scored).items()},
        "faults": count_faults(scored),
        "token_edits": {
            name: sum(c.count for c in found if c.operation == name)
            for name in ("substitution", "deletion", "insertion")
        },
        "confusions": [c.to_dict() for c in found if c.operation == "substitution"][:top],
        "omissions": [c.to_dict() for c in found if c.operation != "substitution"][:top],
    }
    if answers.candidates:
        result["oracle"] = oracle(scored, answers.candidates)
    for name, values in (
        ("score_calibration", answers.scores),
        ("confidence_calibration", answers.confidences),
    ):
        pairs = zip(values, scored, strict=True) if values else ()
        known = [(p, item.correct) for p, item in pairs if p is not None]
        if known:
            result[name] = measure([p for p, _ in known], [right for _, right in known])
    return result


def oracle(scored: Sequence[Scored], candidates: Sequence[Sequence[Tokens]]) -> dict[str, Any]:
    """The share of expressions whose truth is among the first 1, 2, ... N candidates."""
    most = max((len(tokens) for tokens in candidates), default=0)
    ranks = [rank_of_truth(item, tokens) for item, tokens in zip(scored, candidates, strict=True)]
    rates = {}
    for n in range(1, most + 1):
        hits = sum(rank is not None and rank <= n for rank in ranks)
        rates[str(n)] = {
            "correct": hits,
            "rate": hits / len(ranks),
            "rate_95": list(wilson(hits, len(ranks))),
        }
    return rates


def rank_of_truth(item: Scored, candidates: Sequence[Tokens]) -> int | None:
    """The place, from 1, of the first of ``candidates`` that is right; ``None`` if none is."""
    hits = (compare(item.id, item.truth, tokens).correct for tokens in candidates)
    return next((place for place, hit in enumerate(hits, start=1) if hit), None)


_RATES = ("n", "ExpRate %", "95 %", "<=1 %", "<=2 %", "<=3 %", "token errors %")


def tables(parts: Mapping[str, Any]) -> list[Table]:
    """The tables of ``figures``: score, lengths, structures, faults, confusions, calibration."""
    result = [
        Table("", ("", *_RATES), (_row("all", parts),)),
        _breakdown("By length in tokens of the truth", "length", parts["by_length"]),
        _breakdown(
            "By structure (an expression with several counts in each)",
            "structure",
            parts["by_structure"],
        ),
    ]
    if "oracle" in parts:
        result.append(_oracle_table(parts["oracle"]))
    if parts["faults"]:
        rows = tuple(
            (name, str(counts["any"]), str(counts["only"]))
            for name, counts in parts["faults"].items()
        )
        title = "What is wrong with the wrong answers (one may have several faults)"
        result.append(Table(title, ("fault", "answers", "with no other fault"), rows))
    edits = parts["token_edits"]
    for title, found in (
        (f"Tokens taken for others ({edits['substitution']} in all)", parts["confusions"]),
        (
            f"Tokens left out or added ({edits['deletion']} and {edits['insertion']} in all)",
            parts["omissions"],
        ),
    ):
        if found:
            result.append(_confusion_table(title, found))
    calibrations = [
        (name, parts[key])
        for name, key in (
            ("score", "score_calibration"),
            ("calibrated confidence", "confidence_calibration"),
        )
        if key in parts
    ]
    if calibrations:
        result.append(calibration_table(calibrations))
    return result


def calibration_table(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Calibration errors of named measurements (``hmer.calibration.measure``)."""
    header = (
        *("", "n", "mean %", "right %", "ECE, equal mass %", "ECE, equal width %"),
        *("ECE by chance %", "Brier", "log loss"),
    )
    rows = tuple(
        (
            name,
            str(m["n"]),
            *(
                _percent(m[key])
                for key in (
                    *("mean_confidence", "accuracy", "ece_equal_mass"),
                    *("ece_equal_width", "ece_if_calibrated"),
                )
            ),
            f"{m['brier']:.4f}",
            f"{m['log_loss']:.4f}",
        )
        for name, m in measured
    )
    bins = measured[0][1]["bins"]
    title = f"Calibration ({bins} bins; ECE by chance: what calibrated answers would show)"
    return Table(title, header, rows)


def _breakdown(title: str, what: str, parts: Mapping[str, Any]) -> Table:
    rows = tuple(_row(name, part) for name, part in parts.items())
    return Table(title, (what, *_RATES), rows)


def _oracle_table(parts: Mapping[str, Any]) -> Table:
    rows = tuple(
        (n, str(part["correct"]), _percent(part["rate"]), _interval(part["rate_95"]))
        for n, part in parts.items()
    )
    title = "Oracle: the truth is among the best so many answers"
    return Table(title, ("answers", "expressions", "%", "95 %"), rows)


def _confusion_table(title: str, found: Sequence[Mapping[str, Any]]) -> Table:
    rows = tuple(
        (
            c["truth"] if c["truth"] is not None else "(nothing)",
            c["prediction"] if c["prediction"] is not None else "(nothing)",
            str(c["count"]),
            str(c["of"]) if c["of"] else "",
            str(c["expressions"]),
            c["kind"],
        )
        for c in found
    )
    header = ("truth", "read as", "times", "of", "expressions", "kind")
    return Table(title, header, rows, figures=2, code=True)


def _row(name: str, parts: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        str(parts["n"]),
        _percent(parts["exprate"]),
        _interval(parts["exprate_95"]),
        *(_percent(parts[f"within_{errors}"]) for errors in (1, 2, 3)),
        _percent(parts["token_error_rate"]),
    )


def _percent(rate: float) -> str:
    return f"{rate * 100:.2f}"


def _interval(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{low * 100:.1f}-{high * 100:.1f}"
