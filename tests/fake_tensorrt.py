"""A stand-in for the modules ``tensorrt`` and ``tensorrt_rtx`` that is strict about names.

``make("tensorrt-11.1.0")`` gives a module that has exactly the names which that version's
bindings have (``tests/tensorrt_api``): any other attribute that code reads or sets raises
``AttributeError``, as it would on a GPU machine. It parses real ONNX files for their inputs and
outputs; a "plan" is their description, which its runtime "runs" (``tests/fake_cuda.py``).
"""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx

API = Path(__file__).parent / "tensorrt_api"
VERSIONS = tuple(sorted(path.stem for path in API.glob("tensorrt-*.txt")))
RTX = "tensorrt_rtx-1.7.1"
DTYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FLOAT", "int64": "INT64"}
ENUMS = (
    *("DataType", "TensorIOMode", "BuilderFlag", "NetworkDefinitionCreationFlag"),
    *("MemoryPoolType", "HardwareCompatibilityLevel", "ComputeCapability"),
)


def names_of(version: str) -> dict[str, set[str]]:
    """Class (or "module") -> its public names in this version."""
    result = {}
    for line in (API / f"{version}.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kind, _, names = line.partition(": ")
            result[kind] = set(names.split())
    return result


class Strict:
    """An object of class ``_kind`` whose public attributes are those of ``_api`` alone."""

    _api: dict[str, set[str]]
    _kind: str

    def _check(self, name: str) -> None:
        if not name.startswith("_") and name not in type(self)._api[type(self)._kind]:
            raise AttributeError(f"{type(self)._kind} has no {name}")

    def __getattribute__(self, name: str) -> Any:
        object.__getattribute__(self, "_check")(name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._check(name)
        object.__setattr__(self, name, value)


class Member:
    """A member of an enum, equal to itself alone."""

    def __init__(self, name: str, value: int) -> None:
        self.name, self.value = name, value

    def __int__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return self.name


class Module(types.ModuleType):
    """The fake module; ``calls`` records what was done with it, ``plan_error`` makes it refuse."""

    def __init__(self, version: str) -> None:
        flavour, _, number = version.partition("-")
        super().__init__(flavour)
        self.__version__ = number
        self.__dict__["_names"] = names_of(version)
        self.__dict__["_calls"] = []
        self.__dict__["_plan_error"] = ""
        self.__dict__["_caches"] = []  # what create_timing_cache was given

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self._names["module"]:
            raise AttributeError(f"{self.__name__} has no {name}")
        super().__setattr__(name, value)


def make(version: str) -> Any:
    """The module ``version`` (the name of a file in ``tests/tensorrt_api``)."""
    trt = Module(version)
    api: dict[str, set[str]] = trt._names
    calls: list[tuple[Any, ...]] = trt._calls

    def strict(kind: str) -> type[Strict]:
        return type(kind, (Strict,), {"_api": api, "_kind": kind})

    def enum(kind: str) -> Any:
        return type(kind, (), {n: Member(n, i) for i, n in enumerate(sorted(api[kind]))})

    for kind in ENUMS:
        if kind in api:
            setattr(trt, kind, enum(kind))
    severity = type(
        "Severity", (), {n: Member(n, i) for i, n in enumerate(("INTERNAL_ERROR", "ERROR", "INFO"))}
    )

    class ILogger(Strict):
        _api, _kind = {**api, "ILogger": api["ILogger"] | {"errors"}}, "ILogger"
        Severity = severity

        def __init__(self) -> None:
            pass

    class Logger(ILogger):
        def __init__(self, least: Any = None) -> None:
            pass

    class Tensor(strict("ITensor")):  # type: ignore[misc]
        def __init__(self, value: Any, known: bool) -> None:
            kind = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
            self.name = value.name
            self.dtype = getattr(trt.DataType, DTYPES[dtype])
            self._dtype = dtype
            self._dims = [d.dim_param or d.dim_value for d in kind.shape.dim]
            # The builder does not always know sizes of outputs.
            self.shape = tuple(d if known and isinstance(d, int) else -1 for d in self._dims)

        def get_dimension_name(self, index: int) -> str | None:
            return self._dims[index] if isinstance(self._dims[index], str) else None

    class Network(strict("INetworkDefinition")):  # type: ignore[misc]
        def __init__(self) -> None:
            self._inputs: list[Any] = []
            self._outputs: list[Any] = []

        @property
        def num_inputs(self) -> int:
            return len(self._inputs)

        @property
        def num_outputs(self) -> int:
            return len(self._outputs)

        def get_input(self, index: int) -> Any:
            return self._inputs[index]

        def get_output(self, index: int) -> Any:
            return self._outputs[index]

    class Error(strict("ParserError")):  # type: ignore[misc]
        def desc(self) -> str:
            return "Failed to parse the ONNX model."

        def node_operator(self) -> str:
            return ""

    class Parser(strict("OnnxParser")):  # type: ignore[misc]
        num_errors = 1

        def __init__(self, network: Any, log: Any) -> None:
            self._network = network

        def parse(self, data: bytes) -> bool:
            try:
                graph = onnx.load_model_from_string(data).graph
            except Exception:
                return False
            self._network._inputs = [Tensor(value, True) for value in graph.input]
            self._network._outputs = [Tensor(value, False) for value in graph.output]
            return bool(graph.input)

        def get_error(self, index: int) -> Any:
            return Error()

    class Profile(strict("IOptimizationProfile")):  # type: ignore[misc]
        def __init__(self) -> None:
            self._shapes: dict[str, Any] = {}

        def set_shape(self, name: str, low: Any, usual: Any, high: Any) -> None:
            self._shapes[name] = [list(low), list(usual), list(high)]

    class Cache(strict("ITimingCache")):  # type: ignore[misc]
        def __init__(self, data: bytes) -> None:
            self._data = data

        def serialize(self) -> bytes:
            return self._data + b"+"

    class Config(strict("IBuilderConfig")):  # type: ignore[misc]
        num_compute_capabilities = 0
        hardware_compatibility_level = None

        def __init__(self) -> None:
            self._profiles: list[Any] = []
            self._cache: Any = None

        def set_memory_pool_limit(self, pool: Member, size: int) -> None:
            calls.append(("limit", pool.name, size))

        def add_optimization_profile(self, profile: Any) -> int:
            self._profiles.append(profile._shapes)
            return len(self._profiles) - 1

        def set_compute_capability(self, target: Member, index: int) -> None:
            assert index < self.num_compute_capabilities
            calls.append(("target", target.name))

        def set_flag(self, flag: Member) -> None:
            calls.append(("flag", flag.name))

        def create_timing_cache(self, data: bytes) -> Any:
            trt._caches.append(data)
            return Cache(data)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            if cache._data.startswith(b"stale"):
                return False
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

    class Builder(strict("Builder")):  # type: ignore[misc]
        def __init__(self, log: Any) -> None:
            self._log = log

        def create_network(self, flags: int) -> Any:
            calls.append(("network", flags))
            return Network()

        def create_builder_config(self) -> Any:
            return Config()

        def create_optimization_profile(self) -> Any:
            return Profile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            calls.append(("build", getattr(config.hardware_compatibility_level, "name", None)))
            if trt._plan_error:
                self._log.log(severity.ERROR, trt._plan_error)
                return None
            tensors = {
                kind: [[t.name, t._dtype, t._dims] for t in found]
                for kind, found in (("inputs", network._inputs), ("outputs", network._outputs))
            }
            return json.dumps({**tensors, "profiles": config._profiles}).encode()

    def nptype(dtype: Member) -> Any:
        return np.dtype({name: np_name for np_name, name in DTYPES.items()}[dtype.name]).type

    for name, value in (
        ("ILogger", ILogger), ("Logger", Logger), ("Builder", Builder), ("OnnxParser", Parser),
        ("nptype", nptype),
    ):  # fmt: skip
        setattr(trt, name, value)
    if not version.startswith("tensorrt_rtx"):
        from tests.fake_cuda import add_runtime

        add_runtime(trt, strict)
    return trt
