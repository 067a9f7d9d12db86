"""The command line ``hmer-export``: ``onnx``, ``verify``, ``repository``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click

from export.repository_cli import repository
from hmer import __version__
from hmer.bundle import CHECKPOINT, load_bundle
from hmer.console import sentences
from hmer.errors import MissingDependency

if TYPE_CHECKING:
    from export.onnx_export import Exported
    from export.parity import Parity, Progress

P = ParamSpec("P")

ONNX_EXAMPLE = """
\b
Examples:
  hmer-export onnx training/pretrained --output bundle
  hmer-export onnx runs/best --output bundle --k 8 --data ../shared/crohme --force
"""
VERIFY_EXAMPLE = """
\b
Example:
  hmer-export verify training/pretrained hmer/pretrained --data ../shared/crohme
"""


@click.group()
@click.version_option(__version__, prog_name="hmer-export")
def main() -> None:
    """Turn a checkpoint into what is served.

    \b
    hmer-export onnx CHECKPOINT --output BUNDLE
    hmer-export repository BUNDLE --output REPOSITORY
    """


main.add_command(repository)


def _compared_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what to compare on and how to report."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        click.option("--limit", type=click.IntRange(min=1), default=64, show_default=True,
                     help="Compare on at most so many writings of --data."),
        click.option("--data", type=click.Path(path_type=Path), envvar="HMER_CROHME",
                     show_envvar=True, help="Folder with the stroke pack train.jsonl.gz; its "
                     "held-out part is compared on too."),
        click.option("--images", type=click.Path(path_type=Path),
                     help="Folder of pictures or ink to compare on instead of the samples."),
    ):  # fmt: skip
        function = option(function)
    return function


@main.command(epilog=ONNX_EXAMPLE)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the bundle; it must not exist, or be empty.",
)
@click.option(
    "--k",
    type=click.IntRange(1, 16),
    default=4,
    show_default=True,
    help="Tokens that one call of decoder_step decodes; 1 allows beam search.",
)
@click.option(
    "--storage",
    type=click.Choice(("float16", "float32")),
    default="float16",
    show_default=True,
    help="How weights lie in the files; they compute in float32.",
)
@click.option("--force", is_flag=True, help="Replace the exported bundle that is there.")
@_compared_on
@sentences
def onnx(
    checkpoint: Path,
    output: Path,
    k: int,
    storage: Any,
    force: bool,
    images: Path | None,
    data: Path | None,
    limit: int,
    as_json: bool,
) -> None:
    """Export CHECKPOINT to encoder.onnx and decoder_step.onnx.

    The graphs are checked, and their answers compared with the checkpoint's on real
    images; if one token differs, nothing is written.
    """
    with _needs_export():
        from export.images import gather
        from export.onnx_export import export_bundle

    settings = load_bundle(checkpoint, kind=CHECKPOINT).preprocess
    pictures = gather(settings, images, data, limit)
    with _progress() as progress:
        result = export_bundle(
            checkpoint,
            output,
            k=k,
            images=pictures,
            storage=storage,
            force=force,
            say=lambda line: click.echo(line, err=True),
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(result.to_dict()))
        return
    _print_graphs(result)
    _print_parity(result.parity)
    click.echo(f"Wrote {output}. Next: hmer-export repository {output} --output repository")


@main.command(epilog=VERIFY_EXAMPLE)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@_compared_on
@sentences
def verify(
    checkpoint: Path,
    bundle: Path,
    images: Path | None,
    data: Path | None,
    limit: int,
    as_json: bool,
) -> None:
    """Compare the answers of the exported BUNDLE with those of CHECKPOINT.

    Fails if a token differs, or if the two are not of one vocabulary and network.
    """
    with _needs_export():
        from export.images import gather
        from export.parity import compare, load_pair, refuse_mismatches

    model, exported = load_pair(checkpoint, bundle)
    pictures = gather(exported.preprocess, images, data, limit)
    with _progress() as progress:
        results = compare(model, exported, pictures, progress=progress)
    if as_json:
        click.echo(
            json.dumps({"bundle": str(bundle), "parity": [result.to_dict() for result in results]})
        )
    else:
        _print_parity(results)
    refuse_mismatches(results)


@contextmanager
def _needs_export() -> Iterator[None]:
    try:
        yield
    except MissingDependency:
        raise
    except ImportError as error:
        raise MissingDependency(
            f"The export needs {error.name}. Install it with: pip install 'hmer[export]'"
        ) from error


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc="comparing answers", unit="image", leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _print_graphs(result: Exported) -> None:
    click.echo(f"{'file':<20} {'size':>9} {'opset':>6} {'nodes':>6}")
    for graph in result.graphs:
        click.echo(
            f"{graph.file:<20} {graph.bytes / 1e6:>6.2f} MB {graph.opset:>6} {graph.nodes:>6}"
        )


def _print_parity(results: Sequence[Parity]) -> None:
    click.echo(f"{'parity in':<14} {'images':>6} {'tokens':>7} {'differing':>9} {'score by':>9}")
    for result in results:
        click.echo(
            f"{result.runtime:<14} {result.images:>6} {result.tokens:>7} "
            f"{len(result.mismatches):>9} {result.score_difference:>9.1e}"
        )


if __name__ == "__main__":
    main()
