"""``hmer-client stream``, ``models`` and ``metrics``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from client.cli import main
from client.metrics import parse, render
from hmer.errors import ServerError
from tests.client_fixtures import Fake, fake, pages
from tests.fake_server import Refusal, Script, http_server

__all__ = ["fake"]
PAGE = r"""
# HELP nv_inference_request_success Number of successful inference requests
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="recognize",version="1"} 8
nv_inference_request_success{model="preprocess",version="1"} 8
nv_inference_request_failure{model="recognize",reason="OTHER",version="1"} 2
nv_inference_request_failure{model="recognize",reason="CANCELED",version="1"} 1
nv_inference_count{model="preprocess",version="1"} 8
nv_inference_exec_count{model="preprocess",version="1"} 4
nv_inference_request_duration_us{model="recognize",version="1"} 240000
nv_inference_queue_duration_us{model="recognize",version="1"} 8000
nv_cpu_utilization 0.5
nv_cpu_memory_total_bytes 16000000000
nv_cpu_memory_used_bytes 4000000000
# HELP hmer_decode_slots Formulas that can be decoded at the same time
hmer_decode_slots{model="decode"} 16
hmer_decode_rows_total{model="decode"} 30
hmer_decode_steps_total{model="decode"} 12
# HELP hmer_wait_seconds Wait, with a "quote" \n in it
hmer_wait_seconds_bucket{le="1",kind="a\"b"} 3
hmer_wait_seconds_sum 9.5
hmer_wait_seconds_count 5
"""


def run(*arguments: str, data: bytes = b"") -> Result:
    return CliRunner().invoke(main, arguments, input=data)


def test_stream(fake: Fake) -> None:
    fake.script.answers[b"p"] = r"2 \pi r"
    result = run("stream", "-", "--url", fake.url, data=b"p")
    assert (result.exit_code, result.stdout) == (0, "2\\pi r\n")
    result = run("stream", "-", "--json", "--max-tokens", "9", "--url", fake.url, data=b"p")
    *tokens, answer = (json.loads(line) for line in result.stdout.splitlines())
    assert tokens == [
        {"index": 0, "token": "2", "score": 0.5},
        {"index": 1, "token": "\\pi", "score": 0.5},
        {"index": 2, "token": "r", "score": 0.5},
    ]
    assert (answer["input"], answer["tokens"]) == ("-", ["2", "\\pi", "r"])
    assert fake.script.asked[-1].parameters == {"max_tokens": 9}


def test_stream_that_fails(fake: Fake, tmp_path: Path) -> None:
    fake.script.refusals[b"x"] = Refusal("INTERNAL", "[blank_image] Blank.")
    result = run("stream", "-", "--url", fake.url, data=b"x")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: Blank.\n")
    (tmp_path / "two.tiff").write_bytes(pages("TIFF", 2))
    result = run("stream", str(tmp_path / "two.tiff"), "--url", fake.url)
    assert (result.exit_code, "holds 2 inputs" in result.stderr) == (2, True)


def test_models(fake: Fake) -> None:
    result = run("models", "--url", fake.url)
    assert result.exit_code == 0
    assert "input bytes[-1x1]" in result.stdout
    document = json.loads(run("models", "--json", "--url", fake.url).stdout)
    (model,) = document["models"]
    assert (model["name"], model["state"]) == ("recognize", "READY")
    assert model["inputs"] == [{"name": "input", "datatype": "BYTES", "shape": [-1, 1]}]
    fake.script.ready = False
    assert "no bundle" in run("models", "--url", fake.url).stdout


def test_models_of_a_server_that_is_down() -> None:
    result = run("models", "--url", "http://127.0.0.1:9")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: No server answers at http://127.0.0.1:9")


def test_metrics(fake: Fake) -> None:
    with http_server(Script(metrics=PAGE)) as other:
        result = run("metrics", "--url", fake.url, "--metrics-url", f"{other}/metrics")
        assert (result.exit_code, result.stderr) == (0, "")
        rows = [line.split() for line in result.stdout.splitlines()]
        assert ["recognize", "1", "8", "3", "-", "-", "30", "1", "-"] in rows
        assert ["preprocess", "1", "8", "0", "-", "2", "-", "-", "-"] in rows
        slots = next(row for row in rows if row[:3] == ["Formulas", "that", "can"])
        assert slots[-2:] == ["time", "16"]
        assert ["formulas", "a", "step,", "mean", "2.5"] in rows
        assert ["memory", "4.0", "of", "16.0", "GB"] in rows
        assert [row[-3:] for row in rows if row[:1] == ["Wait,"]] == [["seconds,", "mean", "1.9"]]
        document = json.loads(
            run("metrics", "--json", "--url", fake.url, "--metrics-url", other).stdout
        )
    assert document["url"] == f"{other}/metrics"
    labels = [sample["labels"] for sample in document["metrics"] if "le" in sample["labels"]]
    assert labels == [{"le": "1", "kind": 'a"b'}]


def test_metrics_are_looked_for_beside_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_server(Script(metrics=PAGE)) as url:
        port = int(url.rpartition(":")[2])
        monkeypatch.setattr("client.metrics.METRICS_PORT", port)
        assert run("metrics", "--url", "127.0.0.1:1").exit_code == 0


def test_a_token_goes_to_the_servers_host_only() -> None:
    with http_server(Script(metrics=PAGE, token="sesame")) as url:
        ask = ("metrics", "--token", "sesame", "--metrics-url", url)
        assert run(*ask, "--url", "127.0.0.1:1").exit_code == 0
        result = run(*ask, "--url", "formulas.example:1")
        assert (result.exit_code, "HTTP 401" in result.stderr) == (1, True)


def test_what_is_no_page_of_metrics() -> None:
    with pytest.raises(ServerError, match="port of its own"):
        parse("<html>Hello</html>")
    assert render(parse("")) == "The server publishes no figures."
    result = run("metrics", "--metrics-url", "localhost:8002")
    assert (result.exit_code, "none of HTTP" in result.stderr) == (1, True)


@pytest.mark.parametrize("command", ["stream", "models", "metrics"])
def test_help_has_an_example(command: str) -> None:
    assert f"hmer-client {command}" in run(command, "--help").stdout
