"""Beams end to end: the real embedded Triton, over both wires, and by calls between its models."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from client import Recognizer
from export.config import RepositoryOptions
from hmer.bundle import Bundle
from hmer.errors import BadParameter, HmerError
from hmer.recognizer import LocalRecognizer, Recognition
from model_repository.server import EmbeddedServer
from tests.e2e_fixtures import need_embedded, serve

pytestmark = pytest.mark.e2e

OPTIONS: dict[str, Any] = {"beam": 4, "n_best": 3}


def picture(seed: int) -> bytes:
    """Random strokes; the seed also sets the size."""
    rng = np.random.default_rng(seed)
    page = np.full((100 + 20 * (seed % 3), 90 + 40 * (seed % 6)), 255, np.uint8)
    for _ in range(4):
        points = rng.integers(12, np.array(page.shape[::-1]) - 12, (5, 2)).tolist()
        for start, end in pairwise(points):
            cv2.line(page, start, end, (0,), 3)
    return cv2.imencode(".png", page)[1].tobytes()


INPUTS = [picture(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def expected(tiny_graphs: Bundle) -> dict[str, list[Recognition]]:
    """What the same bundle answers in this process, one by one, greedily and with a beam."""
    with LocalRecognizer(tiny_graphs.folder, threads=1) as local:
        return {
            "greedy": [local.recognize(data) for data in INPUTS],
            "beam": [local.recognize(data, **OPTIONS) for data in INPUTS],
        }


def agree(local: Recognition, found: Recognition | HmerError) -> None:
    assert isinstance(found, Recognition), found
    assert found.tokens == local.tokens
    assert found.score == pytest.approx(local.score, rel=1e-3, abs=1e-6)
    assert [o.tokens for o in found.alternatives] == [o.tokens for o in local.alternatives]
    assert [o.score for o in found.alternatives] == pytest.approx(
        [o.score for o in local.alternatives], rel=1e-3, abs=1e-6
    )


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_served_beams_are_the_local_ones(
    server: EmbeddedServer, expected: dict[str, list[Recognition]], protocol: str
) -> None:
    with Recognizer(getattr(server.endpoints, protocol)) as recognizer:
        for data, local in zip(INPUTS, expected["beam"], strict=True):
            agree(local, recognizer.recognize(data, **OPTIONS))
        with pytest.raises(BadParameter, match="8 slots"):
            recognizer.recognize(INPUTS[0], beam=9)
        one, other = (
            recognizer.recognize(INPUTS[0], beam=8, length_penalty=alpha) for alpha in (0.0, 10.0)
        )
        assert len(one.tokens) <= len(other.tokens)


def test_beams_beside_greedy_requests(
    server: EmbeddedServer, expected: dict[str, list[Recognition]]
) -> None:
    order = np.random.default_rng(0).integers(0, len(INPUTS), 40).tolist()
    inputs = [INPUTS[index] for index in order]
    with Recognizer(server.endpoints.grpc) as one, Recognizer(server.endpoints.http) as other:
        beams = one.recognize_many(inputs, 16, **OPTIONS)
        greedy = other.recognize_many(inputs, 16)
        for index, beam, plain in zip(order, beams, greedy, strict=True):
            agree(expected["beam"][index], beam)
            agree(expected["greedy"][index], plain)


def test_beams_by_calls_to_the_served_graph(
    tiny_graphs: Bundle, expected: dict[str, list[Recognition]], tmp_path: Path
) -> None:
    need_embedded()
    options = RepositoryOptions(step="bls", slots=8)
    with (
        serve(tiny_graphs.folder, tmp_path / "r", options) as running,
        Recognizer(running.endpoints.grpc) as recognizer,
    ):
        answers = recognizer.recognize_many(INPUTS, 6, **OPTIONS)
        for local, found in zip(expected["beam"], answers, strict=True):
            agree(local, found)


def test_the_command_line(
    server: EmbeddedServer, expected: dict[str, list[Recognition]], tmp_path: Path
) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(INPUTS[1])
    call = [sys.executable, "-m", "client.cli", "recognize", str(path), "--json"]
    call += ["--url", server.endpoints.http, "--beam", "4", "--n-best", "3"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    local = expected["beam"][1]
    assert document["latex"] == local.latex
    assert [o["latex"] for o in document["alternatives"]] == [o.latex for o in local.alternatives]
