"""``hmer-bench rescore``."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.crohme import STROKES, WAP_IMAGES, held_out, read_pack
from benchmarks.foreign import Entry, need_truths, read_predictions, with_truths
from benchmarks.options import label_option, report_options
from benchmarks.output import Part, check_folder, emit
from hmer.console import sentences
from hmer.evaluation import UNKNOWN, Answers, Conditions, figures
from hmer.score import compare


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="The pack that was recognised: for its truths, where the file has none, and pictures.",
)
@label_option
@click.option(
    "--input",
    "form",
    type=click.Choice([STROKES, WAP_IMAGES]),
    default=STROKES,
    show_default=True,
    help="What the pictures on the page are made of.",
)
@click.option(
    "--held-out", "only_held_out", is_flag=True, help="Only the pack's part held out from training."
)
@report_options
@sentences
def rescore(
    file: Path,
    data: Path | None,
    label: str,
    form: str,
    only_held_out: bool,
    html: Path | None,
    worst: int,
    top: int,
    markdown: bool,
    as_json: bool,
) -> None:
    """Score predictions from elsewhere, FILE, as hmer-bench accuracy would.

    FILE is a JSON list of objects with "gt", "pred" and "id" (as --predictions writes), JSON
    lines of the same, a JSON object from id to prediction, or lines of ID<TAB>PREDICTION or
    ID<TAB>TRUTH<TAB>PREDICTION. Formulas are token strings or LaTeX. With --data the truths are
    the pack's; an expression of it that FILE lacks counts as wrong.

    \b
    Examples:
      hmer-bench rescore predictions.json --html report.html
      hmer-bench rescore published.tsv --data test_2014.jsonl.gz --label norm_wap
    """
    if only_held_out and data is None:
        raise click.UsageError("--held-out is a part of a pack: give --data, too.")
    check_folder(html, "page")
    entries = read_predictions(file)
    inputs: dict[str, bytes] = {}
    notes: list[str] = []
    if data is not None:
        expressions = read_pack(data, label, form)
        if only_held_out:
            expressions = held_out(expressions)
        inputs = {e.id: e.data for e in expressions}
        entries, absent = with_truths(file, entries, {e.id: e.truth for e in expressions})
        if absent:
            notes.append(
                f"{len(absent)} of {len(entries)} expressions of the pack have no prediction in "
                f"the file and count as wrong: {', '.join(absent[:5])}"
                + (", ..." if len(absent) > 5 else "")
            )
    need_truths(file, entries)
    answers = _answers(entries)
    conditions = Conditions(
        data=file.name if data is None else f"{file.name} on {data.name}",
        label_set=UNKNOWN if data is None else label,
        ensemble_size=None,
    )
    report = {**conditions.to_dict(len(entries)), **figures(answers, top)}
    line = f"predictions of {file}, {report['unparsable']} unparsable, {report['missing']} missing"
    emit(
        report,
        [Part("", line, answers)],
        notes,
        inputs,
        html=html,
        worst=worst,
        markdown=markdown,
        as_json=as_json,
    )


def _answers(entries: list[Entry]) -> Answers:
    several = any(entry.candidates for entry in entries)
    return Answers(
        [compare(entry.id, entry.truth or (), entry.prediction) for entry in entries],
        [entry.score for entry in entries],
        candidates=[list(entry.candidates) for entry in entries] if several else [],
    )
