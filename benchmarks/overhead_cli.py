"""``hmer-bench overhead``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

import client.samples
from benchmarks.invariance import page_of, samples
from benchmarks.invariance_pictures import encode
from benchmarks.options import FILE, result_options
from benchmarks.output import check_folder, write_json
from benchmarks.overhead import WIRES, measure, table
from hmer.console import progress, sentences
from hmer.errors import MissingInput


@click.command()
@click.argument("picture", type=FILE, required=False)
@click.option(
    "--wire",
    "wires",
    type=click.Choice(WIRES),
    multiple=True,
    help="Only this one; may be repeated.  [default: all]",
)
@click.option("--rounds", type=click.IntRange(min=1), default=21, show_default=True)
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Of each way in each round.",
)
@result_options
@sentences
def overhead(
    picture: Path | None,
    wires: tuple[str, ...],
    rounds: int,
    requests: int,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """What the client adds to a request, beside the same request by tritonclient alone.

    Both send PICTURE (by default a sample drawn as PNG) to a server in this process that answers
    at once, one request at a time, and take turns. Figures are medians of rounds, with quartiles.

    \b
    Examples:
      hmer-bench overhead
      hmer-bench overhead formula.png --wire gRPC --rounds 31 --markdown
    """
    check_folder(output, "results")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.png" if picture is None else picture
        if picture is None:
            sample = samples(Path(client.samples.__file__).parent)[0]
            path.write_bytes(encode(page_of(sample.data)))
        elif not path.is_file():
            raise MissingInput(f"There is no file {path}. Give a picture, or none for a sample.")
        size = path.stat().st_size
        chosen = [wire for wire in WIRES if not wires or wire in wires]
        rows = [
            measure(wire, path, rounds, requests) for wire in progress(chosen, len(chosen), "wires")
        ]
    document = {
        "bytes": size,
        "rounds": rounds,
        "requests": requests,
        "wires": [row.to_dict() for row in rows],
    }
    if output is not None:
        write_json(output, document, "results")
    if as_json:
        click.echo(json.dumps(document, indent=1))
        return
    click.echo(f"{size} bytes, {rounds} rounds of {requests} requests of each way.\n")
    click.echo(table(rows).markdown() if markdown else table(rows).text())
