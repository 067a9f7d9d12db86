"""``hmer-bench rivals``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.crohme import Expression, read_pack
from benchmarks.in_process import Spec, Worker
from benchmarks.machine import describe, ended, machine
from benchmarks.options import bundle_option, result_options, target_option
from benchmarks.output import check_folder, write_json
from benchmarks.repositories import Chosen
from benchmarks.rival_process import IMAGE, RIVALS, Rival, RivalProcess, drawn
from benchmarks.rivals import NOTES, measure, ours_on, table, within
from hmer.bundle import GRAPHS, load_bundle
from hmer.console import sentences
from hmer.errors import BadParameter, InferenceFailed, MissingDependency
from hmer.runtime import thread_count


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="A CROHME pack, such as test_2014.jsonl.gz.",
)
@click.option(
    "--rivals",
    "names",
    default=",".join(rival.name for rival in RIVALS),
    show_default=True,
    help="Those to compare with.",
)
@click.option(
    "--python",
    help="The interpreter that the rivals are installed for.  [default: this one]",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Expressions for each rival at most, evenly over those that it can read.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@bundle_option
@target_option("of ours")
@result_options
@sentences
def rivals(
    data: Path,
    names: str,
    python: str | None,
    limit: int,
    rounds: int,
    bundle: Path,
    target: str,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Recognisers from PyPI beside ours, on the expressions that they have the symbols for.

    Each rival runs in a process of its own, and in an interpreter of its own if you say so; one
    that isn't installed is named with the command that installs it. Run nothing else meanwhile.

    \b
    Examples:
      hmer-bench rivals --data test_2014.jsonl.gz
      hmer-bench rivals --data test_2014.jsonl.gz --python rivals/bin/python --limit 200 --json
    """
    chosen = _chosen(names)
    check_folder(output, "figures")
    load_bundle(bundle, GRAPHS)
    pack = read_pack(data)
    about = machine()
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    spec = Spec(bundle, thread_count(0), Chosen(target, target, "fp32"))
    for rival in chosen:
        click.echo(f"Starting {rival.name} ...", err=True)
        try:
            found[rival.name] = _beside(rival, python, spec, pack, limit, rounds)
        except (MissingDependency, InferenceFailed) as error:
            missing[rival.name] = str(error)
    report: dict[str, Any] = {
        "benchmark": "rivals",
        "machine": ended(about),
        "data": data.name,
        "rounds": rounds,
        "runtime": target,
        "rivals": found,
        "missing": missing,
        "notes": NOTES,
    }
    if output is not None:
        write_json(output, report, "figures")
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    shown = table(found, missing)
    click.echo(shown.markdown() if markdown else shown.text())
    for reason in missing.values():
        click.echo(f"\n{reason}")
    click.echo(f"\n{NOTES}\n{data.name}, {rounds} rounds. {describe(about)}")


def _chosen(names: str) -> list[Rival]:
    known = {rival.name: rival for rival in RIVALS}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted or (unknown := [name for name in wanted if name not in known]):
        what = f"no rival {unknown[0]!r}" if wanted else "no rival without a name"
        raise BadParameter(f"There is {what}; there are {', '.join(known)}.")
    return [known[name] for name in wanted]


def _beside(
    rival: Rival, python: str | None, spec: Spec, pack: list[Expression], limit: int, rounds: int
) -> dict[str, Any]:
    with RivalProcess(rival, python) as process:
        there = within(process.ready.tokens, pack)
        if not there:
            raise InferenceFailed(f"No expression of the pack is made of {rival.name}'s symbols.")
        step = max(1.0, len(there) / limit)
        chosen = [there[int(index * step)] for index in range(min(limit, len(there)))]
        mine = [drawn(e.data) if rival.takes == IMAGE else e.data for e in chosen]
        with Worker(spec, mine) as worker:
            worker.ready()
            found = measure(
                process,
                ours_on(worker),
                chosen,
                rounds,
                lambda line: click.echo(line, err=True),
            )
    return {**found, "in_pack": len(there), "of": len(pack)}
