"""The command line's inputs: pages, lists, addresses, and what cannot be read among them."""

from __future__ import annotations

import http.server
import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client import documents, fetch, inputs
from client.items import Item, items_of
from hmer.errors import (
    BadParameter,
    EmptyInput,
    HmerError,
    ImageTooLarge,
    MissingDependency,
    MissingInput,
    UnreadableImage,
)
from tests.client_fixtures import locked_pdf, pages


def darkest(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as picture:
        return int(np.asarray(picture.convert("L")).min())


def failure(item: Item) -> HmerError:
    with pytest.raises(HmerError) as caught:
        item.read()
    return caught.value


@pytest.mark.parametrize("format", ["PDF", "TIFF"])
def test_every_page_is_an_input(format: str, tmp_path: Path) -> None:
    if format == "PDF":
        pytest.importorskip("pypdfium2")
    path = tmp_path / f"exam.{format.lower()}"
    path.write_bytes(pages(format))
    found = items_of([str(path)])
    assert [item.name for item in found] == [f"{path}#page={n}" for n in (1, 2, 3)]
    grays = [darkest(item.read()) for item in found]
    assert np.allclose(grays, [200, 140, 80], atol=12)
    (second,) = items_of([f"{path}#page=2"])
    assert second.read() == found[1].read()
    assert inputs.read(f"{path}#page=2") == second.read()
    assert "no page 4: there are 3" in str(failure(items_of([f"{path}#page=4"])[0]))
    with pytest.raises(BadParameter, match="3 pages"):
        inputs.read(path)
    with pytest.raises(BadParameter, match="3 pages"):
        inputs.read(path.read_bytes())


def test_a_document_of_one_page_keeps_its_name(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    pdf, tiff = tmp_path / "one.pdf", tmp_path / "one.tiff"
    pdf.write_bytes(pages("PDF", 1))
    tiff.write_bytes(pages("TIFF", 1))
    one, other = items_of([str(tmp_path)])
    assert (one.name, other.name) == (str(pdf), str(tiff))
    assert darkest(one.read()) == pytest.approx(200, abs=12)
    assert other.read() == tiff.read_bytes()
    assert darkest(inputs.read(pdf.read_bytes())) == pytest.approx(200, abs=12)


def test_a_tiffs_thumbnail_is_no_page() -> None:
    stream = io.BytesIO()
    page, small = Image.new("L", (80, 60), 9), Image.new("L", (8, 6), 9)
    small.encoderinfo = {"tiffinfo": {254: 1}}
    page.save(stream, "TIFF", save_all=True, append_images=[small])
    data = stream.getvalue()
    assert documents.count_pages(data, "a.tiff") in (1, 2)
    with Image.open(io.BytesIO(data)) as picture:
        picture.seek(1)
        marked = picture.tag_v2.get(254) == 1
    assert documents.count_pages(data, "a.tiff") == (1 if marked else 2)


def test_broken_documents_fail_in_their_turn(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    for name, data in {
        "a_locked.pdf": locked_pdf(),
        "b_broken.pdf": b"%PDF-1.4\nnothing",
        "c_broken.tiff": b"II*\x00\xff\xff\xff\xff",
        "d_good.png": b"x",
    }.items():
        (tmp_path / name).write_bytes(data)
    locked, broken, tiff, good = items_of([str(tmp_path)])
    assert isinstance(failure(locked), UnreadableImage)
    assert str(failure(locked)).endswith("is protected by a password. Save it without one.")
    assert "is no PDF that can be read" in str(failure(broken))
    assert tiff.read() == b"II*\x00\xff\xff\xff\xff"  # the server says what is wrong with it
    assert good.read() == b"x"


def test_without_pypdfium2_only_a_pdf_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "b.png").write_bytes(b"x")
    pdf, png = items_of([str(tmp_path)])
    assert isinstance(failure(pdf), MissingDependency)
    assert "pip install 'hmer[pdf]'" in str(failure(pdf))
    assert png.read() == b"x"


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "x.pdf").mkdir()
    (item,) = items_of([str(tmp_path / "gone.png")])
    assert isinstance(failure(item), MissingInput)


def test_lists_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(b"a")
    Path("list.txt").write_text(
        "# mine\n\na.png\n  https://x.example/b.png \n-\n", encoding="utf-8"
    )
    a, b, again = items_of(["@list.txt"], lambda: b"never")
    assert (a.name, a.read()) == ("a.png", b"a")
    assert b.name == "https://x.example/b.png"
    assert "cannot name standard input" in str(failure(again))
    (from_stdin,) = items_of(["@-"], lambda: b"a.png\n")
    assert from_stdin.read() == b"a"
    (stdin,) = items_of(["-"], lambda: b"xyz")
    assert (stdin.name, stdin.read()) == ("-", b"xyz")
    assert isinstance(failure(items_of(["-"], lambda: b"")[0]), EmptyInput)
    assert [item.name for item in items_of(["-"], lambda: pages("TIFF", 2))] == [
        "-#page=1",
        "-#page=2",
    ]
    with pytest.raises(MissingInput, match=r"none\.txt"):
        items_of(["@none.txt"])
    Path("@odd.png").write_bytes(b"o")
    assert items_of(["@odd.png"])[0].read() == b"o"


class Site(http.server.BaseHTTPRequestHandler):
    """A web site with a picture, a document, a large file, and ways out."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        found = {
            "/a b.png": b"picture",
            "/two.tiff": pages("TIFF", 2),
            "/empty": b"",
            "/drip": b"x",
        }
        path = self.path.replace("%20", " ")
        if path == "/away":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/x")
        elif path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a%20b.png")
        elif path in found:
            self.send_response(200)
        else:
            self.send_response(404)
        self.end_headers()
        self.wfile.write(found.get(path, b""))
        given_up: threading.Event = self.server.given_up  # type: ignore[attr-defined]
        with suppress(OSError):
            while path == "/drip" and not given_up.wait(0.05):
                self.wfile.write(b"x")


@contextmanager
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.given_up = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.given_up.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join()


def test_addresses_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with site() as url:
        assert items_of([f"{url}/a b.png"])[0].read() == b"picture"
        assert items_of([f"{url}/moved"])[0].read() == b"picture"
        assert darkest(items_of([f"{url}/two.tiff#page=2"])[0].read()) == 140
        assert isinstance(failure(items_of([f"{url}/two.tiff"])[0]), BadParameter)
        assert "404" in str(failure(items_of([f"{url}/none"])[0]))
        assert isinstance(failure(items_of([f"{url}/empty"])[0]), EmptyInput)
        assert "cannot be fetched" in str(failure(items_of([f"{url}/away"])[0]))
        monkeypatch.setattr(fetch, "MAX_BYTES", 3)
        monkeypatch.setattr(inputs, "MAX_BYTES", 3)
        assert isinstance(failure(items_of([f"{url}/a b.png"])[0]), ImageTooLarge)
    assert isinstance(failure(items_of([f"{url}/a.png"])[0]), MissingInput)  # nobody is there now


def test_a_host_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with site() as url, pytest.raises(MissingInput, match=r"was not there after 0\.3 s"):
        fetch.fetch(f"{url}/drip", timeout=0.3)


def test_lists_that_lead_back_to_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(b"a")
    Path("own.txt").write_text("a.png\n@own.txt\n", encoding="utf-8")
    Path("one.txt").write_text("@two.txt\na.png\n", encoding="utf-8")
    Path("two.txt").write_text("@./one.txt\n@list.txt\n@list.txt\n", encoding="utf-8")
    Path("list.txt").write_text("a.png\n", encoding="utf-8")
    picture, own = items_of(["@own.txt"])
    assert (picture.read(), str(failure(own))) == (
        b"a",
        "The list own.txt is among its own inputs.",
    )
    back, *others = items_of(["@one.txt"])
    assert "./one.txt is among its own inputs" in str(failure(back))
    assert [item.name for item in others] == ["a.png"] * 3  # twice the same list is no circle


def test_a_pipe_is_read_once_and_whole(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def through(data: bytes) -> list[Item]:
        writer = threading.Thread(target=pipe.write_bytes, args=(data,))
        writer.start()
        found = items_of([str(pipe)])
        writer.join(10)
        return found

    (item,) = through(b"picture")
    assert (item.name, item.read(), item.read()) == (str(pipe), b"picture", b"picture")
    first, second = through(pages("TIFF", 2))
    assert (first.name, second.name) == (f"{pipe}#page=1", f"{pipe}#page=2")
    assert (darkest(first.read()), darkest(second.read())) == (200, 140)
