"""``hmer-client recognize``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import click

from client.api import Recognizer
from client.attention_files import AttentionFiles
from client.batch import Batch, Tally
from client.formats import FORMATS, LATEX, MATHML
from client.items import items_of
from client.journal import Journal
from client.options import (
    Interrupted,
    beam_for,
    model_option,
    search_options,
    server_options,
    timeout_option,
    version_option,
)
from client.output import Csv, JsonLines, Lines, Printer, Style, Table, read_truths
from client.parameters import Options
from client.protocol import DEFAULT_CONCURRENCY
from client.report import Report
from hmer.console import Failure, sentences
from hmer.looks import MOST
from hmer.mathml import to_mathml

LOW_CONFIDENCE = 3  # exit code


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@server_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each input.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values with a title line.")
@click.option("--table", is_flag=True, help="A table: picture, LaTeX, score, milliseconds.")
@click.option(
    "--expect",
    type=click.Path(path_type=Path),
    help="With --table: a samples.json that tells the true LaTeX; adds a column.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default=LATEX,
    show_default=True,
    help="How formulas are written; in JSON it comes beside the LaTeX.",
)
@search_options
@click.option(
    "--min-confidence",
    type=click.FloatRange(0, 1),
    help=f"Mark answers below it, and end with exit code {LOW_CONFIDENCE} if there is one.",
)
@click.option(
    "--attention",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Draw where the network looked, token by token: a picture for each formula.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page of pictures and formulas, too.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep answers in FILE as they come; what it has already is not asked again.",
)
@click.option(
    "--looks",
    type=click.IntRange(1, MOST),
    help="Recognise each input at so many sizes and take the surest answer; one by default.",
)
@timeout_option
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=DEFAULT_CONCURRENCY,
    show_default=True,
    help="Requests under way at the same time.",
)
@click.option(
    "--shared-memory",
    is_flag=True,
    help="Hand inputs over in memory; on the host of a hmer-serve --shared-memory only.",
)
@model_option
@version_option
@sentences
def recognize(
    connect: Callable[..., Recognizer],
    inputs: tuple[str, ...],
    as_json: bool,
    as_csv: bool,
    table: bool,
    expect: Path | None,
    format_: str,
    beam: int | None,
    n_best: int | None,
    length_penalty: float | None,
    max_tokens: int | None,
    looks: int | None,
    min_confidence: float | None,
    attention: Path | None,
    html: Path | None,
    resume: Path | None,
    timeout: float,
    concurrency: int,
    shared_memory: bool,
    model: str,
    model_version: int | None,
) -> None:
    """Print the LaTeX of handwritten formulas, in the order of the INPUTs.

    An INPUT is a picture (PNG, JPEG, WebP, TIFF, BMP), a PDF, ink (InkML, JSON strokes), a folder
    of them, a glob, http(s)://..., - for standard input, or @FILE: a list of INPUTs, one a line.
    Each page of a PDF or TIFF is answered; FILE#page=2 names one. An input that fails does not
    keep the others from being answered.

    \b
    Exit codes: 0 all answered; 1 an input failed; 2 wrong usage; 3 all answered, one with a
    confidence below --min-confidence; 130 interrupted (Ctrl-C).

    \b
    Examples:
      hmer-client recognize formula.png
      hmer-client recognize scans/ notes.inkml --json --url http://localhost:8000
      hmer-client recognize exam.pdf --beam 5 --n-best 3 --html exam.html
      hmer-client recognize @list.txt --csv --resume answers.jsonl > answers.csv
    """
    if as_json + as_csv + table > 1:
        raise click.UsageError("--json, --csv and --table exclude each other.")
    if expect is not None and not table:
        raise click.UsageError("--expect needs --table.")
    beam = beam_for(beam, n_best)
    truths = None if expect is None else read_truths(expect)
    if format_ == MATHML:
        to_mathml("x")  # raises at once where MathML cannot be had
    style = Style(format_, min_confidence)
    options: Options = {
        "beam": beam,
        "n_best": n_best,
        "length_penalty": length_penalty,
        "max_tokens": max_tokens,
        "looks": looks,
        "attention": attention is not None,
    }
    asked = dict(options) | {"model": model, "version": model_version}
    report = None if html is None else Report(html, style)
    pictures = None if attention is None else AttentionFiles(attention)
    with contextlib.ExitStack() as stack:
        recognizer = stack.enter_context(
            connect(
                model=model,
                version=model_version or "",
                timeout=timeout,
                shared_memory=shared_memory,
            )
        )
        journal = None if resume is None else stack.enter_context(Journal(resume, asked))
        try:
            items = items_of(inputs)
        except KeyboardInterrupt:
            raise Interrupted("Interrupted before anything was asked.") from None
        printer: Printer
        if as_json:
            printer = JsonLines(style)
        elif as_csv:
            printer = Csv(style)
        elif table:
            printer = Table(truths, style)
        else:
            printer = Lines(len(items) > 1, style)
        batch = Batch(recognizer, printer, style, options, journal, report, pictures)
        # Lines that scroll past on the same terminal are progress enough.
        bar = len(items) > 1 and (table or not sys.stdout.isatty())
        tally = batch.run(items, concurrency, bar)
    _end(tally, min_confidence, resume)


def _end(tally: Tally, least: float | None, resume: Path | None) -> None:
    """The exit code, and what there is to say about it on stderr."""
    again = ""
    if resume is not None and (tally.interrupted or tally.by_server):
        again = f" The same command goes on from {resume}."
    elif tally.by_server:
        again = " With --resume FILE the answered ones need not be asked again." * (
            tally.answered > 0
        )
    if tally.undrawn:
        click.echo(
            f"{tally.undrawn} answers of {resume} have no picture of their attention there: for "
            "all of them, begin with a new file.",
            err=True,
        )
    if tally.interrupted:
        raise Interrupted(f"Interrupted: {tally.answered} of {tally.total} were answered.{again}")
    if tally.failed and tally.total > 1:
        raise Failure(f"{tally.failed} of {tally.total} inputs failed.{again}")
    context = click.get_current_context()
    if tally.failed:
        context.exit(1)
    if tally.low:
        if tally.total > 1:
            told = f"{tally.low} of {tally.total} answers have a confidence below {least:g}."
            click.echo(told, err=True)
        context.exit(LOW_CONFIDENCE)
