"""``hmer-bench soak``: what it sends, how it judges, and a short one on a real server."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from benchmarks.cli import main
from benchmarks.crohme import Expression
from benchmarks.soak import Soak, capacity, drift, expected, figures, run
from benchmarks.soak_mix import LEFT, OK, REFUSED, SHARES, WRONG, Mix, Outcome, Request, Sender
from benchmarks.soak_watch import held, mapped, named, own_bytes
from hmer.errors import BadInk, InferenceFailed, InputError, Overloaded, ServerUnavailable
from hmer.preprocess import decode, measure
from hmer.recognition import Recognition
from model_repository.server import EmbeddedServer
from tests.handwriting import writing

STROKES = [[[float(x), float(y)] for x, y in stroke] for stroke in writing(["1", "+", "0"], 4)[0]]
EXPRESSIONS = [Expression("one", ("1",), json.dumps({"strokes": STROKES}).encode())]


def test_every_kind_is_drawn_as_often_as_it_says() -> None:
    mix = Mix(EXPRESSIONS, seed=3)
    drawn = Counter(mix.draw().kind for _ in range(4000))
    for kind, share in SHARES.items():
        assert drawn[kind] == pytest.approx(4000 * share, rel=0.35), kind
    again, other = Mix(EXPRESSIONS, seed=3), Mix(EXPRESSIONS, seed=3)
    assert [again.draw() for _ in range(99)] == [other.draw() for _ in range(99)]


def test_bad_inputs_are_bad_and_the_others_are_not() -> None:
    mix = Mix(EXPRESSIONS)
    for request in (mix.draw() for _ in range(300)):
        if request.data[:1] in (b"{", b"<"):
            continue  # ink, which is another parser's
        if request.kind == "bad":
            with pytest.raises(InputError):
                measure(decode(request.data))
        else:
            assert decode(request.data).ndim == 2


class Fake:
    """Answers as it is told."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    async def recognize(self, data: bytes, **options: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, float):
            await asyncio.sleep(answer)
        return answer


def answer(*tokens: str) -> Recognition:
    found = Recognition.__new__(Recognition)
    object.__setattr__(found, "tokens", tokens)
    return found


def judged(kind: str, *answers: Any, leaves: float = 0.0) -> list[str]:
    async def ask() -> list[str]:
        send = Sender(Fake(*answers))  # type: ignore[arg-type]
        request = Request(kind, b"", "key", leaves)
        return [(await send(request, 0.0)).outcome for _ in answers]

    return asyncio.run(ask())


def test_the_first_answer_is_the_one_to_give_every_time() -> None:
    assert judged("picture", answer("1"), answer("1"), answer("2")) == [OK, OK, WRONG]


def test_errors_count_by_their_code_and_only_bad_inputs_are_refused() -> None:
    failed = [BadInk("No."), InferenceFailed("Broken."), ServerUnavailable("Away.")]
    assert judged("bad", *failed) == [REFUSED, InferenceFailed.code, ServerUnavailable.code]
    assert judged("picture", *failed) == [e.code for e in failed]
    assert judged("bad", answer("1")) == [WRONG]
    assert not expected(Outcome("bad", WRONG, 0.1, 0.1))
    assert not expected(Outcome("picture", REFUSED, 0.1, 0.1))


def test_a_caller_leaves() -> None:
    assert judged("cancelled", 5.0, leaves=0.01) == [LEFT]
    assert judged("cancelled", answer("1"), leaves=1.0) == [OK]
    assert expected(Outcome("cancelled", LEFT, 0.1, 0.1))
    assert not expected(Outcome("picture", LEFT, 0.1, 0.1))


def series(values: Sequence[float], **more: Any) -> list[dict[str, Any]]:
    return [
        {"t": 10.0 * i, "own_mb": {"a": v}, "p50_ms": 5.0, "p95_ms": 9.0, "fds": 3, "shm_mb": 1.0}
        | {"unexpected": 0, "rate": 1.0, "under_way": 0, "threads": 2}
        | more
        for i, v in enumerate(values)
    ]


def test_what_grows_for_good_is_seen_and_what_settles_is_not() -> None:
    leak = figures(Soak(series=series([100 + i for i in range(100)])), None)
    assert leak["verdicts"]["memory_mb"] is False
    assert leak["drift"]["memory_mb of a"]["per_hour"] == pytest.approx(360)
    warm = figures(Soak(series=series([50, 80, 90, 95, 98] + [100] * 95)), None)
    assert warm["verdicts"]["memory_mb"] is True
    assert warm["verdicts"]["every outcome as expected"] is True
    assert warm["verdicts"]["nothing left in the server"] is None  # nobody looked
    odd = figures(Soak(series=series([100] * 100, unexpected=1)), None)
    assert odd["verdicts"]["every outcome as expected"] is False
    assert drift([], lambda g: g["t"]) is None


def test_a_full_server_may_refuse_a_few() -> None:
    full = Outcome("picture", Overloaded.code, 0.1, 0.1)
    assert expected(full)
    for many, allowed in ((1, True), (9, False)):
        soak = Soak(series=series([100] * 100))
        for outcome in [full] * many + [Outcome("picture", OK, 0.1, 0.1)] * (100 - many):
            soak.take(outcome)
        found = figures(soak, None)
        assert found["verdicts"]["room for all but 2 %"] is allowed
        assert found["refused_share"] == many / 100
    soak.outcomes = [full, Outcome("picture", OK, 0.5, 0.5)]
    soak.glance(1.0, 1.0, None, 0)
    assert soak.series[-1]["p50_ms"] == 500.0  # how soon it refused is no latency


def test_the_capacity_counts_no_refusals() -> None:
    sent = 0

    async def send(request: Request, due: float) -> Outcome:
        nonlocal sent
        sent += 1
        outcome = Overloaded.code if sent % 2 else OK
        await asyncio.sleep(0.01)
        return Outcome(request.kind, outcome, 0.01, due + 0.01)

    most = asyncio.run(capacity(send, Mix(EXPRESSIONS), 0.5))  # type: ignore[arg-type]
    assert most * 0.5 == pytest.approx(sent / 2, rel=0.3)


def test_pages_of_programs_are_nobodys_own() -> None:
    process: Any = psutil.Process()  # without what other tests have started below it
    before = own_bytes(process) / 1e6
    rollup = dict(
        line.split(":", 1)
        for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    )
    files = int(rollup["Pss_File"].split()[0]) * 1024 / 1e6
    total = int(rollup["Pss"].split()[0]) * 1024 / 1e6
    assert before == pytest.approx(total - files, rel=0.05)
    kept = np.ones(64 << 20, dtype=np.uint8)
    assert own_bytes(process) / 1e6 - before == pytest.approx(kept.nbytes / 1e6, rel=0.1)


def test_requests_come_at_the_rate_and_are_all_counted() -> None:
    async def send(request: Request, due: float) -> Outcome:
        await asyncio.sleep(0.01)
        return Outcome(request.kind, OK, 0.01, due + 0.01)

    soak = asyncio.run(
        run(send, Mix(EXPRESSIONS), rate=200, seconds=1, every=0.2, pid=None)  # type: ignore[arg-type]
    )
    assert sum(sum(c.values()) for c in soak.counts.values()) == pytest.approx(200, abs=60)
    assert len(soak.series) >= 4
    assert max(g["under_way"] for g in soak.series) > 0


def test_what_is_mapped_is_what_is_shared(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text("7f-8f rw-s 00000000 00:18 5 /dev/shm/no-such-region\n7f-8f r--p /lib/x.so\n")
    assert mapped(maps) == {}
    assert named("stub", ["/x/stub", "/m/models/decode/1/model.py", "a"]) == "decode"
    assert named("tritonserver", ["/x/tritonserver"]) == "tritonserver"


@pytest.mark.e2e
def test_a_short_one(server: EmbeddedServer, tmp_path: Path) -> None:
    assert server.pid is not None
    before = held(server.pid)
    assert {"decode", "encoder", "recognize", "tritonserver"} <= set(before.own_mb)
    assert before.shm_mb > 0
    assert before.fds > 20
    pack, output = tmp_path / "pack.jsonl", tmp_path / "soak.json"
    pack.write_text(json.dumps({"id": "one", "norm": "1", "strokes": STROKES}) + "\n", "utf-8")
    plot = tmp_path / "soak.svg"
    done = CliRunner().invoke(
        main,
        [
            *("soak", "--url", server.endpoints.grpc, "--data", str(pack), "--minutes", "0.1"),
            *("--settle", "1", "--every", "0.5", "--output", str(output), "--plot", str(plot)),
            *("--metrics-url", server.endpoints.metrics, "--load", "0.2"),
        ],
    )
    assert done.exit_code == 0, done.output
    report = json.loads(output.read_text("utf-8"))
    assert report["verdicts"]["every outcome as expected"] is True
    assert report["verdicts"]["nothing left in the server"] is True
    assert sum(report["counts"]["picture"].values()) > 0
    assert "under way" in plot.read_text("utf-8")
    assert "memory_mb of decode" in done.output


def test_a_pack_and_an_address_are_needed() -> None:
    done = CliRunner().invoke(main, ["soak", "--url", "http://localhost:1", "--data", "none"])
    assert done.exit_code == 1
    assert done.output.startswith("error: ")
