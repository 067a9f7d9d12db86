"""The command ``hmer-export onnx``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.options import (
    PATH,
    bar,
    calibration_folder,
    compared_on,
    force_option,
    graph_options,
    json_option,
    needs_export,
    output_option,
    say,
)
from hmer.bundle import CHECKPOINT, load_bundle
from hmer.console import sentences
from hmer.tables import render_table

if TYPE_CHECKING:
    from export.onnx_export import Exported

EXAMPLE = """
\b
Examples:
  hmer-export onnx training/pretrained --output bundle
  hmer-export onnx runs/best --output bundle --k 8 --data ../shared/crohme --force
  hmer-export onnx runs/best --output small --precision int8 --calibration-data ../shared/crohme
"""


@click.command(epilog=EXAMPLE)
@click.argument("checkpoint", type=PATH)
@output_option("bundle")
@graph_options
@click.option(
    "--storage",
    type=click.Choice(("float16", "float32")),
    default="float16",
    show_default=True,
    help="How weights of fp32 graphs lie in the files; they compute in float32.",
)
@force_option("exported bundle")
@compared_on
@json_option
@sentences
def onnx(
    checkpoint: Path,
    output: Path,
    precision: str,
    calibration_data: Path | None,
    accept_loss: bool,
    k: int,
    beam: int,
    storage: Any,
    force: bool,
    images: Path | None,
    data: tuple[Path, ...],
    limit: int | None,
    as_json: bool,
) -> None:
    """Export CHECKPOINT to the graphs encoder, decoder_step and decoder_beam.

    The graphs are checked, and their answers compared with the checkpoint's on real
    images; if one token differs (in a precision other than fp32: if more do than it may
    cost), nothing is written.
    """
    with needs_export():
        from export.images import gather
        from export.onnx_export import export_bundle

    settings = load_bundle(checkpoint, kind=CHECKPOINT).preprocess
    pictures = gather(settings, images, data, limit)
    with bar("comparing answers") as progress:
        result = export_bundle(
            checkpoint,
            output,
            k=k,
            beam=beam,
            precision=precision,
            data=calibration_folder(calibration_data, data),
            accept_loss=accept_loss,
            images=pictures,
            storage=storage,
            force=force,
            say=say,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(result.to_dict()))
        return
    from export.verify_report import parity_table

    click.echo(graph_table(result))
    click.echo()
    click.echo(parity_table(result.parity))
    click.echo(f"Wrote {output}. Next: hmer-export repository {output} --output repository")


def graph_table(result: Exported) -> str:
    """File, size, precision, opset and nodes of every graph."""
    rows = [
        (g.file, f"{g.bytes / 1e6:.2f} MB", result.bundle.precision, str(g.opset), str(g.nodes))
        for g in result.graphs
    ]
    return render_table(("file", "size", "precision", "opset", "nodes"), rows, right={1, 3, 4})
