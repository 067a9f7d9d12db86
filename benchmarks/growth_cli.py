"""``hmer-bench growth``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.growth import Settings, along, of_pictures
from benchmarks.growth_axes import AXES, CONCURRENCY, PICTURE, Axis
from benchmarks.growth_plots import plot
from benchmarks.growth_tables import tables
from benchmarks.inputs import gather, numbers
from benchmarks.machine import describe, ended, machine
from benchmarks.options import (
    input_options,
    result_options,
    target_option,
    weights_options,
    work_option,
)
from benchmarks.output import check_folder, write_json
from benchmarks.repositories import code_hash
from hmer import __version__
from hmer.bundle import GRAPHS, load_bundle
from hmer.console import sentences
from hmer.errors import BadParameter, HmerError

_KEPT = "growth-{}.json"  # of the axis, in --work


@click.command()
@click.option(
    "--axis",
    "names",
    type=click.Choice(list(AXES)),
    multiple=True,
    help="Only this one; may be given several times.  [default: all]",
)
@click.option("--values", help="Of the one --axis, such as 1,2,4.  [default: the axis' own]")
@weights_options
@target_option("of the encoder and the step")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    help="Requests under way in the turns under load.",
)
@input_options
@work_option("hmer-growth")
@click.option("--again", is_flag=True, help="Measure also what --work has figures of.")
@click.option(
    "--plots",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write growth-AXIS.svg into this folder.",
)
@result_options
@sentences
def growth(
    names: tuple[str, ...],
    values: str | None,
    bundle: Path,
    checkpoint: Path,
    target: str,
    rounds: int,
    concurrency: int,
    data: Path | None,
    form: str,
    limit: int | None,
    work: Path,
    again: bool,
    plots: Path | None,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """How cost grows with the picture, the answer, the load, and the server's settings.

    Axis by axis; what was measured with the same settings is kept in --work, so a run that was
    stopped goes on where it was. A value that this machine is too small for is left out, and said.
    Run nothing else meanwhile.

    \b
    Examples:
      hmer-bench growth --data test_2014.jsonl.gz --limit 24 --plots plots --output growth.json
      hmer-bench growth --axis slots --values 1,4,16 --rounds 5
    """
    chosen = [AXES[name] for name in names or AXES]
    if values is not None and (len(chosen) != 1 or chosen[0].of == PICTURE):
        raise BadParameter("--values are of one --axis, and none whose values are the pictures'.")
    wanted = [int(v) for v in numbers(values, "--values")] if values else None
    check_folder(output, "figures")
    check_folder(plots, "plots")
    loaded = load_bundle(bundle, GRAPHS)
    expressions = gather(data, form, limit or 24)
    work.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        loaded, checkpoint, target, expressions, rounds, concurrency, work / "repositories"
    )
    settings.work.mkdir(exist_ok=True)
    kept = _Kept(work, _key(settings), again)
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    about = machine()
    for axis in chosen:
        try:
            there = kept.of(axis, wanted or axis.values)
            found[axis.name] = there or _measured(
                axis, wanted or axis.values, chosen, settings, kept
            )
        except HmerError as error:
            missing[axis.name] = str(error)
    report: dict[str, Any] = {
        "benchmark": "growth",
        "machine": ended(about),
        "data": data.name if data else "samples",
        "input": form if data else "samples",
        "inputs": len(expressions),
        "rounds": rounds,
        "runtime": target,
        "axes": found,
        "missing": missing,
    }
    if plots is not None:
        plots.mkdir(exist_ok=True)
        for name, one in found.items():
            (plots / f"growth-{name}.svg").write_text(plot(one), encoding="utf-8")
    if output is not None:
        write_json(output, report, "figures")
    if not found:
        raise BadParameter(f"No axis could be measured: {'; '.join(missing.values())}")
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    for one in tables(report):
        click.echo((one.markdown() if markdown else one.text()) + "\n")
    for name, reason in missing.items():
        click.echo(f"{name} is missing: {reason}")
    click.echo(
        f"{report['data']}, {len(expressions)} pictures, {rounds} rounds, {target}. "
        f"{describe(report['machine'])}"
    )


def _measured(
    axis: Axis, values: Sequence[int], chosen: Sequence[Axis], settings: Settings, kept: _Kept
) -> dict[str, Any]:
    """Measure ``axis``; of the pictures' axes all that were chosen, as one costs what all do."""
    _say(f"{axis.name} ...")
    about = machine()
    if axis.of != PICTURE:
        points, skipped = along(axis, values, settings, _say)
        load = "each at its own" if axis.name == CONCURRENCY else f"{settings.concurrency} at once"
        entry = {"points": points, "skipped": skipped, "load": load}
        return kept.keep(axis, values, {**entry, "machine": ended(about)})
    others = [other for other in chosen if other.of == PICTURE]
    seen = of_pictures([other.name for other in others], settings, _say)
    entries = {
        other.name: kept.keep(
            other, (), {"points": points, "lines": lines, "machine": ended(about)}
        )
        for other in others
        for points, lines in (seen[other.name],)
    }
    return entries[axis.name]


class _Kept:
    """The figures of axes in files of ``--work``, each with what it was measured with."""

    def __init__(self, folder: Path, key: str, again: bool) -> None:
        self._folder, self._key, self._again = folder, key, again
        self._own: set[str] = set()  # measured by this run

    def of(self, axis: Axis, values: Sequence[int]) -> dict[str, Any] | None:
        """What is there of the axis, if it was measured with the same settings."""
        path = self._folder / _KEPT.format(axis.name)
        if (self._again and axis.name not in self._own) or not path.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # the run that wrote it was stopped
            return None
        if found.get("key") != self._key or found.get("values") != list(values):
            return None
        if axis.name not in self._own:
            _say(f"{axis.name}: measured before, in {path}")
        return found

    def keep(self, axis: Axis, values: Sequence[int], entry: dict[str, Any]) -> dict[str, Any]:
        """Write an axis' figures, and return them with the axis' name and label."""
        about = {"axis": axis.name, "label": axis.label, "values": list(values), "key": self._key}
        found = {**about, **entry}
        write_json(self._folder / _KEPT.format(axis.name), found, "figures")
        self._own.add(axis.name)
        return found


def _key(settings: Settings) -> str:
    """Of all that figures depend on, but for the machine."""
    text = json.dumps(
        {
            "version": __version__,
            "code": code_hash(),
            "bundle": (settings.bundle.folder / "bundle.json").read_text(encoding="utf-8"),
            "inputs": [hashlib.sha256(e.data).hexdigest() for e in settings.expressions],
            "settings": [settings.target, settings.rounds, settings.concurrency],
        }
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _say(line: str) -> None:
    click.echo(line, err=True)
