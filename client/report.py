"""``--html``: one self-contained page of a batch's pictures and answers."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from client.output import Style, milliseconds
from hmer.errors import BadParameter, HmerError, InputError, MissingDependency
from hmer.mathml import math_or_source, to_mathml
from hmer.preprocess import decode, extract_ink
from hmer.recognition import Alternative, Recognition

_THUMBNAIL = (640, 320)  # pixels
_COLUMNS = ("Input", "Picture", "Formula", "Confidence", "Score", "ms", "Alternatives")


@dataclass(frozen=True)
class _Row:
    name: str
    picture: str
    error: str = ""
    latex: str = ""
    math: Any = ""
    confidence: float = -1.0  # unknown
    score: float = 0.0
    ms: float = 0.0
    low: bool = False
    others: tuple[dict[str, Any], ...] = ()


class Report:
    """Takes the outcomes, and writes the page when all are there."""

    def __init__(self, path: Path, style: Style) -> None:
        """Raises ``MissingDependency``, or ``BadParameter`` if there is no such folder."""
        try:
            import jinja2
            import markupsafe
        except ImportError as error:
            raise MissingDependency(
                f"--html needs jinja2 ({error}): pip install 'hmer[report]'."
            ) from error
        to_mathml("x")  # raises at once where formulas cannot be drawn
        if not path.absolute().parent.is_dir():
            raise BadParameter(f"There is no folder {path.parent} for the page {path.name}.")
        self._markup: Any = markupsafe.Markup
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
        self._template = environment.from_string(template)
        self._path, self._style = path, style
        self._rows: list[_Row] = []

    def add(self, name: str, data: bytes | None, outcome: Recognition | HmerError) -> None:
        """One input: what was sent, if it could be read, and its outcome."""
        picture = "" if data is None else thumbnail(data)
        if isinstance(outcome, HmerError):
            self._rows.append(_Row(name, picture, error=str(outcome)))
            return
        self._rows.append(
            _Row(
                name,
                picture,
                latex=outcome.latex,
                math=self._math(outcome),
                confidence=-1.0 if outcome.confidence is None else outcome.confidence,
                score=outcome.score,
                ms=milliseconds(outcome),
                low=self._style.is_low(outcome),
                others=tuple(
                    {"math": self._math(o), "latex": o.latex, "score": o.score}
                    for o in outcome.alternatives
                ),
            )
        )

    def _math(self, answer: Alternative) -> Any:
        return self._markup(math_or_source(answer.latex))

    def write(self, total: int) -> None:
        """Write the page; ``total``: how many inputs there were. Raises ``BadParameter``."""
        failed = sum(bool(row.error) for row in self._rows)
        low = sum(row.low for row in self._rows)
        summary = f"{len(self._rows) - failed} of {total} inputs were answered"
        summary += f", {low} of them with low confidence" if low else ""
        summary += f"; {failed} failed." if failed else "."
        columns = _COLUMNS if any(row.others for row in self._rows) else _COLUMNS[:-1]
        page = self._template.render(
            title="Recognised formulas", summary=summary, rows=self._rows, columns=columns
        )
        try:
            self._path.write_text(page, encoding="utf-8", errors="replace")
        except OSError as error:
            raise BadParameter(f"{self._path} cannot be written: {error.strerror}.") from None


def thumbnail(data: bytes) -> str:
    """A picture or ink as a data URI of a small PNG, dark on white; "" if it cannot be read."""
    try:
        picture = Image.fromarray(255 - extract_ink(decode(data)))
    except InputError:
        return ""
    picture.thumbnail(_THUMBNAIL)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
