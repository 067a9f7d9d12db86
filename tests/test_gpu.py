"""``make gpu`` as far as a machine without a GPU can go, and the road on one that has it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from export import gpu as gpu_module
from export import gpu_latency
from export.cli import main
from export.engines import build_engines
from export.gpu import Machine, Options, Step, plan, run
from export.gpu_latency import encoder_feeds, measure, open_pair, step_feeds
from export.gpu_torch import cuda_runners
from export.tensorrt_build import EngineOptions
from hmer.bundle import GRAPHS, Bundle, load_bundle
from hmer.engine import check_bundle, read_sidecar
from hmer.errors import ExportError, ServerSetupError
from hmer.gpu import find_gpu
from hmer.runtime import ONNXRUNTIME, open_runner
from tests import tiny
from tests.engine_fixtures import L4

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "hmer" / "pretrained"
FULL = Machine(L4, "11.1.0.106", "13.5.0", "2.13.0+cu130", False, "1.31.1")


def options(tmp_path: Path, **changes: Any) -> Options:
    usual = Options((SHIPPED,), tmp_path / "checkpoint", tmp_path / "work", tmp_path / "r.json")
    return replace(usual, **changes)


def missing(machine: Machine, tmp_path: Path, **changes: Any) -> dict[str, str]:
    return {step.name: step.missing for step in plan(machine, options(tmp_path, **changes))}


def test_a_machine_that_has_everything(tmp_path: Path) -> None:
    assert missing(FULL, tmp_path) == {
        **{"engine pretrained": "", "verify pretrained": ""},
        **{"latency pretrained": "", "onnxruntime latency": "", "torch latency": ""},
    }
    engine, verify, *_ = plan(FULL, options(tmp_path))
    engines = str(tmp_path / "work" / "engines-pretrained")
    assert engine.command[3:] == ("engine", str(SHIPPED), "-o", engines, "--force", "--json")
    assert verify.command[-5:] == ("--runner", "tensorrt", "--engines", engines, "--json")


def test_a_machine_with_torch_alone(tmp_path: Path) -> None:
    found = missing(replace(FULL, tensorrt=None, cuda_bindings=None), tmp_path)
    assert "TensorRT (pip install 'hmer[gpu]'" in found["engine pretrained"]
    assert "cuda-bindings" in found["latency pretrained"]
    assert found["torch latency"] == ""


def test_a_machine_without_a_gpu(tmp_path: Path) -> None:
    found = missing(replace(FULL, gpu=None, docker=True), tmp_path)
    assert len(found) == 5
    assert all("no NVIDIA GPU here" in reason for reason in found.values())


def test_a_machine_with_docker(tmp_path: Path) -> None:
    bare = replace(FULL, tensorrt=None, docker=True)
    inside = options(
        tmp_path, checkpoint=ROOT / "training/pretrained", work=ROOT / "w", report=ROOT / "r.json"
    )
    (step,) = plan(bare, inside)
    assert step.command[:5] == ("docker", "run", "--rm", "--gpus", "all")
    assert "nvcr.io/nvidia/tensorrt:26.07-py3" in step.command
    script = step.command[-1]
    assert "gpu /project/hmer/pretrained --checkpoint /project/training/pretrained" in script
    assert script.endswith("--output /project/r.json --inside")
    # The same plan inside the container does the steps themselves.
    assert len(plan(bare, replace(inside, inside=True))) == 5
    with pytest.raises(ExportError, match="all that the container sees"):
        plan(bare, options(tmp_path))


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_the_report(tmp_path: Path) -> None:
    steps = (
        Step("engine x", python("print('chatter'); print('{\"a\": 1}')")),
        Step("verify x", python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")),
        Step("latency x", python("import sys; print('why', file=sys.stderr); sys.exit(1)")),
        Step("odd", python("print('no json')")),
        Step("gone", (str(tmp_path / "nothing"),)),
        Step("later", python(""), missing="TensorRT is missing"),
    )
    said: list[str] = []
    found = run(FULL, steps, options(tmp_path), said.append)
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == found
    assert (found["format"], found["complete"]) == ("hmer-gpu-report", False)
    assert found["machine"]["gpu"]["name"] == "NVIDIA L4"
    by_name = {entry["name"]: entry for entry in found["steps"]}
    assert by_name["engine x"]["result"] == {"a": 1}
    assert [entry["ok"] for entry in found["steps"]] == [True, *[False] * 5]
    assert by_name["verify x"]["exit_code"] == -11
    assert "why" in by_name["latency x"]["error"]
    assert "no json" in by_name["odd"]["error"]
    assert "nothing" in by_name["gone"]["error"]
    assert by_name["later"]["missing"] == "TensorRT is missing"
    assert said[-1] == "[6/6] later: TensorRT is missing"
    assert run(FULL, steps[:1], options(tmp_path), said.append)["complete"]


def test_a_container_writes_the_report_itself(tmp_path: Path) -> None:
    chosen = options(tmp_path)
    inner = {"format": "hmer-gpu-report", "steps": [{"name": "engine x", "ok": False}]}
    write = (
        f"import pathlib; pathlib.Path({str(chosen.report)!r}).write_text({json.dumps(inner)!r})"
    )
    found = run(FULL, [Step("container", python(write), parse=False)], chosen, print)
    assert found["steps"] == inner["steps"]
    assert found["container"]["ok"]
    assert not found["complete"]


def test_dry_run_prints_every_decision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    bare = replace(FULL, tensorrt=None, torch_cuda=None)
    monkeypatch.setattr(gpu_module, "inspect_machine", lambda: bare)
    found = CliRunner().invoke(main, ["gpu", "--dry-run"])
    assert found.exit_code == 0
    assert "NVIDIA L4" in found.stdout
    assert "hmer.pretrained" in found.stdout.replace("/", ".")
    assert found.stdout.count("not here: ") == 4
    assert not list(tmp_path.iterdir())
    found = CliRunner().invoke(main, ["gpu", "--dry-run", "--json"])
    assert len(json.loads(found.stdout)["steps"]) == 5


def test_without_a_gpu_the_command_fails_and_still_reports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu_module, "inspect_machine", lambda: replace(FULL, gpu=None))
    found = CliRunner().invoke(main, ["gpu"])
    assert found.exit_code == 1
    assert (
        "error: 5 of 5 steps were not done, first engine pretrained: no NVIDIA GPU" in found.stderr
    )
    assert json.loads((tmp_path / "gpu-report.json").read_text(encoding="utf-8"))["steps"]


def test_the_script(tmp_path: Path) -> None:
    command = ["sh", str(ROOT / "deploy/gpu.sh"), str(Path(sys.executable).parent), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "engine pretrained" in done.stdout or "container" in done.stdout


@pytest.mark.parametrize(
    ("output", "visible", "name"),
    [
        ("0, GPU-a, NVIDIA L4, 8.9, 23034, 610.43\n1, GPU-b, Tesla T4, 7.5, 15360, 610.43", None,
         "NVIDIA L4"),
        ("0, GPU-a, NVIDIA L4, 8.9, 23034, 610.43\n1, GPU-b, Tesla T4, 7.5, 15360, 610.43", "1,0",
         "Tesla T4"),
        ("0, GPU-a, NVIDIA L4, 8.9, 23034, 610.43", "GPU-a", "NVIDIA L4"),
        ("0, GPU-a, NVIDIA L4, 8.9, 23034, 610.43", "", None),
        ("", None, None),
    ],
)  # fmt: skip
def test_which_gpu(
    output: str, visible: str | None, name: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'X'\n{output}\nX\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find_gpu()
    assert (found.name if found else None) == name
    if found:
        assert found.capability == tuple(map(int, found.compute_capability.split(".")))


def test_a_driver_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ServerSetupError, match="nvidia-smi does not tell"):
        find_gpu()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert find_gpu() is None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.make_graphs(tmp_path_factory.mktemp("gpu") / "graphs")


def test_latency_by_the_same_code_on_a_cpu(bundle: Bundle) -> None:
    images = tiny.named_images(2)
    with ExitStack() as stack:
        pair = open_pair(stack, ONNXRUNTIME, bundle, None, None)
        found = measure(*pair, bundle, images, max_batch=2, repeats=2, sizes=[(32, 64)])
    assert [(row["batch"], row["height"], row["width"]) for row in found["encoder"]] == [
        *[(1, 32, 64), (2, 32, 64)]
    ]
    assert [row["batch"] for row in found["step"]] == [1, 2]
    for row in (*found["encoder"], *found["step"], found["end_to_end"]):
        assert row["median_ms"] > 0
        assert row["repeats"] == 2
    assert set(found["end_to_end"]["answers"]) == set(images)


def test_a_shape_that_fails_is_reported(bundle: Bundle) -> None:
    with ExitStack() as stack:
        encoder, step = open_pair(stack, ONNXRUNTIME, bundle, None, None)

        class Broken:
            inputs, outputs = encoder.inputs, encoder.outputs

            def infer(self, feeds: Any) -> Any:
                if feeds["image"].shape[0] == 2:
                    raise ServerSetupError("out of memory")
                return encoder.infer(feeds)

        found = measure(Broken(), step, bundle, {}, max_batch=2, repeats=1, sizes=[(32, 64)])  # type: ignore[arg-type]
    assert found["encoder"][0]["repeats"] == 1
    assert found["encoder"][1]["error"] == "out of memory"
    assert found["end_to_end"] == {"images": 0, "repeats": 0, "answers": {}}


def test_torch_on_a_device_answers_as_the_graphs(bundle: Bundle, tmp_path: Path) -> None:
    tiny.make_checkpoint(tmp_path / "checkpoint")
    encoder, step = cuda_runners(tmp_path / "checkpoint", bundle, device="cpu")
    given = encoder_feeds(bundle, 2, 32, 64)
    with open_runner(ONNXRUNTIME, bundle.file("encoder.onnx")) as reference:
        expected = reference.infer(given)
    for name, array in encoder.infer(given).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-3)
    assert step.infer(step_feeds(bundle, 2, 4, 8))["tokens"].shape == (2, bundle.k)


def test_torch_without_a_gpu(bundle: Bundle, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with ExitStack() as stack, pytest.raises(ServerSetupError, match="cannot use a GPU here"):
        open_pair(stack, gpu_latency.TORCH_CUDA, bundle, None, tmp_path)


@pytest.mark.gpu
def test_engines_on_a_gpu_answer_as_onnxruntime(tmp_path: Path) -> None:
    """The whole road on the shipped weights: build, load, run, compare."""
    pytest.importorskip("tensorrt", reason="tensorrt is not installed: pip install 'hmer[gpu]'")
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    bundle = load_bundle(SHIPPED, GRAPHS)
    for item in build_engines(SHIPPED, tmp_path / "engines", EngineOptions()):
        check_bundle(read_sidecar(item.plan), item.plan, bundle)
        feeds = (
            encoder_feeds(bundle, 4, 80, 320)
            if item.info.graph == "encoder"
            else step_feeds(bundle, 4, 5, 20)
        )
        if item.info.graph == "decoder_beam":
            feeds["parent"] = np.arange(4, dtype=np.int32)[:, None]
        with open_runner(ONNXRUNTIME, bundle.file(f"{item.info.graph}.onnx")) as reference:
            expected = reference.infer(feeds)
        with open_runner("tensorrt", item.plan) as runner:
            found = runner.infer(feeds)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=2e-2, atol=2e-2, err_msg=name)
