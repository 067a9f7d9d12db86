"""``hmer-bench``: measure what this project claims."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks.accuracy import (
    DECODING,
    Outcome,
    Run,
    agreement,
    in_process,
    predictions,
    through_server,
)
from benchmarks.crohme import LABELS, STROKES, WAP_IMAGES, Expression, read_pack, select
from client import Recognizer
from client.output import render_table
from hmer.console import progress, sentences
from hmer.errors import BadParameter
from hmer.recognizer import LocalRecognizer


@click.group()
def main() -> None:
    """Measurements: how accurate recognition is."""


@main.command()
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
@click.option(
    "--target",
    type=click.Choice(["onnxruntime", "openvino"]),
    default="onnxruntime",
    show_default=True,
    help="The runtime for --bundle.",
)
@click.option(
    "--label",
    type=click.Choice(LABELS),
    default=LABELS[0],
    show_default=True,
    help="The label set: norm_wap is the one of WAP, BTTR and SAN (2014 only).",
)
@click.option(
    "--input",
    "form",
    type=click.Choice([STROKES, WAP_IMAGES]),
    default=STROKES,
    show_default=True,
    help="What is sent: the strokes, or the images that most papers read (the zip beside --data).",
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
@click.option("--json", "as_json", is_flag=True, help="End with one JSON document.")
@sentences
def accuracy(
    data: Path,
    url: str | None,
    bundle: Path | None,
    target: str,
    label: str,
    form: str,
    limit: int | None,
    ids: str | None,
    concurrency: int,
    timeout: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """ExpRate and token errors on a CROHME pack.

    Truth and prediction are compared as canonical tokens; a prediction that is missing or
    cannot be parsed is wrong. Intervals are Wilson's, 95 %.

    \b
    Examples:
      hmer-bench accuracy --data test_2014.jsonl.gz --url localhost:8001
      hmer-bench accuracy --data test_2014.jsonl.gz --bundle hmer/pretrained --label norm_wap
    """
    if url is None and bundle is None:
        raise click.UsageError("Give --url, --bundle, or both.")
    if out is not None and not out.absolute().parent.is_dir():
        raise BadParameter(f"The predictions cannot be written to {out}: there is no such folder.")
    wanted = [name.strip() for name in ids.split(",") if name.strip()] if ids else None
    expressions = select(read_pack(data, label, form), wanted, limit)
    runs = _recognise(expressions, url, bundle, target, concurrency, timeout)
    report: dict[str, Any] = {
        "data": data.name,
        "label_set": label,
        "limits": "dropped by the canonical form",
        "scheme": "token edit distance on canonical tokens",
        "input": form,
        "decoding": DECODING,
        "ensemble_size": 1,
        "n": len(expressions),
        **{run.way: run.to_dict() for run in runs},
    }
    if len(runs) == 2:
        report["agreement"] = agreement(*runs)
    if out is not None:
        _write_predictions(out, runs)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        click.echo(as_text(report, runs))


def _recognise(
    expressions: list[Expression],
    url: str | None,
    bundle: Path | None,
    target: str,
    concurrency: int,
    timeout: float,
) -> list[Run]:
    def bar(outcomes: Iterable[Outcome], length: int) -> Iterator[Outcome]:
        return progress(outcomes, length, "recognize")

    runs = []
    with ExitStack() as stack:
        if url is not None:
            remote = stack.enter_context(Recognizer(url, timeout=timeout))
            runs.append(through_server(expressions, remote, concurrency, bar))
        if bundle is not None:
            local = stack.enter_context(LocalRecognizer(bundle, target=target))
            runs.append(in_process(expressions, local, str(bundle), bar))
    return runs


def _write_predictions(path: Path, runs: list[Run]) -> None:
    """The first run's predictions; where there are two, with the other's beside them."""
    entries = predictions(runs[0])
    for run in runs[1:]:
        for entry, other in zip(entries, predictions(run), strict=True):
            entry[f"pred_{run.way}"] = other["pred"]
    try:
        path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadParameter(
            f"The predictions cannot be written to {path}: {error.strerror}."
        ) from error


def as_text(report: dict[str, Any], runs: list[Run]) -> str:
    """The report for a person: what was measured, then a table for each run."""
    lines = [
        f"{report['data']}: n = {report['n']}, label set {report['label_set']}, \\limits "
        f"{report['limits']}, input {report['input']}, decoding {report['decoding']}, "
        f"ensemble size {report['ensemble_size']}",
        f"scheme: {report['scheme']}",
    ]
    for run in runs:
        figures = report[run.way]
        rows = [_row("all", figures)]
        rows += [_row(f"length {name}", part) for name, part in figures["by_length"].items()]
        rows += [_row(name, part) for name, part in figures["by_structure"].items()]
        titles = ("", "n", "ExpRate %", "95 %", "<=1 %", "<=2 %", "<=3 %", "token errors %")
        lines += [
            "",
            f"{run.way.replace('_', ' ')} ({run.where}), {figures['wall_s']:.1f} s, "
            f"{figures['unparsable']} unparsable, {figures['missing']} missing"
            + "".join(f", {count} {code}" for code, count in figures["errors"].items()),
            render_table(titles, rows, right=set(range(1, len(titles)))),
        ]
    if "agreement" in report:
        same = report["agreement"]
        lines += ["", f"server and in process agree on {same['equal']} of {same['n']}."]
        if same["differing"]:
            lines.append(f"they differ on: {', '.join(same['differing'][:20])}")
    return "\n".join(lines)


def _row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    low, high = figures["exprate_95"]
    rates = (figures[f"within_{errors}"] for errors in (1, 2, 3))
    return (
        name,
        str(figures["n"]),
        f"{figures['exprate'] * 100:.2f}",
        f"{low * 100:.1f}-{high * 100:.1f}",
        *(f"{rate * 100:.2f}" for rate in rates),
        f"{figures['token_error_rate'] * 100:.2f}",
    )


if __name__ == "__main__":
    main()
