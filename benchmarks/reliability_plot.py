"""The reliability diagram as an SVG: how often answers of each confidence are right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmer.errors import BadParameter, MissingDependency
from hmer.score import wilson


def write_plot(path: Path, title: str, measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the bins of named measurements (``hmer.calibration.measure``) into the SVG ``path``.

    Bars are Wilson's 95 % intervals of the bins. Raises ``MissingDependency`` without
    matplotlib, ``BadParameter`` if ``path`` cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(
            "The reliability plot is drawn with matplotlib. Install it with: "
            "pip install 'hmer[report]'"
        ) from error
    # Equal figures give equal files: no date, no random ids.
    with matplotlib.rc_context({"svg.hashsalt": "hmer", "svg.fonttype": "none"}):
        figure = Figure(figsize=(5.6, 5.6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="calibrated")
        for name, found in measured.items():
            bins = found["reliability"]
            x = [part["confidence"] for part in bins]
            y = [part["accuracy"] for part in bins]
            bounds = [wilson(round(p["accuracy"] * p["n"]), p["n"]) for p in bins]
            errors = [
                [max(0.0, accuracy - low) for accuracy, (low, _) in zip(y, bounds, strict=True)],
                [max(0.0, high - accuracy) for accuracy, (_, high) in zip(y, bounds, strict=True)],
            ]
            label = f"{name} (ECE {found['ece_equal_mass'] * 100:.1f} %)"
            axes.errorbar(x, y, yerr=errors, marker="o", capsize=3, linewidth=1.5, label=label)
        axes.set(
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
            aspect="equal",
            xlabel="confidence (mean of a bin)",
            ylabel="share that is right",
            title=title,
        )
        axes.grid(alpha=0.25)
        axes.legend(loc="lower right", fontsize="small")
        try:
            figure.savefig(path, format="svg", metadata={"Date": None})
        except OSError as error:
            raise BadParameter(
                f"The plot cannot be written to {path}: {error.strerror}."
            ) from error
