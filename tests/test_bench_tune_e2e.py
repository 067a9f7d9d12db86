"""``hmer-bench tune`` on real servers, with the tiny network; what it writes is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import tune_cli, tune_search
from benchmarks.cli import main
from benchmarks.crohme import Expression
from benchmarks.served import ServedProcess
from benchmarks.tune_servers import Servers
from benchmarks.tune_space import SLOTS, Goal, settings_of
from export.config import RepositoryOptions, from_text
from hmer.bundle import Bundle
from hmer.errors import BadParameter
from hmer.serving import REPOSITORY_FILE
from model_repository.repository import open_repository
from tests.e2e_fixtures import need_embedded
from tests.test_recognizer import pictures

pytestmark = pytest.mark.e2e


def expressions() -> list[Expression]:
    return [Expression(str(i), ("x",), data) for i, data in enumerate(pictures(3))]


def test_what_wins_is_written_and_served(
    tiny_graphs: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_embedded()
    space = {SLOTS: [4, 16]}
    monkeypatch.setattr(tune_cli, "_space", lambda *_: space)
    monkeypatch.setattr(tune_cli, "gather", lambda *_: expressions())
    monkeypatch.setattr(tune_search, "WINS", 1)
    # Real servers are measured, and what is measured is then read as if fewer slots were better:
    # which is faster is not a matter for a test.
    measured: list[int] = []
    pairs = Servers.pairs

    def better_with_few(self: Servers, incumbent: Any, challenger: Any) -> Any:
        for a, b in pairs(self, incumbent, challenger):
            assert a.value > 0
            assert b.value > 0
            measured.append(challenger[SLOTS])
            sizes = (incumbent[SLOTS], challenger[SLOTS])
            yield tuple(tune_search.Score(100.0 / size) for size in sizes)

    monkeypatch.setattr(Servers, "pairs", better_with_few)
    output, repository = tmp_path / "tune.json", tmp_path / "tuned"
    result = CliRunner().invoke(
        main,
        [
            *("tune", "--bundle", str(tiny_graphs.folder), "--checkpoint", str(tmp_path / "no")),
            *("--concurrency", "2", "--repository", str(repository), "--output", str(output)),
            *("--work", str(tmp_path / "work"), "--json"),
        ],
    )
    assert result.exit_code == 0, result.output
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report == json.loads(result.stdout)
    assert report["start"][SLOTS] == 16
    assert report["best"][SLOTS] == 4
    assert measured == [4]
    assert "The tokens a call stay as they are: there is no checkpoint" in result.stderr
    assert not any((tmp_path / "work" / "repositories").iterdir())  # nothing is left behind

    described = json.loads((repository / REPOSITORY_FILE).read_text(encoding="utf-8"))
    assert described["slots"] == 4
    opened = open_repository(repository)
    config = from_text((opened.folder / "models/recognize/config.pbtxt").read_text("utf-8"))
    assert json.loads(config.parameters["decode"].string_value)["slots"] == "4"
    with ServedProcess(repository) as server:
        for goal, met in (
            (Goal(), True),
            (Goal("p95", 60_000.0), True),
            (Goal("p95", 0.01), False),
        ):
            with Servers(tiny_graphs, None, expressions(), goal, 2, tmp_path / "other") as servers:
                score = servers._score((server, 1))
            assert (score.value > 0) == met
            assert len(score.figures["levels"]) == (2 if goal.bound_ms > 1 else 1)


def test_settings_that_no_server_takes(tiny_graphs: Bundle, tmp_path: Path) -> None:
    settings = settings_of(RepositoryOptions(), tiny_graphs.k, 1, 24_000)
    broken = {**settings, "runtime": ["onnxruntime", "fp32", "nothing"]}
    with Servers(tiny_graphs, None, expressions(), Goal(), 4, tmp_path) as servers:
        pairs = servers.pairs(broken, settings)
        with pytest.raises(BadParameter, match="decoder's target"):
            next(pairs)
