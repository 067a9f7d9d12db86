"""``hmer-bench quick``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.compare import Settings
from benchmarks.contenders import OURS, Plan
from benchmarks.inputs import gather
from benchmarks.machine import describe, ended, machine
from benchmarks.options import FILE, repository_option, result_options, weights_options, work_option
from benchmarks.output import check_folder, write_json
from benchmarks.quick import KIND, VERSION, measure, read_baseline, report, table, verdict
from benchmarks.repositories import NAIVE
from hmer.bundle import GRAPHS, load_bundle
from hmer.console import sentences

BASELINE = Path(__file__).parent / "baseline.json"
_TIMEOUT_S = 120.0


@click.command()
@weights_options
@click.option(
    "--baseline", type=FILE, default=BASELINE, help="Compare with this.  [default: the project's]"
)
@click.option("--update", is_flag=True, help="Write the baseline, instead of comparing with it.")
@click.option("--rounds", type=click.IntRange(min=3), default=4, show_default=True)
@click.option(
    "--limit",
    type=click.IntRange(min=4),
    default=12,
    show_default=True,
    help="Sample pictures that are sent.",
)
@click.option(
    "--concurrency", type=click.IntRange(1, 256), default=16, show_default=True,
    help="Requests under way in the turns under load.",
)  # fmt: skip
@repository_option("ours", refuses=False)
@work_option("hmer-bench")
@result_options
@sentences
def quick(
    bundle: Path,
    checkpoint: Path,
    baseline: Path,
    update: bool,
    rounds: int,
    limit: int,
    concurrency: int,
    repository_options: str,
    work: Path,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """A few ratios in under three minutes, beside those of the baseline.

    It informs and judges nothing: the exit code is 0 unless nothing could be measured. The first
    run exports graphs with one token a call, which takes a minute more.

    \b
    Examples:
      hmer-bench quick
      hmer-bench quick --update
    """
    check_folder(output, "figures")
    if update:
        check_folder(baseline, "baseline")
    before = None if update else read_baseline(baseline)
    loaded = load_bundle(bundle, GRAPHS)
    expressions = gather(None, limit=limit)
    about = machine()

    def say(line: str) -> None:
        click.echo(line, err=True)

    work.mkdir(parents=True, exist_ok=True)
    options = tuple(repository_options.split())
    plan = Plan(bundle, checkpoint, (NAIVE, OURS), (1,) if loaded.k > 1 else (), options, work)
    found, missing = measure(
        loaded, plan, expressions, Settings(rounds, concurrency, _TIMEOUT_S), say
    )
    now = report(found)
    document: dict[str, Any] = {
        "benchmark": KIND,
        "version": VERSION,
        "machine": ended(about),
        "data": "samples",
        "inputs": len(expressions),
        "rounds": rounds,
        "k": loaded.k,
        "ratios": now,
        "missing": missing,
    }
    if update:
        write_json(baseline, document, "baseline")
    if before is not None:
        document["verdicts"] = {
            name: verdict(name, one, before["ratios"].get(name)) for name, one in now.items()
        }
        document["baseline"] = {"ratios": before["ratios"], "machine": before.get("machine")}
    if output is not None:
        write_json(output, document, "figures")
    if as_json:
        click.echo(json.dumps(document, indent=1))
        return
    shown = table(now, missing, before)
    click.echo(shown.markdown() if markdown else shown.text())
    for line in remarks(document, before, str(baseline), update):
        click.echo(line)
    click.echo(f"{len(expressions)} sample pictures, {rounds} rounds. {describe(about)}")


def remarks(
    document: dict[str, Any], before: dict[str, Any] | None, baseline: str, update: bool
) -> list[str]:
    """What left its spread, and how far the comparison holds."""
    if update:
        return [f"Wrote {baseline}."]
    if before is None:
        return [f"There is no baseline {baseline}. Write one with --update, on an idle machine."]
    found = [
        f"{name}: {is_} than in the baseline."
        for name, is_ in document["verdicts"].items()
        if is_ in ("better", "worse")
    ] or ["Every ratio is within the spread of the baseline."]
    then, now = before.get("machine") or {}, document["machine"]
    if (then.get("cpu"), then.get("cpus")) != (now["cpu"], now["cpus"]):
        found.append(
            f"The baseline is of another machine ({then.get('cpu')}, {then.get('cpus')} CPUs): "
            "even ratios differ from one to the next."
        )
    load = now.get("load_before")
    if load and load[0] > 0.5 * now["cpus"]:
        found.append(
            f"The machine was not idle before it (load {load[0]:.1f}): take this as a lead."
        )
    return found
