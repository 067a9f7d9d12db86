"""``hmer-bench attention``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
from PIL import Image

from benchmarks.output import check_folder
from hmer.attention import draw_attention, trace_attention
from hmer.console import sentences
from hmer.errors import BadParameter, MissingInput
from hmer.latex import to_latex, tokenize


@click.command()
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--bundle", type=click.Path(path_type=Path), required=True, help="A bundle of graphs."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The picture to write: PNG.",
)
@click.option(
    "--target",
    type=click.Choice(["onnxruntime", "openvino"]),
    default="onnxruntime",
    show_default=True,
    help="The runtime.",
)
@click.option(
    "--follow",
    metavar="LATEX",
    help="Where the network looks for this formula instead of its own answer.",
)
@click.option("--json", "as_json", is_flag=True, help="End with one JSON document.")
@sentences
def attention(
    source: Path, bundle: Path, output: Path, target: str, follow: str | None, as_json: bool
) -> None:
    """Draw where the network looks in INPUT (a picture or ink), token by token.

    One thumbnail for each token of the greedy answer; the stronger the colour, the more of the
    step's attention lies there.

    \b
    Example:
      hmer-bench attention client/samples/average.png --bundle bundle --output attention.png
    """
    check_folder(output, "picture")
    try:
        data = source.read_bytes()
    except FileNotFoundError:
        raise MissingInput(f"There is no file {source}.") from None
    except OSError as error:
        raise MissingInput(f"{source} cannot be read: {error.strerror}.") from error
    wanted = None if follow is None else tokenize(follow)
    found = trace_attention(bundle, data, target=target, tokens=wanted)
    sheet = draw_attention(found.image, found.tokens, found.maps, found.stride)
    try:
        Image.fromarray(sheet).save(output, format="PNG")
    except OSError as error:
        raise BadParameter(f"The picture cannot be written to {output}: {error}.") from error
    shown = found.tokens[:-1] if found.tokens[-1] == "<eos>" else found.tokens
    latex = to_latex(shown)
    if as_json:
        peaks = found.maps.reshape(len(found.maps), -1)
        width = found.maps.shape[2]
        document = {
            "input": str(source),
            "latex": latex,
            "output": str(output),
            "stride": found.stride,
            "tokens": [
                {
                    "token": token,
                    "log_probability": None if math.isnan(score) else score,
                    "peak": [int(place) % width * found.stride, int(place) // width * found.stride],
                    "peak_share": float(row.max()),
                }
                for token, score, row, place in zip(
                    found.tokens, found.scores, peaks, peaks.argmax(axis=1), strict=True
                )
            ],
        }
        click.echo(json.dumps(document, indent=1))
    else:
        click.echo(f"{latex}\t{output}")
