"""Write the sample files: formulas in synthetic handwriting, as pictures and as InkML.

The strokes come from the project's own alphabet, placed by its layout (``hmer.writing``):
no person's handwriting and no data set is in them. The same code makes the same files.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from xml.sax.saxutils import escape

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from client.samples.formulas import SAMPLES, Look, Sample
from hmer.ink import render
from hmer.latex import canonical, to_latex, tokenize
from hmer.latex_parser import parse
from hmer.writing.alphabet import Points
from hmer.writing.layout import Writer

INDEX = "samples.json"

_SPACING = 8.0  # alphabet units between two points of the pen
_TREMOR = 0.35  # alphabet units
_JPEG_QUALITY = 80
_CAMERA_NOISE = 1.5  # grey levels

_INKML = """<?xml version="1.0" encoding="UTF-8"?>
<ink xmlns="http://www.w3.org/2003/InkML">
<traceFormat>
<channel name="X" type="integer"/>
<channel name="Y" type="integer"/>
</traceFormat>
<annotation type="truth">{truth}</annotation>
<annotation type="UI">{name}</annotation>
<annotation type="copyright">synthetic handwriting, made by client.samples.generate</annotation>
{traces}
</ink>
"""


def ink(sample: Sample) -> list[NDArray[np.int32]]:
    """The strokes of a sample as a tablet gives them: int32 (n, 2), device units, y down."""
    # A text seed is hashed the same way by every Python.
    random = Random(f"{sample.name} {sample.seed}")
    strokes = Writer(sample.hand, random).write(parse(tokenize(sample.latex)))
    sampled = [_pen_points(stroke.points, random) * (1.0, -1.0) for stroke in strokes]
    origin = np.concatenate(sampled).min(axis=0)
    scale = sample.look.resolution
    return [np.rint((stroke - origin) * scale).astype(np.int32) for stroke in sampled]


def _pen_points(stroke: Points, random: Random) -> Points:
    """Points at the even distances of a moving pen, with the hand's tremor."""
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(stroke, axis=0), axis=1))])
    count = max(2, round(lengths[-1] / _SPACING) + 1)
    at = np.linspace(0.0, lengths[-1], count)
    points = np.stack([np.interp(at, lengths, stroke[:, axis]) for axis in (0, 1)], axis=1)
    tremor = [[random.gauss(0, _TREMOR), random.gauss(0, _TREMOR)] for _ in range(count)]
    return np.add(points, np.array(tremor), dtype=np.float64)


def inkml(sample: Sample, strokes: list[NDArray[np.int32]]) -> str:
    """An InkML document of ``strokes`` with the formula as its ``truth``."""
    traces = (
        f'<trace id="{number}">{", ".join(f"{x} {y}" for x, y in stroke)}</trace>'
        for number, stroke in enumerate(strokes)
    )
    truth = escape(f"${to_latex(label(sample))}$")
    return _INKML.format(truth=truth, name=escape(sample.name), traces="\n".join(traces))


def picture(sample: Sample, strokes: list[NDArray[np.int32]]) -> NDArray[np.uint8]:
    """The sample as a picture: uint8 (H, W) for black on white, else (H, W, 3) in BGR."""
    look = sample.look
    placed = [stroke.astype(np.float32) for stroke in strokes]
    drawn = render(placed, stroke_height=look.height, pen=look.pen, margin=look.margin)
    if look.plain:
        return cv2.bitwise_not(drawn).astype(np.uint8, copy=False)
    return _on_paper(drawn, look, np.random.default_rng(sample.seed))


def _on_paper(
    drawn: NDArray[np.uint8], look: Look, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Ink (255 where the pen went) in colour on paper, photographed if the look says so."""
    height, width = drawn.shape
    slope = np.linspace(0, 0.5, height)[:, None] + np.linspace(0, 0.5, width)[None]
    light = (1.0 - look.shade * slope)[..., None]
    cover = (drawn / 255.0)[..., None]
    image = (np.array(look.paper) * (1 - cover) + np.array(look.ink) * cover) * light
    if look.photo:
        noise = random.normal(0, _CAMERA_NOISE, (height, width, 1))
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.7)) + noise
    return np.asarray(np.clip(np.rint(image), 0, 255), dtype=np.uint8)


def label(sample: Sample) -> list[str]:
    """The sample's canonical tokens."""
    return canonical(tokenize(sample.latex))


def write(folder: Path) -> list[dict[str, object]]:
    """Write all samples and their index into ``folder``; the index's entries are returned."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, object]] = []
    for sample in SAMPLES:
        strokes = ink(sample)
        image = folder / (sample.name + sample.look.suffix)
        _, data = cv2.imencode(
            image.suffix,
            picture(sample, strokes),
            [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY, cv2.IMWRITE_PNG_COMPRESSION, 9],
        )
        image.write_bytes(data.tobytes())
        document = folder / f"{sample.name}.inkml"
        document.write_text(inkml(sample, strokes), encoding="utf-8", newline="\n")
        tokens = label(sample)
        entries.append(
            {
                "name": sample.name,
                "files": [image.name, document.name],
                "latex": to_latex(tokens),
                "tokens": tokens,
            }
        )
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (folder / INDEX).write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")
    return entries


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent,
    help="Folder to write to; the one of the shipped samples by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document at the end.")
def main(output: Path, as_json: bool) -> None:
    """Write the sample formulas as pictures and InkML, with their LaTeX in samples.json.

    Example: python -m client.samples.generate --output /tmp/samples
    """
    try:
        entries = write(output)
    except OSError as error:
        raise click.ClickException(f"The samples cannot be written to {output}: {error}.") from None
    if as_json:
        click.echo(json.dumps({"folder": str(output), "samples": entries}))
    else:
        click.echo(f"Wrote {len(entries)} samples to {output}.")


if __name__ == "__main__":
    main()
