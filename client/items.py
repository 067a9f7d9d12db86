"""The inputs of the command line, one for each answer: pages, lists and addresses taken apart."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urldefrag

from client.documents import count_pages, is_pdf, is_tiff, only_page, read_page
from client.fetch import fetch, is_url
from client.inputs import checked, expand, read_file
from client.ordered import attempt
from hmer.errors import HmerError, MissingInput

_PAGE = re.compile(r"(?P<file>.+)#page=(?P<page>[0-9]{1,6})", re.DOTALL)


@dataclass(frozen=True)
class Item:
    """One input: its name among the answers, and its bytes when it is its turn.

    ``read`` raises ``HmerError``. ``stamp`` tells one content of a file from a later one.
    """

    name: str
    read: Callable[[], bytes]
    stamp: str = ""


def items_of(
    arguments: Iterable[str],
    stdin: Callable[[], bytes] | None = None,
    within: frozenset[Path] = frozenset(),
) -> list[Item]:
    """What the command's arguments name, in their order.

    Files, folders and globs (``client.inputs.expand``); each page of a PDF or TIFF that has
    several, as ``FILE#page=N``; ``-``: standard input; ``http(s)://...``; ``@FILE``: a list of
    all these, one a line (``@-`` reads the list from standard input). ``within``: the lists that
    these are of. Raises ``MissingInput`` for a list that cannot be read; anything else that cannot
    be read fails in its turn.
    """
    read_stdin: Callable[[], bytes] = stdin or sys.stdin.buffer.read
    found: list[Item] = []
    for argument in arguments:
        if argument == "-":
            data = attempt(read_stdin)  # now: its pages are to be counted, and it is read once
            if isinstance(data, HmerError):
                found.append(Item("-", partial(_fail, data)))
            else:
                found += _pages("-", partial(checked, data, "Standard input"), "")
        elif argument.startswith("@") and not Path(argument).exists():
            found += _of_list(argument, read_stdin, within)
        elif is_url(argument):
            found.append(Item(argument, partial(_fetched, argument)))
        else:
            for name in expand([argument]):
                found += _file(name)
    return found


def _of_list(argument: str, read_stdin: Callable[[], bytes], within: frozenset[Path]) -> list[Item]:
    """What a list names; a list that leads back to itself fails instead of going on for ever."""
    place = Path(argument[1:]).absolute()
    if place in within:
        error = MissingInput(f"The list {argument[1:]} is among its own inputs.")
        return [Item(argument, partial(_fail, error))]
    return items_of(_listed(argument[1:], read_stdin), _only_once, within | {place})


def _only_once() -> bytes:
    raise MissingInput("A list cannot name standard input (-).")


def _listed(name: str, read_stdin: Callable[[], bytes]) -> Iterator[str]:
    """The lines of a list; empty ones and those that begin with # are left out."""
    data = read_stdin() if name == "-" else read_file(Path(name))
    for line in data.decode("utf-8", errors="surrogateescape").splitlines():
        if (entry := line.strip()) and not entry.startswith("#"):
            yield entry


def _file(name: str) -> list[Item]:
    path = Path(name)
    named = _PAGE.fullmatch(name)
    if named and not path.exists():
        path, page = Path(named["file"]), int(named["page"])
        return [Item(name, partial(_page_of, path, page), _stamp(path))]
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe, which is read once
        data = attempt(read_file, path)
        if isinstance(data, HmerError):
            return [Item(name, partial(_fail, data))]
        return _pages(name, partial(bytes, data), "")
    return _pages(name, partial(read_file, path), _stamp(path), _head(path))


def _head(path: Path) -> bytes:
    """Enough of a file to tell a document; nothing of what cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(1024)
    except (OSError, ValueError):
        return b""


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def _pages(
    name: str, read: Callable[[], bytes], stamp: str, head: bytes | None = None
) -> list[Item]:
    """An item for each page; one that fails in its turn for a document that cannot be opened."""
    whole = [Item(name, read, stamp)]
    try:
        start = read() if head is None else head
        if not (is_pdf(start) or is_tiff(start)):
            return whole
        count = count_pages(read(), name)
    except HmerError as error:
        # A broken TIFF goes to the server like any other broken picture.
        return whole if head and is_tiff(head) else [Item(name, partial(_fail, error), stamp)]
    if count == 1:
        return [Item(name, lambda: only_page(read(), name), stamp)]
    return [
        Item(f"{name}#page={page}", partial(_read_page, read, page, name), stamp)
        for page in range(1, count + 1)
    ]


def _read_page(read: Callable[[], bytes], page: int, name: str) -> bytes:
    return read_page(read(), page, name)


def _page_of(path: Path, page: int) -> bytes:
    return read_page(read_file(path), page, str(path))


def _fetched(url: str) -> bytes:
    address, fragment = urldefrag(url)
    data = fetch(address)
    if fragment.startswith("page=") and fragment[5:].isdigit():
        return read_page(data, int(fragment[5:]), address)
    return only_page(data, address)


def _fail(error: HmerError) -> bytes:
    raise error
