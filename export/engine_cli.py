"""The commands ``hmer-export engine`` and ``hmer-export aot-compile``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from export.options import force_option, json_option, output_option
from hmer.bundle import GRAPHS, load_bundle
from hmer.console import Failure, progress, sentences
from hmer.engine import FLAVOURS, TENSORRT, TENSORRT_RTX
from hmer.gpu import find_gpu
from hmer.serving import MAX_ROWS
from hmer.slots import LADDER

ENGINE_EXAMPLE = """
\b
Examples:
  hmer-export engine hmer/pretrained --output engines
  hmer-export repository hmer/pretrained --host container --target tensorrt \\
      --engines engines --output served
\b
  hmer-export engine hmer/pretrained --output rtx --flavour tensorrt_rtx \\
      --compute-capability 8.9
"""
AOT_EXAMPLE = """
\b
Example:
  hmer-export aot-compile hmer/pretrained bundle-fp16 --compute-capability 8.9
"""
MAX_BATCH = click.option(
    "--max-batch",
    type=click.Choice([str(rung) for rung in LADDER]),
    default=str(MAX_ROWS),
    show_default=True,
    help="Most rows of a call; not fewer than the repository's --slots.",
)


@click.command("engine", epilog=ENGINE_EXAMPLE)
@click.argument("bundle", type=click.Path(path_type=Path))
@output_option("engines")
@click.option(
    "--flavour",
    type=click.Choice(FLAVOURS),
    default=TENSORRT,
    show_default=True,
    help=f"{TENSORRT}: for Triton, on the GPU that will serve. {TENSORRT_RTX}: TensorRT for RTX, "
    "also without a GPU.",
)
@MAX_BATCH
@click.option(
    "--workspace-gib",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="GPU memory that kernels may use beside tensors.",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Later versions of TensorRT load the engines too; Triton then runs code out of them.",
)
@click.option(
    "--hardware-compatible",
    is_flag=True,
    help="Every GPU from compute capability 8.0 on loads the engines, at a price in speed.",
)
@click.option(
    "--compute-capability",
    "targets",
    multiple=True,
    metavar="X.Y",
    help=f"GPU to compile for, with --flavour {TENSORRT_RTX}; may be repeated. [default: this one]",
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder of TensorRT's timing caches. [default: HMER_CACHE, or ~/.cache/hmer]",
)
@force_option("engines")
@json_option
@sentences
def engine(
    bundle: Path,
    output: Path,
    flavour: str,
    max_batch: str,
    workspace_gib: float,
    version_compatible: bool,
    hardware_compatible: bool,
    targets: tuple[str, ...],
    timing_cache: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Build TensorRT engines of the exported BUNDLE, in its own precision.

    Beside every engine a sidecar says which TensorRT and GPU it is for.
    """
    from export.engines import build_engines
    from export.tensorrt_build import EngineOptions

    if flavour == TENSORRT_RTX and not targets:
        gpu = find_gpu()
        targets = (gpu.compute_capability,) if gpu else ()
    options = EngineOptions(
        flavour=flavour,
        max_batch=int(max_batch),
        workspace_gib=workspace_gib,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        targets=targets,
    )
    built = build_engines(
        bundle,
        output,
        options,
        cache=timing_cache,
        force=force,
        say=lambda line: click.echo(line, err=True),
    )
    if as_json:
        click.echo(json.dumps({"engines": [item.to_dict() for item in built]}))
        return
    click.echo(f"{'file':<20} {'size':>10} {'precision':>9} {'profiles':<12} {'seconds':>8}")
    for item in built:
        names = ", ".join(profile.name for profile in item.info.profiles)
        click.echo(
            f"{item.plan.name:<20} {item.info.plan_bytes / 1e6:>7.2f} MB "
            f"{item.info.precision:>9} {names:<12} {item.info.seconds:>8.1f}"
        )
    click.echo(
        f"Wrote {output} for {flavour} {built[0].info.version}."
        + (
            f" Next: hmer-export repository {bundle} --host container --target tensorrt "
            f"--engines {output} --output served"
            if flavour == TENSORRT
            else ""
        )
    )


@click.command("aot-compile", epilog=AOT_EXAMPLE)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--compute-capability",
    "targets",
    multiple=True,
    metavar="X.Y",
    help="GPU to compile for; may be repeated. [default: 8.0, 8.6, 8.9, 12.0]",
)
@MAX_BATCH
@json_option
@sentences
def aot_compile_command(
    bundles: tuple[Path, ...], targets: tuple[str, ...], max_batch: str, as_json: bool
) -> None:
    """Compile the exported BUNDLES for NVIDIA GPUs on a CPU, and print a table.

    TensorRT for RTX parses and builds without a GPU. That shows that NVIDIA's builder accepts
    the graphs; nothing is kept, and nothing here can run an engine. Fails if one is refused.
    """
    from export.tensorrt_aot import NAME, TARGETS, Compiled, aot_compile, markdown
    from export.tensorrt_api import load

    checked = [load_bundle(folder, GRAPHS) for folder in bundles]
    trt = load(TENSORRT_RTX)
    rows: list[Compiled] = []
    for bundle in progress(checked, len(checked), NAME):
        for row in aot_compile(trt, bundle, targets or TARGETS, int(max_batch)):
            rows.append(row)
            if sys.stderr.isatty():
                click.echo(f"{row.bundle} {row.graph} {row.target}", err=True)
    if as_json:
        document = {"check": NAME, "version": trt.__version__}
        click.echo(json.dumps({**document, "rows": [row.to_dict() for row in rows]}))
    else:
        click.echo(markdown(rows, trt.__version__))
    refused = [row for row in rows if not row.ok]
    if refused:
        raise Failure(
            f"{len(refused)} of {len(rows)} were refused, first {refused[0].graph} for "
            f"{refused[0].target}: {refused[0].error}"
        )
