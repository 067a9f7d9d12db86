"""``hmer-bench invariance``."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

import client.samples
from benchmarks.crohme import held_out, read_pack
from benchmarks.invariance import Row, measure, references, samples, table
from benchmarks.invariance_pictures import TRANSFORMATIONS, chosen
from benchmarks.options import runtime_options
from benchmarks.output import check_folder, write_json
from hmer.console import progress, sentences
from hmer.recognizer import LocalRecognizer


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="A bundle.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A stroke pack, such as test_2014.jsonl.gz; by default the project's own samples.",
)
@click.option(
    "--held-out",
    "only_held_out",
    is_flag=True,
    help="Of a training pack, only what hmer-train holds out: to choose settings with.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), help="So many expressions of the pack, drawn by --seed."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--only",
    "names",
    multiple=True,
    metavar="NAME",
    help=f"Only this one; may be repeated. Of: {', '.join(t.name for t in TRANSFORMATIONS)}.",
)
@runtime_options
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON document.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the JSON document to this file, too.",
)
@sentences
def invariance(
    bundle: Path,
    data: Path | None,
    only_held_out: bool,
    limit: int | None,
    seed: int,
    names: tuple[str, ...],
    target: str,
    threads: int,
    markdown: bool,
    as_json: bool,
    output: Path | None,
) -> None:
    """How often an answer stays the same when the picture changes and the writing does not.

    Strokes are drawn to clean pictures; each is scaled, inverted, put on grey, lined or
    photographed paper, compressed, turned and so on, and its answer is compared with the clean
    picture's, token by token. Choose settings on the held-out part of the training pack.

    \b
    Examples:
      hmer-bench invariance --bundle hmer/pretrained
      hmer-bench invariance --bundle hmer/pretrained --data test_2014.jsonl.gz --markdown
      hmer-bench invariance --bundle hmer/pretrained --data train.jsonl.gz --held-out --limit 200
    """
    if only_held_out and data is None:
        raise click.UsageError("--held-out needs --data.")
    transformations = chosen(names)
    check_folder(output, "results")
    if data is None:
        expressions = samples(Path(client.samples.__file__).parent)
    else:
        expressions = read_pack(data)
        expressions = held_out(expressions) if only_held_out else expressions
    if limit is not None and limit < len(expressions):
        drawn = np.random.default_rng(seed).permutation(len(expressions))[:limit]
        expressions = [expressions[index] for index in sorted(drawn.tolist())]
    with LocalRecognizer(bundle, target=target, threads=threads) as recogniser:
        kept, answers = references(expressions, recogniser)
        bar = progress(transformations, len(transformations), "transformations")
        rows: list[Row] = [measure(item, kept, answers, recogniser, seed) for item in bar]
    name = "the project's samples" if data is None else data.name
    document = {
        "data": f"{name}, held-out part" if only_held_out else name,
        "n": len(kept),
        "seed": seed,
        "bundle": str(bundle),
        "target": target,
        "transformations": [row.to_dict() for row in rows],
    }
    if output is not None:
        write_json(output, document, "results")
    if as_json:
        click.echo(json.dumps(document, indent=1))
        return
    click.echo(f"{document['data']}: {len(kept)} expressions, {target}.\n")
    click.echo(table(rows).markdown() if markdown else table(rows).text())
