"""``hmer-bench report``."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.output import check_folder
from benchmarks.report_into import main_figures, put_into, write
from benchmarks.speed_report import markdown, page, read, section
from hmer.console import sentences


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
@click.option(
    "--into",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the first table of each file between the two marker comments of this one.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the first plot as SVG here, and show it there.  [with --into]",
)
@sentences
def report(
    files: tuple[Path, ...],
    html: Path | None,
    text: Path | None,
    into: Path | None,
    plot: Path | None,
) -> None:
    """One report from the JSON FILES that the other commands wrote (--output, or their --json).

    Every section names the machine, the versions and the command that repeats it.

    \b
    Examples:
      hmer-bench report compare.json load.json limits.json --html speed.html
      hmer-bench report compare.json --markdown speed.md
      hmer-bench report compare.json --into README.md --plot speed.svg
    """
    if plot is not None and into is None:
        raise click.UsageError("--plot is for --into.")
    for path, what in ((html, "page"), (text, "tables"), (plot, "plot")):
        check_folder(path, what)
    plots = html is not None or plot is not None
    sections = [section(read(path), plots, str(path)) for path in files]
    if html is not None:
        write(html, page(sections))
    if text is not None:
        write(text, markdown(sections))
    if into is not None:
        changed = put_into(into, main_figures(sections, plot, into))
        click.echo(f"{into} {'was brought up to date' if changed else 'is up to date'}.", err=True)
    if text is None and html is None and into is None:
        click.echo(markdown(sections), nl=False)
