"""One self-contained HTML page of an accuracy report: no request leaves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.cases import draw, kinds_in, math_converter, worst
from hmer.errors import BadParameter, MissingDependency
from hmer.evaluation import Answers
from hmer.tables import Table

TEMPLATE = "page.html"
_OPEN = 2  # tables that are not folded away


def write_page(
    path: Path,
    title: str,
    head: Sequence[str],
    tables: Sequence[Table],
    answers: Answers,
    inputs: Mapping[str, bytes],
    count: int = 100,
) -> None:
    """Write the page to ``path``, with the ``count`` worst cases drawn.

    ``head``: lines below the title. ``inputs``: what was recognised, by expression id; a case
    without one has no picture. Raises ``MissingDependency`` without jinja2, ``BadParameter`` if
    ``path`` cannot be written.
    """
    page = render_page(title, head, tables, answers, inputs, count)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BadParameter(f"The page cannot be written to {path}: {error.strerror}.") from error


def render_page(
    title: str,
    head: Sequence[str],
    tables: Sequence[Table],
    answers: Answers,
    inputs: Mapping[str, bytes],
    count: int = 100,
) -> str:
    """The page as text; see ``write_page``."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependency(
            "The HTML page is made with jinja2. Install it with: pip install 'hmer[report]'"
        ) from error
    to_math = math_converter()
    cases = draw(answers, worst(answers, count), inputs, to_math or (lambda latex: ""))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        title=title,
        head=head,
        tables=[Table(t.title or "Score", t.header, t.rows, t.figures, t.code) for t in tables],
        open_tables=_OPEN,
        cases=cases,
        kinds=kinds_in(cases),
        wrong=sum(not item.correct for item in answers.scored),
        math=to_math is not None,
    )
