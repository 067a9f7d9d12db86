"""The client's API without a server: the network runs in this process.

::

    from client import LocalRecognizer

    with LocalRecognizer() as recognizer:
        print(recognizer.recognize("formula.png").latex)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import hmer.recognizer
from client.inputs import Source, read
from client.ordered import attempt, check_concurrency
from client.parameters import Options, to_parameters
from client.protocol import DEFAULT_CONCURRENCY, Items, is_many
from hmer.errors import BadParameter, HmerError
from hmer.recognition import Partial, Recognition

if TYPE_CHECKING:
    from typing_extensions import Unpack

SHIPPED = Path(hmer.recognizer.__file__).with_name("pretrained")


class LocalRecognizer:
    """A ``client.FormulaRecognizer`` over ``hmer.recognizer.LocalRecognizer``. Thread-safe."""

    def __init__(self, bundle: str | Path = SHIPPED, **options: Any) -> None:
        """``options`` are those of ``hmer.recognizer.LocalRecognizer``, and so are the errors."""
        self._recognizer = hmer.recognizer.LocalRecognizer(bundle, **options)

    def __enter__(self) -> LocalRecognizer:
        """The recognizer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Free the graphs; more calls do nothing."""
        self._recognizer.close()

    @overload
    def recognize(
        self, data: Items, **options: Unpack[Options]
    ) -> list[Recognition | HmerError]: ...

    @overload
    def recognize(self, data: Source, **options: Unpack[Options]) -> Recognition: ...

    def recognize(
        self, data: Any, **options: Unpack[Options]
    ) -> Recognition | list[Recognition | HmerError]:
        """See ``client.Recognizer.recognize``. Raises ``HmerError``."""
        if is_many(data):
            return list(self.recognize_many(data, len(data), **options))
        return self._recognizer.recognize(read(data), **_checked(options))

    def stream(self, data: Source, **options: Unpack[Options]) -> Iterator[Partial | Recognition]:
        """See ``client.Recognizer.stream``."""
        if (options.get("looks") or 1) > 1:
            raise BadParameter("Several looks give one answer at the end: leave looks out.")
        checked = {name: value for name, value in _checked(options).items() if name != "looks"}
        return self._recognizer.stream(read(data), **checked)

    def recognize_many(
        self,
        inputs: Iterable[Source],
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Unpack[Options],
    ) -> Iterator[Recognition | HmerError]:
        """See ``client.Recognizer.recognize_many``; ``concurrency``: how many are worked on."""
        check_concurrency(concurrency)
        return self._windows(iter(inputs), concurrency, _checked(options))

    def _windows(
        self, inputs: Iterator[Source], size: int, options: dict[str, Any]
    ) -> Iterator[Recognition | HmerError]:
        while window := list(islice(inputs, size)):
            read_in = [attempt(read, source) for source in window]
            good = [data for data in read_in if isinstance(data, bytes)]
            answers = iter(self._recognizer.recognize_many(good, **options))
            for data in read_in:
                yield next(answers) if isinstance(data, bytes) else data


def _checked(options: Options) -> dict[str, Any]:
    """What the recogniser in this process takes. ``k`` and ``priority`` say how a server shares
    itself; here they change nothing. Raises ``BadParameter``."""
    to_parameters(**options)
    if options.get("attention"):
        raise BadParameter(
            "Attention in this process is drawn by hmer.attention.trace_attention; attention=True "
            "asks a server for it."
        )
    names = ("beam", "n_best", "length_penalty", "max_tokens", "looks")
    return {name: options[name] for name in names if name in options}  # type: ignore[literal-required]
