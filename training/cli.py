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

from hmer.console import sentences
from training.curves import command as curves
from training.eval_cli import evaluate
from training.options import (
    DEVICES,
    TaskGroup,
    data_options,
    need_torch,
    network_options,
    recipe_options,
    say,
    tell_problems,
)
from training.synthesise_cli import command as synthesise

if TYPE_CHECKING:
    from training.build import Run
    from training.train import Report, Trainer


@click.group(
    cls=TaskGroup,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)
@click.version_option(package_name="hmer")
def main() -> None:
    """Train the recogniser on handwriting with LaTeX labels, and score checkpoints.

    \b
    hmer-train train --data ../shared/crohme --save-dir runs/first
    hmer-train eval runs/first/best --data ../shared/crohme/test_2014.jsonl.gz

    Without a command, --task train or --task eval names it; options may have underscores
    for hyphens:

    \b
    hmer-train --task train --data_dir DATA --image_dir IMAGES --save_dir RUN --patience 10
    hmer-train --task eval --data_dir DATA --image_dir IMAGES --save_dir RUN
    """


POSITIVE = click.IntRange(min=1)
SHARE = click.FloatRange(0.0, 1.0)

TRAIN_EXAMPLE = """
\b
Examples:
  hmer-train train --data ../shared/crohme --save-dir runs/first
  hmer-train train --data ../shared/crohme --save-dir runs/first --steps 20000   # go on
  hmer-train train --data pictures --image-dir pictures/png --save-dir runs/second
"""


@main.command(epilog=TRAIN_EXAMPLE)
@data_options
@click.option("--extra", type=click.Path(path_type=Path), multiple=True,
              help="More data to train on, of any kind --data takes; may be given several times. "
              "Held-out writers and labels are left out of it.")  # fmt: skip
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
@click.option("--steps", default=8000, type=POSITIVE, show_default=True,
              help="Optimiser steps in all.")  # fmt: skip
@click.option("--max-hours", type=click.FloatRange(min=0, min_open=True),
              help="End after so many hours; the rate falls to zero before.")  # fmt: skip
@click.option("--learning-rate", default=1e-3, show_default=True, help="AdamW's, at its plateau.")
@click.option("--decay-share", default=0.3, type=SHARE, show_default=True,
              help="The last part of the steps, in which the rate falls to zero.")  # fmt: skip
@click.option("--pixels", default=240_000, type=POSITIVE, show_default=True,
              help="Padded pixels a batch.")  # fmt: skip
@click.option("--batch-size", default=32, type=POSITIVE, show_default=True,
              help="Most images a batch.")  # fmt: skip
@network_options
@recipe_options
@click.option("--held-out", default=0.05, type=SHARE, show_default=True,
              help="Share of the writers held out, with all their labels, where the data has "
              "no part for evaluation; of the labels, where no writers are named.")  # fmt: skip
@click.option("--evaluate-every", type=POSITIVE,
              help="Steps.  [default: 500; with --task, an epoch, at least 50]")  # fmt: skip
@click.option("--save-every", default=200, type=POSITIVE, show_default=True, help="Steps.")
@click.option("--patience", default=0, type=click.IntRange(min=0), show_default=True,
              help="Stop after so many evaluations without a better score; 0: never.")  # fmt: skip
@click.option("--device", default="auto", type=DEVICES, show_default=True,
              help="auto: the GPU if there is one.")  # fmt: skip
@click.option("--precision", default="fp32", type=click.Choice(["fp32", "bf16"]),
              show_default=True, help="Of the encoder's convolutions; bf16 may be slower than "
              "fp32 on a CPU.")  # fmt: skip
@click.option("--compile", "compile_", is_flag=True,
              help="Compile the encoder with torch.compile: minutes first.")  # fmt: skip
@click.option("--few-shapes", is_flag=True,
              help="Pad batches to few sizes: faster on a GPU, slower on a CPU.")  # fmt: skip
@click.option("--workers", default=0, type=click.IntRange(min=0), show_default=True,
              help="Processes that make batches; 0: a thread.")  # fmt: skip
@click.option("--threads", default=0, type=click.IntRange(min=0), show_default=True,
              help="CPU threads; 0: PyTorch's choice.")  # fmt: skip
@click.option("--tensorboard", is_flag=True,
              help="Write the curves to SAVE_DIR/tensorboard too.")  # fmt: skip
@click.option("--profile", type=POSITIVE, metavar="N",
              help="Print where the time of N steps goes, and end; nothing is saved.")  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="End with one JSON document.")
@click.pass_context
@sentences
def train(context: click.Context, /, **options: Any) -> None:
    """Train a recogniser, or go on with a run that was stopped or finished.

    Writes SAVE_DIR/best (the best checkpoint so far, a bundle that hmer-export reads),
    SAVE_DIR/state.safetensors (to go on from) and SAVE_DIR/metrics.jsonl.
    """
    need_torch("Training")
    from training.build import build_run

    run = build_run({**options, "task": TaskGroup.by_option(context)})
    trainer = run.trainer
    for loaded in run.data.sources:
        say(f"Read {len(loaded.examples)} examples from {loaded.source}.")
    if not trainer.held_out:
        say("Nothing is held out, so no checkpoint can be told to be the best, and patience "
            "never ends the run. Give more data, or a part for evaluation.")  # fmt: skip
    if trainer.progress.step:
        say(f"Going on at step {trainer.progress.step + 1}.")
    if options["profile"]:
        _profile(run, options["profile"], options["as_json"])
        return
    with _bar(trainer) as bar, _stopping(trainer):
        trainer.listener = lambda report: _show(bar, report)
        trainer.run()
    tell_problems(run.data.sources)
    if trainer.stopping:
        say(f"Stopped and saved at step {trainer.progress.step}; the same command goes on.")
        sys.exit(130)
    if not trainer.quiet:
        _conclude(run, options["save_dir"], options["as_json"])


def _profile(run: Run, steps: int, as_json: bool) -> None:
    from training.profile import profile

    report = profile(run.trainer, steps=steps)
    tell_problems(run.data.sources)
    if run.trainer.world.rank == 0:
        click.echo(json.dumps(report.to_dict()) if as_json else str(report))


def _conclude(run: Run, folder: Path, as_json: bool) -> None:
    progress = run.trainer.progress
    result = {
        "save_dir": str(folder),
        "step": progress.step,
        "held_out_exprate": progress.best_score,
        "best_step": progress.best_step,
        "hours": progress.seconds / 3600,
        "train": len(run.data.train),
        "held_out": len(run.trainer.held_out),
        "sources": [loaded.to_dict() for loaded in run.data.sources],
    }
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(
            f"Best of {progress.step} steps: {progress.best_score:.2%} ExpRate on "
            f"{len(run.trainer.held_out)} held-out expressions at step "
            f"{progress.best_step}; the checkpoint is {folder / 'best'}."
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


main.add_command(evaluate)
main.add_command(curves)
main.add_command(synthesise)
