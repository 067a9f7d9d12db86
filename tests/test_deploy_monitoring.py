"""Dashboard, alerts and autoscaler against what a running server really exports."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest

from model_repository.server import EmbeddedServer
from tests.deploy_tools import (
    ALERTS,
    DASHBOARD,
    DEPLOY,
    KUBERNETES,
    dashboard_queries,
    metric_names,
    rules,
    run,
    tool,
)
from tests.e2e_fixtures import Raw, picture


@pytest.fixture(scope="module")
def exported(server: EmbeddedServer) -> set[str]:
    """The names of the metrics on the server's page, after a request."""
    assert Raw(server).recognize([picture(0)], parameters={"max_tokens": 3})
    with urllib.request.urlopen(server.endpoints.metrics, timeout=5) as page:
        text = page.read().decode("utf-8")
    return set(re.findall(r"^([a-z_]+)[{ ]", text, re.MULTILINE))


def queries() -> dict[str, list[str]]:
    """Where PromQL stands -> the queries."""
    adapter = (KUBERNETES / "monitoring" / "prometheus-adapter.yaml").read_text("utf-8")
    return {
        "dashboard": dashboard_queries(),
        "alerts": [rule["expr"] for rule in rules()],
        "adapter": re.findall(r'__name__="(\w+)"', adapter),
    }


@pytest.mark.e2e
def test_every_metric_that_is_asked_for_is_exported(exported: set[str]) -> None:
    for place, texts in queries().items():
        asked = set().union(*map(metric_names, texts))
        assert asked, place
        assert asked <= exported, f"{place} asks for {sorted(asked - exported)}"


@pytest.mark.e2e
def test_every_metric_of_the_issue_is_exported(exported: set[str]) -> None:
    decode = (
        *("slots", "slots_in_use", "queue_length", "queue_seconds_bucket", "steps_total"),
        *("tokens_total", "wasted_total", "first_token_seconds_bucket", "rejected_total"),
        *("cancelled_total", "deadline_total", "failed_total"),
    )
    assert {f"hmer_decode_{name}" for name in decode} <= exported


@pytest.mark.e2e
def test_labels_of_queries_exist(server: EmbeddedServer, exported: set[str]) -> None:
    """Labels that Prometheus adds itself aside."""
    with urllib.request.urlopen(server.endpoints.metrics, timeout=5) as page:
        text = page.read().decode("utf-8")
    labels = set(re.findall(r'[{,](\w+)="', text))
    for query in [query for texts in queries().values() for query in texts]:
        asked = set(re.findall(r'[{,]\s*(\w+)\s*[=!]~?"', query))
        for group in re.findall(r"by \(([\w, ]+)\)", query):
            asked |= {name.strip() for name in group.split(",")}
        assert asked <= labels | {"job", "instance", "__name__"}, query


def test_a_wrong_name_would_be_seen() -> None:
    assert metric_names('rate(hmer_decode_stepz_total{model="hmer_x"}[5m])') == {
        "hmer_decode_stepz_total"
    }


def test_promtool_takes_the_rules_and_their_tests(tmp_path: Path) -> None:
    promtool = tool("promtool")
    assert run(promtool, "check", "rules", ALERTS).returncode == 0
    settings = DEPLOY / "prometheus" / "prometheus.yaml"
    assert run(promtool, "check", "config", settings).returncode == 0
    tests = DEPLOY / "prometheus" / "alerts_test.yaml"
    done = run(promtool, "test", "rules", tests)
    assert done.returncode == 0, done.stdout + done.stderr
    # And would fail for a rule that is a little different.
    text = ALERTS.read_text("utf-8")
    assert "> 0.05" in text
    (tmp_path / ALERTS.name).write_text(text.replace("> 0.05", "> 0.2"), "utf-8")
    (tmp_path / tests.name).write_text(tests.read_text("utf-8"), "utf-8")
    done = run(promtool, "test", "rules", tmp_path / tests.name)
    assert done.returncode != 0
    assert "HmerDeadlines" in done.stdout + done.stderr


def test_every_alert_is_tried_by_promtool() -> None:
    text = (DEPLOY / "prometheus" / "alerts_test.yaml").read_text("utf-8")
    healthy = text[: text.index("an idle server")]
    for rule in rules():
        name = rule["alert"]
        assert f"alertname: {name}" in healthy, f"{name}: silent on a healthy server?"
        fires = rf"alertname: {name}\n +exp_alerts:\n +- exp_labels"
        assert re.search(fires, text), f"{name}: when does it fire?"


def test_the_dashboards_queries_are_promql(tmp_path: Path) -> None:
    promtool = tool("promtool")
    records = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(dashboard_queries())
    ]
    assert len(records) > 30
    path = tmp_path / "panels.yaml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": records}]}), "utf-8")
    done = run(promtool, "check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
    records[0]["expr"] += ")"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": records}]}), "utf-8")
    assert run(promtool, "check", "rules", path).returncode != 0


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    cells = set()
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        own = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert max(x for x, _ in own) < 24
        assert not own & cells, f"{panel['title']} lies over another panel"
        cells |= own
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    for query in dashboard_queries():
        assert set(re.findall(r"\$(\w+)", query)) - {"__rate_interval"} <= names


def anchors(text: str) -> set[str]:
    """Of the headings of a Markdown page, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_alert_has_a_page_that_says_what_to_do() -> None:
    found = anchors((DEPLOY / "README.md").read_text("utf-8"))
    names = set()
    for rule in rules():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "deploy/README.md"
        assert anchor == rule["alert"].lower()
        assert anchor in found, f"deploy/README.md says nothing about {rule['alert']}"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        names.add(anchor)
    assert {anchor for anchor in found if re.fullmatch(r"hmer\w+", anchor)} == names
