"""The faults, by name: each a function from the stage to its row."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.faults import Finding
from benchmarks.faults_processes import (
    faketime,
    frozen,
    no_mounts,
    send,
    small_mount,
    worker_pid,
)
from benchmarks.faults_stage import SUPERVISED, Stage
from benchmarks.faults_wire import read_slowly, vanish, write_slowly
from benchmarks.served import ServedProcess
from benchmarks.server_metrics import GAUGES, settled
from hmer.bundle import ENCODER_FILE
from hmer.contract import DECODE, ENCODER, RECOGNIZE, RECOGNIZE_STREAM
from hmer.errors import HmerError

Scenario = Callable[[Stage], Finding]
_WORKERS = (RECOGNIZE, RECOGNIZE_STREAM, DECODE, ENCODER)
_DAY_S = 86_400
_SLOW_S = 5.0
_TRIES = 20  # clients that vanish


def _held(stage: Stage, model: str) -> str:
    """Why a worker of ``model`` cannot be harmed, empty if there is one."""
    there = not model or (stage.repository / "models" / model).is_dir()
    return "" if there else f"{RECOGNIZE} holds {model} in its own process"


def _signalled(fault: str, model: str, number: signal.Signals) -> Scenario:
    def scenario(stage: Stage) -> Finding:
        if reason := _held(stage, model):
            return Finding(fault, missing=reason)
        return stage.observe(fault, lambda server: send(server, model, number))

    return scenario


def _hangs(fault: str, model: str) -> Scenario:
    def scenario(stage: Stage) -> Finding:
        if reason := _held(stage, model):
            return Finding(fault, missing=reason)

        def act(server: ServedProcess) -> None:
            with frozen(worker_pid(server, model)):
                end = time.monotonic() + stage.at_most
                while time.monotonic() < end and '"event": "died"' not in server.said():
                    time.sleep(0.1)

        return stage.observe(fault, act)

    return scenario


def unsupervised(stage: Stage) -> Finding:
    """A worker is killed, and nobody starts it again: the command must end, and say why."""

    def act(server: ServedProcess) -> str:
        send(server, RECOGNIZE, signal.SIGKILL)
        code = server.ended(20.0)
        said = server.said().strip().splitlines() or ["nothing"]
        sentence = said[-1].partition(" Its log:")[0]
        return f"the command ended with exit code {code}: {sentence}"

    short = replace(stage, at_most=1.0, load=replace(stage.load, timeout=5.0))
    return short.observe("kill-unsupervised", act, options=())


def vanishing(stage: Stage) -> Finding:
    """Clients that reset their connections while they are worked for."""

    def act(server: ServedProcess) -> None:
        for number in range(_TRIES):
            vanish(server.http, stage.expressions[number % len(stage.expressions)].data)

    def after(server: ServedProcess) -> str:
        left = settled(server.metrics)
        held = sum(left.get(metric, 0.0) for metric in GAUGES.values())
        return f"{_TRIES} vanished, {held:g} slots and places held afterwards"

    return stage.observe("client-vanishes", act, after=after)


def _slow(fault: str, way: Callable[..., bool], pause: float) -> Scenario:
    def scenario(stage: Stage) -> Finding:
        def act(server: ServedProcess) -> str:
            end = time.monotonic() + _SLOW_S
            answered: list[bool] = []

            def one(number: int) -> None:
                data = stage.expressions[number % len(stage.expressions)].data
                try:
                    done = way(server.http, data, pause, lambda: time.monotonic() < end)
                except OSError:  # the server hung up, or gave no answer
                    done = False
                answered.append(done)

            clients = [threading.Thread(target=one, args=(number,)) for number in range(8)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            return f"{sum(answered)} of {len(clients)} slow ones answered in the end"

        return stage.observe(fault, act)

    return scenario


def full_shared_memory(stage: Stage) -> Finding:
    """A /dev/shm of 64 MB, as a container has by default, that is full for three seconds."""
    name = "shm-full"
    if reason := no_mounts():
        return Finding(name, missing=reason)
    return stage.observe_with_little_memory(name, "64m", 3.0)


def full_disk(stage: Stage) -> Finding:
    """``hmer-export repository`` onto a disk of 1 MB, or half of what it would write."""
    name = "disk-full"
    if reason := no_mounts():
        return Finding(name, missing=reason)
    bundle = stage.repository / "bundle"
    size = sum(path.stat().st_size for path in bundle.iterdir()) // 2
    with tempfile.TemporaryDirectory(dir=stage.work) as folder:
        # What it left is looked at by a shell in the same namespace.
        script = '"$@"; code=$?; ls -A "$0"; exit $code'
        export = [sys.executable, "-m", "export.cli", "repository", str(bundle.resolve())]
        command = [*export, "--output", f"{folder}/repository"]
        done = subprocess.run(
            [*small_mount(str(size), folder), "sh", "-c", script, folder, *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).resolve().parents[1],
        )
    said = done.stderr.strip().splitlines() or ["nothing"]
    sentence = said[-1] if len(said) == 1 else f"{len(said)} lines, the last: {said[-1]}"
    left = done.stdout.split() or ["nothing"]
    note = f"exit code {done.returncode}, {sentence} Left behind: {', '.join(left)}"
    return Finding(name, recovery_s=0.0, note=note.replace(folder, "DIR"))


def versions(stage: Stage) -> Finding:
    """The same weights as a next version take over, and then again, under load."""
    repository = _copy(stage, "versions")
    bundle = shutil.copytree(repository / "bundle", stage.work / "next-bundle", dirs_exist_ok=True)

    def act(server: ServedProcess) -> str:
        taken = [_take_over(server, repository, bundle) for _ in ("forward", "back")]
        return f"versions {' and '.join(taken)} took over"

    return stage.observe(
        "version-roll", act, repository=repository, options=(*SUPERVISED, "--model-control")
    )


def _clock(name: str, seconds: int) -> Scenario:
    """The wall clock jumps by so many seconds, and stays there.

    Triton's Python backend waits with ``pthread_mutex_timedlock`` and ``sem_timedwait``, whose
    deadlines libfaketime does not shift: by the kernel's clock those of a clock that is behind are
    over at once. So a server is first started, without any jump, with the clock that is to be.
    """

    def scenario(stage: Stage) -> Finding:
        library = faketime()
        if library is None:
            return Finding(name, missing="libfaketime is not installed: pip install libfaketime")
        file = stage.work / "clock"
        environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file.resolve()),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        file.write_text(f"{seconds:+d}", encoding="ascii")
        try:
            with ServedProcess(stage.repository, environment=environment):
                pass
        except HmerError as error:
            return Finding(
                name,
                missing="libfaketime cannot show it: under it a server that is merely started with "
                f"that clock ends, too ({str(error).partition(' Its log:')[0]})",
            )
        file.write_text("+0", encoding="ascii")

        def act(server: ServedProcess) -> None:
            file.write_text(f"{seconds:+d}", encoding="ascii")
            time.sleep(3.0)

        return stage.observe(name, act, environment=environment)

    return scenario


def corrupt_bundle(stage: Stage) -> Finding:
    """Weights are overwritten under a running server, which then has to start again."""
    repository = _copy(stage, "corrupt")
    graph = repository / "bundle" / ENCODER_FILE
    good = graph.read_bytes()
    broken = shutil.copytree(repository / "bundle", stage.work / "broken", dirs_exist_ok=True)

    def act(server: ServedProcess) -> str:
        _garble(Path(broken) / ENCODER_FILE)
        refused = _take_over(server, repository, broken)  # as a new version: it goes on
        _garble(graph)
        time.sleep(1.0)
        before = server.said()
        send(server, RECOGNIZE, signal.SIGKILL)
        end = time.monotonic() + stage.at_most
        while '"start_failed"' not in server.said() and time.monotonic() < end:
            time.sleep(0.1)
        graph.write_bytes(good)
        return f"as a version: {refused}; at the restart: {_last(server.said()[len(before) :])}"

    return stage.observe(
        "corrupt-bundle", act, repository=repository, options=(*SUPERVISED, "--model-control")
    )


SCENARIOS: dict[str, Scenario] = {
    **{f"kill-{m}": _signalled(f"kill-{m}", m, signal.SIGKILL) for m in _WORKERS},
    **{f"stop-{m}": _signalled(f"stop-{m}", m, signal.SIGSTOP) for m in (RECOGNIZE, DECODE)},
    **{f"hang-{m}": _hangs(f"hang-{m}", m) for m in (RECOGNIZE, DECODE)},
    "kill-server": _signalled("kill-server", "", signal.SIGKILL),
    "kill-unsupervised": unsupervised,
    "client-vanishes": vanishing,
    "client-reads-slowly": _slow("client-reads-slowly", read_slowly, 0.2),
    "client-writes-slowly": _slow("client-writes-slowly", write_slowly, 0.2),
    "shm-full": full_shared_memory,
    "disk-full": full_disk,
    "version-roll": versions,
    "clock-ahead": _clock("clock-ahead", _DAY_S),
    "clock-back": _clock("clock-back", -_DAY_S),
    "corrupt-bundle": corrupt_bundle,
}


def _copy(stage: Stage, name: str) -> Path:
    target = stage.work / name
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(stage.repository, target))


def _garble(path: Path) -> None:
    """Other bytes in the same file, as a copy over it leaves them."""
    with path.open("r+b") as stream:
        stream.write(b"\0" * min(4096, path.stat().st_size))


def _take_over(server: ServedProcess, repository: Path, bundle: Path) -> str:
    """Let ``bundle`` take over; its version, or the sentence that it was refused with."""
    command = [sys.executable, "-m", "model_repository.versions", str(repository), str(bundle)]
    done = subprocess.run(
        [*command, "--url", server.http, "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[1],
    )
    if done.returncode == 0:
        return str(json.loads(done.stdout)["version"])
    return _last(done.stderr)


def _last(said: str) -> str:
    """The last thing that was said, as a sentence."""
    lines: Sequence[str] = said.strip().splitlines() or ["nothing"]
    for line in reversed(lines):
        try:
            document = json.loads(line)
        except ValueError:
            return line
        if document.get("fault") == "start_failed":
            return str(document["message"]).partition(" Restart ")[0]
    return lines[-1]
