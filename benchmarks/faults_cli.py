"""``hmer-bench faults``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.faults import Finding, Load, table
from benchmarks.faults_scenarios import SCENARIOS
from benchmarks.faults_stage import Stage
from benchmarks.inputs import gather
from benchmarks.machine import describe, ended, machine
from benchmarks.options import (
    bundle_option,
    input_options,
    repository_option,
    result_options,
    work_option,
)
from benchmarks.output import check_folder, write_json
from benchmarks.repositories import assemble
from hmer.console import sentences
from hmer.errors import BadParameter, HmerError


@click.command()
@bundle_option
@repository_option("the servers")
@input_options
@click.option(
    "--only",
    metavar="NAMES",
    help=f"These faults, separated by commas: {', '.join(SCENARIOS)}.  [default: all]",
)
@click.option(
    "--clients",
    type=click.IntRange(min=1),
    default=Load.each,
    show_default=True,
    help="So many of each kind: bare and with retries, whole answers and streams.",
)
@work_option("hmer-faults")
@result_options
@sentences
def faults(
    bundle: Path,
    repository_options: str,
    data: Path | None,
    form: str,
    limit: int | None,
    only: str | None,
    clients: int,
    work: Path,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """What clients see of every fault, how long it takes, and what is lost.

    For each fault a server of its own is started (hmer-serve --supervise) and asked by a few
    clients; then the fault is done. Bare clients send every request once: "cut off" are those that
    were under way, "later" those that failed until the server was back. "Lost, with retries" failed
    in spite of the client's own retries: a stream of which tokens came already is not sent again.

    \b
    Examples:
      hmer-bench faults
      hmer-bench faults --only kill-decode,kill-server --json
    """
    names = _names(only)
    check_folder(output, "figures")
    work.mkdir(parents=True, exist_ok=True)
    about = machine()
    repository = assemble(bundle, work / "repository", *repository_options.split())
    stage = Stage(repository, gather(data, form, limit), work, Load(each=clients))
    findings = run(stage, names)
    report: dict[str, Any] = {
        "benchmark": "faults",
        "machine": ended(about),
        "data": data.name if data else "samples",
        "faults": [finding.to_dict() for finding in findings],
    }
    if output is not None:
        write_json(output, report, "figures")
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    shown = table(findings)
    click.echo((shown.markdown() if markdown else shown.text()) + "\n")
    click.echo(describe(about))


def run(stage: Stage, names: list[str]) -> list[Finding]:
    """The rows of these faults; one that cannot be tried is named with the reason."""
    found = []
    for name in names:
        click.echo(f"{name} ...", err=True)
        try:
            found.append(SCENARIOS[name](stage))
        except HmerError as error:
            found.append(Finding(name, missing=str(error)))
    return found


def _names(only: str | None) -> list[str]:
    if only is None:
        return list(SCENARIOS)
    names = [name.strip() for name in only.split(",") if name.strip()]
    if not names or (unknown := sorted(set(names) - set(SCENARIOS))):
        wrong = ", ".join(unknown) if names else "nothing"
        raise BadParameter(f"There is no fault {wrong}. Choose from {', '.join(SCENARIOS)}.")
    return names
