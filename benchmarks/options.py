"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from benchmarks.crohme import LABELS
from benchmarks.inputs import FORMS, PNG
from hmer.decode_types import LENGTH_PENALTY
from hmer.evaluation import TOP

F = TypeVar("F", bound=Callable[..., Any])


def _all(command: F, *options: Callable[[F], F]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def search_options(command: F) -> F:
    """``--beam --length-penalty``."""
    return _all(
        command,
        click.option(
            "--beam",
            type=click.IntRange(1, 64),
            default=1,
            show_default=True,
            help="Hypotheses that the search follows; 1 is greedy.",
        ),
        click.option(
            "--length-penalty",
            type=float,
            default=LENGTH_PENALTY,
            show_default=True,
            help="Alpha of beam search's normalisation by length.",
        ),
    )


def label_option(command: F) -> F:
    """``--label``."""
    return _all(
        command,
        click.option(
            "--label",
            type=click.Choice(LABELS),
            default=LABELS[0],
            show_default=True,
            help="The label set: norm_wap is the one of WAP, BTTR and SAN (2014 only).",
        ),
    )


def runtime_options(command: F) -> F:
    """``--target --threads``, of ``--bundle``."""
    return _all(
        command,
        click.option(
            "--target",
            type=click.Choice(["onnxruntime", "openvino"]),
            default="onnxruntime",
            show_default=True,
            help="The runtime for --bundle.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="CPU threads for --bundle; 0: every CPU.",
        ),
    )


def report_options(command: F) -> F:
    """``--html --worst --top --markdown --json``, for ``benchmarks.output.emit``."""
    return _all(
        command,
        click.option(
            "--html",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Write one page with the tables and the worst cases drawn.",
        ),
        click.option(
            "--worst",
            type=click.IntRange(min=0),
            default=100,
            show_default=True,
            help="So many cases on the page.",
        ),
        click.option(
            "--top",
            type=click.IntRange(min=0),
            default=TOP,
            show_default=True,
            help="So many of the most frequent token errors.",
        ),
        click.option("--markdown", is_flag=True, help="Print the tables as Markdown."),
        click.option("--json", "as_json", is_flag=True, help="End with one JSON document."),
    )


def input_options(command: F) -> F:
    """``--data --input --limit``, for ``benchmarks.inputs.gather``."""
    return _all(
        command,
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            help="A CROHME pack, such as test_2014.jsonl.gz.  [default: the project's samples]",
        ),
        click.option(
            "--input",
            "form",
            type=click.Choice(FORMS),
            default=PNG,
            show_default=True,
            help="What is sent of a pack: its strokes drawn as PNG, the strokes, or WAP's images.",
        ),
        click.option(
            "--limit", type=click.IntRange(min=1), help="So many of the pack, evenly over it."
        ),
    )


def result_options(command: F) -> F:
    """``--output --markdown --json``."""
    return _all(
        command,
        click.option(
            "--output",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Write the figures to this JSON file, for hmer-bench report.",
        ),
        click.option("--markdown", is_flag=True, help="Print the tables as Markdown."),
        click.option("--json", "as_json", is_flag=True, help="End with one JSON document."),
    )
