"""``hmer-train``: train a recogniser, and score a checkpoint."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from hmer.console import progress, sentences
from hmer.errors import MissingDependency

if TYPE_CHECKING:
    from training.train import Report, Trainer


@click.group()
@click.version_option(package_name="hmer")
def main() -> None:
    """Train the recogniser on handwriting with LaTeX labels, and score checkpoints.

    \b
    hmer-train train --data ../shared/crohme --save-dir runs/first
    hmer-train eval runs/first/best --data ../shared/crohme/test_2014.jsonl.gz
    """


def _need_torch() -> None:
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            "Training needs torch and safetensors. Install them with: pip install 'hmer[train]'"
        ) from error


TRAIN_EXAMPLE = """
\b
Examples:
  hmer-train train --data ../shared/crohme --save-dir runs/first
  hmer-train train --data ../shared/crohme --save-dir runs/first --steps 20000   # go on
"""


@main.command(epilog=TRAIN_EXAMPLE)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="A stroke pack (JSON lines), or a folder with train.jsonl.gz.",
)
@click.option(
    "--save-dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where the run lives. A run that is there goes on at its next step.",
)
@click.option(
    "--init-from",
    type=click.Path(path_type=Path),
    help="Start a new run from the weights, vocabulary and sizes of this checkpoint.",
)
@click.option("--steps", default=8000, show_default=True, help="Optimiser steps in all.")
@click.option("--learning-rate", default=1e-3, show_default=True, help="AdamW's, at its plateau.")
@click.option("--decay-share", default=0.3, show_default=True,
              help="The last part of the steps, in which the rate falls to zero.")  # fmt: skip
@click.option("--pixels", default=240_000, show_default=True, help="Padded pixels a batch.")
@click.option("--batch-size", default=32, show_default=True, help="Most images a batch.")
@click.option("--symbol-height", default=22.0, show_default=True,
              help="Height of the writing in pixels after preprocessing.")  # fmt: skip
@click.option("--widths", default="32,64,128,256", show_default=True,
              help="Channels of the four ResNet stages.")  # fmt: skip
@click.option("--strides", default="2,2,2,2,1", show_default=True,
              help="Of the stem, its pooling, and the stages two to four.")  # fmt: skip
@click.option("--drop-attention", default=0.0, show_default=True,
              help="Share of attended positions that training suppresses.")  # fmt: skip
@click.option("--held-out", default=0.05, show_default=True,
              help="Share of the writers held out, with all their labels.")  # fmt: skip
@click.option("--evaluate-every", default=500, show_default=True, help="Steps.")
@click.option("--save-every", default=200, show_default=True, help="Steps.")
@click.option("--patience", default=0, show_default=True,
              help="Stop after so many evaluations without a better score; 0: never.")  # fmt: skip
@click.option("--threads", default=0, show_default=True, help="CPU threads; 0: PyTorch's choice.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="End with one JSON document.")
@sentences
def train(**options: Any) -> None:
    """Train a recogniser, or go on with a run that was stopped or finished.

    Writes SAVE_DIR/best (the best checkpoint so far, a bundle that hmer-export reads),
    SAVE_DIR/state.safetensors (to go on from) and SAVE_DIR/metrics.jsonl.
    """
    _need_torch()
    from training.build import build_trainer

    trainer = build_trainer(options)
    folder = options["save_dir"]
    if trainer.progress.step:
        click.echo(f"Going on at step {trainer.progress.step + 1}.", err=True)
    with _bar(trainer) as bar, _stopping(trainer):
        trainer.listener = lambda report: _show(bar, report)
        trainer.run()
    if trainer.stopping:
        click.echo(
            f"Stopped and saved at step {trainer.progress.step}; the same command goes on.",
            err=True,
        )
        sys.exit(130)
    result = {
        "save_dir": str(folder),
        "step": trainer.progress.step,
        "held_out_exprate": trainer.progress.best_score,
        "best_step": trainer.progress.best_step,
        "hours": trainer.progress.seconds / 3600,
    }
    if options["as_json"]:
        click.echo(json.dumps(result))
    else:
        click.echo(
            f"Best of {trainer.progress.step} steps: {trainer.progress.best_score:.2%} ExpRate "
            f"on {len(trainer.held_out)} held-out expressions at step "
            f"{trainer.progress.best_step}; the checkpoint is {folder / 'best'}."
        )


@contextmanager
def _bar(trainer: Trainer) -> Iterator[tqdm[Any]]:
    with tqdm(
        total=trainer.settings.steps,
        initial=trainer.progress.step,
        unit="step",
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
    ) as bar:
        yield bar


def _show(bar: tqdm[Any], report: Report) -> None:
    if report.kind == "step":
        bar.update(1)
        bar.set_postfix(
            loss=f"{report.values['loss']:.3f}", tokens=f"{report.values['accuracy']:.1%}"
        )
    else:
        bar.write(
            f"step {report.step}: {report.values['exprate']:.2%} ExpRate on "
            f"{report.values['n']:.0f} held-out expressions",
            file=sys.stderr,
        )


@contextmanager
def _stopping(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM let the step end and the state be saved; a second one is abrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        if trainer.stopping:
            raise KeyboardInterrupt
        trainer.stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


EVAL_EXAMPLE = """
\b
Example:
  hmer-train eval runs/first/best --data ../shared/crohme/test_2014.jsonl.gz
"""


@main.command("eval", epilog=EVAL_EXAMPLE)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A stroke pack.")
@click.option("--label", default="norm", show_default=True, help="The field with the label.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many expressions.")
@click.option("--predictions", type=click.Path(path_type=Path, dir_okay=False),
              help="Write truth and prediction of each expression to this JSON file.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="End with one JSON document.")
@sentences
def evaluate(
    checkpoint: Path,
    data: Path,
    label: str,
    limit: int | None,
    predictions: Path | None,
    as_json: bool,
) -> None:
    """Score CHECKPOINT with the PyTorch network, decoding greedily.

    The score of what is served is hmer-bench's: it goes through the exported graphs.
    """
    _need_torch()
    from hmer.score import compare, summarise
    from training.augment import AugmentSettings
    from training.checkpoint import load_checkpoint
    from training.data import Renderer, pack_of, read_pack
    from training.evaluate import predict

    bundle, model = load_checkpoint(checkpoint)
    examples = read_pack(pack_of(data), label)[:limit]
    renderer = Renderer(bundle.vocabulary, bundle.preprocess, AugmentSettings())
    scored = []
    for example, prediction in progress(
        predict(model, renderer, examples), len(examples), "recognising"
    ):
        tokens = bundle.vocabulary.decode(prediction.ids)
        scored.append(compare(example.name, example.tokens, tokens))
    summary = summarise(scored)
    if predictions:
        rows = [
            {"id": s.id, "gt": " ".join(s.truth), "pred": " ".join(s.prediction or ())}
            for s in scored
        ]
        predictions.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if as_json:
        click.echo(json.dumps({"data": str(data), "label": label, **summary.to_dict()}))
    else:
        low, high = summary.interval
        click.echo(
            f"ExpRate {summary.exprate:.2%} (95 % {low:.2%} to {high:.2%}), <=1 "
            f"{summary.rate(1):.2%}, <=2 {summary.rate(2):.2%}, <=3 {summary.rate(3):.2%}, "
            f"token error rate {summary.token_error_rate:.2%}; {summary.n} expressions, label "
            f"{label}, canonical tokens, token edit distance, greedy."
        )
