"""``hmer-train eval``: score a checkpoint with the PyTorch network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hmer.console import progress, sentences
from hmer.errors import BadParameter
from training.options import DEVICES, data_options, need_torch, say, tell_problems

if TYPE_CHECKING:
    from hmer.score import Scored, Summary

PREDICTIONS = "predictions.json"

EXAMPLE = """
\b
Examples:
  hmer-train eval runs/first/best --data ../shared/crohme/test_2014.jsonl.gz
  hmer-train eval --data DATA --image-dir IMAGES --save-dir runs/second
"""


@click.command("eval", epilog=EXAMPLE)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@data_options
@click.option("--save-dir", type=click.Path(path_type=Path, file_okay=False),
              help="A run: its best checkpoint is scored, unless CHECKPOINT is given, and the "
              f"predictions are written there as {PREDICTIONS}.")  # fmt: skip
@click.option("--batch-size", default=32, type=click.IntRange(min=1), show_default=True,
              help="Images a batch.")  # fmt: skip
@click.option("--patience", type=int, hidden=True)  # so that a training command line can be reused
@click.option("--label", default="norm", show_default=True,
              help="The field of a stroke pack with the label.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many expressions.")
@click.option("--predictions", type=click.Path(path_type=Path, dir_okay=False),
              help="Write truth and prediction of each expression to this JSON file.")  # fmt: skip
@click.option("--device", default="auto", type=DEVICES, show_default=True,
              help="auto: the GPU if there is one.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="End with one JSON document.")
@sentences
def evaluate(
    checkpoint: Path | None,
    data: Path,
    image_dir: Path | None,
    sequence_length: int,
    strict: bool,
    save_dir: Path | None,
    batch_size: int,
    patience: int | None,
    label: str,
    limit: int | None,
    predictions: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Score CHECKPOINT with the PyTorch network, decoding greedily.

    A folder with a part for evaluation (eval.json, val/) is scored on that part. The score of
    what is served is hmer-bench's: it goes through the exported graphs.
    """
    if checkpoint is None and save_dir is None:
        raise BadParameter("Give the CHECKPOINT to score, or the --save-dir of a run.")
    need_torch("Evaluation")
    from hmer.score import compare, summarise
    from training.augment import AugmentSettings
    from training.build import BEST
    from training.checkpoint import load_checkpoint
    from training.data import Renderer
    from training.device import find_device
    from training.evaluate import predict
    from training.sources import open_source

    bundle, model = load_checkpoint(checkpoint or (save_dir or Path()) / BEST)
    model.to(find_device(device))
    loaded = open_source(
        data,
        split="eval",
        image_dir=image_dir,
        label=label,
        sequence_length=sequence_length,
        limit=limit,
        strict=strict,
        vocabulary=bundle.vocabulary,
    )
    examples = loaded.examples
    if data.is_dir() and not loaded.source.split:
        say(f"{data} has no part for evaluation: all of {loaded.source} is scored, which may be "
            "what the network was trained on.")  # fmt: skip
    renderer = Renderer(bundle.vocabulary, bundle.preprocess, AugmentSettings())
    places = {id(example): place for place, example in enumerate(examples)}
    found: dict[int, Scored] = {}
    for example, prediction in progress(
        predict(model, renderer, examples, sequence_length, batch_size),
        len(examples),
        "recognising",
    ):
        tokens = bundle.vocabulary.decode(prediction.ids)
        found[places[id(example)]] = compare(example.name, example.tokens, tokens)
    scored = [found[place] for place in sorted(found)]
    target = predictions or (save_dir / PREDICTIONS if save_dir else None)
    if target:
        _write(target, scored)
    tell_problems([loaded])
    summary = summarise(scored)
    if as_json:
        click.echo(json.dumps(_document(data, label, target, scored, loaded.to_dict())))
    else:
        click.echo(_sentence(summary, label) + (f" Predictions: {target}." if target else ""))


def _document(
    data: Path, label: str, target: Path | None, scored: list[Scored], source: dict[str, Any]
) -> dict[str, Any]:
    from hmer.evaluation import Answers, figures

    return {
        "data": str(data),
        "label": label,
        **figures(Answers(scored)),
        "predictions": str(target) if target else None,
        "source": source,
    }


def _write(path: Path, scored: list[Scored]) -> None:
    """A JSON list of ``id``, ``gt`` and ``pred``: canonical tokens, separated by spaces."""
    rows = [
        {"id": s.id, "gt": " ".join(s.truth), "pred": " ".join(s.prediction or ())} for s in scored
    ]
    try:
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadParameter(f"The predictions cannot be written to {path}: {error}.") from error


def _sentence(summary: Summary, label: str) -> str:
    low, high = summary.interval
    return (
        f"ExpRate {summary.exprate:.2%} (95 % {low:.2%} to {high:.2%}), <=1 "
        f"{summary.rate(1):.2%}, <=2 {summary.rate(2):.2%}, <=3 {summary.rate(3):.2%}, "
        f"token error rate {summary.token_error_rate:.2%}; {summary.n} expressions, label "
        f"{label}, canonical tokens, token edit distance, greedy."
    )
