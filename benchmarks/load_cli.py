"""``hmer-bench load``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks import perf_analyzer
from benchmarks.crohme import Expression
from benchmarks.figures import NEEDED
from benchmarks.inputs import gather, numbers, shuffled
from benchmarks.load import CLOSED, OPEN, Level, Server, notes, run_levels, table
from benchmarks.machine import describe, ended, machine, remarks
from benchmarks.options import input_options, result_options
from benchmarks.output import check_folder, write_json
from benchmarks.process_tree import listener
from benchmarks.server_metrics import metrics_address, read_metrics
from client.transport import parse_url
from hmer.console import sentences
from hmer.errors import InferenceFailed, MissingDependency, ServerUnavailable

LEAST_REQUESTS = NEEDED["p99"]


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
    help="Counted requests a level.  [default: every input once, and at least 100]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds for each request.",
)
@click.option(
    "--metrics-url",
    help="The server's metrics page.  [default: the port above --url's, if it answers]",
)
@click.option(
    "--perf-analyzer",
    "binary",
    type=click.Path(path_type=Path),
    help="NVIDIA's load generator, run at every level, too; - for none.  [default: as in PATH]",
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
    metrics_url: str | None,
    binary: Path | None,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Throughput, latency and errors of a running server, with the score of its answers.

    Latencies of an open loop count from the time at which a request was due, so a server that
    stalls is not spared. Where the server runs on this machine, its CPUs and memory are shown;
    slots in use and requests that wait come from its metrics page, which is looked at twice a
    second. perf_analyzer asks the same pictures at the same levels; it begins and ends with an
    empty loop, and its latencies count from when a request was sent.

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
    requests = requests or max(LEAST_REQUESTS, len(expressions))
    address = parse_url(url)
    about = machine()
    missing: dict[str, str] = {}
    metrics = _metrics(url, metrics_url, missing)
    other = _Other(url, expressions, requests, timeout, _perf_analyzer(binary, missing))
    found, skipped = run_levels(
        url,
        expressions,
        levels,
        requests=requests,
        timeout=timeout,
        server=Server(listener(address.host, address.port), metrics),
        on_level=lambda level: click.echo(f"{level.name} ...", err=True),
        after_level=other,
    )
    missing |= skipped | other.failed
    report: dict[str, Any] = {
        "benchmark": "load",
        "machine": ended(about),
        "data": data.name if data else "samples",
        "input": form if data else "samples",
        "inputs": len(expressions),
        "levels": found,
        "perf_analyzer": other.to_dict(),
        "missing": missing,
    }
    if output is not None:
        write_json(output, report, "figures")
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    shown = [table(found)]
    if other.levels:
        shown.append(perf_analyzer.table(found, other.levels))
    for one in shown:
        click.echo((one.markdown() if markdown else one.text()) + "\n")
    for name, reason in missing.items():
        click.echo(f"{name}: {reason}")
    for line in [*notes(found), *remarks(report["machine"])]:
        click.echo(line)
    click.echo(f"{report['data']}, {len(expressions)} inputs. {describe(about)}")


def _metrics(url: str, given: str | None, missing: dict[str, str]) -> str | None:
    """The metrics page's address; ``None`` where nothing was given and there is none."""
    address = given or metrics_address(url)
    try:
        read_metrics(address)
    except (ServerUnavailable, MissingDependency) as error:
        if given is not None:
            raise
        missing["slots in use, waiting"] = f"{error} Give its address with --metrics-url."
        return None
    return address


def _perf_analyzer(path: Path | None, missing: dict[str, str]) -> perf_analyzer.PerfAnalyzer | None:
    if str(path) == "-":
        return None
    try:
        return perf_analyzer.find(path)
    except MissingDependency as error:
        if path is not None:
            raise
        missing[perf_analyzer.NAME] = str(error)
        return None


@dataclass
class _Other:
    """Lets ``perf_analyzer`` ask the same at a level; does nothing without it."""

    url: str
    expressions: list[Expression]
    requests: int
    timeout: float
    binary: perf_analyzer.PerfAnalyzer | None
    levels: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __call__(self, level: Level) -> None:
        if self.binary is None:
            return
        order = shuffled(len(self.expressions))
        try:
            found = perf_analyzer.measure(
                self.binary,
                self.url,
                [self.expressions[i] for i in order],
                level,
                requests=self.requests,
                timeout=self.timeout,
            )
        except InferenceFailed as error:
            self.failed[f"{perf_analyzer.NAME}, {level.name}"] = str(error)
        else:
            self.levels.append(found)

    def to_dict(self) -> dict[str, Any] | None:
        """For JSON; ``None`` if it took no part."""
        if self.binary is None:
            return None
        return {"version": self.binary.version, "levels": self.levels}
