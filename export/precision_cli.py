"""The command ``hmer-export precision``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from export.options import PATH, PRECISIONS, bar, json_option, needs_export, say
from hmer.console import sentences
from hmer.errors import ExportError

EXAMPLE = """
\b
Examples:
  hmer-export precision training/pretrained --data ../shared/crohme
  hmer-export precision runs/best --data ../shared/crohme --limit 50 --precision int8
"""


@click.command("precision", epilog=EXAMPLE)
@click.argument("checkpoint", type=PATH)
@click.option(
    "--data",
    required=True,
    type=PATH,
    envvar="HMER_CROHME",
    show_envvar=True,
    help="Folder with train.jsonl.gz (calibration, and the held-out part) and the test packs.",
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    default=PRECISIONS,
    show_default=True,
    help="Measure this one beside fp32. May be given more than once.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Answer at most so many writings of each test, evenly over their order. [default: all]",
)
@click.option(
    "--k",
    type=click.IntRange(1, 16),
    default=4,
    show_default=True,
    help="Tokens that one call of decoder_step decodes.",
)
@click.option("--markdown", type=PATH, help="Also write the tables to this file.")
@json_option
@sentences
def precision(
    checkpoint: Path,
    data: Path,
    precisions: tuple[str, ...],
    limit: int | None,
    k: int,
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Measure what each precision costs CHECKPOINT, and gains.

    ExpRate and differing tokens on CROHME 2014 and 2016, size, and time beside fp32's on this
    CPU. Times are measured in turns; beside other work they are leads, not figures.
    """
    with needs_export():
        from export.precision_table import measure, tables

    rows = measure(checkpoint, data, precisions=precisions, limit=limit, k=k, say=say, bar=bar)
    shown = tables(rows)
    if markdown is not None:
        text = "\n\n".join(table.markdown() for table in shown) + "\n"
        try:
            markdown.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ExportError(f"{markdown} cannot be written: {error.strerror}.") from error
    if as_json:
        click.echo(json.dumps({"limit": limit, "rows": [row.to_dict() for row in rows]}))
        return
    click.echo("\n\n".join(table.text() for table in shown))
