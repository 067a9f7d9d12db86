"""Nobody asks Triton about a request that was answered: that ends the server (SIGSEGV).

With the last response Triton frees what a sender's ``is_cancelled`` reads. Who watches over
requests runs beside who answers them, so asking and answering exclude each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from hmer.decode_types import SearchOptions
from hmer.errors import Cancelled
from hmer.serving import RequestParameters
from hmer.vocab import Vocabulary
from tests import fake_triton as fake


class Sender:
    """A response sender whose question takes a while, as a trip to another process does."""

    def __init__(self) -> None:
        self.asked, self.final, self.freed_while_asked = 0, False, False
        self.asking = threading.Event()
        self._inside = 0

    def is_cancelled(self) -> bool:
        assert not self.final, "the server would have ended here: asked after the last response"
        self.asked += 1
        self._inside += 1
        self.asking.set()
        time.sleep(0.05)
        self._inside -= 1
        return False

    def send(self, response: object, flags: int = 0) -> None:
        assert not self.final, "a response after the last"
        self.freed_while_asked |= self._inside > 0
        self.final = True


@pytest.fixture(autouse=True)
def triton() -> None:
    fake.install()


def of_recognize(sender: Sender) -> tuple[Callable[[], bool], Callable[[], object]]:
    """How a request to ``recognize`` is asked about, and how it is answered."""
    from model_repository.recognize.job import Job

    wanted = RequestParameters(9, SearchOptions())
    job = Job(sender, [b""], wanted, {}, Vocabulary(("x",)), False, 0.0, None)
    return job.gone, lambda: job.fail(Cancelled("Gone."))


def of_decode(sender: Sender) -> tuple[Callable[[], bool], Callable[[], object]]:
    """The same of a raw request to ``decode``."""
    from model_repository.decode.adapter import Pending

    loop: Any = SimpleNamespace(replies=None)
    pending = Pending(sender, 1, loop)
    return pending.cancelled, lambda: pending.fail(Cancelled("Gone."))


@pytest.mark.parametrize("request_of", [of_recognize, of_decode])
def test_an_answered_request_is_not_asked_about(request_of: Any) -> None:
    sender = Sender()
    gone, answer = request_of(sender)
    assert not gone()
    answer()
    gone()
    assert (sender.asked, sender.final) == (1, True)


@pytest.mark.parametrize("request_of", [of_recognize, of_decode])
def test_an_answer_waits_for_the_question_before_it(request_of: Any) -> None:
    sender = Sender()
    gone, answer = request_of(sender)
    with ThreadPoolExecutor(1) as watcher:
        asked = watcher.submit(gone)
        assert sender.asking.wait(5)
        answer()
        asked.result(5)
    assert sender.final
    assert not sender.freed_while_asked
