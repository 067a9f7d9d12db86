"""What the commands of ``hmer-export`` share: blocks of options, and how they talk.

Nothing heavier than click is imported here; ``--help`` must not wait for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from export.repository_options import RepositoryOptions
from hmer.console import Decorator, block
from hmer.errors import MissingDependency

Progress = Callable[[int, int], None]  # done, in all

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
PATH = click.Path(path_type=Path)


def output_option(what: str) -> Decorator:
    """``--output``: a folder that must not exist yet, or be empty."""
    return click.option(
        "--output",
        "-o",
        required=True,
        type=PATH,
        help=f"Folder of the {what}; it must not exist, or be empty.",
    )


def force_option(what: str) -> Decorator:
    """``--force``: replace what an earlier run of the same command wrote."""
    return click.option("--force", is_flag=True, help=f"Replace the {what} found there.")


json_option: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document."
)

# What `hmer-bench tune` chooses beside --threads and --slots.
serving_options: Decorator = block(
    click.option(
        "--step-target",
        type=click.Choice(("onnxruntime", "openvino")),
        help="What runs the decoder's graphs on a CPU.  [default: as --target, or measured]",
    ),
    click.option(
        "--step-threads",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Threads of the decoder's step.",
    ),
    click.option(
        "--encoder-workers",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Pictures encoded at a time, by ONNX Runtime; 0: one for two threads, up to 4.",
    ),
    click.option(
        "--batch-pixels",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Pixels of the encoder's batches, on a CPU; 0: as was measured to pay.",
    ),
    click.option(
        "--queue-delay",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Microseconds that Triton may wait for a batch of the encoder; costs latency.",
    ),
    click.option(
        "--max-wait",
        type=click.IntRange(min=0),
        default=RepositoryOptions.max_wait_ms,
        show_default=True,
        help="Milliseconds of work ahead beyond which a full server refuses more; 0: only "
        "--max-queue bounds it.",
    ),
    click.option(
        "--processes",
        type=click.Choice(("one", "many")),
        help="One process for each model, or one that holds encoder and decoder, too.  [default: "
        "one where Python models run both, as on a CPU]",
    ),
)

compared_on: Decorator = block(
    click.option(
        "--images",
        type=PATH,
        help="Folder of pictures or ink to compare on instead of the samples.",
    ),
    click.option(
        "--data",
        type=PATH,
        multiple=True,
        envvar="HMER_CROHME",
        show_envvar=True,
        help="A stroke pack (.jsonl.gz) to compare on, all of it; or a folder with train.jsonl.gz, "
        "whose held-out part is compared on beside the samples. May be given more than once.",
    ),
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        help="Compare on at most so many writings of each --data, evenly over their order. "
        "[default: all of a pack, 64 of a folder]",
    ),
)

graph_options: Decorator = block(
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="fp32",
        show_default=True,
        help="What the graphs compute in; sums and the decoder's memory stay fp32.",
    ),
    click.option(
        "--calibration-data",
        type=PATH,
        help="For other precisions than fp32: the folder with train.jsonl.gz, or such a pack, that "
        "int8 is calibrated on, and whose held-out part the loss is judged on. [default: the "
        "folder given as --data, else the samples]",
    ),
    click.option(
        "--accept-loss",
        is_flag=True,
        help="Keep the graphs whatever ExpRate the precision costs.",
    ),
    click.option(
        "--k",
        type=click.IntRange(1, 16),
        default=4,
        show_default=True,
        help="Tokens that one call of decoder_step decodes.",
    ),
    click.option(
        "--beam",
        type=click.IntRange(0, 64),
        default=8,
        show_default=True,
        help="Candidates that one call of decoder_beam gives for beam search; 0: no such graph.",
    ),
)


def calibration_folder(given: Path | None, data: Sequence[Path]) -> Path | None:
    """``--calibration-data``, or else the first folder among ``--data``."""
    return given or next((path for path in data if path.is_dir()), None)


@contextmanager
def needs_export() -> Iterator[None]:
    """Name the extra if a library of the export is missing."""
    try:
        yield
    except MissingDependency:
        raise
    except ImportError as error:
        raise MissingDependency(
            f"The export needs {error.name}. Install it with: pip install 'hmer[export]'"
        ) from error


@contextmanager
def bar(label: str, unit: str = "image") -> Iterator[Progress | None]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=label, unit=unit, leave=False, file=sys.stderr) as shown:

        def progress(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield progress


def say(line: str) -> None:
    """A line about progress, on stderr: stdout is for the result."""
    click.echo(line, err=True)
