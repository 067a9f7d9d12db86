"""``hmer-bench faults``: what it counts, and the faults that matter most on the real server."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.cli import main
from benchmarks.crohme import Expression
from benchmarks.faults import ANSWERED, Asked, Finding, Load, recovery, seen, table
from benchmarks.faults_cli import run
from benchmarks.faults_processes import no_mounts
from benchmarks.faults_scenarios import SCENARIOS
from benchmarks.faults_stage import Stage, died
from export.config import RepositoryOptions
from export.repository import assemble
from hmer.bundle import Bundle
from tests.e2e_fixtures import need_embedded, picture

ROOT = Path(__file__).resolve().parents[1]


def asked(sent: float, done: float, code: str = ANSWERED, patient: bool = False) -> Asked:
    return Asked(sent, done, patient, False, code, f"{code}.")


def test_recovery_ends_with_the_first_answer_after_the_last_error() -> None:
    gone = "server_unavailable"
    requests = [asked(9, 11, gone), asked(11, 12, gone), asked(10, 13), asked(14, 15)]
    assert recovery(requests, 10.0) == 3.0
    assert recovery(requests[2:], 10.0) == 0.0
    assert recovery(requests[:2], 10.0) is None


def test_what_was_lost() -> None:
    gone = "server_unavailable"
    requests = [
        *(asked(1, 2, gone), asked(9, 11, gone), asked(11, 12, gone), asked(12, 20)),
        *(asked(9, 14, patient=True), asked(9, 15, "inference_failed", patient=True)),
    ]
    finding = seen("x", requests, 10.0, 21.0)  # the first one ended before
    assert (finding.asked, finding.cut_bare, finding.refused_bare) == (5, 1, 1)
    assert finding.lost_patient == 1
    assert finding.codes == {gone: 2, "inference_failed": 1}
    assert finding.longest_s == 8.0
    assert finding.recovery_s == 10.0
    text = table([finding, Finding("y", missing="no way")]).text()
    assert "1 inference_failed, 2 server_unavailable" in text
    assert "not tried: no way" in text


def test_words_of_the_supervisor() -> None:
    line = json.dumps({"event": "died", "message": "It died. Restart 1 of at most 5 in 600 s."})
    assert died(f"{line}\nsomething else\n") == ["It died."]


def test_faults_that_there_are_not() -> None:
    done = CliRunner().invoke(main, ["faults", "--only", "kill-decode,flood"])
    assert done.exit_code == 1
    assert "There is no fault flood. Choose from kill-recognize" in done.stderr


# -- on the real server


@pytest.fixture(scope="module")
def stage(tiny_graphs: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    need_embedded()
    work = tmp_path_factory.mktemp("faults")
    options = RepositoryOptions(slots=4, preprocessors=1)
    repository = assemble(tiny_graphs.folder, work / "repository", options).folder
    pictures = [Expression(str(seed), (), picture(seed)) for seed in range(6)]
    return Stage(repository, pictures, work, Load(pause=0.05), at_most=60.0, shows=1.5)


@pytest.mark.e2e
def test_a_killed_worker_is_started_again_and_patient_clients_lose_nothing(stage: Stage) -> None:
    """Of all workers the one that clients wait for in vain, which Triton says nothing of."""
    (finding,) = run(stage, ["kill-recognize"])
    assert not finding.missing
    assert finding.restarts == 1
    assert "worker of recognize" in finding.died[0]
    assert finding.recovery_s is not None
    assert set(finding.codes) == {"server_unavailable"}
    assert finding.refused_bare > 0
    # But for a stream of which tokens had come: it cannot be asked again.
    assert finding.lost_patient <= 1
    assert finding.shm_left == 0


@pytest.mark.e2e
def test_without_supervision_the_command_ends_and_nobody_waits(stage: Stage) -> None:
    (finding,) = run(stage, ["kill-unsupervised"])
    assert not finding.missing
    assert "exit code 1: error: The worker of recognize" in finding.note
    assert finding.recovery_s is None
    assert set(finding.codes) == {"server_unavailable"}
    assert finding.shm_left == 0


@pytest.mark.e2e
def test_a_full_disk_leaves_no_half_repository(stage: Stage) -> None:
    if reason := no_mounts():
        pytest.skip(reason)
    (finding,) = run(stage, ["disk-full"])
    assert "exit code 1, error: DIR/repository cannot be written: No space left" in finding.note
    assert "Left behind: nothing" in finding.note


def test_every_fault_is_documented() -> None:
    page = (ROOT / "deploy" / "README.md").read_text("utf-8")
    for name in SCENARIOS:
        assert f"`{name}`" in page


# -- clocks

# What is told to people, or compared with nothing but itself.
WALL_CLOCK = {
    *("model_repository/log_lines.py", "model_repository/recognize/request_log.py"),
    "model_repository/tracing.py",
}


def test_no_deadline_is_of_the_wall_clock() -> None:
    """The wall clock jumps; times to wait for are of ``time.monotonic`` alone."""
    found = set()
    for package in ("hmer", "model_repository", "client"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.Attribute):
                    continue
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                if (owner, node.attr) == ("time", "time") or (
                    owner in ("datetime", "date") and node.attr in ("now", "utcnow", "today")
                ):
                    found.add(path.relative_to(ROOT).as_posix())
    assert found <= WALL_CLOCK
    assert "model_repository/log_lines.py" in found
