"""``python -m tests.fuzz.run TARGET --seconds 300``: fuzz one target, and say what came of it.

Coverage-guided, by atheris (libFuzzer for Python), which has wheels for Python 3.11 to 3.13 on
Linux: ``pip install atheris``. The seeds are made by the project itself; what the fuzzer adds to
them is kept with ``--corpus FOLDER``, so that the next run goes on where this one ended.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from hmer.console import sentences
from hmer.errors import MissingDependency
from tests.fuzz.targets import LIMIT_S, TARGETS

ROOT = Path(__file__).resolve().parents[2]
MEMORY_MB = 4096  # of the fuzzer with its corpus; an input alone may take REPLAY_MB
REPLAY_MB = 1500
MAX_BYTES = 65536


@click.command()
@click.argument("target", type=click.Choice(sorted(TARGETS)))
@click.option("--seconds", type=click.IntRange(min=1), default=300, show_default=True)
@click.option(
    "--corpus",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep what is found here, beside the seeds.  [default: a temporary folder]",
)
@click.option("--seed", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="End with one JSON document.")
@sentences
def main(target: str, seconds: int, corpus: Path | None, seed: int, as_json: bool) -> None:
    """Fuzz TARGET; exit code 1 if anything but errors of hmer.errors came out of it."""
    if importlib.util.find_spec("atheris") is None:
        raise MissingDependency(
            "Fuzzing needs atheris, which has wheels for Python 3.11 to 3.13 on Linux: "
            "pip install atheris"
        )
    with tempfile.TemporaryDirectory(prefix="hmer-fuzz-") as scratch:
        findings = Path(scratch, "findings")
        findings.mkdir()
        folder = corpus or Path(scratch, "corpus")
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in TARGETS[target][1]().items():
            (folder / f"seed-{name}").write_bytes(data)
        report = fuzz(target, folder, findings, seconds, seed)
        report["not_repeated"] = _replay(target, findings)
        report["findings"] = sorted(p.name for p in findings.iterdir() if p.suffix != ".txt")
        _keep(findings, report)
    click.echo(json.dumps(report, indent=1) if as_json else text_of(report))
    if report["findings"]:
        sys.exit(1)


def fuzz(target: str, corpus: Path, findings: Path, seconds: int, seed: int) -> dict[str, Any]:
    """Run the fuzzer again and again until the time is up; something may end it early."""
    end, began = time.monotonic() + seconds, time.monotonic()
    executed, coverage, ended = 0, 0, 0
    while (left := end - time.monotonic()) > 1.0:
        log = findings.parent / "log"
        arguments = [
            *("-print_final_stats=1", f"-max_total_time={round(left)}", f"-max_len={MAX_BYTES}"),
            *(f"-rss_limit_mb={MEMORY_MB}", f"-timeout={round(3 * LIMIT_S)}", f"-seed={seed}"),
            *(f"-artifact_prefix={findings}/", "-reload=0", str(corpus)),
        ]
        command = [sys.executable, "-m", "tests.fuzz.child", target, str(findings), *arguments]
        with log.open("wb") as stream:
            subprocess.run(command, cwd=ROOT, stderr=stream, stdout=stream, check=False)
        said = log.read_text(encoding="utf-8", errors="replace")
        executed += _last(r"number_of_executed_units: (\d+)", said) or _last(r"#(\d+)\t", said)
        coverage = max(coverage, _last(r"cov: (\d+)", said))
        seed += 1
        if "number_of_executed_units" not in said:
            ended += 1
            if executed == 0 or ended > 20:
                (findings / "ended.txt").write_text(said[-4000:], encoding="utf-8")
                break
    took = time.monotonic() - began
    return {
        "target": target,
        "seconds": round(took, 1),
        "executions": executed,
        "per_second": round(executed / took, 1),
        "coverage": coverage,
        "corpus": len(list(corpus.iterdir())),
        "ended_early": ended,
    }


def _replay(target: str, findings: Path) -> int:
    """Run in a fresh process what ended the fuzzer; what does no harm there goes.

    The fuzzer's own memory grows, and it blames the input that it was at.
    """
    code = (
        "import resource, sys; from pathlib import Path; from tests.fuzz import targets as t; "
        f"t.holds(t.TARGETS[{target!r}][0], Path(sys.argv[1]).read_bytes()); "
        f"sys.exit(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > {REPLAY_MB} * 1000)"
    )
    gone = 0
    for path in list(findings.glob("*-*")):
        command = [sys.executable, "-c", code, str(path)]
        try:
            run = subprocess.run(
                command, cwd=ROOT, capture_output=True, timeout=60 + LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            continue
        if run.returncode == 0:
            path.unlink()
            gone += 1
    return gone


def _last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def _keep(findings: Path, report: dict[str, Any]) -> None:
    """Copy the findings to where they outlive this run, and say where."""
    if not any(findings.iterdir()):
        return
    kept = Path(tempfile.mkdtemp(prefix=f"hmer-fuzz-{report['target']}-"))
    for path in findings.iterdir():
        (kept / path.name).write_bytes(path.read_bytes())
    report["kept"] = str(kept)


def text_of(report: dict[str, Any]) -> str:
    """For people."""
    lines = [
        f"{report['target']}: {report['executions']} executions in {report['seconds']} s "
        f"({report['per_second']} a second), {report['coverage']} edges covered, corpus of "
        f"{report['corpus']} files, {len(report['findings'])} findings."
    ]
    if "kept" in report:
        lines.append(f"What was found is in {report['kept']}: inputs, and .txt with the reasons.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
