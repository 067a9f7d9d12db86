"""Generated figures between two markers of a text that people write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report_types import Shown
from hmer.errors import BadParameter, MissingInput

BEGIN = "<!-- hmer-bench report: begin (generated; hmer-bench report --into) -->"
END = "<!-- hmer-bench report: end -->"


def put_into(path: Path, content: str) -> bool:
    """Replace what stands between the markers in ``path``; whether that changed anything.

    Raises ``MissingInput`` or, unless both markers are there once and in order,
    ``BadParameter``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingInput(f"There is no file {path} to write into.") from None
    except (OSError, ValueError) as error:
        raise BadParameter(f"{path} cannot be read as text ({error}).") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise BadParameter(
            f"{path} must hold these two lines once, in this order, around the place for the "
            f"figures:\n{BEGIN}\n{END}"
        )
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    new = f"{head}{BEGIN}\n\n{content.strip()}\n\n{END}{tail}"
    if new == text:
        return False
    write(path, new)
    return True


def main_figures(sections: Sequence[Shown], plot: Path | None, into: Path) -> str:
    """The main table of each section with where it is from, and the first plot there is.

    ``plot``: the SVG that is written for it, and linked relative to the folder of ``into``.
    """
    parts: list[str] = []
    drawn = next((p for one in sections for p in one.plots), None) if plot else None
    for one in sections:
        parts.append(one.tables[0].markdown())
        if drawn is not None and drawn in one.plots:
            assert plot is not None
            write(plot, drawn.svg if drawn.svg.endswith("\n") else drawn.svg + "\n")
            link = Path(os.path.relpath(plot.absolute(), into.absolute().parent)).as_posix()
            parts.append(f"![{drawn.caption}]({link})")
        parts.append("\n".join(f"- {line}" for line in one.lines))
    return "\n\n".join(parts)


def write(path: Path, content: str) -> None:
    """Write a text file. Raises ``BadParameter``."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise BadParameter(f"{path} cannot be written: {error.strerror}.") from error
