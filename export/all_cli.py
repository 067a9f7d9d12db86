"""The command ``hmer-export all``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from export.config import (
    AUTO,
    CONTAINER,
    EMBEDDED,
    HOSTS,
    ONNXRUNTIME,
    OPENVINO,
    TARGETS,
    TENSORRT,
    RepositoryOptions,
)
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
from hmer.errors import BadParameter
from hmer.tables import render_table

if TYPE_CHECKING:
    from export.all_stages import Finished

EXAMPLE = """
\b
Examples:
  hmer-export all training/pretrained --output repository
  hmer-export all runs/best --target openvino --data ../shared/crohme --output repository
  hmer-export all runs/best --target tensorrt --precision fp16 --output served
"""


@click.command("all", epilog=EXAMPLE)
@click.argument("checkpoint", type=PATH)
@output_option("repository")
@click.option(
    "--target",
    type=click.Choice((*TARGETS, AUTO)),
    default="onnxruntime",
    show_default=True,
    help="What runs the graphs.",
)
@click.option(
    "--host",
    type=click.Choice(HOSTS),
    default=None,
    help=f"{EMBEDDED}: hmer-serve, on a CPU. {CONTAINER}: NVIDIA's Triton image. "
    f"[default: {CONTAINER} for {TENSORRT}, else {EMBEDDED}]",
)
@graph_options
@force_option("repository")
@compared_on
@json_option
@sentences
def all_stages(
    checkpoint: Path,
    output: Path,
    target: str,
    host: str | None,
    precision: str,
    calibration_data: Path | None,
    accept_loss: bool,
    k: int,
    beam: int,
    force: bool,
    images: Path | None,
    data: tuple[Path, ...],
    limit: int | None,
    as_json: bool,
) -> None:
    """From CHECKPOINT to a model repository that Triton loads, in one go.

    Exports the graphs, builds engines where --target tensorrt and this machine allow it (else
    says what to run on the machine with the GPU), compares all answers with the checkpoint's,
    and assembles the repository, with the exported bundle in it.
    """
    with needs_export():
        from export.all_stages import Order, run_all
        from export.images import gather

    where = host or (CONTAINER if target == TENSORRT else EMBEDDED)
    # Of an fp32 graph OpenVINO's bfloat16 would be an option of the repository; of a bf16 graph
    # it is what the graph asks for.
    hint = "bf16" if precision == "bf16" and target == OPENVINO else "fp32"
    if precision == "bf16" and target == ONNXRUNTIME:
        raise BadParameter(
            "ONNX Runtime has no operators for bf16 on a CPU. Give --target openvino, tensorrt or "
            "auto, or another precision."
        )
    options = RepositoryOptions(host=where, target=target, precision=hint)
    settings = load_bundle(checkpoint, kind=CHECKPOINT).preprocess
    order = Order(
        checkpoint,
        output,
        options,
        precision=precision,
        k=k,
        beam=beam,
        data=calibration_folder(calibration_data, data),
        accept_loss=accept_loss,
        force=force,
    )
    result = run_all(order, gather(settings, images, data, limit), say=say, bar=bar)
    if as_json:
        click.echo(json.dumps(result.to_dict()))
        return
    if result.assembled.choice is not None:
        from export.targets import table

        click.echo(table(result.assembled.choice))
    click.echo(summary(result))
    if result.todo:
        click.echo("To finish it:")
        for line in result.todo:
            click.echo(f"  {line}")
    elif where == EMBEDDED:
        click.echo(f"Serve it: hmer-serve --repository {output}")
    else:
        click.echo(f"How to serve it: hmer-serve --repository {output} --print-docker")


def summary(result: Finished) -> str:
    """File, size, precision, opset, profiles and parity of everything that is loaded."""
    rows = [
        (
            row.file,
            f"{row.bytes / 1e6:.2f} MB",
            row.precision,
            "-" if row.opset is None else str(row.opset),
            ", ".join(row.profiles) or "-",
            row.parity,
        )
        for row in result.files
    ]
    titles = ("file", "size", "precision", "opset", "profiles", "parity with the checkpoint")
    took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.seconds.items())
    table = render_table(titles, rows, right={1, 3})
    models = ", ".join(result.assembled.models)
    return f"{table}\nWrote {result.assembled.folder} with the models {models} ({took})."
