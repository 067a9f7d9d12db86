"""The curves of a run: read from ``metrics.jsonl``, drawn to a file, sent to TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from hmer.console import sentences
from hmer.errors import BadParameter, DatasetError, MissingDependency

FORMATS = (".png", ".svg", ".pdf")


class Metrics(NamedTuple):
    """Values by step: of training steps, and of evaluations on the held-out part."""

    steps: dict[int, dict[str, float]]
    held_out: dict[int, dict[str, float]]


def read_metrics(path: Path) -> Metrics:
    """Read a run's ``metrics.jsonl``; of a step that was made twice the later line counts.

    A line cut short by a kill is passed over. A missing file gives empty curves.
    """
    found: dict[str, dict[int, dict[str, float]]] = {"step": {}, "held_out": {}}
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    found[row.pop("kind")][int(row.pop("step"))] = row
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
    return Metrics(found["step"], found["held_out"])


class Board:
    """TensorBoard's log of a run in ``folder/tensorboard``, if it is ``wanted``.

    Steps after ``step``, where a resumed run goes on, are taken out of what is shown.
    """

    def __init__(self, folder: Path, step: int, wanted: bool) -> None:
        self._folder, self._step, self._wanted = folder / "tensorboard", step, wanted
        self._writer: Any = None
        if wanted:
            try:
                import tensorboard  # type: ignore[import-untyped]  # noqa: F401
            except ImportError as error:
                raise MissingDependency(
                    "--tensorboard needs the package tensorboard. Install it with: "
                    "pip install 'hmer[plots]'"
                ) from error

    def add(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """One report; written when it suits."""
        if not self._wanted:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._step + 1)
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def draw(metrics: Metrics, path: Path, title: str = "") -> None:
    """Draw loss, held-out ExpRate and learning rate over the steps to ``path``.

    Raises ``BadParameter`` for an unknown format, ``DatasetError`` if there is nothing to draw.
    """
    if path.suffix.lower() not in FORMATS:
        raise BadParameter(
            f"{path} cannot be drawn: the name must end in one of {', '.join(FORMATS)}."
        )
    if not metrics.steps:
        raise DatasetError("There is no curve to draw: the metrics hold no training step yet.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(
            "Curves are drawn with matplotlib. Install it with: pip install 'hmer[plots]'"
        ) from error
    steps = sorted(metrics.steps)
    figure = Figure(figsize=(8, 9), layout="constrained")
    loss, score, rate = figure.subplots(3, 1, sharex=True)
    values = np.array([metrics.steps[step]["loss"] for step in steps])
    loss.plot(steps, values, color="0.8", linewidth=0.5)
    loss.plot(steps, smooth(values), label="training loss, smoothed")
    loss.set_ylabel("cross entropy a token")
    loss.set_yscale("log")
    loss.legend()
    evaluated = sorted(metrics.held_out)
    rates = [100 * metrics.held_out[step]["exprate"] for step in evaluated]
    score.plot(evaluated, rates, marker=".", label="held-out ExpRate")
    score.set_ylabel("%")
    score.legend()
    rate.plot(steps, [metrics.steps[step]["rate"] for step in steps], label="learning rate")
    rate.set_xlabel("step")
    rate.legend()
    for part in (loss, score, rate):
        part.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path)


def smooth(values: NDArray[np.float64], share: float = 0.01) -> NDArray[np.float64]:
    """A running mean over ``share`` of all values, finite ones only, same length."""
    width = max(1, int(len(values) * share))
    finite = np.isfinite(values)
    window = np.ones(width)
    total = np.convolve(np.where(finite, values, 0.0), window, "same")
    count = np.convolve(finite.astype(float), window, "same")
    result: NDArray[np.float64] = total / np.maximum(count, 1.0)
    return result


@click.command("curves", epilog="\b\nExample:\n  hmer-train curves runs/first --output curves.svg")
@click.argument("folder", metavar="SAVE_DIR", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="A .svg, .png or .pdf file.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="End with one JSON document.")
@sentences
def command(folder: Path, output: Path, as_json: bool) -> None:
    """Draw loss, held-out ExpRate and learning rate of the run in SAVE_DIR."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise DatasetError(f"There is no {path}. Give the --save-dir of a run.")
    metrics = read_metrics(path)
    draw(metrics, output, str(folder))
    best = max((row["exprate"] for row in metrics.held_out.values()), default=None)
    if as_json:
        result = {"output": str(output), "steps": max(metrics.steps), "best_exprate": best}
        click.echo(json.dumps(result))
    else:
        click.echo(f"Drew {len(metrics.steps)} steps to {output}.")
