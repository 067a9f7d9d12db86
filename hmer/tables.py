"""Tables for people: aligned text on a terminal, Markdown for a model card."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


def render_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()
) -> str:
    """Rows of text as aligned columns; those whose index is in ``right`` end flush."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = []
    for row in (titles, ["-" * width for width in widths], *rows):
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


@dataclass(frozen=True)
class Table:
    """A titled table of text; the columns from ``figures`` on hold figures and end flush."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    figures: int = 1
    code: bool = False  # whether the columns before them hold code, such as tokens

    def text(self) -> str:
        """The title, then aligned columns."""
        columns = set(range(self.figures, len(self.header)))
        table = render_table(self.header, self.rows, right=columns)
        return f"{self.title}\n{table}" if self.title else table

    def markdown(self) -> str:
        """The title in bold, then a table in GitHub's Markdown."""
        marks = ["---" if i < self.figures else "---:" for i in range(len(self.header))]
        lines = [self.header, marks]
        for row in self.rows:
            lines.append([self._cell(cell, i) for i, cell in enumerate(row)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{self.title}**\n\n{table}" if self.title else table

    def _cell(self, cell: str, column: int) -> str:
        if self.code and cell and column < self.figures and not cell.startswith("("):
            cell = f"`{cell}`"
        return cell.replace("|", "\\|")
