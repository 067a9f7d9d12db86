"""``hmer-bench limits``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.growth_plots import roofline
from benchmarks.inputs import gather
from benchmarks.limits import measure, tables
from benchmarks.machine import describe, ended, machine
from benchmarks.options import FILE, bundle_option, input_options, result_options, target_option
from benchmarks.output import check_folder, write_json
from benchmarks.repositories import Chosen
from hmer.bundle import GRAPHS, load_bundle
from hmer.console import sentences


@click.command()
@bundle_option
@target_option("of encoder and step")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of the encoder; bf16 with the target openvino.",
)
@input_options
@click.option(
    "--plot",
    type=FILE,
    help="Write encoder and step below the machine's peaks to this SVG file.",
)
@result_options
@sentences
def limits(
    bundle: Path,
    target: str,
    precision: str,
    data: Path | None,
    form: str,
    limit: int | None,
    plot: Path | None,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """What the machine can do, what encoder and step need of it, and what they take.

    Operations and bytes are counted from the graphs; peaks are the best of several sizes and
    runtimes. Run nothing else meanwhile.

    \b
    Examples:
      hmer-bench limits --target openvino --plot limits.svg
      hmer-bench limits --data test_2014.jsonl.gz --limit 16 --json
    """
    check_folder(output, "figures")
    check_folder(plot, "plot")
    loaded = load_bundle(bundle, GRAPHS)
    inputs = [e.data for e in gather(data, form, limit or 16)]
    about = machine()
    found = measure(
        loaded,
        Chosen(target, target, precision),
        inputs,
        say=lambda line: click.echo(line, err=True),
    )
    report: dict[str, Any] = {
        "benchmark": "limits",
        "machine": ended(about),
        "data": data.name if data else "samples",
        **found,
    }
    if plot is not None:
        plot.write_text(roofline(found), encoding="utf-8")
    if output is not None:
        write_json(output, report, "figures")
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    for table in tables(found):
        click.echo((table.markdown() if markdown else table.text()) + "\n")
    click.echo(f"The encoder's limit: {found['encoder']['against']}.")
    click.echo(f"The step's limit: {found['step']['against']}.")
    click.echo(describe(about))
