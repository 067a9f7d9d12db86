"""hmer-serve --supervise without a real server: pauses, giving up, and what is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.retry import Deadline, Retrier, Retry
from hmer.errors import CorruptBundle, HmerError, ServerSetupError, ServerUnavailable
from model_repository.repository import Repository
from model_repository.server import EmbeddedServer
from model_repository.supervise import Policy, Supervisor
from model_repository.workers import GONE_S, STOPPED_S, Fault, Workers
from tests.serve_fixtures import ANY_PORTS, ROOT
from tests.test_serve_command import COMMAND, ZERO

DEAD = Fault("worker_gone", "The worker of decode (process 7) died.", "decode", 7)


class Clock(threading.Event):
    """Time that passes while somebody waits for this event."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.waits = 0.0, list[float]()

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        self.now += timeout or 0.0
        return self.is_set()


class Served:
    """Notes what is done to it; each start takes a second, and may fail."""

    def __init__(self, clock: Clock, *failures: HmerError | None) -> None:
        self.clock, self.failures, self.done = clock, list(failures), list[str]()

    def kill(self) -> None:
        self.done.append("kill")

    def restart(self) -> None:
        self.done.append("restart")

    def wait_ready(
        self, timeout: float, on_progress: Callable[[set[str]], bool] | None = None
    ) -> None:
        self.clock.now += 1
        if self.failures and (error := self.failures.pop(0)) is not None:
            raise error


def supervisor(served: Served, policy: Policy, lines: bool = False) -> Supervisor:
    return Supervisor(served, policy, lines, 60.0, served.clock, lambda: served.clock.now)


def test_pauses_double_up_to_the_longest() -> None:
    policy = Policy(first_s=1.0, longest_s=5.0)
    assert [policy.pause(number) for number in range(1, 7)] == [0, 1, 2, 4, 5, 5]


def test_what_died_is_started_again(capsys: pytest.CaptureFixture[str]) -> None:
    served = Served(Clock())
    assert supervisor(served, Policy()).mend(DEAD)
    assert served.done == ["kill", "restart"]
    assert served.clock.waits == [0.0]
    said = capsys.readouterr().err
    assert "The worker of decode (process 7) died. Restart 1 of at most 5" in said
    assert "serves again: 1.0 s after its end" in said


def test_a_start_that_fails_is_tried_again_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    served = Served(Clock(), CorruptBundle("encoder.onnx was changed."))
    assert supervisor(served, Policy(), lines=True).mend(DEAD)
    assert served.done == ["kill", "restart"] * 2
    assert served.clock.waits == [0.0, 1.0]
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["died", "died", "restarted"]
    assert [event["level"] for event in events] == ["error", "error", "info"]
    assert (events[0]["model"], events[0]["pid"], events[0]["fault"]) == (
        "decode", 7, "worker_gone",
    )  # fmt: skip
    assert events[1]["fault"] == "start_failed"
    assert "encoder.onnx was changed." in events[1]["message"]
    assert (events[2]["down_s"], events[2]["start_s"], events[2]["restart"]) == (3.0, 1.0, 2)


def test_it_gives_up_when_it_keeps_dying() -> None:
    served = Served(Clock())
    one = supervisor(served, Policy(restarts=3, window_s=100.0))
    for _ in range(3):
        assert one.mend(DEAD)
    with pytest.raises(ServerSetupError, match=r"3 times within 100 s.*worker of decode .* died"):
        one.mend(DEAD)
    assert served.done[-1] == "kill"  # whoever waits for the dead worker learns of it
    assert served.clock.waits == [0.0, 1.0, 2.0]


def test_restarts_of_long_ago_do_not_count() -> None:
    served = Served(Clock())
    one = supervisor(served, Policy(restarts=1, window_s=100.0))
    for _ in range(3):
        assert one.mend(DEAD)
        served.clock.now += 200.0
    assert served.clock.waits == [0.0] * 3


def test_a_signal_ends_the_pause() -> None:
    served = Served(Clock())
    one = supervisor(served, Policy())
    assert one.mend(DEAD)
    served.clock.set()
    assert not one.mend(DEAD)
    assert served.done == ["kill", "restart", "kill"]


# -- the command


def test_the_command_gives_up_with_a_sentence(
    repository: Repository,
    fake_triton: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A server that ends after every start: at the same ports, one restart, then exit code 1."""
    monkeypatch.setenv("FAKE", "dies")
    log = tmp_path / "log"
    options = ("--supervise", "--max-restarts", "1", "--log", str(log), "--log-format", "json")
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(tmp_path / "triton"), "--repository",
         str(repository.folder), *ZERO, *options],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "started again 1 times within 600 s" in last
    assert f"Its log: {log}" in last
    assert json.loads(last)["level"] == "error"
    starts = [line for line in log.read_text("utf-8").splitlines() if line.startswith("cwd")]
    assert len(starts) == 2  # the log goes on
    assert len({part for line in starts for part in line.split() if "http-port" in part}) == 1


# -- the processes


@pytest.fixture
def family(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A process with a child that looks like the worker of ``decode``: both pids."""
    stub = tmp_path / "triton_python_backend_stub"
    stub.symlink_to(sys.executable)
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    work = [str(stub), "-c", "import time; time.sleep(60)", "/r/models/decode/1/model.py"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *work, "decode_0_0"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        yield parent.pid, child
        for pid in (child, parent.pid):
            os.kill(pid, signal.SIGKILL)


class FakeServer:
    """What ``Workers`` asks of a server; ``index`` is what it says it serves."""

    def __init__(self, pid: int) -> None:
        self.pid, self.code = pid, None

    def returncode(self) -> int | None:
        return self.code


@pytest.fixture
def workers(family: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> tuple[Workers, Clock]:
    clock = Clock()
    found = Workers(FakeServer(family[0]), lambda: clock.now)  # type: ignore[arg-type]
    monkeypatch.setattr(found, "_serving", lambda: {("decode", "1")})
    assert found.look() is None
    assert [worker.instance for worker in found._known.values()] == ["decode_0_0"]
    return found, clock


def test_a_worker_that_was_killed(family: tuple[int, int], workers: tuple[Workers, Clock]) -> None:
    found, clock = workers
    os.kill(family[1], signal.SIGKILL)
    _until_state(family[1], "Z")
    assert found.look() is None  # not yet certain
    clock.now += GONE_S
    fault = found.look()
    assert fault == Fault(
        "worker_gone", f"The worker of decode (process {family[1]}) died.", "decode", family[1]
    )


def test_a_worker_of_a_version_that_was_unloaded(
    family: tuple[int, int], workers: tuple[Workers, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, clock = workers
    monkeypatch.setattr(found, "_serving", lambda: {("decode", "2")})
    os.kill(family[1], signal.SIGKILL)
    _until_state(family[1], "Z")
    for _ in range(3):
        assert found.look() is None
        clock.now += 10


def test_a_worker_that_was_stopped(family: tuple[int, int], workers: tuple[Workers, Clock]) -> None:
    found, clock = workers
    for number, state in ((signal.SIGSTOP, "T"), (signal.SIGCONT, "S"), (signal.SIGSTOP, "T")):
        os.kill(family[1], number)
        _until_state(family[1], state)
        assert found.look() is None
        clock.now += STOPPED_S / 2
    assert found.look() is None  # it went on in between
    clock.now += STOPPED_S / 2
    fault = found.look()
    assert fault is not None
    assert (fault.kind, fault.model) == ("worker_stopped", "decode")


def test_a_server_that_ended(repository: Repository) -> None:
    for code, words in ((3, "exit code 3"), (-9, "ended by signal 9")):
        server = FakeServer(1)
        server.code = code  # type: ignore[assignment]
        fault = Workers(server).look()  # type: ignore[arg-type]
        assert fault is not None
        assert words in fault.sentence
    assert Workers(EmbeddedServer(repository, ANY_PORTS)).look() is None  # not started


def _until_state(pid: int, wanted: str) -> None:
    for _ in range(1000):
        if Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == wanted:
            return
        threading.Event().wait(0.01)
    raise AssertionError(wanted)


# -- clients


def test_a_server_that_answered_before_is_waited_for() -> None:
    slept: list[float] = []
    outcomes: list[str | HmerError] = ["first", *[ServerUnavailable("Gone.")] * 9, "back"]
    policy = Retry(attempts=3, first=0.5, longest=1.0, patience=60.0)

    def send(_: float | None) -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    retrier = Retrier(policy, sleep=slept.append)
    assert retrier.run(send, Deadline(None), "here") == "first"
    assert retrier.run(send, Deadline(None), "here") == "back"
    assert len(slept) == 9
    outcomes[:] = [ServerUnavailable("Gone.")] * 1000
    slept.clear()
    with pytest.raises(ServerUnavailable):
        retrier.run(send, Deadline(None), "here")
    assert 58.0 < sum(slept) <= 60.0


def test_a_single_attempt_stays_one() -> None:
    slept: list[float] = []
    retrier = Retrier(Retry(attempts=1), sleep=slept.append)
    assert retrier.run(lambda _: "known", Deadline(None), "here") == "known"

    def gone(_: float | None) -> str:
        raise ServerUnavailable("Gone.")

    with pytest.raises(ServerUnavailable):
        retrier.run(gone, Deadline(None), "here")
    assert not slept
