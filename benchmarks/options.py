"""Options that several commands share."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from benchmarks.crohme import LABELS
from benchmarks.inputs import FORMS, PNG
from hmer.console import Decorator, block
from hmer.decode_types import LENGTH_PENALTY
from hmer.evaluation import TOP
from hmer.runtime import TARGETS

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)

# --beam --length-penalty
search_options: Decorator = block(
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

label_option: Decorator = click.option(
    "--label",
    type=click.Choice(LABELS),
    default=LABELS[0],
    show_default=True,
    help="The label set: norm_wap is the one of WAP, BTTR and SAN (2014 only).",
)


def target_option(what: str) -> Decorator:
    """``--target``: the runtime in this process of ``what``."""
    return click.option(
        "--target",
        type=click.Choice(TARGETS),
        default=TARGETS[0],
        show_default=True,
        help=f"The runtime {what}.",
    )


# --target --threads, of --bundle
runtime_options: Decorator = block(
    target_option("for --bundle"),
    click.option(
        "--threads",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="CPU threads for --bundle; 0: every CPU.",
    ),
)

bundle_option: Decorator = click.option(
    "--bundle",
    type=PATH,
    default=Path("hmer/pretrained"),
    show_default=True,
    help="The exported bundle.",
)

# --bundle --checkpoint
weights_options: Decorator = block(
    bundle_option,
    click.option(
        "--checkpoint",
        type=PATH,
        default=Path("training/pretrained"),
        show_default=True,
        help="The same weights in PyTorch: for the eager loop, and for other numbers of tokens a "
        "call.",
    ),
)


def repository_option(of: str, *, refuses: bool = True) -> Decorator:
    """``--repository-options``, of the repository or server ``of``.

    Without ``refuses`` it takes what is asked of it by default, however full it is: where speed is
    measured, a request that comes back later is none.
    """
    return click.option(
        "--repository-options",
        default="--target auto" if refuses else "--target auto --max-wait 0",
        show_default=True,
        help=f"Of hmer-export repository, for {of}.",
    )


def work_option(name: str) -> Decorator:
    """``--work``: a folder that is kept between runs, ``name`` within the temporary folder."""
    return click.option(
        "--work",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(tempfile.gettempdir()) / name,
        show_default=True,
        help="Keeps what is exported, assembled and measured; the next run is quicker.",
    )


_MARKDOWN: Decorator = click.option(
    "--markdown", is_flag=True, help="Print the tables as Markdown."
)
_JSON: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="End with one JSON document."
)

# --html --worst --top --markdown --json, for benchmarks.output.emit
report_options: Decorator = block(
    click.option(
        "--html", type=FILE, help="Write one page with the tables and the worst cases drawn."
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
    _MARKDOWN,
    _JSON,
)

# --data --input --limit, for benchmarks.inputs.gather
input_options: Decorator = block(
    click.option(
        "--data",
        type=PATH,
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

# --output --markdown --json
result_options: Decorator = block(
    click.option(
        "--output", type=FILE, help="Write the figures to this JSON file, for hmer-bench report."
    ),
    _MARKDOWN,
    _JSON,
)
