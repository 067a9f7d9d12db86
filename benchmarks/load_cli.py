"""``hmer-bench load``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.inputs import gather, numbers
from benchmarks.load import CLOSED, OPEN, Level, run_levels, table
from benchmarks.machine import describe, machine
from benchmarks.options import input_options, result_options
from benchmarks.output import check_folder, write_json
from benchmarks.process_tree import listener
from client.transport import parse_url
from hmer.console import sentences


@click.command()
@click.option("--url", default="localhost:8001", show_default=True, help="HOST:PORT (gRPC).")
@input_options
@click.option(
    "--concurrency",
    help="Closed loop: so many requests under way, one level each.  [default: 1,2,4,8,16,32,64]",
)
@click.option("--rate", help="Open loop: so many requests a second, Poisson, one level each.")
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    help="Counted requests a level.  [default: every input once, and at least 64]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds for each request.",
)
@result_options
@sentences
def load(
    url: str,
    data: Path | None,
    form: str,
    limit: int | None,
    concurrency: str | None,
    rate: str | None,
    requests: int | None,
    timeout: float,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Throughput, latency and errors of a running server, with the score of its answers.

    Latencies of an open loop count from the time at which a request was due, so a server that
    stalls is not spared. Where the server runs on this machine, its CPUs and memory are shown.

    \b
    Examples:
      hmer-bench load --data test_2014.jsonl.gz --limit 200
      hmer-bench load --url localhost:8001 --rate 5,10,20 --requests 300 --json
    """
    levels = [Level(OPEN, value) for value in numbers(rate, "--rate", float)] if rate else []
    if concurrency or not rate:
        wanted = numbers(concurrency or "1,2,4,8,16,32,64", "--concurrency")
        levels = [Level(CLOSED, value) for value in wanted] + levels
    check_folder(output, "figures")
    expressions = gather(data, form, limit)
    address = parse_url(url)
    about = machine()
    found = run_levels(
        url,
        expressions,
        levels,
        requests=requests or max(64, len(expressions)),
        timeout=timeout,
        pid=listener(address.host, address.port),
        on_level=lambda level: click.echo(f"{level.name} ...", err=True),
    )
    report: dict[str, Any] = {
        "benchmark": "load",
        "machine": about,
        "data": data.name if data else "samples",
        "input": form if data else "samples",
        "inputs": len(expressions),
        "levels": found,
    }
    if output is not None:
        write_json(output, report, "figures")
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    shown = table(found)
    click.echo(shown.markdown() if markdown else shown.text())
    click.echo(f"\n{report['data']}, {len(expressions)} inputs. {describe(about)}")
