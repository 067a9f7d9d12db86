"""What the client takes: addresses, versions, timeouts, ids and search options."""

from __future__ import annotations

import re
import sys

import pytest

from client import Recognizer
from client.transport import parse_url
from hmer.decode import SearchOptions
from hmer.errors import (
    BadParameter,
    MissingDependency,
)
from hmer.serving import from_request
from tests.client_fixtures import Fake, fake
from tests.fake_server import Script, http_server

__all__ = ["fake"]


def test_each_request_has_an_id_and_the_remaining_time(fake: Fake) -> None:
    with Recognizer(fake.url, timeout=300.0) as recognizer:
        recognizer.recognize(b"a")
        recognizer.recognize(b"b", request_id="mine")
        recognizer.recognize(b"c", timeout=60.0)
    first, second, third = fake.script.asked
    assert re.fullmatch("[0-9a-f]{32}", first.id)
    assert second.id == "mine"
    assert 60_000_000 < first.timeout_us <= 300_000_000  # wide: a busy machine takes its time
    assert 0 < third.timeout_us <= 60_000_000


def test_without_a_timeout_none_is_sent(fake: Fake) -> None:
    with Recognizer(fake.url, timeout=None) as recognizer:
        recognizer.recognize(b"a")
    assert fake.script.asked[0].timeout_us == 0


def test_model_and_version_can_be_chosen(fake: Fake) -> None:
    with Recognizer(fake.url, version=1) as recognizer:
        recognizer.recognize(b"a")
    assert (fake.script.asked[0].model, fake.script.asked[0].version) == ("recognize", "1")


def test_without_tritonclient_http_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MissingDependency, match=r"pip install 'hmer\[client\]'.*http://"):
        Recognizer("localhost:8001")
    with http_server(Script()) as url, Recognizer(url) as recognizer:
        assert recognizer.recognize(b"x").latex == "x"


@pytest.mark.parametrize(
    ("url", "scheme", "authority"),
    [
        ("localhost:8001", "grpc", "localhost:8001"),
        ("localhost", "grpc", "localhost:8001"),
        ("grpc://10.0.0.7:9", "grpc", "10.0.0.7:9"),
        ("[::1]:8001", "grpc", "[::1]:8001"),
        ("http://localhost:8000/", "http", "localhost:8000"),
        ("http://formulas.example", "http", "formulas.example:80"),
        ("https://formulas.example", "https", "formulas.example:443"),
    ],
)
def test_addresses(url: str, scheme: str, authority: str) -> None:
    address = parse_url(url)
    assert (address.scheme, address.authority) == (scheme, authority)


@pytest.mark.parametrize(
    "url", ["", "ftp://x:1", "host:port", "host:99999", "http://", "localhost:8001/v2"]
)
def test_malformed_addresses(url: str) -> None:
    with pytest.raises(BadParameter, match="HOST:PORT"):
        Recognizer(url)


@pytest.mark.parametrize("version", ["abc", 0, "-1", "1.5"])
def test_malformed_versions(version: str | int) -> None:
    with pytest.raises(BadParameter, match="whole number"):
        Recognizer("localhost:1", version=version)


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), float("nan")])
def test_malformed_timeouts(timeout: float) -> None:
    with pytest.raises(BadParameter, match="seconds"):
        Recognizer("localhost:1", timeout=timeout)


def test_concurrency_below_one() -> None:
    with Recognizer("localhost:1") as recognizer, pytest.raises(BadParameter, match="at least 1"):
        recognizer.recognize_many([b"a"], concurrency=0)


def test_search_options_travel_as_request_parameters(fake: Fake) -> None:
    with Recognizer(fake.url) as recognizer:
        recognizer.recognize(b"x", beam=5, n_best=3, length_penalty=0.25)
        recognizer.recognize(b"x", timeout=5, beam=2)
        list(recognizer.recognize_many([b"x"], beam=7))
        recognizer.recognize(b"x")
    assert [asked.parameters for asked in fake.script.asked] == [
        {"beam": 5, "n_best": 3, "length_penalty": "0.25"},
        {"beam": 2},
        {"beam": 7},
        {},
    ]
    wanted = from_request(fake.script.asked[0].parameters, 100)
    assert wanted.search == SearchOptions(5, 3, 0.25)


def test_search_options_out_of_range_are_not_sent(fake: Fake) -> None:
    with Recognizer(fake.url) as recognizer:
        for options in ({"beam": 0}, {"beam": 2, "n_best": 3}, {"beam": 2, "length_penalty": -1}):
            with pytest.raises(BadParameter):
                recognizer.recognize(b"x", **options)  # type: ignore[call-overload]
            with pytest.raises(BadParameter):
                recognizer.recognize_many([b"x"], **options)  # type: ignore[arg-type]
    assert fake.script.asked == []
