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
from benchmarks.latency import Way, WorkerWay, decode_image_ms, notes, run, tables
from benchmarks.latency_served import ServedWay, split_served
from benchmarks.machine import describe, ended, machine, remarks
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
        repository, chosen = None, None
        if not urls:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            repository = assemble(bundle, work / "ours", *repository_options.split())
            chosen = Chosen.of(repository)
        ways = _bare(bundle, checkpoint, chosen, inputs, missing, stack, say)
        missing["TensorRT in process"] = _no_tensorrt()
        ways |= _served(repository, urls, inputs, missing, stack, say)
        found = run(ways, order, rounds, say)
        image_ms = decode_image_ms(inputs)
        paths = {name: one.to_dict(order, expressions, image_ms) for name, one in found.items()}
    if chosen is not None:
        _split(paths, chosen)
    elif urls:
        missing["encoder of a served path"] = (
            "What a server at --url runs is not known. Without --url one is started and split."
        )
    report: dict[str, Any] = {
        "benchmark": "latency",
        "machine": ended(about),
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
    for line in [*notes(paths), *remarks(report["machine"])]:
        click.echo(line)
    click.echo(f"{report['data']}, {len(expressions)} pictures, {rounds} rounds. {describe(about)}")


def _bare(
    bundle: Path,
    checkpoint: Path,
    served: Chosen | None,
    inputs: list[bytes],
    missing: dict[str, str],
    stack: ExitStack,
    say: Any,
) -> dict[str, Way]:
    """The paths without a server, all with as many threads as there are CPUs.

    What is ``served`` is among them, so that its parts are known.
    """
    threads = thread_count(0)
    specs: dict[str, Spec] = {"PyTorch eager": Spec(checkpoint, threads, None)}
    for target in TARGETS:
        specs[_bare_name(target)] = Spec(bundle, threads, Chosen(target, target, "fp32"))
    if served is not None and _as_served(served) not in specs:
        specs[_as_served(served)] = Spec(bundle, threads, served)
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
    repository: Path | None,
    urls: tuple[str, ...],
    inputs: list[bytes],
    missing: dict[str, str],
    stack: ExitStack,
    say: Any,
) -> dict[str, Way]:
    """The paths through a server: one over ``repository``, or those at ``urls``."""
    load_s: float | None = None
    own: str | None = None
    if repository is not None:
        say("Starting a server ...")
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
    return ways


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
    """Say of the served paths where their time goes, if what they run is there in process."""
    same = paths.get(_as_served(chosen))
    if same is None:
        return
    for name, path in paths.items():
        if name.startswith(SERVED):
            split_served(path, same, same)


def _bare_name(target: str) -> str:
    return f"{target} in process"


def _as_served(chosen: Chosen) -> str:
    """The name of the path in process that runs what is ``chosen`` for a server."""
    if chosen == Chosen(chosen.target, chosen.target, "fp32"):
        return _bare_name(chosen.target)
    step = "" if chosen.step_target == chosen.target else f", step {chosen.step_target}"
    return f"{_bare_name(chosen.target)}, {chosen.precision}{step}"
