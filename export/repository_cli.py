"""The command ``hmer-export repository``."""

from __future__ import annotations

import json
from pathlib import Path

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
from export.options import force_option, json_option, output_option, serving_options
from export.repository import assemble
from export.targets import table
from hmer.console import sentences
from hmer.serving import BLS, IN_PROCESS

EXAMPLE = """
\b
Examples:
  hmer-export repository hmer/pretrained --output repository
  hmer-export repository hmer/pretrained --target auto --output repository
  hmer-export repository hmer/pretrained --host container --target onnxruntime --output served
"""


@click.command("repository", epilog=EXAMPLE)
@click.argument("bundle", type=click.Path(path_type=Path))
@output_option("repository")
@click.option(
    "--host",
    type=click.Choice(HOSTS),
    default=EMBEDDED,
    show_default=True,
    help=f"{EMBEDDED}: hmer-serve, on a CPU. {CONTAINER}: NVIDIA's Triton image.",
)
@click.option(
    "--target",
    type=click.Choice((*TARGETS, AUTO)),
    default=ONNXRUNTIME,
    show_default=True,
    help=f"What runs the graphs. {TENSORRT} needs --host {CONTAINER}; {AUTO} measures the CPU "
    "runtimes that are installed here, on these graphs, and takes the fastest.",
)
@click.option(
    "--slots",
    type=click.IntRange(min=1),
    default=RepositoryOptions.slots,
    show_default=True,
    help="Formulas decoded at the same time.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=RepositoryOptions.max_queue,
    show_default=True,
    help="Formulas that may wait for a slot before more are refused.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=RepositoryOptions.max_tokens,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "--step",
    type=click.Choice((IN_PROCESS, BLS)),
    default=None,
    help="Run decoding steps inside decode, or by calls to the model decoder_step. "
    f"[default: {IN_PROCESS} where a Python model runs the graphs, else {BLS}]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=RepositoryOptions.threads,
    show_default=True,
    help="Threads of the encoder; 0: every CPU.",
)
@click.option(
    "--precision",
    type=click.Choice(("fp32", "bf16")),
    default="fp32",
    show_default=True,
    help=f"Of the encoder; bf16 with --target {OPENVINO}.",
)
@click.option(
    "--preprocessors",
    type=click.IntRange(min=0),
    default=RepositoryOptions.preprocessors,
    show_default=True,
    help="Processes of a model that only reads pictures; recognize reads its own.",
)
@serving_options
@click.option(
    "--engines",
    type=click.Path(path_type=Path),
    default=None,
    help=f"Folder with encoder.plan and decoder_step.plan, for --target {TENSORRT}.",
)
@force_option("repository")
@json_option
@sentences
def repository(
    bundle: Path,
    output: Path,
    host: str,
    target: str,
    slots: int,
    max_queue: int,
    max_tokens: int,
    step: str | None,
    threads: int,
    precision: str,
    preprocessors: int,
    step_target: str | None,
    step_threads: int,
    encoder_workers: int,
    batch_pixels: int,
    queue_delay: int,
    max_wait: int,
    processes: str | None,
    engines: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Assemble a Triton model repository from the exported BUNDLE (hmer-export onnx)."""
    options = RepositoryOptions(
        host,
        target,
        step,
        precision,
        threads,
        slots,
        max_queue,
        max_tokens,
        preprocessors,
        step_target=step_target,
        step_threads=step_threads,
        encoder_workers=encoder_workers,
        batch_pixels=batch_pixels,
        queue_delay_us=queue_delay,
        max_wait_ms=max_wait,
        processes=processes,
    )
    result = assemble(bundle, output, options, engines=engines, force=force)
    for path in result.missing:
        click.echo(
            f"warning: {path} is still missing. Build it from the graph in {output / 'bundle'} "
            "with the TensorRT of the same image and GPU that will serve it.",
            err=True,
        )
    if as_json:
        click.echo(
            json.dumps(
                {
                    "repository": str(result.folder),
                    "models": list(result.models),
                    "host": host,
                    "target": result.options.target,
                    "step": options.decode_step,
                    "auto": result.choice.to_dict() if result.choice else None,
                    "missing": list(result.missing),
                }
            )
        )
        return
    if result.choice is not None:
        click.echo(table(result.choice))
    click.echo(f"Wrote {result.folder} with the models {', '.join(result.models)}.")
    if host == EMBEDDED:
        click.echo(f"Serve it: hmer-serve --repository {result.folder}")
    else:
        click.echo(f"How to serve it: hmer-serve --repository {result.folder} --print-docker")
