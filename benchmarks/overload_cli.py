"""``hmer-bench overload``."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks import overload_plots, overload_tables
from benchmarks import overload_verdicts as judging
from benchmarks.inputs import gather
from benchmarks.load import Server
from benchmarks.machine import describe, ended, machine
from benchmarks.options import FILE, PATH, input_options, repository_option, result_options
from benchmarks.output import check_folder, write_json
from benchmarks.overload import Plan
from benchmarks.overload import overload as run
from benchmarks.process_tree import listener
from benchmarks.repositories import assemble
from benchmarks.served import ServedProcess
from benchmarks.server_metrics import metrics_address, read_metrics
from client.transport import parse_url
from hmer.console import sentences
from hmer.errors import MissingDependency, ServerUnavailable


@click.command()
@click.option("--url", help="HOST:PORT (gRPC) of a running server.  [default: one of its own]")
@click.option(
    "--bundle",
    type=PATH,
    default=Path("hmer/pretrained"),
    show_default=True,
    help="The exported bundle that its own server serves.",
)
@repository_option("its own server")
@click.option("--metrics-url", help="The server's metrics page.  [default: the port above --url's]")
@input_options
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Of each open loop.",
)
@click.option(
    "--capacity",
    type=click.FloatRange(min=0, min_open=True),
    help="Requests a second that the server can take.  [default: measured]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Requests under way while the capacity is measured.",
)
@click.option("--priorities/--no-priorities", default=True, help="The load of two priorities, too.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds for each request.",
)
@click.option("--plot", type=FILE, help="Write latencies and refusals over time as SVG.")
@click.option("--server-plot", type=FILE, help="Write the server's queues, memory and threads.")
@result_options
@sentences
def overload(
    url: str | None,
    bundle: Path,
    repository_options: str,
    metrics_url: str | None,
    data: Path | None,
    form: str,
    limit: int | None,
    minutes: float,
    capacity: float | None,
    concurrency: int,
    priorities: bool,
    timeout: float,
    plot: Path | None,
    server_plot: Path | None,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Twice the load that a server can take, and what becomes of the requests.

    It finds the capacity (closed loop), then sends at 80 % of it and at twice it, as Poisson
    arrivals and without trying anything again, then the same with half of the requests marked as
    what can wait. Latencies count from when a request was due. Exit code 1 only if a request that
    was accepted was lost; the verdicts say what else was not as it should be.

    \b
    Examples:
      hmer-bench overload --minutes 10 --output overload.json --plot overload.svg
      hmer-bench overload --url localhost:8001 --minutes 1 --json
    """
    for path, what in ((output, "figures"), (plot, "plot"), (server_plot, "plot")):
        check_folder(path, what)
    expressions = gather(data, form, limit)
    about = machine()
    plan = Plan(
        minutes * 60,
        capacity_seconds=max(5.0, min(30.0, minutes * 12)),
        concurrency=concurrency,
        capacity=capacity,
        timeout=timeout,
        priorities=priorities,
    )
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        address, server = _server(
            stack, url, bundle, shlex.split(repository_options), metrics_url, missing
        )
        found = run(address, expressions, plan, server, lambda text: click.echo(text, err=True))
    report: dict[str, Any] = {
        "benchmark": "overload",
        "machine": ended(about),
        "data": data.name if data else "samples",
        "input": form if data else "samples",
        "inputs": len(expressions),
        "repository_options": None if url else repository_options,
        "missing": missing,
        **found,
    }
    verdicts = judging.verdicts(report)
    report["verdicts"] = [verdict.to_dict() for verdict in verdicts]
    if output is not None:
        write_json(output, report, "figures")
    for path, draw in ((plot, overload_plots.overload), (server_plot, overload_plots.server)):
        if path is not None:
            path.write_text(draw(report), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        for one in (overload_tables.phases(report), judging.table(verdicts)):
            click.echo((one.markdown() if markdown else one.text()) + "\n")
        for name, reason in missing.items():
            click.echo(f"{name}: {reason}")
        click.echo(
            f"Capacity {report['capacity']:.1f} requests a second. {report['data']}, "
            f"{len(expressions)} inputs. {describe(about)}"
        )
    if judging.lost(report):
        sys.exit(1)


def _server(
    stack: ExitStack,
    url: str | None,
    bundle: Path,
    options: list[str],
    metrics: str | None,
    missing: dict[str, str],
) -> tuple[str, Server]:
    """The address to ask, and what is known of who answers there."""
    if url is None:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hmer-overload-")))
        own = stack.enter_context(ServedProcess(assemble(bundle, work / "repository", *options)))
        return own.grpc, Server(own.pid, own.metrics)
    address = parse_url(url)
    page = metrics or metrics_address(url)
    try:
        read_metrics(page)
    except (ServerUnavailable, MissingDependency) as error:
        if metrics is not None:
            raise
        missing["queues and slots"] = f"{error} Give its address with --metrics-url."
        return url, Server(listener(address.host, address.port), None)
    return url, Server(listener(address.host, address.port), page)
