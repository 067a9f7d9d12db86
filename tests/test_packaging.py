"""The shape of the project: import arrows, what a wheel holds, what serving must not need."""

from __future__ import annotations

import ast
import configparser
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARROWS = {
    "hmer": set(),
    "training": {"hmer"},
    "client": {"hmer"},
    "model_repository": {"hmer"},
    "export": {"hmer", "training"},
    "benchmarks": {"hmer", "export", "client", "training"},
}
TORCH_FREE = ("hmer", "client", "model_repository")


def sources(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The top-level names that a file imports anywhere, relative imports left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", ARROWS)
def test_import_arrows(package: str) -> None:
    assert sources(package)
    allowed = ARROWS[package] | {package}
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in sources(package)
        for name in imports(path)
        if name in ARROWS and name not in allowed
    }
    assert found == set()


@pytest.mark.parametrize("package", TORCH_FREE)
def test_torch_stays_out(package: str) -> None:
    assert not [str(path) for path in sources(package) if "torch" in set(imports(path))]


@pytest.mark.parametrize(
    "module", ["hmer.recognizer", "client.cli", "model_repository.serve", "export.repository_cli"]
)
def test_serving_commands_load_without_torch(module: str) -> None:
    code = (
        f"import importlib, sys\nsys.modules['torch'] = None\nimportlib.import_module({module!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_only_training_and_export_install_torch() -> None:
    extras = setup_cfg()["options.extras_require"]
    with_torch = {name for name, needs in extras.items() if "torch" in needs}
    assert with_torch == {"train", "export"}
    assert "torch" not in setup_cfg()["options"]["install_requires"]


def test_every_command_has_its_entry_point() -> None:
    scripts = setup_cfg()["options.entry_points"]["console_scripts"]
    for line in filter(None, scripts.splitlines()):
        name, _, target = line.partition("=")
        module, _, function = target.strip().partition(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in defined, name
    assert scripts.count("hmer-") == 5


def test_wheel_holds_code_weights_and_samples(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy: building writes beside the sources
    source.mkdir()
    for package in ARROWS:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    call = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*call, "--wheel-dir", str(tmp_path), "."], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("hmer-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {str(p.relative_to(ROOT)) for package in ARROWS for p in sources(package)}
    for folder in ("hmer/pretrained", "training/pretrained", "client/samples"):
        files = [p for p in (ROOT / folder).rglob("*") if p.is_file()]
        assert files, folder
        expected |= {str(p.relative_to(ROOT)) for p in files if "__pycache__" not in p.parts}
    assert expected <= names, sorted(expected - names)
    assert not [name for name in names if name.startswith(("tests/", "deploy/"))]


def test_no_file_is_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in ARROWS
        for path in sources(package)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 320
    }
    assert long == {}
