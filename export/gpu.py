"""What ``make gpu`` does: engines, parity and latency on a machine with a GPU, in one report.

Each step is a command of its own: one that fails, or ends its process, doesn't take the others
with it. What cannot be done here is in the report with its reason.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hmer import __version__
from hmer.engine_images import BUILDER, DEFAULT
from hmer.errors import ExportError, HmerError
from hmer.gpu import Gpu, find_gpu

Say = Callable[[str], None]
ROOT = Path(__file__).resolve().parent.parent
REPORT_FORMAT = "hmer-gpu-report"
TAIL = 4000  # characters of a failed step's output
STEP_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Machine:
    """What is here: versions, or ``None`` for what is missing."""

    gpu: Gpu | None
    tensorrt: str | None
    cuda_bindings: str | None
    torch_cuda: str | None  # the version of a torch that can use the GPU
    docker: bool
    onnxruntime_cuda: str | None = None  # the version of an onnxruntime built for CUDA


@dataclass(frozen=True)
class Step:
    """One command; or, if ``missing`` says why, none. ``parse``: its stdout ends in JSON."""

    name: str
    command: tuple[str, ...]
    missing: str = ""
    parse: bool = True


@dataclass(frozen=True)
class Options:
    """Where things are and go. ``inside``: this already is the container."""

    bundles: tuple[Path, ...]
    checkpoint: Path
    work: Path
    report: Path
    image: str = f"{BUILDER}:{DEFAULT.tag}"
    inside: bool = False


def inspect_machine() -> Machine:
    """Look at this machine. Nothing is started but ``nvidia-smi``."""
    try:
        gpu = find_gpu()
    except HmerError:
        gpu = None
    return Machine(
        gpu,
        _version("tensorrt"),
        _version("cuda.bindings"),
        _torch_cuda() if gpu else None,
        shutil.which("docker") is not None,
        _onnxruntime_cuda() if gpu else None,
    )


def plan(machine: Machine, options: Options) -> tuple[Step, ...]:
    """The steps for this machine, those that it cannot do among them with the reason."""
    if machine.gpu is None:
        reason = "no NVIDIA GPU here (nvidia-smi is missing, shows none or fails)"
        return tuple(Step(name, command, reason) for name, command in _all(options))
    if machine.tensorrt is None and machine.docker and not options.inside:
        return (Step("container", _container(options), parse=False),)
    steps = []
    for name, command in _all(options):
        kind = name.split()[0]
        missing = []
        if kind in ("engine", "verify", "latency") and machine.tensorrt is None:
            missing.append("TensorRT (pip install 'hmer[gpu]', or docker for NVIDIA's image)")
        if kind in ("verify", "latency") and machine.cuda_bindings is None:
            missing.append("cuda-bindings (pip install 'hmer[gpu]')")
        if kind == "torch" and machine.torch_cuda is None:
            missing.append("a PyTorch that can use this GPU")
        if kind == "onnxruntime" and machine.onnxruntime_cuda is None:
            missing.append("onnxruntime-gpu (pip install 'onnxruntime-gpu[cuda,cudnn]')")
        steps.append(Step(name, command, "; ".join(f"{part} is missing" for part in missing)))
    return tuple(steps)


def run(machine: Machine, steps: Sequence[Step], options: Options, say: Say) -> dict[str, Any]:
    """Do ``steps``, write the report to ``options.report`` after each, and return it."""
    report: dict[str, Any] = {
        "format": REPORT_FORMAT,
        "hmer": __version__,
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {**asdict(machine), "python": platform.python_version()},
        "steps": [],
    }
    options.work.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(steps, 1):
        say(f"[{number}/{len(steps)}] {step.name}: {step.missing or shlex.join(step.command)}")
        report["steps"].append(_run(step))
        if step.name == "container" and options.report.is_file():
            # The container wrote the report; what ran it is added to it.
            inner = json.loads(options.report.read_text(encoding="utf-8"))
            report = {**inner, "container": report["steps"][0]}
        report["complete"] = all(entry["ok"] for entry in report["steps"])
        _write(report, options.report)
    return report


def _all(options: Options) -> list[tuple[str, tuple[str, ...]]]:
    """Names and commands of all that there is to do on a machine that has everything."""
    python = (sys.executable, "-m")
    result = []
    for bundle in options.bundles:
        engines = str(options.work / f"engines-{bundle.name}")
        given = str(bundle)
        engine = (*python, "export.cli", "engine", given, "-o", engines, "--force", "--json")
        verify = (
            *(*python, "export.cli", "verify", str(options.checkpoint), given),
            *("--runner", "tensorrt", "--engines", engines, "--json"),
        )
        latency = (*python, "export.gpu_latency", given, "--engines", engines)
        result += [
            (f"engine {bundle.name}", engine),
            (f"verify {bundle.name}", verify),
            (f"latency {bundle.name}", latency),
        ]
    torch = (
        *(*python, "export.gpu_latency", str(options.bundles[0])),
        *("--runner", "torch-cuda", "--checkpoint", str(options.checkpoint)),
    )
    onnxruntime = (
        *(*python, "export.gpu_latency", str(options.bundles[0]), "--runner", "onnxruntime-cuda"),
    )
    return [*result, ("onnxruntime latency", onnxruntime), ("torch latency", torch)]


def _container(options: Options) -> tuple[str, ...]:
    """This same script in NVIDIA's TensorRT image, with the project mounted."""

    def inner(path: Path) -> str:
        try:
            return str(Path("/project") / path.resolve().relative_to(ROOT))
        except ValueError:
            raise ExportError(
                f"{path} lies outside {ROOT}, which is all that the container sees. Move it there."
            ) from None

    command = [
        *("python3", "-m", "export.cli", "gpu", *(inner(path) for path in options.bundles)),
        *("--checkpoint", inner(options.checkpoint), "--work", inner(options.work)),
        *("--output", inner(options.report), "--inside"),
    ]
    script = (
        "python3 -m pip install --quiet --break-system-packages --editable '.[export]' "
        f"cuda-bindings && exec {shlex.join(command)}"
    )
    mount = ("-v", f"{ROOT}:/project", "-w", "/project")
    return (
        *("docker", "run", "--rm", "--gpus", "all", "--shm-size=1g", *mount),
        *("-e", "HMER_CACHE=/project/.cache", options.image, "sh", "-c", script),
    )


def _run(step: Step) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": step.name, "command": list(step.command), "ok": False}
    if step.missing:
        return {**entry, "missing": step.missing}
    began = time.perf_counter()
    try:
        done = subprocess.run(
            step.command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            # A container's progress is for the terminal; a command's is kept for the report.
            stderr=subprocess.PIPE if step.parse else None,
            text=True,
            timeout=STEP_TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {**entry, "error": str(error)}
    entry |= {"seconds": round(time.perf_counter() - began, 1), "exit_code": done.returncode}
    lines = done.stdout.strip().splitlines()
    try:
        result = json.loads(lines[-1]) if step.parse else None
    except (ValueError, IndexError):
        result = None
    if result is not None:
        entry["result"] = result
    if done.returncode or (step.parse and result is None):
        return {**entry, "error": ((done.stderr or "") + done.stdout)[-TAIL:]}
    return {**entry, "ok": True}


def _write(report: dict[str, Any], path: Path) -> None:
    try:
        draft = path.with_name(path.name + ".part")
        draft.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}.") from error


def _version(module: str) -> str | None:
    try:
        if importlib.util.find_spec(module) is None:
            return None
        return str(getattr(importlib.import_module(module), "__version__", "unknown"))
    except (ImportError, OSError):
        return None


def _onnxruntime_cuda() -> str | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    found = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return str(onnxruntime.__version__) if found else None


def _torch_cuda() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return str(torch.__version__) if torch.cuda.is_available() else None
