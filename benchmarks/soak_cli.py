"""``hmer-bench soak``."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks.crohme import STROKES
from benchmarks.inputs import gather
from benchmarks.machine import describe, ended, machine
from benchmarks.options import FILE, PATH, result_options
from benchmarks.output import check_folder, write_json
from benchmarks.process_tree import listener
from benchmarks.server_metrics import metrics_address, read_metrics
from benchmarks.soak import capacity, figures, run
from benchmarks.soak_mix import Mix, Sender, connect
from benchmarks.soak_plot import draw
from client.transport import parse_url
from hmer.console import sentences
from hmer.errors import BadParameter, ServerUnavailable
from hmer.tables import Table

_NO, _YES, _UNKNOWN = "not met", "met", "unknown"


@click.command()
@click.option("--url", default="localhost:8001", show_default=True, help="HOST:PORT (gRPC).")
@click.option("--data", type=PATH, required=True, help="A CROHME pack, such as test_2014.jsonl.gz.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="So many of the pack, evenly over it; each is drawn at four sizes.",
)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True
)
@click.option(
    "--load",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=0.8,
    show_default=True,
    help="Of the capacity, which is measured first.",
)
@click.option(
    "--settle",
    type=click.FloatRange(min=1),
    default=60.0,
    show_default=True,
    help="Seconds for which the capacity is measured.",
)
@click.option(
    "--every",
    type=click.FloatRange(min=0.5),
    default=10.0,
    show_default=True,
    help="Seconds between glances at memory, files and shared memory.",
)
@click.option("--timeout", type=click.FloatRange(min=1), default=60.0, show_default=True)
@click.option(
    "--metrics-url",
    help="The server's metrics page.  [default: the port above --url's, if it answers]",
)
@click.option("--plot", type=FILE, help="Draw it all over time in this file (SVG, PNG).")
@result_options
@sentences
def soak(
    url: str,
    data: Path,
    limit: int,
    minutes: float,
    load: float,
    settle: float,
    every: float,
    timeout: float,
    metrics_url: str | None,
    plot: Path | None,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Steady load for an hour: does a running server hold on to memory, files or slots?

    Pictures of mixed sizes, ink, streams, beams, callers that leave early and inputs that must be
    refused (benchmarks/soak_mix.py has the shares) arrive at random at --load of the capacity.
    After a fifth of the time, which may still grow, memory, open files and shared memory may
    grow by 5 % at most, and latencies by a quarter. Every answer must be that of the first
    time; the server may say that it is full to 2 % of them. Exit code 1 if something was
    answered otherwise, lost or left in the server.

    \b
    Examples:
      hmer-bench soak --data test_2014.jsonl.gz --output soak.json --plot soak.svg
      hmer-bench soak --data test_2014.jsonl.gz --minutes 5 --settle 20 --every 2
    """
    for path, what in ((output, "figures"), (plot, "plot")):
        check_folder(path, what)
    mix = Mix(gather(data, STROKES, limit))
    address = parse_url(url)
    if address.scheme != "grpc":
        raise BadParameter(f"{url} is an HTTP address. Give the gRPC address, HOST:PORT.")
    pid = listener(address.host, address.port)
    metrics = _metrics(url, metrics_url)
    about = machine()

    async def work() -> dict[str, Any]:
        async with connect(url, timeout) as recognizer:
            await recognizer.health()
            send = Sender(recognizer)
            click.echo(f"Capacity, for {settle:g} s ...", err=True)
            most = await capacity(send, mix, settle)
            click.echo(f"{most:.1f} requests/s; {load:.0%} of it for {minutes:g} min", err=True)
            with click.progressbar(
                length=round(minutes * 60),
                label="Soaking",
                file=sys.stderr,
                hidden=not sys.stderr.isatty(),
            ) as bar:
                found = await run(
                    send,
                    mix,
                    rate=load * most,
                    seconds=minutes * 60,
                    every=every,
                    pid=pid,
                    on_glance=lambda glance: bar.update(round(glance["t"]) - bar.pos),
                )
        return {"capacity": most, "rate": load * most} | figures(found, metrics)

    report = {
        "benchmark": "soak",
        "machine": ended(about),
        "data": data.name,
        "inputs": limit,
        "minutes": minutes,
        "load": load,
        **asyncio.run(work()),
    }
    if output is not None:
        write_json(output, report, "figures")
    if plot is not None:
        draw(report, plot)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        for one in tables(report):
            click.echo((one.markdown() if markdown else one.text()) + "\n")
        click.echo(describe(about))
    if report["verdicts"]["every outcome as expected"] is False or (
        report["verdicts"]["nothing left in the server"] is False
    ):
        sys.exit(1)


def _metrics(url: str, given: str | None) -> str | None:
    address = given or metrics_address(url)
    try:
        read_metrics(address)
    except ServerUnavailable as error:
        if given is not None:
            raise
        click.echo(f"{error} What is left in the server stays unknown.", err=True)
        return None
    return address


def tables(report: dict[str, Any]) -> list[Table]:
    """Drifts with their verdicts, and what became of the requests."""
    words = {True: _YES, False: _NO, None: _UNKNOWN}
    rows = []
    for name, found in report["drift"].items():
        if found is None:
            continue
        ratio = "-" if found["ratio"] is None else f"{found['ratio']:.3f}"
        verdict = words[report["verdicts"][name]] if name in report["verdicts"] else ""
        figures_ = (f"{found['first']:.1f}", f"{found['last']:.1f}", ratio)
        rows.append((name, *figures_, f"{found['per_hour']:+.1f}", verdict))
    for name, verdict in report["verdicts"].items():
        if name not in report["drift"]:
            rows.append((name, "", "", "", "", words[verdict]))
    outcomes = [
        (kind, outcome, str(count))
        for kind, counts in report["counts"].items()
        for outcome, count in sorted(counts.items())
    ]
    load = f"{report['rate']:.1f} of {report['capacity']:.1f} requests/s"
    title = f"{report['minutes']:g} minutes at {load}"
    header = ("", "first", "last", "ratio", "an hour", "")
    return [
        Table(title, header, tuple(rows)),
        Table("Requests", ("kind", "outcome", "n"), tuple(outcomes), figures=2),
    ]
