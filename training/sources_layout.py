"""Which kind of source a file or folder is, told by what it holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hmer.errors import DatasetError
from training import sources_images, sources_inkml, sources_pack
from training.sources_entry import Entry, Problem, numbered_lines

TRAIN = ("train", "training")
EVAL = ("eval", "val", "valid", "validation", "dev")
NEITHER = ("caption", "captions", "labels", "label")
ENDS = (".jsonl.gz", ".jsonl", ".json", ".csv", ".tsv", ".txt")
IMAGE_FOLDERS = ("images", "image", "img", "imgs")

PACK, INKML = "stroke pack", "InkML files"
LIST, LINES, TABLE, CAPTIONS = "JSON list", "JSON lines", "table", "caption file"

UNDERSTOOD = """\
These are understood:
  a stroke pack: train.jsonl.gz or another file of JSON lines with id, norm and strokes
  a folder of .inkml files whose truth annotation is the label
  train.json and eval.json, lists of {"images": file name, "labels": LaTeX}, beside pictures
  caption.txt (file name, tab or spaces, LaTeX), or the same as .csv, .tsv or JSON lines
Pictures lie beside the labels, in a subfolder images, or where --image-dir says; a part to
evaluate on is called eval or val (eval.json, val.csv, val/caption.txt)."""


@dataclass(frozen=True)
class Located:
    """A source that was found: its kind, its labels, and where its pictures may lie.

    ``split`` is False where the labels are of no split, but all that there is.
    """

    kind: str
    path: Path
    split: bool
    image_folders: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.path} ({self.kind})"

    def entries(self, label: str) -> Iterator[Entry | Problem]:
        """All entries; ``label`` is the field of a stroke pack. Raises ``DatasetError``."""
        if self.kind == PACK:
            return sources_pack.read_entries(self.path, label)
        if self.kind == INKML:
            apart = frozenset() if self.split else frozenset({*EVAL, "test"})
            return sources_inkml.read_entries(sources_inkml.find_files(self.path, apart))
        pictures = sources_images.Folders(self.image_folders)
        read = {
            LIST: sources_images.read_list,
            LINES: sources_images.read_json_lines,
            TABLE: sources_images.read_table,
            CAPTIONS: sources_images.read_captions,
        }[self.kind]
        return read(self.path, pictures)


def locate(data: Path, split: str, image_dir: Path | None = None) -> Located:
    """The source that ``data`` names: a file, or a folder with something that is understood.

    ``split``: "train" or "eval". A folder without a part for "eval" gives all it has, with
    ``Located.split`` False. Raises ``DatasetError`` listing what is understood.
    """
    if image_dir is not None and not image_dir.is_dir():
        raise DatasetError(f"There is no folder {image_dir}. Give the pictures' with --image-dir.")
    if not data.exists():
        raise DatasetError(
            f"There is no file or folder {data}. Give the training data with --data.\n{UNDERSTOOD}"
        )
    if data.is_file():
        return _from_file(data, data.parent, split, False, image_dir)
    found = _in_folder(data, TRAIN if split == "train" else EVAL, split, image_dir)
    if found is None and split == "eval":
        rest = _in_folder(data, TRAIN, "train", image_dir)
        found = Located(rest.kind, rest.path, False, rest.image_folders) if rest else None
    if found is None:
        found = _unsplit(data, split, image_dir)
    if found is None:
        raise DatasetError(f"{_contents(data)} nothing that can be read as data.\n{UNDERSTOOD}")
    return found


def own_eval(data: Path, image_dir: Path | None = None) -> Located | None:
    """The part of a folder that is meant for evaluation; ``None`` if it has none."""
    return _in_folder(data, EVAL, "eval", image_dir) if data.is_dir() else None


def _in_folder(
    folder: Path, names: tuple[str, ...], split: str, image_dir: Path | None
) -> Located | None:
    """Labels named for a split in ``folder``, or a subfolder that is named for it."""
    for end in ENDS:
        for name in names:
            for stem in (name, f"{name}_labels", f"{name}_label", f"{name}_caption"):
                if (path := folder / (stem + end)).is_file():
                    return _from_file(path, folder, split, True, image_dir)
    for name in names:
        below = folder / name
        if below.is_dir() and (found := _unsplit(below, split, image_dir)):
            return Located(found.kind, found.path, True, found.image_folders)
    return None


def _unsplit(folder: Path, split: str, image_dir: Path | None) -> Located | None:
    """Labels in ``folder`` that are named for no split, or else its InkML files."""
    for end in ENDS:
        for stem in NEITHER:
            if (path := folder / (stem + end)).is_file():
                return _from_file(path, folder, split, False, image_dir)
    # A single table or pack can have any name; a text file is too often something else.
    for end in ENDS[:-1]:
        files = sorted(path for path in folder.glob("*" + end) if path.is_file())
        files = [path for path in files if not path.name.lower().startswith((*EVAL, "test"))]
        if len(files) == 1:
            return _from_file(files[0], folder, split, False, image_dir)
    if sources_inkml.find_files(folder):
        return Located(INKML, folder, False)
    return None


def _from_file(
    path: Path, folder: Path, split: str, is_split: bool, image_dir: Path | None
) -> Located:
    kind = _kind_of(path)
    if kind in (PACK, INKML):
        return Located(kind, path, is_split)
    names = (*IMAGE_FOLDERS, *(TRAIN if split == "train" else EVAL))
    below = [folder / f"{name}{end}" for name in names for end in ("", "_images")]
    places = [image_dir] if image_dir else [folder, *below]
    return Located(kind, path, is_split, [place for place in places if place.is_dir()])


def _kind_of(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(".zip"):
        raise DatasetError(f"{path} is a zip file. Unpack it and give its folder with --data.")
    if name.endswith((".csv", ".tsv")):
        return TABLE
    # The start of the text decides, because names are the users' own.
    first = next(numbered_lines(path), (0, ""))[1].lstrip()
    if first.startswith("["):
        return LIST
    if not first.startswith("{") and not name.endswith((".jsonl", ".jsonl.gz")):
        return LIST if name.endswith(".json") else CAPTIONS
    try:
        row = json.loads(first)
    except ValueError:
        # A list of one object over several lines is no JSON lines; its reader will say so.
        return LIST if name.endswith(".json") else PACK
    fields = row.keys() if isinstance(row, dict) else ()
    if "strokes" in fields:
        return PACK
    if any(key in fields for key in sources_images.IMAGE_FIELDS if key != "id"):
        return LINES
    return LIST if name.endswith(".json") else PACK


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return f"The folder {folder} is empty: there is"
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"The folder {folder} holds {shown}, but"
