"""``hmer-train synthesise``: a stroke pack of expressions that nobody wrote."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import click
import numpy as np

from hmer.console import progress, sentences
from hmer.errors import DatasetError
from training.options import data_options, need_torch, say, tell_problems

EPILOG = """
\b
Example:
  hmer-train synthesise --data ../shared/crohme --count 20000 --output synthetic.jsonl.gz
  hmer-train train --data ../shared/crohme --extra synthetic.jsonl.gz --save-dir runs/more
"""


@click.command("synthesise", epilog=EPILOG)
@data_options
@click.option("--count", type=click.IntRange(min=1), required=True, help="Expressions to make.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="A stroke pack: .jsonl or .jsonl.gz.")  # fmt: skip
@click.option("--held-out", default=0.05, type=click.FloatRange(0, 1), show_default=True,
              help="As for train: held-out writers lend no symbols, their labels no parts, and "
              "no held-out label is made.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="As for train: it draws the split.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON document.")
@sentences
def command(
    output: Path, count: int, held_out: float, seed: int, as_json: bool, **data: Any
) -> None:
    """Make new formulas from the labels of DATA, written with symbols cut from its ink."""
    need_torch("Synthesis")  # what reads the data is shared with training
    from training.build import load_data
    from training.synthetic import Synthesiser

    loaded = load_data({**data, "held_out": held_out, "seed": seed, "extra": ()})
    made = Synthesiser(loaded.train, forbidden=[e.tokens for e in loaded.held_out]).examples(seed)
    written = _write(output, progress(zip(range(count), made, strict=False), count, "writing"))
    tell_problems(loaded.sources)
    if written == 0:
        raise DatasetError(
            f"No expression could be made of {data['data']}: its ink has no segmentation (which "
            "strokes are which symbol). Give a stroke pack with segs, or InkML with trace groups."
        )
    if written < count:
        say(f"Only {written} of {count} expressions could be made.")
    if as_json:
        click.echo(json.dumps({"output": str(output), "expressions": written}))
    else:
        click.echo(f"Wrote {written} synthetic expressions to {output}.")


def _write(output: Path, examples: Iterable[tuple[int, Any]]) -> int:
    """Write a stroke pack beside ``output`` and rename it; how many expressions it has."""
    draft = output.with_name(output.name + ".part")
    count = 0
    try:
        with _open(draft, output.suffix == ".gz") as file:
            for _, example in examples:
                row = {
                    "id": example.name,
                    "norm": " ".join(example.tokens),
                    "segs": [[symbol, list(indices)] for symbol, indices in example.segments],
                    "strokes": [np.rint(s).astype(int).tolist() for s in example.strokes],
                }
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
                count += 1
        if count:
            os.replace(draft, output)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatasetError(f"{output} cannot be written: {reason}.") from error
    finally:
        draft.unlink(missing_ok=True)
    return count


def _open(path: Path, packed: bool) -> IO[str]:
    if packed:
        return gzip.open(path, "wt", encoding="utf-8", compresslevel=6)
    return path.open("w", encoding="utf-8")
