"""The command ``hmer-export inspect``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from export.options import PATH, json_option
from hmer.console import sentences

EXAMPLE = """
\b
Examples:
  hmer-export inspect hmer/pretrained
  hmer-export inspect hmer/pretrained/encoder.onnx --json
  hmer-export inspect repository
"""


@click.command(epilog=EXAMPLE)
@click.argument("path", type=PATH)
@json_option
@sentences
def inspect(path: Path, as_json: bool) -> None:
    """Explain PATH: a checkpoint, an exported bundle, a graph, an engine plan, a model
    repository or a training run.

    Its hashes are verified; what doesn't fit is said. Needs no torch.
    """
    from export.inspect_path import page_of

    page = page_of(path)
    click.echo(json.dumps(page.to_dict()) if as_json else page.text())
