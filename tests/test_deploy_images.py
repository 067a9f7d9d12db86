"""The images and compose files: linted, pinned, locked, and without torch."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from export.repository import _REQUIREMENTS
from hmer.engine_images import BUILDER, IMAGES, TRITON
from tests.deploy_tools import DEPLOY, ROOT, documents, run, tool

DOCKERFILES = ("cpu.Dockerfile", "gpu.Dockerfile")
LOCKS = ("cpu", "gpu", "builder", "build")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint(name: str, tmp_path: Path) -> None:
    done = run(tool("hadolint"), DEPLOY / name)
    assert (done.returncode, done.stdout) == (0, "")
    broken = tmp_path / name
    broken.write_text((DEPLOY / name).read_text("utf-8") + "RUN cd /tmp\n", "utf-8")
    assert "DL3003" in run(tool("hadolint"), broken).stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_run_as_nobody_and_say_how_they_are(name: str) -> None:
    text = (DEPLOY / name).read_text("utf-8")
    last = text[text.rindex("\nFROM ") :]
    assert "\nUSER 10001:10001\n" in last
    assert "\nHEALTHCHECK " in last
    assert last.index("USER ") < last.index("ENTRYPOINT ")
    for source in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", text, re.MULTILINE):
        for path in source.split():
            assert (ROOT / path).exists(), path
            assert f"!{path.split('/')[0]}" in (DEPLOY / f"{name}.dockerignore").read_text("utf-8")


def test_the_gpu_images_are_those_of_the_table() -> None:
    text = (DEPLOY / "gpu.Dockerfile").read_text("utf-8")
    (tag,) = re.findall(r"^ARG TAG=(.+)$", text, re.MULTILINE)
    assert tag in {image.tag for image in IMAGES}, "not a tag whose TensorRT is known"
    bases = re.findall(r"^FROM (\S+) AS (\w+)$", text, re.MULTILINE)
    assert bases == [(f"{BUILDER}:${{TAG}}", "builder"), (f"{TRITON}:${{TAG}}", "server")]
    assert text.count(f"HMER_IMAGE={TRITON}:${{TAG}}") == 2


# -- what they install


def locked(name: str) -> dict[str, list[str]]:
    """Package -> versions (one for every range of Python)."""
    text = (DEPLOY / "requirements" / f"{name}.txt").read_text("utf-8")
    found: dict[str, list[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE):
        found.setdefault(package.lower(), []).append(version)
    return found


def wanted(name: str) -> list[str]:
    """The requirements that a lock was made from."""
    if name != "cpu":
        lines = (DEPLOY / "requirements" / f"{name}.in").read_text("utf-8").splitlines()
        return [line for line in lines if line and not line.startswith("#")]
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", "utf-8")
    extras = parser["options.extras_require"]
    texts = [parser["options"]["install_requires"], extras["serve"], extras["tracing"]]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", LOCKS)
def test_locks_have_hashes_and_fit(name: str) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    text = (DEPLOY / "requirements" / f"{name}.txt").read_text("utf-8")
    assert "://" not in text, "a lock names no index"
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)
    for entry in filter(str.strip, entries):
        assert "--hash=sha256:" in entry, entry
    versions = locked(name)
    for line in wanted(name):
        requirement = requirements.Requirement(line)
        for version in versions[requirement.name.lower()]:
            assert version in requirement.specifier, line


def test_no_torch_is_served() -> None:
    for name in LOCKS:
        assert not {"torch", "torchvision", "triton"} & locked(name).keys()
    assert all(version.startswith("1.") for version in locked("cpu")["numpy"])


def test_the_gpu_image_has_what_the_models_import() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    versions = locked("gpu")
    for line in _REQUIREMENTS:
        requirement = requirements.Requirement(line)
        assert all(v in requirement.specifier for v in versions[requirement.name.lower()])


# -- compose


def compose(*names: str) -> dict[str, Any]:
    """The services of compose files, the later ones over the earlier."""
    services: dict[str, Any] = {}
    for name in names:
        (document,) = documents((DEPLOY / name).read_text("utf-8"))
        for service, values in document["services"].items():
            services[service] = services.get(service, {}) | values
    return services


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_are_of_the_specification(name: str) -> None:
    compose_spec = pytest.importorskip("compose_spec")
    text = (DEPLOY / name).read_text("utf-8")
    parsed = compose_spec.PyCompose.from_yaml(text)
    parsed.validate()
    assert set(parsed.service_names()) == compose(name).keys()
    with pytest.raises(Exception, match="shm_syze"):
        compose_spec.PyCompose.from_yaml(text.replace("cap_drop", "shm_syze", 1))


def test_compose_listens_on_loopback_and_is_hardened() -> None:
    services = compose("compose.yaml", "compose.gpu.yaml")
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert name == "grafana" or service["read_only"] is True
        assert not service["image"].endswith(":latest")
        assert ":" in service["image"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), port
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).is_dir(), source
        if "build" in service:
            build = service["build"]
            assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


# -- engines before the first start

FAKE_PYTHON = """#!/bin/sh
# Stands in for python3: writes what the commands would, and notes them.
echo "$@" >>"$LOG"
case "$2 $3" in
"model_repository.container "*) grep -q fits "$3/engines" 2>/dev/null ;;
"export.cli engine") [ "$FAIL" != yes ] && mkdir -p "$6" && echo plan >"$6/encoder.plan" ;;
"export.cli repository") mkdir -p "${12}" && echo fits >"${12}/engines" ;;
esac
"""


def test_engines_are_built_once_and_again_when_they_do_not_fit(tmp_path: Path) -> None:
    python, log, served = tmp_path / "python", tmp_path / "log", tmp_path / "served"
    python.write_text(FAKE_PYTHON, "utf-8")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    served.mkdir()
    (bundle / "bundle.json").write_text("{}", "utf-8")

    def build(fail: str = "no") -> tuple[int, int]:
        log.write_text("", "utf-8")
        done = subprocess.run(
            ["sh", DEPLOY / "build_engines.sh", bundle, served],
            env={**os.environ, "PYTHON": str(python), "LOG": str(log), "FAIL": fail},
            capture_output=True,
            timeout=20,
            check=False,
        )
        return done.returncode, log.read_text("utf-8").count("export.cli engine")

    assert build() == (0, 1)
    assert build() == (0, 0)
    (served / "repository" / "engines").write_text("another GPU", "utf-8")
    assert build() == (0, 1)
    (bundle / "bundle.json").write_text('{"new": 1}', "utf-8")
    assert build(fail="yes")[0] != 0
    assert build() == (0, 1)
    assert build() == (0, 0)


@pytest.mark.parametrize("name", ["build_engines.sh", "audit.sh", "lock.sh", "tools.sh"])
def test_the_scripts_are_shell(name: str) -> None:
    assert run("sh", "-n", DEPLOY / name).returncode == 0


def test_the_audit_fails_without_its_tool(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = run("sh", DEPLOY / "audit.sh", tmp_path / "bin")
    assert done.returncode == 1
    assert done.stderr.startswith("error: pip-audit is not in ")
    pip_audit = tmp_path / "bin" / "pip-audit"
    pip_audit.write_text("#!/bin/sh\necho no network >&2\nexit 1\n", "utf-8")
    pip_audit.chmod(0o755)
    done = run("sh", DEPLOY / "audit.sh", tmp_path / "bin")
    assert done.returncode == 1
    assert "could not be asked" in done.stderr
    shutil.rmtree(tmp_path / "bin")
