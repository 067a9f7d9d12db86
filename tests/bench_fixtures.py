"""Fixtures of the benchmarks: a small pack, and a server that answers it by a script."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from benchmarks.cli import main
from benchmarks.crohme import read_pack
from tests.fake_server import SERVERS, Refusal, Script

RECORDS: list[dict[str, Any]] = [
    {"id": "a", "norm": "x + y", "norm_wap": "x - y", "strokes": [[[0, 0], [9, 9]]]},
    {"id": "b", "norm": r"\frac { a } { b }", "norm_wap": "a", "strokes": [[[1, 1]]]},
    {"id": "c", "norm": "x ^ { 2 }", "norm_wap": "x ^ { 2 }", "strokes": [[[2, 2]]]},
    {"id": "d", "norm": "7", "norm_wap": "7", "strokes": [[[3, 3]]]},
]


def write_pack(folder: Path, records: list[dict[str, Any]]) -> Path:
    pack = folder / "test_x.jsonl.gz"
    with gzip.open(pack, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)
    with zipfile.ZipFile(folder / "test_x_wap_images.zip", "w") as archive:
        for record in records:
            archive.writestr(f"{record['id']}.png", f"picture of {record['id']}")
    return pack


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return write_pack(tmp_path, RECORDS)


@dataclass
class Fake:
    url: str
    script: Script


@pytest.fixture
def fake(pack: Path) -> Iterator[Fake]:
    """Right on a, equal but for form on c, one token wrong on b, and blank on d."""
    a, b, c, d = (expression.data for expression in read_pack(pack))
    script = Script(
        answers={a: "x + y", b: r"\frac { a } { 6 }", c: "x ^ 2"},
        refusals={d: Refusal("INTERNAL", "[blank_image] The picture is blank.")},
    )
    with SERVERS["grpc"](script) as url:
        yield Fake(url, script)


def run(*arguments: str | Path) -> Result:
    """``hmer-bench accuracy`` with these."""
    return CliRunner().invoke(main, ["accuracy", *map(str, arguments)])
