"""``hmer-bench latency``."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from benchmarks.in_process import Spec, Worker
from benchmarks.inputs import gather, shuffled
from benchmarks.latency import Way, WorkerWay, decode_image_ms, run, tables
from benchmarks.latency_served import ServedWay, split_served
from benchmarks.machine import describe, machine
from benchmarks.options import (
    input_options,
    repository_option,
    result_options,
    weights_options,
)
from benchmarks.output import check_folder, write_json
from benchmarks.repositories import Chosen, assemble
from benchmarks.served import ServedProcess
from benchmarks.server_metrics import metrics_address, read_metrics
from client.transport import parse_url
from hmer.bundle import CHECKPOINT, GRAPHS, load_bundle
from hmer.console import sentences
from hmer.errors import HmerError, MissingDependency, ServerSetupError, ServerUnavailable
from hmer.gpu import find_gpu
from hmer.runtime import TARGETS, thread_count

SERVED = "served"


@click.command()
@weights_options
@click.option(
    "--url",
    "urls",
    multiple=True,
    help="A running server, HOST:PORT or http://HOST:PORT; may be given twice.  [default: one is "
    "started]",
)
@repository_option("the server that is started")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@input_options
@result_options
@sentences
def latency(
    bundle: Path,
    checkpoint: Path,
    urls: tuple[str, ...],
    repository_options: str,
    rounds: int,
    data: Path | None,
    form: str,
    limit: int | None,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """One request at a time through every path at hand, and where its time goes.

    PyTorch, the CPU runtimes in process, and a server over gRPC and HTTP take turns; a path that
    is not installed is named with the reason. Run nothing else meanwhile.

    \b
    Examples:
      hmer-bench latency --data test_2014.jsonl.gz --limit 40
      hmer-bench latency --url localhost:8001 --url http://localhost:8000 --rounds 3
    """
    check_folder(output, "figures")
    load_bundle(bundle, GRAPHS)
    expressions = gather(data, form, limit or 24)
    inputs, order = [e.data for e in expressions], shuffled(len(expressions))
    about = machine()

    def say(line: str) -> None:
        click.echo(line, err=True)

    missing: dict[str, str] = {}
    with ExitStack() as stack:
        ways = _bare(bundle, checkpoint, inputs, missing, stack, say)
        missing["TensorRT in process"] = _no_tensorrt()
        options = repository_options.split()
        served, chosen = _served(bundle, urls, options, inputs, missing, stack, say)
        ways |= served
        found = run(ways, order, rounds, say)
        image_ms = decode_image_ms(inputs)
        paths = {name: one.to_dict(order, expressions, image_ms) for name, one in found.items()}
    if chosen is not None:
        _split(paths, chosen)
    report: dict[str, Any] = {
        "benchmark": "latency",
        "machine": about,
        "data": data.name if data else "samples",
        "input": form if data else "samples",
        "inputs": len(expressions),
        "rounds": rounds,
        "served": vars(chosen) if chosen else None,
        "paths": paths,
        "missing": missing,
    }
    if output is not None:
        write_json(output, report, "figures")
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    for table in tables(paths):
        click.echo((table.markdown() if markdown else table.text()) + "\n")
    for name, reason in missing.items():
        click.echo(f"{name} is missing: {reason}")
    click.echo(f"{report['data']}, {len(expressions)} pictures, {rounds} rounds. {describe(about)}")


def _bare(
    bundle: Path,
    checkpoint: Path,
    inputs: list[bytes],
    missing: dict[str, str],
    stack: ExitStack,
    say: Any,
) -> dict[str, Way]:
    """The paths without a server, all with as many threads as there are CPUs."""
    threads = thread_count(0)
    specs: dict[str, Spec] = {"PyTorch eager": Spec(checkpoint, threads, None)}
    for target in TARGETS:
        specs[_bare_name(target)] = Spec(bundle, threads, Chosen(target, target, "fp32"))
    ways: dict[str, Way] = {}
    for name, spec in specs.items():
        say(f"Starting {name} ...")
        try:
            _check(spec)
            worker = stack.enter_context(Worker(spec, inputs))
            ways[name] = WorkerWay(worker)
        except HmerError as error:
            missing[name] = str(error)
    return ways


def _check(spec: Spec) -> None:
    """Raise the error of a path that cannot be taken, before a process is started for it."""
    if spec.chosen is None:
        load_bundle(spec.folder, CHECKPOINT)
    library = "torch" if spec.chosen is None else spec.chosen.target
    if find_spec(library) is None:
        raise MissingDependency(f"{library} is not installed.")


def _served(
    bundle: Path,
    urls: tuple[str, ...],
    options: list[str],
    inputs: list[bytes],
    missing: dict[str, str],
    stack: ExitStack,
    say: Any,
) -> tuple[dict[str, Way], Chosen | None]:
    """The paths through a server, and what it runs, where it is one that is started here."""
    load_s: float | None = None
    chosen: Chosen | None = None
    own: str | None = None
    if not urls:
        say("Starting a server ...")
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = assemble(bundle, work / "ours", *options)
        chosen = Chosen.of(repository)
        server = stack.enter_context(ServedProcess(repository))
        urls, load_s, own = (server.grpc, server.http), server.ready_s, server.metrics
    ways: dict[str, Way] = {}
    for url in urls:
        name = f"{SERVED}, {parse_url(url).scheme}"
        metrics: str | None = own or metrics_address(url)
        try:
            read_metrics(str(metrics))
        except (ServerUnavailable, MissingDependency) as error:
            metrics, missing[f"{name}: its own stages"] = None, str(error)
        way = ServedWay(url, inputs, load_s, metrics)
        stack.callback(way.close)
        ways[name] = way
    return ways, chosen


def _no_tensorrt() -> str:
    """Why TensorRT is not among the paths in process."""
    try:
        gpu = find_gpu()
    except ServerSetupError as error:
        return str(error)
    if gpu is None:
        return "There is no NVIDIA GPU."
    return (
        f"Engines for the {gpu.name} are served by Triton's image: give its addresses with --url."
    )


def _split(paths: dict[str, dict[str, Any]], chosen: Chosen) -> None:
    """Say of the served paths where their time goes, where the runtimes are there in process."""
    encoder = paths.get(_bare_name(chosen.target))
    step = paths.get(_bare_name(chosen.step_target))
    if encoder is None or step is None or chosen.precision != "fp32":
        return
    for name, path in paths.items():
        if name.startswith(SERVED):
            split_served(path, encoder, step)


def _bare_name(target: str) -> str:
    return f"{target} in process"
