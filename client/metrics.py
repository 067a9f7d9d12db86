"""A server's metrics page (Prometheus text format) -> figures, and a page for people."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from client.access import Access
from client.http_pool import Message, Pool
from client.transport import parse_url
from hmer.errors import BadParameter, ServerError
from hmer.tables import render_table

METRICS_PORT = 8002

_SAMPLE = re.compile(
    r"(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+\S+)?"
)
_LABEL = re.compile(r'(?P<name>[A-Za-z_]\w*)="(?P<value>(?:[^"\\]|\\.)*)"')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


@dataclass(frozen=True)
class Sample:
    """One line of the page."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Metrics:
    """All samples, and what each metric is, by its name."""

    samples: tuple[Sample, ...]
    help: Mapping[str, str]

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of a metric's samples with these labels; ``None`` if there is none."""
        wanted = labels.items()
        found = [s.value for s in self.samples if s.name == name and wanted <= s.labels.items()]
        return math.fsum(found) if found else None


def parse(text: str, url: str = "the page") -> Metrics:
    """Read a metrics page. Raises ``ServerError`` for one of something else."""
    samples, told = [], {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            _, _, name, *words = line.split(" ", 3)
            told[name] = " ".join(words)
        elif line.strip() and not line.startswith("#"):
            match = _SAMPLE.fullmatch(line.strip())
            try:
                value = float(match["value"]) if match else math.nan
            except ValueError:
                match = None
            if match is None:
                raise ServerError(
                    f"{url} is not a page of metrics ({line.strip()[:40]!r}). Give its address "
                    "with --metrics-url; it has a port of its own, by default 8002."
                )
            labels = {
                m["name"]: re.sub(r"\\.", lambda e: _ESCAPES.get(e[0], e[0]), m["value"])
                for m in _LABEL.finditer(match["labels"] or "")
            }
            samples.append(Sample(match["name"], labels, value))
    return Metrics(tuple(samples), told)


def read_metrics(
    server: str, url: str | None, access: Access, timeout: float
) -> tuple[Metrics, str]:
    """The metrics of ``server``, from ``url`` or from where they are by default; and that address.

    Headers are sent only to the server's own host: what lets one in there is nobody else's.
    Raises ``ServerError``.
    """
    own = parse_url(server)
    if url is None:
        address = replace(own, scheme="http", port=METRICS_PORT, path="/metrics")
    else:
        address = parse_url(url)
        if address.scheme not in ("http", "https"):
            raise BadParameter(f"The metrics page {url!r} is none of HTTP. Write http://HOST:PORT.")
        address = replace(address, path=address.path or "/metrics")
    trusted = access if address.host == own.host else replace(access, headers={})
    pool = Pool(replace(address, path=""), trusted)
    told = f"{pool.url}{address.path}"
    try:
        status, body = pool.exchange(Message("GET", address.path), timeout)
    finally:
        pool.close()
    if status != 200:
        raise ServerError(f"{told} has no metrics (HTTP {status}). Give --metrics-url.")
    return parse(body.decode("utf-8", errors="replace"), told), told


def render(metrics: Metrics) -> str:
    """The page: what each model did, what the project's own models count, and the machine."""
    parts = [("Models", _models(metrics)), ("Recognition", _own(metrics))]
    parts += [("Machine", _machine(metrics))]
    shown = [f"{title}\n{text}" for title, text in parts if text]
    return "\n\n".join(shown) or "The server publishes no figures."


def _models(metrics: Metrics) -> str:
    names = sorted({(s.labels["model"], s.labels.get("version", "")) for s in _triton(metrics)})
    rows = []
    for model, version in names:
        only = {"model": model, "version": version} if version else {"model": model}
        good = metrics.value("nv_inference_request_success", **only) or 0.0
        bad = metrics.value("nv_inference_request_failure", **only) or 0.0
        count = metrics.value("nv_inference_count", **only) or 0.0
        runs = metrics.value("nv_inference_exec_count", **only) or 0.0
        times = [
            metrics.value(f"nv_inference_{stage}_duration_us", **only)
            for stage in ("request", "queue", "compute_infer")
        ]
        waiting = metrics.value("nv_inference_pending_request_count", **only)
        rows.append(
            (
                model,
                version,
                _number(good),
                _number(bad),
                _number(waiting),
                _number(count / runs if runs else None),
                # Triton's durations are sums over the requests that succeeded.
                *(_number(t / good / 1e3 if t is not None and good else None) for t in times),
            )
        )
    titles = ("model", "version", "answered", "failed", "waiting", "mean batch")
    times_titles = ("mean ms", "in queue", "computing")
    return render_table((*titles, *times_titles), rows, right=range(2, 9)) if rows else ""


def _triton(metrics: Metrics) -> Iterable[Sample]:
    return (s for s in metrics.samples if s.name.startswith("nv_inference") and "model" in s.labels)


def _own(metrics: Metrics) -> str:
    """What this project's models count, in the words that it comes with; a column for each model.

    Of a histogram there is the mean.
    """
    values: dict[str, dict[str, str]] = {}
    for sample in metrics.samples:
        name, model = sample.name, sample.labels.get("model", "")
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        only = {"model": model} if model else {}
        if not name.startswith("hmer_"):
            continue
        if metrics.value(f"{base}_count", **only) is None or name == base:
            words, text = _told(metrics, sample, name), _number(sample.value)
        elif name == f"{base}_sum":
            words = _told(metrics, sample, base, name) + ", mean"
            text = _mean(sample.value, metrics.value(f"{base}_count", **sample.labels))
        else:
            continue
        values.setdefault(words, {})[model] = text
    for words, top, bottom in (
        ("formulas a step, mean", "hmer_decode_rows_total", "hmer_decode_steps_total"),
        ("tokens wasted for each decoded", "hmer_decode_wasted_total", "hmer_decode_tokens_total"),
    ):
        for sample in (s for s in metrics.samples if s.name == top):
            share = _mean(sample.value, metrics.value(bottom, **sample.labels))
            values.setdefault(words, {})[sample.labels.get("model", "")] = share
    models = sorted({model for row in values.values() for model in row})
    rows = [(words, *(row.get(model, "") for model in models)) for words, row in values.items()]
    titles = ("figure", *(model or "value" for model in models))
    return render_table(titles, rows, right=range(1, len(titles))) if rows else ""


def _told(metrics: Metrics, sample: Sample, *names: str) -> str:
    """The first of ``names`` that comes with words, its unit, and labels that set it apart."""
    words = next((metrics.help[name] for name in names if metrics.help.get(name)), names[0])
    unit = ", seconds" if "_seconds" in names[0] and "second" not in words else ""
    labels = ", ".join(
        f"{key} {value}"
        for key, value in sorted(sample.labels.items())
        if key not in ("model", "version")
    )
    return f"{words}{unit} ({labels})" if labels else words + unit


def _machine(metrics: Metrics) -> str:
    rows = []
    processor = metrics.value("nv_cpu_utilization")
    if processor is not None:
        rows.append(("CPU in use", f"{100 * processor:.0f} %"))
    for title, kind in (("memory", "cpu_memory"), ("GPU memory", "gpu_memory")):
        used = metrics.value(f"nv_{kind}_used_bytes")
        total = metrics.value(f"nv_{kind}_total_bytes")
        if used is not None and total:
            rows.append((title, f"{used / 1e9:.1f} of {total / 1e9:.1f} GB"))
    load = metrics.value("nv_gpu_utilization")
    if load is not None:
        rows.append(("GPU in use", f"{100 * load:.0f} %"))
    return render_table(("figure", "value"), rows, right={1}) if rows else ""


def _mean(total: float, count: float | None) -> str:
    return _number(total / count if count else None)


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.0f}" if value == round(value) else f"{value:.3g}"
