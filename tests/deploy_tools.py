"""Where the tools are that check ``deploy/``, and the files that they check."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "hmer.json"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("cpu", "gpu")
# Where `sh deploy/tools.sh` puts them, besides the PATH.
TOOLS = Path(os.environ.get("HMER_TOOLS", ROOT / ".venv" / "tools"))


def tool(name: str) -> str:
    """The program ``name``, or a skip with how to get it."""
    for folder in (TOOLS / "usr/bin", TOOLS / "usr/sbin", Path(sys.executable).parent):
        if (folder / name).is_file():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; sh deploy/tools.sh .venv/tools, or make test")
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool and keep what it says."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=120, check=False
    )


def documents(text: str) -> list[dict[str, Any]]:
    """The documents of a YAML text."""
    yaml = pytest.importorskip("yaml")
    return [document for document in yaml.safe_load_all(text) if document]


def rules() -> list[dict[str, Any]]:
    """The alerts."""
    (document,) = documents(ALERTS.read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard_queries() -> list[str]:
    """Every query of the dashboard's panels."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def metric_names(query: str) -> set[str]:
    """The server's metrics in a PromQL query."""
    return set(re.findall(r"\b(?:hmer|nv)_[a-z0-9_]+", re.sub(r'"[^"]*"', '""', query)))


@functools.cache
def built(overlay: str) -> list[dict[str, Any]]:
    """What ``kubectl apply -k`` would send for an overlay."""
    if shutil.which("kustomize"):
        done = run(tool("kustomize"), "build", KUBERNETES / overlay)
    else:
        done = run(tool("kubectl"), "kustomize", KUBERNETES / overlay)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)
