"""How far encoder and step are from what the machine can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.graph_cost import graph_cost
from benchmarks.peaks import BF16, CONVOLUTION, FP32, Peak, bandwidth, best_seconds, peaks
from benchmarks.reference.padding import padded
from benchmarks.repositories import Chosen
from hmer import contract
from hmer.bundle import ENCODER_FILE, STEP_FILE, Bundle
from hmer.preprocess import load, to_batch
from hmer.runtime import Runner, open_runner, thread_count
from hmer.serving import DecodeParameters
from hmer.tables import Table

ROWS = (1, 4, 16)  # formulas that a step advances: one alone, a common load, all slots
AT = 4  # the batch at which the step is held against its limit
_PICTURES = 16
_BUDGET_S = 0.2

Feeds = dict[str, Any]


def measure(
    bundle: Bundle,
    chosen: Chosen,
    inputs: Sequence[bytes],
    *,
    budget: float = _BUDGET_S,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Peaks, costs and times, for JSON.

    The encoder runs with all CPUs, one picture of ``inputs`` at a time; the step with the threads
    that a repository gives it. ``gap``: measured by the time that the limit allows.
    """
    threads, step_threads = thread_count(0), DecodeParameters().threads or thread_count(0)
    say("  peaks of convolutions and products ...")
    found = peaks(threads, budget)
    memory = {str(n): bandwidth(n, budget=budget) for n in dict.fromkeys((step_threads, threads))}
    pictures = [to_batch([load(data, bundle.preprocess)]) for data in inputs[:_PICTURES]]
    feeds: list[Feeds] = [{contract.IMAGE.name: i, contract.SIZE.name: s} for i, s in pictures]
    precision = chosen.precision
    with open_runner(chosen.target, bundle.file(ENCODER_FILE), threads, precision) as encoder:
        say("  encoder ...")
        told = _encoder(bundle, encoder, feeds, found, budget)
        rows = [_row(encoder.infer(feed)) for feed in feeds]
    with open_runner(chosen.step_target, bundle.file(STEP_FILE), step_threads) as step:
        say("  step ...")
        stepped = _step(bundle, step, rows, memory[str(step_threads)], step_threads, budget)
    return {
        "peaks": [peak.to_dict() for peak in found],
        "bandwidth_gb_s": memory,
        "threads": {"encoder": threads, "step": step_threads},
        "runtime": vars(chosen),
        "encoder": told,
        "step": stepped,
    }


def best_peak(found: Sequence[Peak]) -> Peak:
    """The convolution's limit: in bf16 where that is faster than fp32, otherwise in fp32."""
    of = {peak.precision: peak for peak in found if peak.work == CONVOLUTION}
    candidates = [of[precision] for precision in (FP32, BF16) if precision in of]
    return max(candidates, key=lambda peak: peak.gflops)


def _encoder(
    bundle: Bundle, runner: Runner, feeds: Sequence[Feeds], found: Sequence[Peak], budget: float
) -> dict[str, Any]:
    peak = best_peak(found)
    images, total_flops, total_s = [], 0, 0.0
    for feed in feeds:
        cost = graph_cost(bundle.file(ENCODER_FILE), feed)
        seconds = best_seconds(lambda feed=feed: runner.infer(feed), budget)  # type: ignore[misc]
        height, width = feed[contract.IMAGE.name].shape[2:]
        images.append(
            {
                "height": height,
                "width": width,
                "ms": seconds * 1e3,
                "gflops_a_second": cost.total_flops / seconds / 1e9,
                **cost.to_dict(),
            }
        )
        total_flops += cost.total_flops
        total_s += seconds
    reached = total_flops / total_s / 1e9
    return {
        "images": images,
        "gflop": total_flops / len(feeds) / 1e9,
        "ms": total_s / len(feeds) * 1e3,
        "limit_ms": total_flops / len(feeds) / peak.gflops / 1e6,
        "gflops_a_second": reached,
        "gap": peak.gflops / reached,
        "against": f"{peak.gflops:.0f} GFLOP/s, 3x3 convolution in {peak.precision}, {peak.by}, "
        f"{peak.threads} threads",
    }


def _step(
    bundle: Bundle,
    runner: Runner,
    rows: Sequence[Feeds],
    memory: float,
    threads: int,
    budget: float,
) -> dict[str, Any]:
    batches, gap, cached = [], None, 0.0
    for count in ROWS:
        feeds = padded([rows[i % len(rows)] for i in range(count)])
        cost = graph_cost(bundle.file(STEP_FILE), feeds)
        seconds = best_seconds(lambda feeds=feeds: runner.infer(feeds), budget)  # type: ignore[misc]
        cached = cached or bandwidth(threads, max(cost.weights, 1 << 16), budget)
        weights_s = cost.weight_reads / memory / 1e9
        batches.append(
            {
                "rows": count,
                "positions": int(np.prod(feeds["coverage"].shape[1:])),
                "ms": seconds * 1e3,
                "weights_ms": weights_s * 1e3,
                "weights_cached_ms": cost.weight_reads / cached / 1e6,
                "features_ms": cost.in_out * bundle.k / memory / 1e6,
                "gap": seconds / weights_s,
                "gflops_a_second": cost.total_flops / seconds / 1e9,
                **cost.to_dict(),
            }
        )
        if count == AT:
            gap = seconds / weights_s
    return {
        "k": bundle.k,
        "batches": batches,
        "bandwidth_of_its_size_gb_s": cached,
        "gap": gap,
        "against": f"{memory:.1f} GB/s, {threads} threads; {AT} rows, {bundle.k} tokens a call",
    }


def intensity(part: Mapping[str, Any]) -> float:
    """Operations a byte of weights, inputs and outputs."""
    return float(part["total_flops"] / (part["weight_read_bytes"] + part["in_out_bytes"]))


def middle(images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The picture of median work."""
    return sorted(images, key=lambda image: image["total_flops"])[len(images) // 2]


def roofline_table(found: Mapping[str, Any]) -> Table:
    """Operations and bytes of encoder and step, and what of the attainable they reach.

    Attainable (Williams, Waterman and Patterson, "Roofline", 2009): the lower of the best peak of
    fp32 and what the memory's bandwidth allows at so many operations a byte.
    """
    peak = max(p["gflops"] for p in found["peaks"] if p["precision"] == FP32)
    step, threads = found["step"], found["threads"]
    image = middle(found["encoder"]["images"])
    parts = [(f"encoder, {image['height']} x {image['width']}", image, threads["encoder"])]
    for batch in step["batches"]:
        many = "s" * (batch["rows"] > 1)
        name = f"step, {batch['rows']} row{many}, k = {step['k']}"
        parts.append((name, batch, threads["step"]))
    rows = []
    for name, part, count in parts:
        memory = found["bandwidth_gb_s"][str(count)]
        able = min(peak * count / max(1, threads["encoder"]), memory * intensity(part))
        reached = part["gflops_a_second"]
        rows.append(
            (
                name,
                f"{part['total_flops'] / 1e6:.0f}",
                f"{(part['weight_read_bytes'] + part['in_out_bytes']) / 1e6:.1f}",
                f"{intensity(part):.1f}",
                f"{reached:.1f}",
                f"{able:.1f}",
                f"{100 * reached / able:.0f}",
            )
        )
    header = (*("part", "MFLOP", "MB", "FLOP/B", "GFLOP/s", "attainable GFLOP/s", "reached %"),)
    return Table("Roofline", header, tuple(rows))


def _row(outputs: Feeds) -> Feeds:
    """One picture's encoded features, cropped to its true size."""
    height, width = outputs["feature_size"][0].tolist()
    row = {name: outputs[name][0] for name in ("values", "keys", "feature_size", "state")}
    for name in ("values", "keys"):
        row[name] = row[name][:height, :width]
    return row


def tables(found: dict[str, Any]) -> list[Table]:
    """Peaks, then encoder and step beside their limits."""
    peak_rows = [
        (f"{p['work']} {p['precision']}", f"{p['threads']}", f"{p['gflops']:.0f} GFLOP/s", p["by"])
        for p in found["peaks"]
    ]
    peak_rows += [
        ("reading memory", threads, f"{value:.1f} GB/s", "dot product of 256 MB with itself")
        for threads, value in found["bandwidth_gb_s"].items()
    ]
    encoder, step = found["encoder"], found["step"]
    rows = [
        (
            "encoder, a picture",
            f"{encoder['gflop']:.2f} GFLOP",
            f"{encoder['ms']:.2f}",
            f"{encoder['limit_ms']:.2f}",
            f"{encoder['gap']:.2f}",
        )
    ]
    for batch in step["batches"]:
        rows.append(
            (
                f"step, {batch['rows']} rows of {batch['positions']} positions, k = {step['k']}",
                f"{batch['weight_read_bytes'] / 1e6:.1f} MB of weights",
                f"{batch['ms']:.2f}",
                f"{batch['weights_ms']:.2f}",
                f"{batch['gap']:.2f}",
            )
        )
    return [
        Table("What the machine does", ("work", "threads", "peak", "by"), tuple(peak_rows)),
        Table("Beside its limit", ("part", "needs", "ms", "limit ms", "times"), tuple(rows)),
    ]
