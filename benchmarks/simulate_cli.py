"""``hmer-bench simulate``."""

from __future__ import annotations

import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks.inputs import gather, numbers
from benchmarks.load import CLOSED, OPEN, Level, Server, run_levels
from benchmarks.machine import describe, ended, machine
from benchmarks.options import (
    FILE,
    bundle_option,
    input_options,
    repository_option,
    result_options,
)
from benchmarks.output import check_folder, write_json
from benchmarks.repositories import Chosen, assemble
from benchmarks.served import ServedProcess
from benchmarks.simulation_calibrate import calibrate
from benchmarks.simulation_questions import at_pace, attainable, fit, replica_rows, validate
from benchmarks.simulation_report import notes, tables
from benchmarks.simulation_scaling import compare
from benchmarks.simulation_times import ServiceTimes, read_document, read_times
from hmer.bundle import GRAPHS, load_bundle
from hmer.console import sentences
from hmer.serving import REPOSITORY_FILE


@click.command()
@click.option(
    "--times",
    type=FILE,
    help="Service times that were measured before: the --output of this command.  [default: "
    "measure them now]",
)
@click.option(
    "--gpu",
    type=FILE,
    help="Service times of a replica with a GPU, for a row of its own; nothing is guessed.",
)
@click.option(
    "--validate",
    "measured",
    type=FILE,
    help="A load test of the same server (hmer-bench load --output) to hold the simulation "
    "against.  [default: with times that are measured now, a load test is made now]",
)
@bundle_option
@repository_option("the server that is measured", refuses=False)
@click.option(
    "--rate", default=10_000.0, type=click.FloatRange(min=0, min_open=True), show_default=True,
    help="Requests a second that the replicas must serve together.",
)  # fmt: skip
@click.option(
    "--bound", default=200.0, type=click.FloatRange(min=0, min_open=True), show_default=True,
    help="Milliseconds that p99 must stay below.",
)  # fmt: skip
@click.option(
    "--loads",
    default="0.3,0.5,0.7",
    show_default=True,
    help="Open-loop levels of the load test that is made now, as shares of the throughput of a "
    "full server.",
)
@click.option(
    "--requests",
    type=click.IntRange(min=50),
    default=200,
    show_default=True,
    help="Of each level of that load test, in each round.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=7,
    show_default=True,
    help="Rounds through its levels; medians of them count, so that what disturbs one does not.",
)
@click.option("--autoscaling/--no-autoscaling", default=True, help="Compare autoscaling signals.")
@click.option(
    "--start-s",
    type=click.FloatRange(min=0),
    help="Seconds until a new replica serves.  [default: the measured start, which has neither "
    "scheduling nor an image's download in it]",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@input_options
@result_options
@sentences
def simulate(
    times: Path | None,
    gpu: Path | None,
    measured: Path | None,
    bundle: Path,
    repository_options: str,
    rate: float,
    bound: float,
    loads: str,
    requests: int,
    rounds: int,
    autoscaling: bool,
    start_s: float | None,
    seed: int,
    data: Path | None,
    form: str,
    limit: int | None,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """How many replicas, and what they should be scaled by: from a model of the server.

    The model is calibrated with measured times of a request's parts, and held against a measured
    load test before anything is concluded from it. Without --times both are measured here (some
    minutes; run nothing else meanwhile).

    \b
    Examples:
      hmer-bench simulate --data test_2014.jsonl.gz --limit 100 --output simulate.json
      hmer-bench simulate --times simulate.json --rate 2000 --bound 300 --gpu h100.json
      hmer-bench simulate --times simulate.json --validate load.json --no-autoscaling
    """
    check_folder(output, "figures")
    shares = numbers(loads, "--loads", float)
    given = read_document(measured) if measured else None
    on_gpu = read_times(gpu) if gpu else None
    about = machine()

    def say(line: str) -> None:
        click.echo(line, err=True)

    if times is not None:
        known = read_times(times)
    else:
        known, tested = _measure(
            bundle, repository_options, data, form, limit, shares, requests, rounds, about, say
        )
        given = given or tested
    levels = []
    if given is not None:
        say("Holding the simulation against the load test ...")
        levels = validate(known, given, str(measured or "the load test"))
    say("Looking for the number of replicas ...")
    rows = replica_rows(known, on_gpu, bound, seed)
    report: dict[str, Any] = {
        "benchmark": "simulate",
        "machine": ended(about),
        "data": known.about.get("data", "given times"),
        "input": known.about.get("input", ""),
        "inputs": len(known.kinds),
        "seed": seed,
        "rate": rate,
        "bound_ms": bound,
        "validation": levels,
        "load": given,
        "replicas": rows,
        "instead": None,
        "autoscaling": None,
        "service": dict(known.about),
    }
    holds = bound
    if rows[0]["found"]["rate"] is None:  # what could be promised instead
        holds = attainable(rows[0]["found"]["idle_ms"])
        say(f"Nobody holds {bound:g} ms here; looking at {holds:g} ms ...")
        rows = report["instead"] = replica_rows(known, on_gpu, holds, seed)
    enough = rows[0]["found"]["rate"]
    if autoscaling and enough:
        say("Comparing autoscaling signals ...")
        start = known.ready_s if start_s is None else start_s
        report["autoscaling"] = compare(known, enough, holds, start_s=start, seed=seed)
    if output is not None:
        write_json(output, report, "figures")
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    for shown in tables(report):
        click.echo((shown.markdown() if markdown else shown.text()) + "\n")
    for line in notes(report):
        click.echo(line)
    click.echo(f"{report['data']}, {len(known.kinds)} inputs. {describe(about)}")


def _measure(
    bundle: Path,
    options: str,
    data: Path | None,
    form: str,
    limit: int | None,
    shares: list[float],
    requests: int,
    rounds: int,
    about: dict[str, Any],
    say: Any,
) -> tuple[ServiceTimes, dict[str, Any]]:
    """Service times of a server that is started for it, and an open-loop load test of it.

    The machine's speed during the test is taken from requests one at a time, and how much the
    parts slow each other from the full server; the open loops are what the simulation is held
    against.
    """
    loaded = load_bundle(bundle, GRAPHS)
    expressions = gather(data, form, limit or 60)
    conditions = {
        "data": data.name if data else "samples",
        "input": form if data else "samples",
        "inputs": len(expressions),
    }
    with ExitStack() as stack:
        say("Starting a server ...")
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = assemble(bundle, work / "ours", *options.split())
        with ServedProcess(repository):
            pass  # the first start reads the files from the disk
        server = stack.enter_context(ServedProcess(repository))
        found = calibrate(
            loaded,
            Chosen.of(repository),
            json.loads((repository / REPOSITORY_FILE).read_text(encoding="utf-8")),
            expressions,
            server.grpc,
            server.ready_s,
            about=about,
            conditions=conditions,
            say=say,
        )

        def test(level: Level, count: int) -> list[dict[str, Any]]:
            figures, _ = run_levels(
                server.grpc,
                expressions,
                [level],
                requests=count,
                timeout=120.0,
                server=Server(server.pid),
                on_level=lambda level: say(f"Load test: {level.name} ..."),
            )
            return figures  # none for a level that is too much here

        under_way = 2 * found["slots"]
        alone = (Level(CLOSED, 1), len(expressions))
        full = (Level(CLOSED, under_way), max(len(expressions), 3 * under_way))
        most = test(*full)[0]["throughput"]
        opened = [(Level(OPEN, round(share * most, 2)), requests) for share in shares]
        # In turns: a machine that is slower for a while is so for all levels.
        turns = [[test(*one) for one in (alone, full, *opened)] for _ in range(rounds)]
        levels = [
            median_of([figures[0] for figures in level])
            for level in zip(*turns, strict=True)
            if all(level)
        ]
    measured = at_pace(found, levels[0]["latency_ms"]["p50"])
    known = fit(measured, levels[1]["throughput"], under_way)
    tested = {"benchmark": "load", "machine": ended(about), **conditions, "levels": levels}
    return known, tested


def median_of(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One level's figures of several rounds: medians of what is held against a simulation."""
    found = dict(rounds[0])
    found["throughput"] = statistics.median(one["throughput"] for one in rounds)
    found["latency_ms"] = {
        name: None if None in values else statistics.median(values)
        for name in rounds[0]["latency_ms"]
        for values in [[one["latency_ms"][name] for one in rounds]]
    }
    found["rejected"] = sum(one["rejected"] for one in rounds)
    found["rounds"] = [
        {"throughput": one["throughput"], "latency_ms": one["latency_ms"]} for one in rounds
    ]
    return found
