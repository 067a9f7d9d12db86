"""``hmer-bench tune``."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.inputs import gather
from benchmarks.machine import describe, ended, machine
from benchmarks.options import PATH, input_options, result_options, weights_options, work_option
from benchmarks.output import check_folder, write_json
from benchmarks.repositories import code_hash
from benchmarks.tune_search import INTERRUPTED, Duel, Found, Log, Space, search
from benchmarks.tune_servers import Servers
from benchmarks.tune_space import (
    UNORDERED,
    Goal,
    K,
    applies,
    command,
    include,
    options_of,
    settings_of,
    space_of,
)
from export.config import AUTO, RepositoryOptions
from export.repository import assemble, check_output
from export.targets import candidates, choose, resolve
from hmer.bundle import BUNDLE_FILE, CHECKPOINT, GRAPHS, Bundle, load_bundle, sha256_of
from hmer.console import sentences
from hmer.encoding import BATCH_PIXELS
from hmer.errors import BundleError, ServerSetupError
from hmer.runtime import thread_count
from hmer.tables import Table


@click.command()
@weights_options
@click.option(
    "--bound",
    help="Most answers a second within this, such as p95=200ms.  [default: most answers a second]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    help="Requests under way, at most; with --bound it is measured at fewer, too.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="When to stop with the best that was found. Ctrl-C stops at once, in the same way.",
)
@click.option(
    "--repository",
    type=PATH,
    help="Write a repository with the best settings here, for hmer-serve.",
)
@click.option("--force", is_flag=True, help="Replace the repository found there.")
@click.option("--fresh", is_flag=True, help="Do not go on from an earlier search in --work.")
@work_option("hmer-tune")
@input_options
@result_options
@sentences
def tune(
    bundle: Path,
    checkpoint: Path,
    bound: str | None,
    concurrency: int,
    minutes: float,
    repository: Path | None,
    force: bool,
    fresh: bool,
    work: Path,
    data: Path | None,
    form: str,
    limit: int | None,
    output: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Find the settings of the server that suit this machine, and write a repository with them.

    Starts from what hmer-export repository --target auto would write. One setting after the other
    is changed (runtime, threads, encoder's workers, tokens a call, slots, threads of the step,
    pixels of a batch, queue delay) and measured beside the best so far, in turn, on the real
    server; it is kept if it wins 6 pairs before it loses 2. Run nothing else meanwhile. An
    interrupted search goes on where it was.

    \b
    Examples:
      hmer-bench tune --data train.jsonl.gz --repository tuned
      hmer-bench tune --bound p95=200ms --minutes 10 --repository tuned --force
      hmer-serve --repository tuned
    """
    goal = Goal.parse(bound)
    check_folder(output, "figures")
    if repository is not None:
        check_output(repository, force)
    loaded = load_bundle(bundle, GRAPHS)
    expressions = gather(data, form, limit or 24)
    about, cpus = machine(), thread_count(0)
    exports = _checkpoint(checkpoint, loaded)
    say("Measuring the runtimes ...")
    options = resolve(RepositoryOptions(target=AUTO), choose(loaded))
    start = settings_of(options, loaded.k, cpus, BATCH_PIXELS)
    space = include(_space(loaded, cpus, exports is not None), start)
    conditions = {
        "data": data.name if data else "samples",
        "input": form if data else "samples",
        "inputs": len(expressions),
    }
    key = {**conditions, "goal": goal.name, "most": concurrency, "code": code_hash()}
    log = _log(work, loaded, key, fresh)
    if log.duels:
        say(f"Going on after {len(log.duels)} duels in {work}.")
    end = time.monotonic() + minutes * 60
    with Servers(loaded, exports, expressions, goal, concurrency, work) as servers:
        found = search(
            space,
            start,
            servers.pairs,
            unordered=UNORDERED,
            applies=applies,
            expired=lambda: time.monotonic() >= end,
            log=log,
            on_duel=_tell,
        )
        score = _last_score(found, servers)
        chosen = servers.bundle_of(found.best)
    report: dict[str, Any] = {
        "benchmark": "tune",
        "machine": ended(about),
        **conditions,
        "goal": {"name": goal.name, "percentile": goal.percentile, "bound_ms": goal.bound_ms},
        "concurrency": concurrency,
        "space": {name: list(values) for name, values in space.items()},
        "start": start,
        "best": dict(found.best),
        "score": score,
        "ended": found.ended,
        "duels": [duel.to_dict() for duel in found.duels],
        "repository": str(repository) if repository else None,
        "command": command(found.best, str(chosen), str(repository or "repository")),
    }
    if repository is not None:
        assemble(chosen, repository, options_of(found.best), force=force)
    if output is not None:
        write_json(output, report, "figures")
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        for table in tables(report):
            click.echo((table.markdown() if markdown else table.text()) + "\n")
        click.echo(f"The search ended because {found.ended}.")
        click.echo(f"Assemble it: {shlex.join(report['command'])}")
        if repository is not None:
            click.echo(f"Serve it: hmer-serve --repository {repository}")
        click.echo(f"{report['data']}, {len(expressions)} inputs. {describe(about)}")
    if score is not None and not score["figures"].get("met", True):
        level = score["figures"]["levels"][0]
        raise ServerSetupError(
            f"No settings that were tried have {goal.percentile} <= {goal.bound_ms:g} ms on this "
            "machine, not even for one request at a time. The best that was found"
            f"{', and written,' if repository else ''} has "
            f"{level['latency_ms'][goal.percentile]:.0f} ms."
        )


def say(line: str) -> None:
    """On stderr: stdout is for the result."""
    click.echo(line, err=True)


def _space(bundle: Bundle, cpus: int, ks: bool) -> Space:
    runtimes = candidates(bundle)
    steps = list(dict.fromkeys(one.target for one in runtimes))
    return space_of(runtimes, steps, cpus, ks)


def _checkpoint(folder: Path, bundle: Bundle) -> Path | None:
    """The checkpoint, if graphs of other k can be exported from it here."""
    reason = ""
    if bundle.precision != "fp32":
        reason = f"{bundle.folder} is {bundle.precision}"
    elif importlib.util.find_spec("torch") is None:
        reason = "torch is not installed"
    else:
        try:
            load_bundle(folder, CHECKPOINT)
        except BundleError:
            reason = f"there is no checkpoint in {folder}"
    if reason:
        say(f"The tokens a call stay as they are: {reason}.")
    return None if reason else folder


def _log(work: Path, bundle: Bundle, conditions: Mapping[str, Any], fresh: bool) -> Log:
    """Of searches for the same goal, with the same weights, inputs and machine."""
    weights = sha256_of(bundle.file(BUNDLE_FILE))
    told = json.dumps([conditions, weights, machine()["cpu"], thread_count(0)], sort_keys=True)
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"duels-{hashlib.sha256(told.encode()).hexdigest()[:12]}.json"
    if fresh:
        path.unlink(missing_ok=True)
    return Log(path)


def _last_score(found: Found, servers: Servers) -> dict[str, Any] | None:
    """The best settings' own, as measured last; measured now if they never were, and there is
    time."""
    for duel in reversed(found.duels):
        for settings, place in ((duel.challenger, 1), (duel.incumbent, 0)):
            if settings == found.best and duel.pairs:
                return vars(duel.pairs[-1][place])
    return None if found.ended == INTERRUPTED else vars(servers.measure(found.best))


def _tell(duel: Duel) -> None:
    gain = "" if duel.gain is None else f", {100 * duel.gain:+.1f} %"
    verdict = "kept" if duel.kept else duel.reason or "not kept"
    say(
        f"{duel.changed}: {_shown(duel.incumbent[duel.changed])} -> "
        f"{_shown(duel.challenger[duel.changed])}: won {duel.wins} of {len(duel.pairs)}{gain}: "
        f"{verdict}"
    )


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Start beside best, and every duel."""
    names = [name for name in report["best"] if name in report["space"] or name == K]
    chosen = tuple(
        (name, _shown(report["start"][name]), _shown(report["best"][name])) for name in names
    )
    rows = []
    for found in report["duels"]:
        duel = Duel.from_dict(found)
        rows.append(
            (
                duel.changed,
                _shown(duel.incumbent[duel.changed]),
                _shown(duel.challenger[duel.changed]),
                f"{duel.wins} of {len(duel.pairs)}",
                "-" if duel.gain is None else f"{100 * duel.gain:+.1f}",
                "kept" if duel.kept else "cannot run" if duel.reason else "not kept",
            )
        )
    header = ("setting", "from", "to", "pairs won", "median gain %", "")
    goal = report["goal"]["name"]
    return [
        Table(f"Settings for the most {goal}", ("setting", "at first", "chosen"), chosen, 3),
        Table("What was tried", header, tuple(rows), 3),
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        target, precision, step = value
        return f"{target} {precision}, step {step}"
    return str(value)
