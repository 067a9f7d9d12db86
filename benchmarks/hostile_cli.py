"""``hmer-bench hostile``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.hostile import Attack, all_kinds, but_for, plan, selected
from benchmarks.hostile_report import lines, report_of, table
from benchmarks.hostile_send import Sender
from benchmarks.machine import describe, ended, machine
from benchmarks.options import bundle_option, result_options
from benchmarks.output import check_folder, write_json
from benchmarks.process_tree import listener
from benchmarks.server_metrics import metrics_address, read_metrics
from client.transport import parse_url
from hmer.bundle import GRAPHS, load_bundle
from hmer.console import sentences

# Freed memory is given back once a minute (model_repository.memory).
_REST_S = 65.0
_WARM = 100_000_000  # numbers of the cases of the warm-up, which no other case has


@click.command()
@click.option("--url", default="localhost:8001", show_default=True, help="HOST:PORT (gRPC).")
@click.option("--http-url", help="[default: the port below --url's]")
@click.option("--metrics-url", help="The server's metrics page.  [default: the port above]")
@bundle_option
@click.option("--cases", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--concurrency", type=click.IntRange(1, 64), default=6, show_default=True)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Look at the server after so many cases.",
)
@click.option(
    "--warm-up",
    type=click.IntRange(min=0),
    default=1_000,
    show_default=True,
    help="Cases before memory is looked at: the first of each kind take theirs.",
)
@click.option(
    "--rest",
    type=click.FloatRange(min=0),
    default=_REST_S,
    show_default=True,
    help="Seconds without requests before memory is looked at: it is given back once a minute.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=60.0,
    show_default=True,
    help="Seconds after which a case counts as hung.",
)
@click.option("--only", multiple=True, help="Repeat this case, KIND:NUMBER; several times.")
@click.option(
    "--without",
    multiple=True,
    help="Leave out this kind, such as what a gateway refuses; several times.",
)
@result_options
@sentences
def hostile(
    url: str,
    http_url: str | None,
    metrics_url: str | None,
    bundle: Path,
    cases: int,
    seed: int,
    concurrency: int,
    every: int,
    warm_up: int,
    rest: float,
    timeout: float,
    only: tuple[str, ...],
    without: tuple[str, ...],
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Hostile inputs and requests against a running server, which must take no harm.

    Broken and huge pictures and ink, decompression bombs, requests with wrong shapes, types,
    lengths, names and parameters, over gRPC and HTTP, to the models behind recognize, too. Between
    them good requests must get their usual answer and all slots be free again; no process may end,
    and memory may not have grown for good. Exit code 1 if anything of that does not hold, with the
    cases. It attacks what --url says: give it your own server only.

    \b
    Examples:
      hmer-bench hostile --url localhost:8001 --cases 10000
      hmer-bench hostile --seed 3 --only "png, bomb:7"
      hmer-bench hostile --without "http, compressed"
    """
    check_folder(output, "figures")
    address = parse_url(url)
    about = machine()
    kinds = but_for(all_kinds(load_bundle(bundle, GRAPHS).sizes), without)
    metrics = metrics_url or metrics_address(url)
    read_metrics(metrics)
    other = http_url or f"http://{address.host}:{address.port - 1}"
    pid = listener(address.host, address.port)
    chosen = selected(kinds, only) if only else plan(kinds, cases, seed)
    with Sender(url, other, timeout) as sender:
        attack = Attack(sender, kinds, seed, metrics, pid)
        if warm_up and not only:
            warming = [p.later(_WARM) for p in plan(kinds, warm_up, seed + 1)]
            attack.run(warming, concurrency, max(warm_up, 1))
            attack.samples.clear()
            attack.rest(rest)
        began = time.perf_counter()
        with click.progressbar(
            length=len(chosen), file=sys.stderr, hidden=not sys.stderr.isatty()
        ) as bar:
            attack.run(chosen, concurrency, every, bar.update)
        seconds = time.perf_counter() - began
        if not only:
            attack.rest(rest)
        report = report_of(attack, len(chosen), seed, seconds)
    report = {"benchmark": "hostile", "machine": ended(about), "warm_up": warm_up, **report}
    report["without"] = list(without)
    _show(report, attack, output, markdown, as_json)
    if report["failures"]:
        sys.exit(1)


def _show(
    report: dict[str, Any], attack: Attack, output: Path | None, markdown: bool, as_json: bool
) -> None:
    if output is not None:
        write_json(output, report, "figures")
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    shown = table(attack)
    click.echo((shown.markdown() if markdown else shown.text()) + "\n")
    click.echo("\n".join(lines(report)))
    left_out = "".join(f", without {kind!r}" for kind in report["without"])
    click.echo(
        f"{report['cases']} cases in {report['seconds']:.0f} s after a warm-up of "
        f"{report['warm_up']}, seed {report['seed']}{left_out}. {describe(report['machine'])}"
    )
