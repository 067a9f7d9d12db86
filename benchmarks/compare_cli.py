"""``hmer-bench compare``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks.compare import Result, Settings, rounds
from benchmarks.contenders import KINDS, OURS, Plan, prepare, start
from benchmarks.figures import ratios, spread
from benchmarks.in_process import InProcess
from benchmarks.inputs import gather, numbers
from benchmarks.limits import measure
from benchmarks.machine import describe, ended, machine, remarks
from benchmarks.options import (
    input_options,
    repository_option,
    result_options,
    weights_options,
    work_option,
)
from benchmarks.output import check_folder, write_json
from benchmarks.targets import table as targets_table
from benchmarks.targets import targets
from hmer.bundle import GRAPHS, load_bundle
from hmer.console import sentences
from hmer.errors import BadParameter
from hmer.tables import Table

BARE = "in process"
_FEW_ROUNDS = 3  # of fewer the spread is not known


@click.command()
@weights_options
@input_options
@click.option("--rounds", "count", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    help="Requests under way in the turns under load.",
)
@click.option(
    "--contenders",
    "kinds",
    default=",".join(KINDS),
    show_default=True,
    help=f"Some of {', '.join(KINDS)}.",
)
@click.option(
    "--k", "ks", default="1,2,4,8", show_default=True, help='Ours with these, too; "none" for none.'
)
@repository_option("ours", refuses=False)
@click.option(
    "--identity",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Pictures of --data whose answers are compared one by one, 32 at once, and in process.",
)
@click.option(
    "--starts",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="So often ours is started; the time until it is ready is that of all but the first.",
)
@click.option("--limits/--no-limits", default=True, help="Measure the machine's limits, too.")
@work_option("hmer-bench")
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=120.0, help="Seconds for each request."
)
@result_options
@sentences
def compare(
    bundle: Path,
    checkpoint: Path,
    data: Path | None,
    form: str,
    limit: int | None,
    count: int,
    concurrency: int,
    kinds: str,
    ks: str,
    repository_options: str,
    identity: int,
    starts: int,
    limits: bool,
    work: Path,
    timeout: float,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Ours beside what it replaces, in turn, on the same pictures; each target with its value.

    Starts and stops a server for each contender, in free ports. Run nothing else meanwhile.

    \b
    Examples:
      hmer-bench compare --data test_2014.jsonl.gz --limit 32
      hmer-bench compare --contenders ours,naive --k none --rounds 3 --no-limits
    """
    plan = Plan(
        bundle,
        checkpoint,
        _kinds(kinds),
        () if ks == "none" else tuple(int(k) for k in numbers(ks, "--k")),
        tuple(repository_options.split()),
        work,
    )
    check_folder(output, "figures")
    loaded = load_bundle(bundle, GRAPHS)
    expressions = gather(data, form, limit or 32)
    check = gather(data, form, identity) if identity else []
    about = machine()

    def say(line: str) -> None:
        click.echo(line, err=True)

    work.mkdir(parents=True, exist_ok=True)
    folders, missing, chosen = prepare(plan, say)
    found = None
    if limits:
        say("Measuring the machine's limits ...")
        found = measure(loaded, chosen, [e.data for e in expressions], say=say)
    with ExitStack() as stack:
        contenders = start(folders, starts, stack, say)
        say("Starting without a server ...")
        bare = InProcess(bundle, chosen, [e.data for e in (*expressions, *check)])
        stack.callback(bare.close)
        settings = Settings(count, concurrency, timeout)
        result = rounds(contenders, bare, expressions, settings, check, say)
        precision = loaded.precision if chosen.precision == "fp32" else chosen.precision
        goals = targets(result, found, precision)
        report: dict[str, Any] = {
            "benchmark": "compare",
            "machine": ended(about),
            "data": data.name if data else "samples",
            "input": form if data else "samples",
            "inputs": len(expressions),
            "rounds": count,
            "concurrency": concurrency,
            "repository": {"options": plan.options, **vars(chosen)},
            "targets": [goal.to_dict() for goal in goals],
            "contenders": {
                name: contender.to_dict(expressions, result.bare.replies)
                for name, contender in contenders.items()
            },
            "missing": missing,
            "in_process": _bare(result),
            "ratios": _ratios(result),
            "short_ms": {str(level): values for level, values in result.short.items()},
            "identity": result.identity,
            "limits": found,
        }
    if output is not None:
        write_json(output, report, "figures")
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    for shown in (contenders_table(report), targets_table(goals)):
        click.echo((shown.markdown() if markdown else shown.text()) + "\n")
    for name, reason in missing.items():
        click.echo(f"{name} is missing: {reason}")
    for line in remarks(report["machine"]):
        click.echo(line)
    for line in spread_notes(report):
        click.echo(line)
    click.echo(
        f"{report['data']}, {len(expressions)} pictures, rounds: {count}, medians and quartiles. "
        f"{describe(about)}"
    )


def _kinds(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if unknown := [kind for kind in found if kind not in KINDS]:
        raise BadParameter(f"There is no contender {unknown[0]!r}; there are {', '.join(KINDS)}.")
    return found


def _bare(result: Result) -> dict[str, Any]:
    bare = result.bare
    alone, throughput = spread([row["p50"] for row in bare.alone]), spread(bare.throughput)
    return {
        "p50_alone_ms": alone.to_dict() if alone else None,
        "throughput": throughput.to_dict() if throughput else None,
        "rounds": {"p50_alone_ms": [r["p50"] for r in bare.alone], "throughput": bare.ways},
    }


def _ratios(result: Result) -> dict[str, Any]:
    """Ours by each other one: throughput, and p50 alone; of the rounds."""
    ours, found = result.contenders[OURS], {}
    others: dict[str, tuple[list[float], list[float | None]]] = {
        name: (c.throughput, c.column("alone", "p50"))
        for name, c in result.contenders.items()
        if name != OURS
    }
    others[BARE] = (result.bare.throughput, [row["p50"] for row in result.bare.alone])
    for name, (throughput, alone) in others.items():
        seen = {
            "throughput": spread(ratios(ours.throughput, throughput)),
            "p50_alone": spread(ratios(ours.column("alone", "p50"), alone)),
        }
        found[name] = {what: s.to_dict() if s else None for what, s in seen.items()}
    return found


def spread_notes(report: Mapping[str, Any]) -> list[str]:
    """What so few rounds cannot tell."""
    if report["rounds"] >= _FEW_ROUNDS:
        return []
    return [
        f"Of fewer than {_FEW_ROUNDS} rounds the spread is not known: take the figures, and "
        "whether a target is met, as leads."
    ]


def contenders_table(report: dict[str, Any]) -> Table:
    """One row a contender, from the report."""
    header = (
        *("contender", "requests/s", "p50 ms", "p95 ms", "p50 ms alone"),
        *("ours: requests/s", "ours: p50 alone", "equal tokens %", "ready s", "MB"),
    )
    rows = []
    for name, one in report["contenders"].items():
        against = report["ratios"].get(name, {})
        equal = one["equal_tokens"]
        rows.append(
            (
                one["title"],
                *(_spread(one[key], 1) for key in ("throughput", "p50_ms", "p95_ms")),
                _spread(one["p50_alone_ms"], 1),
                *_against(against),
                "-" if equal is None else f"{equal * 100:.2f}",
                f"{one['ready_s'][-1]:.1f}",
                f"{one['pss_mb']['after']:.0f}",
            )
        )
    bare = report["in_process"]
    rows.append(
        (
            "the same runtimes in process, without Triton",
            *(_spread(bare["throughput"], 1), "-", "-", _spread(bare["p50_alone_ms"], 1)),
            *(*_against(report["ratios"][BARE]), "reference", "-", "-"),
        )
    )
    return Table(f"{report['concurrency']} requests at once, and alone", header, tuple(rows))


def _against(found: dict[str, Any]) -> tuple[str, str]:
    """Ours as a multiple of another's throughput and p50."""
    cells = [_spread(found.get(what), 2) for what in ("throughput", "p50_alone")]
    return tuple("-" if c == "-" else f"x {c}" for c in cells)  # type: ignore[return-value]


def _spread(found: dict[str, float] | None, digits: int) -> str:
    if found is None:
        return "-"
    middle = f"{found['median']:.{digits}f}"
    if found["n"] == 1:
        return middle
    return f"{middle} ({found['q1']:.{digits}f} to {found['q3']:.{digits}f})"
