"""ONNX -> TensorRT plan and sidecar, by ``tensorrt`` 10.x or 11.x, or ``tensorrt_rtx``.

::

    load the library -> one logger for the process -> parse -> compare types and named axes with
        the contract -> check the profiles -> configure -> build -> plan and sidecar

Precision lives in the graph: the network is strongly typed, and no precision flag is ever set.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from export.tensorrt_api import Module, logger, member, message, strongly_typed
from export.tensorrt_cache import TimingCache
from export.tensorrt_profiles import check_profile, profiles, shapes
from hmer import __version__, contract
from hmer.bundle import Bundle
from hmer.contract import CONTRACT_VERSION, ModelSpec
from hmer.engine import (
    PLAN_SUFFIX,
    TENSORRT,
    TENSORRT_RTX,
    EngineInfo,
    EngineProfile,
    EngineTensor,
    tensors_of,
    write_sidecar,
)
from hmer.errors import BadParameter, ExportError
from hmer.gpu import Gpu
from hmer.serving import MAX_ROWS

# The oldest GPU whose units compute in a precision, as TensorRT 10 and 11 support them.
NEEDS = {"fp32": (7, 5), "fp16": (7, 5), "bf16": (8, 0), "int8": (7, 5)}


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built.

    ``max_batch``: rows, one of ``hmer.slots.LADDER``. ``workspace_gib``: memory that kernels may
    use beside tensors. ``version_compatible``: later versions of TensorRT load the plan too.
    ``hardware_compatible``: GPUs of other compute capabilities from 8.0 on load it too.
    ``targets``: compute capabilities like "8.9", for TensorRT for RTX only.
    """

    flavour: str = TENSORRT
    max_batch: int = MAX_ROWS
    workspace_gib: float = 2.0
    version_compatible: bool = False
    hardware_compatible: bool = False
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rtx = self.flavour == TENSORRT_RTX
        if self.workspace_gib <= 0:
            raise BadParameter(f"The workspace is {self.workspace_gib} GiB; it must be positive.")
        if rtx and (self.version_compatible or self.hardware_compatible):
            raise BadParameter(
                "TensorRT for RTX has no version or hardware compatible plans; name the GPUs with "
                "--compute-capability instead."
            )
        if rtx and not self.targets:
            raise BadParameter(
                "TensorRT for RTX needs --compute-capability, for example 8.9; it may be repeated."
            )
        if not rtx and self.targets:
            raise BadParameter(
                "--compute-capability is for --flavour tensorrt_rtx; TensorRT builds for the GPU "
                "that it runs on."
            )

    @property
    def sm_names(self) -> tuple[str, ...]:
        """``targets`` as the library names them: SM89."""
        return tuple("SM" + target.replace(".", "") for target in self.targets)


@dataclass(frozen=True)
class Plan:
    """A built engine, in memory."""

    data: bytes
    info: EngineInfo


def check_gpu(precision: str, gpu: Gpu) -> None:
    """Refuse a GPU that is too old for ``precision``. Raises ``ExportError``."""
    needed = NEEDS[precision]
    if gpu.capability < needed:
        fitting = [name for name, least in NEEDS.items() if gpu.capability >= least]
        raise ExportError(
            f"{gpu.name} has compute capability {gpu.compute_capability}, and {precision} needs "
            f"{needed[0]}.{needed[1]} or later. "
            + (
                f"Export in another precision ({', '.join(fitting)})."
                if fitting
                else "TensorRT no longer supports it."
            )
        )


def build_plan(
    trt: Module,
    bundle: Bundle,
    graph: str,
    options: EngineOptions,
    gpu: Gpu | None,
    cache: Path | None = None,
) -> Plan:
    """Build the engine of ``bundle``'s model ``graph`` (its name in the contract).

    ``gpu`` is the one at hand (``None`` only for TensorRT for RTX), ``cache`` the folder of
    timing caches. Raises ``ExportError`` with TensorRT's own words where it refuses.
    """
    spec = contract.models(bundle.sizes)[graph]
    chosen = profiles(spec, bundle.sizes, bundle.preprocess, options.max_batch)
    data = bundle.file(f"{graph}.onnx").read_bytes()
    began = time.perf_counter()
    log = logger(trt)
    log.errors()
    try:
        builder = trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # what the bindings make of a null pointer
        reason = message([*log.errors(), str(error)])
        raise ExportError(
            f"{trt.__name__} {trt.__version__} cannot start: {reason}. "
            "Is the driver new enough for it? nvidia-smi tells the driver's version."
        ) from error
    # The parser points into the network, which it does not keep alive, and owns the weights that
    # the network points to: both live until the plan is there.
    network = builder.create_network(strongly_typed(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(data):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [f"{error.node_operator()} {error.desc()}".strip() for error in errors]
        raise ExportError(
            f"{trt.__name__} {trt.__version__} refuses {graph}.onnx: {message(reasons)}. Is it "
            "this project's graph? hmer-export onnx writes those."
        )
    check_network(trt, network, spec)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(
        trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * (1 << 30))
    )
    for chosen_profile in chosen:
        check_profile(chosen_profile, spec, bundle.sizes)
        if _add_profile(builder, config, chosen_profile, spec) < 0:
            raise ExportError(
                f"{trt.__name__} refuses the profile {chosen_profile.name} of {graph}: "
                f"{message(log.errors())}."
            )
    timing = _configure(trt, config, options, gpu, cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(
            f"{trt.__name__} {trt.__version__} cannot build {graph} in {bundle.precision} for "
            f"{', '.join(options.sm_names) or (gpu.name if gpu else 'this GPU')}: "
            f"{message(log.errors())}."
        )
    content = bytes(plan)
    if timing is not None:
        timing.save(config)
    seconds = round(time.perf_counter() - began, 3)
    info = _describe(str(trt.__version__), bundle, graph, options, gpu, data, content)
    return Plan(content, replace(info, profiles=chosen, seconds=seconds))


def write_plan(plan: Plan, folder: Path) -> Path:
    """Write plan and sidecar to ``folder``; returns the plan's path."""
    path = folder / f"{plan.info.graph}{PLAN_SUFFIX}"
    path.write_bytes(plan.data)
    write_sidecar(path, plan.info)
    return path


def check_network(trt: Module, network: Any, spec: ModelSpec) -> None:
    """Compare the parsed network with the contract: names, dtypes, axes and their names.

    Raises ``ExportError``: the graph is not ours, or lost something on its way.
    """
    found_inputs = [network.get_input(index) for index in range(network.num_inputs)]
    found_outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for kind, found, wanted in zip(
        ("input", "output"), (found_inputs, found_outputs), tensors_of(spec), strict=True
    ):
        names = [tensor.name for tensor in found]
        if names != [tensor.name for tensor in wanted]:
            raise ExportError(
                f"{spec.name}.onnx has the {kind}s {', '.join(names)}, but the contract asks for "
                f"{', '.join(tensor.name for tensor in wanted)}. It is not this project's graph."
            )
        for tensor, expected in zip(found, wanted, strict=True):
            _check_tensor(trt, tensor, expected, kind, spec.name)


def _check_tensor(trt: Module, tensor: Any, expected: EngineTensor, kind: str, graph: str) -> None:
    dtypes = {
        "uint8": trt.DataType.UINT8,
        "int32": trt.DataType.INT32,
        "float32": trt.DataType.FLOAT,
    }
    where = f"The {kind} {expected.name} of {graph}"
    if tensor.dtype != dtypes[expected.dtype]:
        raise ExportError(f"{where} is {tensor.dtype}, but the contract asks for {expected.dtype}.")
    dims = tuple(tensor.shape)
    fixed = tuple(-1 if isinstance(dim, str) else dim for dim in expected.dims)
    # Sizes of outputs may be known only at run time.
    if len(dims) != len(fixed) or any(
        size not in (wanted, -1) or (kind == "input" and size != wanted)
        for size, wanted in zip(dims, fixed, strict=True)
    ):
        raise ExportError(f"{where} has the shape {dims}, but the contract asks for {fixed}.")
    if kind == "input":
        named = {i: dim for i, dim in enumerate(expected.dims) if isinstance(dim, str)}
        found = {index: tensor.get_dimension_name(index) for index in named}
        if found != named:
            raise ExportError(
                f"{where} has the axes {found}, but the contract names them {named}: sizes that "
                "must agree could differ."
            )


def _configure(
    trt: Module, config: Any, options: EngineOptions, gpu: Gpu | None, cache: Path | None
) -> TimingCache | None:
    """What differs between the libraries. Returns the timing cache, to be kept and saved."""
    if options.flavour == TENSORRT_RTX:
        config.num_compute_capabilities = len(options.sm_names)
        for index, name in enumerate(options.sm_names):
            target = member(trt.ComputeCapability, name, trt, f"build for {name}")
            config.set_compute_capability(target, index)
        return None
    if options.version_compatible:
        config.set_flag(
            member(trt.BuilderFlag, "VERSION_COMPATIBLE", trt, "build version-compatible plans")
        )
    if options.hardware_compatible:
        config.hardware_compatibility_level = member(
            trt.HardwareCompatibilityLevel, "AMPERE_PLUS", trt, "build for other GPUs"
        )
    if gpu is None:
        raise ExportError("Building an engine with TensorRT needs an NVIDIA GPU.")
    timing = TimingCache(trt, gpu, cache)
    timing.attach(config)
    return timing


def _add_profile(builder: Any, config: Any, chosen: EngineProfile, spec: ModelSpec) -> int:
    """The profile's index, negative if TensorRT refuses it."""
    profile = builder.create_optimization_profile()
    for tensor in tensors_of(spec)[0]:
        profile.set_shape(tensor.name, *shapes(chosen, tensor.dims))
    return int(config.add_optimization_profile(profile))


def _describe(
    version: str,
    bundle: Bundle,
    graph: str,
    options: EngineOptions,
    gpu: Gpu | None,
    onnx: bytes,
    plan: bytes,
) -> EngineInfo:
    """The sidecar, but for the profiles and the time."""
    here = None if options.targets else gpu
    inputs, outputs = tensors_of(contract.models(bundle.sizes)[graph])
    return EngineInfo(
        graph=graph,
        flavour=options.flavour,
        version=version,
        gpu=here.name if here else None,
        compute_capability=here.compute_capability if here else None,
        targets=options.sm_names,
        precision=bundle.precision,
        k=bundle.k,
        beam=bundle.beam,
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        vocabulary_sha256=bundle.vocabulary.fingerprint,
        contract=CONTRACT_VERSION,
        hmer=__version__,
        profiles=(),
        inputs=inputs,
        outputs=outputs,
        options={k: v for k, v in asdict(options).items() if k not in ("flavour", "targets")},
    )
