"""The command ``hmer-export gpu``, behind ``make gpu``."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import click

from hmer.console import Failure, sentences
from hmer.engine_images import BUILDER, DEFAULT

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = """
\b
Examples:
  hmer-export gpu --dry-run
  hmer-export gpu hmer/pretrained bundle-fp16 --output gpu-report.json
"""


@click.command("gpu", epilog=EXAMPLE)
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    default=ROOT / "training" / "pretrained",
    help="Checkpoint of the bundles, for parity. [default: training/pretrained]",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("gpu-report.json"),
    show_default=True,
    help="The report.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("gpu-work"),
    show_default=True,
    help="Folder for the engines.",
)
@click.option(
    "--image",
    default=f"{BUILDER}:{DEFAULT.tag}",
    show_default=True,
    help="NVIDIA's TensorRT image, used by docker where TensorRT is not installed here. Take the "
    "tag of the Triton image that will serve.",
)
@click.option("--dry-run", is_flag=True, help="Print every decision and command; do nothing.")
@click.option("--inside", is_flag=True, hidden=True, help="This is the container.")
@click.option("--json", "as_json", is_flag=True, help="Print the report too.")
@sentences
def gpu(
    bundles: tuple[Path, ...],
    checkpoint: Path,
    output: Path,
    work: Path,
    image: str,
    dry_run: bool,
    inside: bool,
    as_json: bool,
) -> None:
    """Build engines of the exported BUNDLES, verify and measure them, and write one report.

    BUNDLES default to hmer/pretrained. What this machine lacks is reported with its reason.
    Fails if not everything could be done.
    """
    from export.gpu import Options, inspect_machine, plan, run

    options = Options(
        bundles or (ROOT / "hmer" / "pretrained",), checkpoint, work, output, image, inside
    )
    machine = inspect_machine()
    steps = plan(machine, options)
    if dry_run:
        if as_json:
            document = {"machine": asdict(machine), "steps": [asdict(step) for step in steps]}
            click.echo(json.dumps(document))
            return
        for name, value in asdict(machine).items():
            click.echo(f"{name:<14} {value if value is not None else 'missing'}")
        for step in steps:
            click.echo(f"\n{step.name}\n  {shlex.join(step.command)}")
            if step.missing:
                click.echo(f"  not here: {step.missing}")
        return
    report = run(machine, steps, options, lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(report))
    else:
        click.echo(f"Wrote {output}.")
    failed = [entry for entry in report["steps"] if not entry["ok"]]
    if failed:
        reason = failed[0].get("missing") or str(failed[0].get("error", "")).strip()[-300:]
        raise Failure(
            f"{len(failed)} of {len(report['steps'])} steps were not done, first "
            f"{failed[0]['name']}: {reason}"
        )
