"""No use of a name that TensorRT 10 or 11, or TensorRT for RTX, does not have.

The names of every version were read from NVIDIA's own bindings (``tests/tensorrt_api``). Code is
searched by a convention: what holds an object of a library is called as in ``OBJECTS``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import fake_tensorrt

ROOT = Path(__file__).resolve().parent.parent
# In these files a variable or attribute of this name holds an object of this class.
OBJECTS = {
    "trt": "module",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "runtime": "Runtime",
}
BUILDS = ("export/tensorrt_api.py", "export/tensorrt_build.py", "export/tensorrt_cache.py")
RUNS = ("hmer/tensorrt_runtime.py",)
# `profile` and `config` are our own objects there, and never the library's.
OURS = {"hmer/tensorrt_runtime.py": {"profile", "config", "error"}}
DUNDER = {"__version__", "__name__"}


def uses(path: str) -> Iterator[tuple[str, str, int]]:
    """(class, name, line) of every attribute of a library's object in the file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr in DUNDER:
            continue
        holder = node.value
        if isinstance(holder, ast.Attribute) and isinstance(holder.value, ast.Name):
            if holder.value.id == "trt":  # trt.DataType.FLOAT
                if holder.attr not in DUNDER:
                    yield holder.attr, node.attr, node.lineno
                continue
            name = holder.attr.lstrip("_") if holder.value.id == "self" else ""
        else:
            name = holder.id if isinstance(holder, ast.Name) else ""
        if name in OBJECTS and name not in OURS.get(path, ()):
            yield OBJECTS[name], node.attr, node.lineno


def missing(path: str, version: str) -> list[str]:
    """The uses in ``path`` that ``version`` does not have."""
    api = fake_tensorrt.names_of(version)
    return [
        f"{path}:{line}: {kind}.{name}"
        for kind, name, line in uses(path)
        if name not in api.get(kind, set())
        and not (version.startswith("tensorrt-") and name in RTX_ONLY)
    ]


# Reached by `flavour == tensorrt_rtx` alone; tested below with the module that has them.
RTX_ONLY = {"num_compute_capabilities", "set_compute_capability", "ComputeCapability"}


@pytest.mark.parametrize("path", [*BUILDS, *RUNS])
@pytest.mark.parametrize("version", fake_tensorrt.VERSIONS)
def test_every_use_exists_in_every_version(path: str, version: str) -> None:
    assert missing(path, version) == []


@pytest.mark.parametrize("path", BUILDS)
def test_every_use_exists_in_tensorrt_for_rtx(path: str) -> None:
    assert missing(path, fake_tensorrt.RTX) == []


def test_the_search_finds_the_uses() -> None:
    found = {(kind, name) for path in (*BUILDS, *RUNS) for kind, name, _ in uses(path)}
    assert found >= {
        ("Builder", "build_serialized_network"),
        ("IBuilderConfig", "set_memory_pool_limit"),
        ("MemoryPoolType", "WORKSPACE"),
        ("IOptimizationProfile", "set_shape"),
        ("OnnxParser", "parse"),
        ("INetworkDefinition", "get_input"),
        ("ITimingCache", "serialize"),
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "create_execution_context"),
        ("IExecutionContext", "execute_async_v3"),
        ("module", "Builder"),
    }
    assert len(found) > 30


@pytest.mark.parametrize(
    ("version", "code"),
    [  # the traps of a move from 10 to 11, and of features younger than 10.0
        ("tensorrt-11.1.0", "builder.platform_has_fast_fp16"),
        ("tensorrt-11.4.0", "trt.BuilderFlag.FP16"),
        ("tensorrt-11.1.0", "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH"),
        ("tensorrt-11.1.0", "parser.supports_model(b'')"),
        ("tensorrt-11.1.0", "config.int8_calibrator"),
        ("tensorrt-10.0.1", "trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"),
    ],
)
def test_the_search_sees_what_is_gone(
    version: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module.py").write_text(code, encoding="utf-8")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert missing("module.py", version)


def test_the_stand_in_has_no_other_names() -> None:
    trt: Any = fake_tensorrt.make("tensorrt-11.1.0")
    builder = trt.Builder(None)
    with pytest.raises(AttributeError, match="Builder has no platform_has_fast_fp16"):
        _ = builder.platform_has_fast_fp16
    with pytest.raises(AttributeError):
        _ = trt.BuilderFlag.FP16
    assert fake_tensorrt.make("tensorrt-10.16.1").BuilderFlag.FP16.name == "FP16"
    config = builder.create_builder_config()
    with pytest.raises(AttributeError, match="IBuilderConfig has no int8_calibrator"):
        config.int8_calibrator = None
