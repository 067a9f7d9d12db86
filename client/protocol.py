"""What every recogniser of this package can do, wherever the network runs.

::

    from client import Recognizer  # or LocalRecognizer: in this process, without a server

    with Recognizer("localhost:8001") as recognizer:
        print(recognizer.recognize("formula.png").latex)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, overload

from numpy.typing import NDArray
from PIL import Image

from client.inputs import Source
from client.parameters import Options
from client.results import Partial
from hmer.errors import HmerError
from hmer.ink import Ink
from hmer.recognizer import Recognition

if TYPE_CHECKING:
    from typing_extensions import Unpack

Item = str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[Any] | Ink | Image.Image
"""A ``Source`` that cannot be mistaken for strokes when it stands in a list."""

Items = list[str] | list[bytes] | list[Item] | tuple[Item, ...]
"""Many inputs, each with an answer of its own."""

DEFAULT_CONCURRENCY = 8


class FormulaRecognizer(Protocol):
    """``client.Recognizer`` and ``client.LocalRecognizer`` both are one; so is what wraps them."""

    @overload
    def recognize(
        self, data: Items, **options: Unpack[Options]
    ) -> list[Recognition | HmerError]: ...

    @overload
    def recognize(self, data: Source, **options: Unpack[Options]) -> Recognition: ...

    def stream(self, data: Source, **options: Unpack[Options]) -> Iterator[Partial | Recognition]:
        """The answer as it is decoded: ``Partial``s, then the ``Recognition``."""
        ...

    def recognize_many(
        self,
        inputs: Iterable[Source],
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Unpack[Options],
    ) -> Iterator[Recognition | HmerError]:
        """Answers in the order of ``inputs``, an input's ``HmerError`` in its place."""
        ...

    def close(self) -> None:
        """Free what is held; more calls do nothing."""
        ...


def is_many(data: object) -> bool:
    """Whether ``data`` is a list of inputs rather than one: strokes are a list, too.

    A list of paths, bytes, pictures (``PIL`` or uint8 arrays), or ``Ink`` is many inputs; a list
    of lists of points, or of other arrays, is the strokes of one.
    """
    if isinstance(data, (str, bytes, bytearray, memoryview)) or not isinstance(data, Sequence):
        return False
    return bool(data) and all(map(_is_item, data))


def _is_item(value: object) -> bool:
    if isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview, Ink, Image.Image)):
        return True
    dtype = getattr(value, "dtype", None)
    return dtype is not None and str(dtype) in ("uint8", "bool")
