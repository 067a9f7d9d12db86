"""The command ``hmer-export verify``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from export.options import PATH, bar, compared_on, json_option, needs_export
from hmer.console import sentences

RUNNERS = ("pytorch", "onnxruntime", "openvino", "openvino-bf16", "tensorrt")
EXAMPLE = """
\b
Examples:
  hmer-export verify training/pretrained hmer/pretrained
  hmer-export verify training/pretrained hmer/pretrained --data ../shared/crohme/test_2014.jsonl.gz
  hmer-export verify training/pretrained bundle --engines engines --runner tensorrt --json
"""


@click.command(epilog=EXAMPLE)
@click.argument("checkpoint", type=PATH)
@click.argument("bundle", type=PATH)
@click.option(
    "--runner",
    "runners",
    type=click.Choice(RUNNERS),
    multiple=True,
    help="Ask this one; may be given more than once. [default: all at hand]",
)
@click.option("--engines", type=PATH, help="Folder with the TensorRT plans of the bundle's graphs.")
@click.option(
    "--max-differing",
    type=click.FloatRange(0, 100, min_open=True),
    help="Per cent of the images that may get another answer in fp16, bf16 or int8. In fp32 "
    "none may but for ties. [default: 1 in fp16, 5 in bf16, 10 in int8]",
)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=32,
    show_default=True,
    help="Images for the checks within a runner (padding, batches, k, beam); 0: none.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Of each runner; 0: every CPU.",
)
@compared_on
@json_option
@sentences
def verify(
    checkpoint: Path,
    bundle: Path,
    runners: tuple[str, ...],
    engines: Path | None,
    max_differing: float | None,
    sample: int,
    threads: int,
    images: Path | None,
    data: tuple[Path, ...],
    limit: int | None,
    as_json: bool,
) -> None:
    """Compare the answers of the exported BUNDLE with those of CHECKPOINT.

    \b
    answers  every image, as it is served, against the checkpoint one by one without padding
    padding  an image without padding, and in a larger canvas
    batch    images one by one, and 32 of unlike sizes at once
    k        one token a call, and k
    beam     decoder_beam with one hypothesis, and greedily

    Fails if a token differs whose two candidates are no tie within rounding, or (other
    precisions than fp32) if more images differ than the precision may cost.
    """
    with needs_export():
        from export import parity
        from export.images import gather
        from export.verify_report import parity_table

    began = time.monotonic()
    model, exported = parity.load_pair(checkpoint, bundle)
    with bar("reading", "writing") as progress:
        pictures = gather(exported.preprocess, images, data, limit, progress)
    with bar("comparing answers") as progress:
        found = parity.verify(
            model,
            exported,
            pictures,
            runners=runners or None,
            sample=sample,
            threads=threads,
            allowed=None if max_differing is None else max_differing / 100,
            engines=engines,
            progress=progress,
        )
    if as_json:
        about = {
            "checkpoint": str(checkpoint),
            "bundle": str(bundle),
            "precision": exported.precision,
            "data": [str(path) for path in data],
            "images": len(pictures),
            "seconds": round(time.monotonic() - began, 1),
        }
        click.echo(json.dumps(about | found.to_dict()))
    else:
        click.echo(parity_table(found.results))
        for runner, reason in found.skipped.items():
            click.echo(f"{runner} was left out: {reason}")
    parity.refuse_mismatches(found.results)
