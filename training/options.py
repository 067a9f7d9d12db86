"""What the commands of ``hmer-train`` share: ``--task``, the data options, what they say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hmer.errors import MissingDependency

if TYPE_CHECKING:
    from training.sources import Loaded

F = TypeVar("F", bound=Callable[..., Any])

TASKS = ("train", "eval")
DEVICES = click.Choice(["auto", "cpu", "cuda"])
_OWN_OPTIONS = ("--help", "--version")


class TaskGroup(click.Group):
    """A group whose command can also be named by ``--task``, anywhere on the line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Turn ``--task train OPTIONS`` into ``train OPTIONS``."""
        task, rest = _take_task(args)
        if task is not None:
            if task not in TASKS:
                raise click.UsageError(f"--task must be train or eval, not {task!r}.", ctx)
            if rest and rest[0] in self.commands:
                if rest[0] != task:
                    raise click.UsageError(
                        f"The command is {rest[0]}, but --task says {task}. Give one of them.", ctx
                    )
                rest = rest[1:]
            ctx.meta[__name__] = True
            rest = [task, *rest]
        elif rest and rest[0].startswith("-") and rest[0] not in _OWN_OPTIONS:
            raise click.UsageError(
                f"Say what to do before {rest[0]}: train or eval (or --task train, --task eval).",
                ctx,
            )
        return super().parse_args(ctx, rest)

    @staticmethod
    def by_option(ctx: click.Context) -> bool:
        """Whether ``--task`` named the command."""
        return bool(ctx.meta.get(__name__))


def _take_task(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of ``--task`` and the other arguments."""
    for place, argument in enumerate(args):
        if argument == "--":
            break
        if argument.startswith("--task="):
            return argument.partition("=")[2], [*args[:place], *args[place + 1 :]]
        if argument == "--task":
            value = args[place + 1] if place + 1 < len(args) else ""
            return value, [*args[:place], *args[place + 2 :]]
    return None, list(args)


def data_options(command: F) -> F:
    """The options that say what to read: the same for training and evaluation."""
    for option in reversed((
        click.option("--data", "--data-dir", "data", type=click.Path(path_type=Path),
                     required=True, help="A folder or file of labelled ink or pictures: stroke "
                     "pack, InkML, train.json and eval.json, caption file, CSV."),
        click.option("--image-dir", type=click.Path(path_type=Path),
                     help="The folder of the pictures.  [default: beside the labels, or images]"),
        click.option("--sequence-length", default=200, show_default=True,
                     type=click.IntRange(min=1), help="Most tokens of a label."),
        click.option("--strict", is_flag=True,
                     help="Stop at the first entry that cannot be used, instead of skipping it."),
    )):  # fmt: skip
        command = option(command)
    return command


def recipe_options(command: F) -> F:
    """What the loss and the data are made of; training/ABLATIONS.md says what each is worth."""
    for option in reversed((
        click.option("--recombine/--no-recombine", default=True, show_default=True,
                     help="New expressions from parts and symbols of segmented ones."),
        click.option("--attention-weight", default=0.5, type=click.FloatRange(min=0),
                     show_default=True, help="Of the loss that pulls attention to the ink of the "
                     "symbol being written."),
        click.option("--symbols-weight", default=0.5, type=click.FloatRange(min=0),
                     show_default=True, help="Of the loss on which symbols have ink where."),
        click.option("--curriculum/--no-curriculum", default=False, show_default=True,
                     help="Short expressions and small writing in the first five epochs."),
        click.option("--average", default=0.999, type=click.FloatRange(0, 1, max_open=True),
                     show_default=True, help="Decay a step of the moving average of the weights "
                     "that is judged and kept; 0: the weights themselves."),
        click.option("--label-smoothing", default=0.05, type=click.FloatRange(0, 0.5),
                     show_default=True),
        click.option("--zoom", default="0.65,1.15", show_default=True,
                     help="Scale augmentation: smallest and largest factor of the size."),
        click.option("--distortion", default=1.0, type=click.FloatRange(min=0),
                     show_default=True, help="Times the usual stretch, slant, rotation and "
                     "distortion of strokes."),
        click.option("--pens", default="2,3,3,4,4,5,6", show_default=True,
                     help="Pen widths in pixels; one that is named twice is drawn more often."),
        click.option("--degrade", default=0.0, type=click.FloatRange(0, 1), show_default=True,
                     help="Share of pictures that are made small, blurred, compressed, one-bit or "
                     "photographed."),
        click.option("--jitter", default=0.0, type=click.FloatRange(0, 0.5), show_default=True,
                     help="Size of each picture varied by this share, and its place on the grid "
                     "of features; 0: neither."),
        click.option("--consistency", default=0.0, type=click.FloatRange(min=0),
                     show_default=True, help="Weight of the loss on two pictures of the same "
                     "writing being read differently; above 0 a batch has each twice."),
        click.option("--freeze-norm/--no-freeze-norm", default=False, show_default=True,
                     help="Keep the statistics of batch normalisation: for small batches on "
                     "trained weights."),
        click.option("--drop-attention", default=0.0, type=click.FloatRange(0, 1),
                     show_default=True, help="Share of attended positions that training "
                     "suppresses."),
    )):  # fmt: skip
        command = option(command)
    return command


def network_options(command: F) -> F:
    """Sizes of a new network; one from ``--init-from`` or a resumed run brings its own."""
    sizes = click.IntRange(min=1)
    for option in reversed((
        click.option("--symbol-height", default=22.0, show_default=True,
                     help="Height of the writing in pixels after preprocessing."),
        click.option("--widths", default="32,64,128,256", show_default=True,
                     help="Channels of the four ResNet stages."),
        click.option("--strides", default="2,2,2,2,1", show_default=True,
                     help="Of the stem, its pooling, and the stages two to four."),
        click.option("--attention", default=128, type=sizes, show_default=True,
                     help="Attention units."),
        click.option("--hidden", default=256, type=sizes, show_default=True, help="LSTM units."),
        click.option("--embedding", default=128, type=sizes, show_default=True,
                     help="Size of a token's embedding."),
        click.option("--reach", default="1", type=click.Choice(["1", "3", "5", "7", "9", "11"]),
                     show_default=True, help="Side of the square of cumulative attention that "
                     "an attention energy sees, in feature positions."),
        click.option("--dropout", default=0.2, type=click.FloatRange(0, 0.9), show_default=True,
                     help="Before the last layer."),
    )):  # fmt: skip
        command = option(command)
    return command


def need_torch(what: str) -> None:
    """Raise ``MissingDependency`` where the extra is not installed."""
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            f"{what} needs torch and safetensors. Install them with: pip install 'hmer[train]'"
        ) from error


def say(text: str) -> None:
    """A line for a person on stderr; of several processes (torchrun) the first one says it."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(text, err=True)


def tell_problems(sources: Iterable[Loaded]) -> None:
    """Say what was skipped, at the end, where it is seen."""
    for loaded in sources:
        for line in loaded.sentences():
            say(line)
