"""Pictures with labels: ``train.json`` lists, caption files, CSV and JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hmer.errors import DatasetError, HmerError
from hmer.latex import tokenize
from hmer.preprocess import PreprocessSettings, decode_image, preprocess
from training.examples import Picture
from training.sources_entry import BAD_ENTRY, NO_IMAGE, Entry, Problem, numbered_lines

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
IMAGE_FIELDS = ("images", "image", "file_name", "filename", "file", "path", "img", "name", "id")
LABEL_FIELDS = ("labels", "label", "latex", "formula", "tokens", "caption", "text", "truth")

_MEASURE = PreprocessSettings(multiple=1)


def measure(path: Path) -> Picture:
    """Read the picture once, to see that it can be read and how large its writing is.

    Raises an ``InputError`` that says what is wrong with it, or ``OSError``.
    """
    height, width = preprocess(decode_image(path.read_bytes()), _MEASURE).shape
    border, unit = 2 * _MEASURE.margin, _MEASURE.symbol_height
    return Picture(path, ((height - border) / unit, (width - border) / unit))


class Folders:
    """Finds pictures by the names that labels give them, with or without their extension."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        self._by_stem: list[dict[str, Path]] = []
        for folder in self.folders:
            pictures = (p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES)
            self._by_stem.append({picture.stem: picture for picture in pictures})

    def find(self, name: str) -> Path | None:
        """The picture called ``name``: as it is, with an extension added, or with another one."""
        for folder in self.folders:
            if (exact := folder / name).is_file():
                return exact
        path = Path(name)
        for folder, by_stem in zip(self.folders, self._by_stem, strict=True):
            if len(path.parts) > 1:
                for suffix in SUFFIXES:
                    if (below := folder / (name + suffix)).is_file():
                        return below
            elif found := by_stem.get(name) or (
                by_stem.get(path.stem) if path.suffix.lower() in SUFFIXES else None
            ):
                return found
        return None


def read_list(path: Path, pictures: Folders) -> Iterator[Entry | Problem]:
    """A JSON list of ``{"images": file name, "labels": raw LaTeX}``."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(rows, list):
        raise DatasetError(
            f'{path} is not a list. Write [{{"images": "a.png", "labels": "x^2"}}, ...].'
        )
    for number, row in enumerate(rows, 1):
        yield _from_row(row, f"{path}, entry {number}", pictures)


def read_json_lines(path: Path, pictures: Folders) -> Iterator[Entry | Problem]:
    """One ``{"image": file name, "label": LaTeX}`` a line."""
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Problem(BAD_ENTRY, where, f"not a JSON object ({error}).")
            continue
        yield _from_row(row, where, pictures)


def read_captions(path: Path, pictures: Folders) -> Iterator[Entry | Problem]:
    """Lines of a file name, a tab or spaces, and the LaTeX or its tokens."""
    for number, line in numbered_lines(path):
        name, _, label = line.partition("\t") if "\t" in line else line.strip().partition(" ")
        yield _entry(name.strip(), label, f"{path}, line {number}", pictures)


def read_table(path: Path, pictures: Folders) -> Iterator[Entry | Problem]:
    """CSV (or, by its extension, tab-separated values) with or without a header.

    Without one the first column is the file name and the second the label.
    """
    lines = list(numbered_lines(path))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # Quoted cells may go on over lines, so the reader's own count finds the place.
    reader = csv.reader((line for _, line in lines), delimiter=delimiter)
    columns: tuple[int, int] | None = None
    try:
        for row in reader:
            where = f"{path}, line {lines[reader.line_num - 1][0]}"
            if columns is None:
                columns, header = _columns(row)
                if header:
                    continue
            if len(row) <= max(columns):
                yield Problem(BAD_ENTRY, where, "there is no image or no label in this row.")
                continue
            yield _entry(row[columns[0]].strip(), row[columns[1]], where, pictures)
    except csv.Error as error:
        raise DatasetError(f"{path} cannot be read as a table: {error}.") from error


def _columns(row: Sequence[str]) -> tuple[tuple[int, int], bool]:
    """The columns of image and label, and whether ``row`` is a header."""
    names = [cell.strip().lower() for cell in row]
    image = next((names.index(name) for name in IMAGE_FIELDS if name in names), None)
    label = next((names.index(name) for name in LABEL_FIELDS if name in names), None)
    if image is None or label is None:
        return (0, 1), False
    return (image, label), True


def _from_row(row: Any, where: str, pictures: Folders) -> Entry | Problem:
    if not isinstance(row, dict):
        return Problem(BAD_ENTRY, where, "not an object with an image and a label.")
    image = next((row[name] for name in IMAGE_FIELDS if name in row), None)
    label = next((row[name] for name in LABEL_FIELDS if name in row), None)
    if isinstance(label, list) and all(isinstance(token, str) for token in label):
        label = " ".join(label)
    if not isinstance(image, str) or not isinstance(label, str):
        missing = "image" if not isinstance(image, str) else "label"
        given = ", ".join(map(repr, row)) or "nothing"
        reason = f"there is no {missing} in it: the fields are {given}."
        return Problem(BAD_ENTRY, where, reason)
    return _entry(image, label, where, pictures)


def _entry(name: str, label: str, where: str, pictures: Folders) -> Entry | Problem:
    if not name:
        return Problem(BAD_ENTRY, where, "the name of the picture is empty.")
    path = pictures.find(name)
    if path is None:
        looked = " or ".join(str(folder) for folder in pictures.folders)
        return Problem(NO_IMAGE, where, f"there is no picture {name} in {looked}.")
    return Entry(where, Path(name).stem, tuple(tokenize(label)), picture=path)


def check_picture(path: Path) -> Picture | str:
    """``measure``, or the sentence that says why the picture cannot be used."""
    try:
        return measure(path)
    except (HmerError, OSError) as error:
        return f"{path.name}: {error}"
