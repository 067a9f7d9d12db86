"""``hmer-bench report``."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.output import check_folder
from benchmarks.speed_report import markdown, page, read, section
from hmer.console import sentences
from hmer.errors import BadParameter


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write one page with the tables and plots.",
)
@click.option(
    "--markdown",
    "text",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the tables to this file.  [default: print them]",
)
@sentences
def report(files: tuple[Path, ...], html: Path | None, text: Path | None) -> None:
    """One report from the JSON FILES that latency, load, compare and limits wrote (--output).

    Every section names the machine, the versions and the command that repeats it.

    \b
    Examples:
      hmer-bench report compare.json load.json limits.json --html speed.html
      hmer-bench report compare.json --markdown speed.md
    """
    check_folder(html, "page")
    check_folder(text, "tables")
    sections = [section(read(path), plots=html is not None) for path in files]
    if html is not None:
        _write(html, page(sections))
    if text is not None:
        _write(text, markdown(sections))
    elif html is None:
        click.echo(markdown(sections), nl=False)


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise BadParameter(f"{path} cannot be written: {error.strerror}.") from error
