"""``hmer-bench calibrate``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.accuracy import Outcome, in_process
from benchmarks.crohme import Expression, held_out, read_pack
from benchmarks.options import label_option, runtime_options, search_options
from benchmarks.output import check_folder
from benchmarks.reliability_plot import write_plot
from hmer.bundle import BUNDLE_FILE, GRAPHS, load_bundle, save_bundle
from hmer.calibration import (
    DETAILS_KEY,
    Calibration,
    cross_validate,
    fit,
    log_probabilities,
    measure,
)
from hmer.console import progress, sentences
from hmer.decode_types import SearchOptions
from hmer.errors import BundleError, HmerError
from hmer.evaluation import calibration_table
from hmer.recognizer import LocalRecognizer

FOLDS = 10


@click.command()
@click.option(
    "--bundle", type=click.Path(path_type=Path), required=True, help="A bundle of graphs."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="The training pack; only its held-out part is used.",
)
@click.option(
    "--whole",
    is_flag=True,
    help="Use all of --data: for a pack that was neither trained nor tested on.",
)
@click.option(
    "--test",
    type=click.Path(path_type=Path),
    help="Also measure on this pack, which the fit never sees.",
)
@label_option
@click.option(
    "--length/--no-length",
    "use_length",
    default=True,
    show_default=True,
    help="Whether the number of tokens counts beside the score.",
)
@runtime_options
@search_options
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the reliability diagram to this SVG.",
)
@click.option("--write", is_flag=True, help="Keep the calibration in the bundle.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON document.")
@sentences
def calibrate(
    bundle: Path,
    data: Path,
    whole: bool,
    test: Path | None,
    label: str,
    use_length: bool,
    target: str,
    threads: int,
    beam: int,
    length_penalty: float,
    plot: Path | None,
    write: bool,
    as_json: bool,
) -> None:
    """Measure how well scores tell right answers from wrong ones, and fit a better confidence.

    The confidence is Platt's: a logistic function of the answer's log-probability and length,
    fitted on the held-out part of the training pack. "cross-validated" is measured on answers
    that the fit behind each did not see.

    \b
    Example:
      hmer-bench calibrate --bundle bundle --data train.jsonl.gz --plot reliability.svg --write
    """
    check_folder(plot, "plot")
    load_bundle(bundle, kind=GRAPHS)
    expressions = read_pack(data, label)
    if not whole:
        expressions = held_out(expressions)
    testing = read_pack(test, label) if test is not None else []
    search = SearchOptions(beam, length_penalty=length_penalty)
    with LocalRecognizer(
        bundle, target, threads=threads, beam=search.beam, length_penalty=search.length_penalty
    ) as recognizer:
        known = _recognise(recognizer, expressions, str(bundle))
        unseen = _recognise(recognizer, testing, str(bundle))
    origin = {
        "data": data.name if whole else f"{data.name}, held-out part",
        "n": known.n,
        "right": sum(known.correct),
        "label_set": label,
        "decoding": search.describe(),
        "method": "Platt scaling",
    }
    fitted = fit(known.logs, known.lengths, known.correct, use_length=use_length, origin=origin)
    crossed = cross_validate(
        known.logs, known.lengths, known.correct, use_length=use_length, folds=FOLDS
    )
    measured = {
        "score": measure(known.scores, known.correct),
        f"confidence, {FOLDS}-fold cross-validated": measure(crossed, known.correct),
    }
    report: dict[str, Any] = {
        "bundle": str(bundle),
        **origin,
        "failed": known.failed,
        "calibration": fitted.to_dict(),
        "before": measured["score"],
        "after_cross_validated": measured[f"confidence, {FOLDS}-fold cross-validated"],
    }
    tested = _measure_test(unseen, fitted) if test is not None else {}
    if test is not None:
        names = ("before", "after")
        report["test"] = {
            "data": test.name,
            "failed": unseen.failed,
            **dict(zip(names, tested.values(), strict=True)),
        }
    if plot is not None:
        write_plot(plot, f"{origin['data']}, n = {known.n}", measured)
    if write:
        _keep(bundle, fitted)
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    click.echo(
        f"{origin['data']}: {known.n} answers, {origin['right']} right, {origin['decoding']}"
    )
    click.echo(calibration_table(list(measured.items())).text())
    if test is not None:
        click.echo(f"\n{test.name}: {unseen.n} answers, not fitted on")
        click.echo(calibration_table(list(tested.items())).text())
    click.echo(
        f"\nconfidence = 1 / (1 + exp(-({fitted.intercept:.4g} + {fitted.log_probability:.4g} "
        f"log p + {fitted.length:.4g} tokens)))" + (f", kept in {bundle}" if write else "")
    )


@dataclass(frozen=True)
class _Answers:
    """Parallel lists of the answers to a set; ``failed`` expressions gave none."""

    scores: list[float]
    lengths: list[int]
    correct: list[bool]
    failed: int

    @property
    def n(self) -> int:
        return len(self.scores)

    @property
    def logs(self) -> list[float]:
        return log_probabilities(self.scores)


def _recognise(recognizer: LocalRecognizer, expressions: list[Expression], where: str) -> _Answers:
    def bar(outcomes: Any, length: int) -> Any:
        return progress(outcomes, length, "recognize")

    run = in_process(expressions, recognizer, where, bar)
    found: list[tuple[Outcome, bool]] = [
        (outcome, scored.correct) for outcome, scored in zip(run.outcomes, run.scored, strict=True)
    ]
    answers = [(o, right) for o, right in found if not isinstance(o, HmerError)]
    return _Answers(
        [o.score for o, _ in answers],
        [len(o.tokens) for o, _ in answers],
        [right for _, right in answers],
        len(found) - len(answers),
    )


def _measure_test(unseen: _Answers, fitted: Calibration) -> dict[str, dict[str, Any]]:
    pairs: Sequence[tuple[float, int]] = list(zip(unseen.scores, unseen.lengths, strict=True))
    confidences = [fitted.of_score(score, length) for score, length in pairs]
    return {
        "score": measure(unseen.scores, unseen.correct),
        "confidence": measure(confidences, unseen.correct),
    }


def _keep(folder: Path, calibration: Calibration) -> None:
    """Write the calibration into ``bundle.json``; the graphs stay as they are."""
    bundle = load_bundle(folder, kind=GRAPHS)
    path = bundle.file(BUNDLE_FILE)
    files: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["files"]
    bundle.details = {**bundle.details, DETAILS_KEY: calibration.to_dict()}
    try:
        save_bundle(bundle, files)
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error.strerror}.") from error
