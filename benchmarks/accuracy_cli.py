"""``hmer-bench accuracy``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.accuracy import Outcome, Run, agreement, in_process, predictions, through_server
from benchmarks.crohme import (
    STROKES,
    WAP_IMAGES,
    Expression,
    held_out,
    read_pack,
    select,
)
from benchmarks.differences import MOST, explain
from benchmarks.machine import describe, ended, machine
from benchmarks.options import label_option, report_options, runtime_options, search_options
from benchmarks.output import Part, check_folder, emit, write_json
from client import Recognizer
from hmer.bundle import GRAPHS, Bundle, load_bundle
from hmer.calibration import Calibration
from hmer.console import progress, sentences
from hmer.decode_types import SearchOptions
from hmer.evaluation import UNKNOWN, Conditions
from hmer.looks import MOST as MOST_LOOKS
from hmer.recognizer import LocalRecognizer


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="A CROHME pack, such as test_2014.jsonl.gz.",
)
@click.option("--url", help="Score a running server: HOST:PORT (gRPC) or http://HOST:PORT.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Score a bundle in this process; with --url, too, the answers are compared.",
)
@runtime_options
@label_option
@click.option(
    "--input",
    "form",
    type=click.Choice([STROKES, WAP_IMAGES]),
    default=STROKES,
    show_default=True,
    help="What is sent: the strokes, or the images that most papers read (the zip beside --data).",
)
@click.option(
    "--held-out",
    "only_held_out",
    is_flag=True,
    help="Of a training pack, only what hmer-train holds out: to choose settings with.",
)
@search_options
@click.option(
    "--n-best",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Answers to keep; more than one adds how often the truth is among them.",
)
@click.option(
    "--looks",
    type=click.IntRange(1, MOST_LOOKS),
    default=1,
    show_default=True,
    help="Recognise each at so many sizes and take the surest answer.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many expressions.")
@click.option("--ids", help="Only these expressions, separated by commas.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="Requests to the server under way at the same time.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds for each request to the server.",
)
@click.option(
    "--predictions",
    "out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write truth and prediction of each expression to this JSON file.",
)
@report_options
@sentences
def accuracy(
    data: Path,
    url: str | None,
    bundle: Path | None,
    target: str,
    threads: int,
    label: str,
    form: str,
    only_held_out: bool,
    beam: int,
    length_penalty: float,
    n_best: int,
    looks: int,
    limit: int | None,
    ids: str | None,
    concurrency: int,
    timeout: float,
    out: Path | None,
    html: Path | None,
    worst: int,
    top: int,
    markdown: bool,
    as_json: bool,
) -> None:
    """ExpRate and token errors on a CROHME pack.

    Truth and prediction are compared as canonical tokens; a prediction that is missing or
    cannot be parsed is wrong. Intervals are Wilson's, 95 %. Choose settings (beam, penalty) on
    the held-out part of the training pack, and look at a test set once they are chosen.

    \b
    Examples:
      hmer-bench accuracy --data test_2014.jsonl.gz --url localhost:8001
      hmer-bench accuracy --data test_2014.jsonl.gz --bundle hmer/pretrained --html report.html
      hmer-bench accuracy --data train.jsonl.gz --held-out --bundle hmer/pretrained --beam 5
    """
    if url is None and bundle is None:
        raise click.UsageError("Give --url, --bundle, or both.")
    search = SearchOptions(beam, n_best, length_penalty)
    check_folder(out, "predictions")
    check_folder(html, "page")
    verified = load_bundle(bundle, kind=GRAPHS) if bundle is not None else None
    wanted = [name.strip() for name in ids.split(",") if name.strip()] if ids else None
    expressions = read_pack(data, label, form)
    if only_held_out:
        expressions = held_out(expressions)
    expressions = select(expressions, wanted, limit)
    calibration = None if verified is None else calibration_for(verified, search)
    recognise = _Recognise(expressions, search, calibration if looks == 1 else None, looks)
    about = machine()
    runs = []
    if url is not None:
        runs.append(recognise.by_server(url, timeout, concurrency))
    if bundle is not None:
        runs.append(recognise.here(bundle, target, threads))

    conditions = Conditions(
        data=f"{data.name}, held-out part" if only_held_out else data.name,
        label_set=label,
        form=form,
        search=search,
        selection=UNKNOWN if verified is None else selection_of(verified),
        looks=looks,
    )
    report: dict[str, Any] = {
        **conditions.to_dict(len(expressions)),
        "machine": ended(about),
        **{run.way: run.to_dict(top) for run in runs},
    }
    notes = [] if verified is None else unreadable(verified, expressions)
    if len(runs) == 2:
        report["agreement"] = same = agreement(*runs)
        notes.append(
            f"server and in process agree on {same['equal']} of {same['n']}"
            + ("." if same["differing"] else ", to the token.")
        )
        if same["differing"]:
            notes.append(f"they differ on: {', '.join(same['differing'][:MOST])}")
        # A stream is greedy and of one look: for another search there is nothing to compare with.
        if same["differing"] and search.beam == 1 and looks == 1 and url and bundle:
            with (
                Recognizer(url, timeout=timeout) as remote,
                LocalRecognizer(bundle, target=target, threads=threads) as local,
            ):
                told = explain(runs, [remote, local], same["differing"], expressions)
            report["differences"] = [one.to_dict() for one in told]
            notes += [one.line() for one in told]
    notes.append(describe(report["machine"]))
    if out is not None:
        write_json(out, _both(runs), "predictions")
    emit(
        report,
        [Part(run.way, _line(run, report[run.way]), run.answers) for run in runs],
        notes,
        {e.id: e.data for e in expressions},
        html=html,
        worst=worst,
        markdown=markdown,
        as_json=as_json,
    )


def unreadable(bundle: Bundle, expressions: Sequence[Expression]) -> list[str]:
    """A line about truths with tokens that the bundle does not have: labels of something else?"""
    beyond = [set(e.truth) - set(bundle.vocabulary.tokens) for e in expressions]
    if not (count := sum(map(bool, beyond))):
        return []
    tokens = sorted(set[str]().union(*beyond))
    return [
        f"{count} of {len(expressions)} labels hold tokens that the bundle cannot write, and count "
        f"as wrong: {' '.join(tokens[:MOST])}"
    ]


def selection_of(bundle: Bundle) -> str:
    """What a bundle tells about the set that its weights were chosen on."""
    held = bundle.details.get("training", {})
    count = bundle.details.get("held_out_examples") or held.get("held_out_examples")
    if count is None:
        return UNKNOWN
    return f"{count} expressions held out from training by writer and label"


def calibration_for(bundle: Bundle, search: SearchOptions) -> Calibration | None:
    """The bundle's calibration, if it holds for answers that were searched for like this."""
    found = Calibration.from_details(bundle.details)
    if found is None or not found.fits(search):
        return None
    return found


class _Recognise:
    """The expressions, and how they are to be recognised."""

    def __init__(
        self,
        expressions: list[Expression],
        search: SearchOptions,
        calibration: Calibration | None,
        looks: int,
    ) -> None:
        self._expressions = expressions
        self._search, self._looks = search, looks
        self._calibration = calibration

    def by_server(self, url: str, timeout: float, concurrency: int) -> Run:
        """Through requests."""
        with Recognizer(url, timeout=timeout) as remote:
            return through_server(
                self._expressions,
                remote,
                concurrency,
                self._bar,
                self._calibration,
                search=self._search,
                looks=self._looks,
            )

    def here(self, bundle: Path, target: str, threads: int) -> Run:
        """In this process."""
        search = self._search
        with LocalRecognizer(
            bundle,
            target=target,
            threads=threads,
            beam=search.beam,
            n_best=search.n_best,
            length_penalty=search.length_penalty,
        ) as local:
            return in_process(
                self._expressions, local, str(bundle), self._bar, self._calibration, self._looks
            )

    @staticmethod
    def _bar(outcomes: Iterable[Outcome], length: int) -> Iterator[Outcome]:
        return progress(outcomes, length, "recognize")


def _both(runs: list[Run]) -> list[dict[str, Any]]:
    """The first run's predictions; where there are two, with the other's beside them."""
    entries = predictions(runs[0])
    for run in runs[1:]:
        for entry, other in zip(entries, predictions(run), strict=True):
            entry[f"pred_{run.way}"] = other["pred"]
    return entries


def _line(run: Run, figures: dict[str, Any]) -> str:
    return (
        f"{run.way.replace('_', ' ')} ({run.where}), {figures['wall_s']:.1f} s, "
        f"{figures['unparsable']} unparsable, {figures['missing']} missing"
        + "".join(f", {count} {code}" for code, count in figures["errors"].items())
    )
