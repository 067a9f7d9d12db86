"""Many inputs of the command line: asked at the same time, shown in order, kept as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from client.api import Recognizer
from client.attention_files import AttentionFiles
from client.formats import written
from client.items import Item
from client.journal import Journal
from client.ordered import attempt, ordered
from client.output import Printer, Style
from client.parameters import Options
from client.report import Report
from hmer.console import progress
from hmer.errors import HmerError, ServerError
from hmer.recognition import Recognition


@dataclass(frozen=True)
class Outcome:
    """What became of an item: ``data`` as far as it was read; ``kept``: from an earlier run."""

    item: Item
    data: bytes | None
    result: Recognition | HmerError
    kept: bool = False


@dataclass
class Tally:
    """What came of a batch."""

    total: int
    answered: int = 0
    failed: int = 0
    low: int = 0
    kept: int = 0
    undrawn: int = 0  # of the kept: those whose attention no earlier run drew
    by_server: int = 0  # of the failed: those that the server, or its absence, is the reason for
    interrupted: bool = False


@dataclass
class Batch:
    """How a batch is asked for, and who takes its outcomes."""

    recognizer: Recognizer
    printer: Printer
    style: Style = field(default_factory=Style)
    options: Options = field(default_factory=Options)
    journal: Journal | None = None
    report: Report | None = None
    attention: AttentionFiles | None = None

    def run(self, items: Sequence[Item], concurrency: int, bar: bool) -> Tally:
        """Everything, until Ctrl-C; ``bar``: whether progress is wanted.

        Raises ``HmerError`` where outcomes cannot be written any more.
        """
        tally = Tally(len(items))
        try:
            outcomes = ordered(self._ask, items, concurrency)
            for outcome in progress(outcomes, len(items), "recognize", bar):
                self._take(outcome, tally)
        except KeyboardInterrupt:
            tally.interrupted = True
        self.printer.finish()
        if self.report is not None:
            self.report.write(len(items))
        return tally

    def _ask(self, item: Item) -> Outcome:
        outcome = self._outcome(item)
        if isinstance(outcome.result, Recognition):
            # What cannot be written in the format that is wanted is this input's failure.
            text = attempt(written, outcome.result, self.style.format)
            if isinstance(text, HmerError):
                return replace(outcome, result=text)
        return outcome

    def _outcome(self, item: Item) -> Outcome:
        known = None if self.journal is None else self.journal.answer(item)
        if known is not None and self.report is None:
            return Outcome(item, None, known, kept=True)
        data = attempt(item.read)
        if known is not None:
            return Outcome(item, data if isinstance(data, bytes) else None, known, kept=True)
        if not isinstance(data, bytes):
            return Outcome(item, None, data)
        return Outcome(item, data, attempt(self._recognize, data))

    def _recognize(self, data: bytes) -> Recognition:
        return self.recognizer.recognize(data, **self.options)

    def _take(self, outcome: Outcome, tally: Tally) -> None:
        result = outcome.result
        if self.journal is not None and not outcome.kept:
            self.journal.keep(outcome.item, result)
        if self.attention is not None and isinstance(result, Recognition):
            result = self._drawn(self.attention, outcome, result, tally)
        if isinstance(result, HmerError):
            tally.failed += 1
            tally.by_server += isinstance(result, ServerError)
        else:
            tally.answered += 1
            tally.kept += outcome.kept
            tally.low += self.style.is_low(result)
        self.printer.show(outcome.item.name, result)
        if self.report is not None:
            self.report.add(outcome.item.name, outcome.data, result)

    @staticmethod
    def _drawn(
        files: AttentionFiles, outcome: Outcome, answer: Recognition, tally: Tally
    ) -> Recognition | HmerError:
        """The answer, its attention drawn; it is not needed any more."""
        if outcome.kept or outcome.data is None:
            # Its name is taken, and the file is there if the earlier run drew into this folder.
            tally.undrawn += not files.path(outcome.item.name).exists()
            return answer
        drawn = attempt(files.add, outcome.item.name, outcome.data, answer)
        return drawn if isinstance(drawn, HmerError) else replace(answer, attention=None)
