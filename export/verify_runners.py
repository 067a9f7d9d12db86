"""The graphs of a bundle, opened in one of the runtimes at hand.

::

    with open_graphs("openvino", bundle, model) as graphs:
        outputs = graphs.encoder.infer(feeds)

A runner's name is that of its runtime; ``openvino-bf16`` is OpenVINO with its bfloat16
arithmetic switched on for the encoder, as a repository may be assembled.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from export.beam_graph import DecoderBeamGraph
from export.graphs import DecoderStepGraph, EncoderGraph, fold_batch_norm
from export.precision import HALVES, lower
from export.targets import openvino_has_bf16
from export.torch_runner import TorchRunner
from hmer import contract
from hmer.bundle import BEAM_FILE, ENCODER_FILE, STEP_FILE, Bundle
from hmer.engine import PLAN_SUFFIX, EngineInfo, check_bundle, read_sidecar
from hmer.errors import BadParameter
from hmer.preprocess import size_class
from hmer.runtime import ONNXRUNTIME, OPENVINO, TARGETS, Runner, open_runner, thread_count
from training.network import Recogniser

PYTORCH, OPENVINO_BF16, TENSORRT = "pytorch", "openvino-bf16", "tensorrt"
RUNNERS = (PYTORCH, ONNXRUNTIME, OPENVINO, OPENVINO_BF16, TENSORRT)


@dataclass(frozen=True)
class Graphs:
    """A bundle's opened graphs. ``beam`` is ``None`` where the bundle has no such graph.

    ``any_shape``: whether an image may come without padding (an engine is built for the sizes
    that are served, up to ``greatest``, height and width in pixels). ``max_rows`` a call.
    """

    runner: str
    precision: str
    sizes: contract.Sizes
    encoder: Runner
    step: Runner
    beam: Runner | None
    single: Runner | None = None  # decoder_step with k = 1; PyTorch has it at no cost
    any_shape: bool = True
    greatest: tuple[int, int] | None = None
    max_rows: int = 32


def installed_runtimes() -> tuple[str, ...]:
    """Those of ``hmer.runtime.TARGETS`` that can be imported."""
    return tuple(name for name in TARGETS if importlib.util.find_spec(name) is not None)


def runners_at_hand(bundle: Bundle, engines: Path | None = None) -> tuple[str, ...]:
    """The names of the runners that this machine has for ``bundle``.

    In fp16 and bf16 PyTorch is not among them: its kernels for a CPU are up to 15 times slower
    than those for fp32. It may be asked by name.
    """
    found = [*([] if bundle.precision in HALVES else [PYTORCH]), *installed_runtimes()]
    if OPENVINO in found and bundle.precision == "fp32" and openvino_has_bf16():
        found.append(OPENVINO_BF16)
    if engines is not None:
        found.append(TENSORRT)
    return tuple(name for name in RUNNERS if name in found)


@contextmanager
def open_graphs(
    runner: str,
    bundle: Bundle,
    model: Recogniser,
    *,
    threads: int = 1,
    engines: Path | None = None,
) -> Iterator[Graphs]:
    """``bundle``'s graphs in ``runner``, closed at the end of the block.

    ``model`` is the checkpoint's network, for PyTorch. ``engines``: the folder with the plans,
    for TensorRT. Raises ``BadParameter`` and what ``hmer.runtime.open_runner`` raises.
    """
    with ExitStack() as stack:
        if runner == PYTORCH:
            yield stack.enter_context(_pytorch(bundle, model, threads))
        elif runner in (*TARGETS, OPENVINO_BF16):
            yield _from_files(stack, runner, bundle, threads)
        elif runner == TENSORRT:
            yield _from_engines(stack, bundle, engines)
        else:
            raise BadParameter(
                f"There is no runner {runner!r}. Choose one of {', '.join(RUNNERS)}."
            )


def _from_files(stack: ExitStack, runner: str, bundle: Bundle, threads: int) -> Graphs:
    target = OPENVINO if runner == OPENVINO_BF16 else runner
    # As served: OpenVINO's bfloat16 is for the encoder, a step gains nothing from it.
    in_bf16 = target == OPENVINO and "bf16" in (runner.removeprefix("openvino-"), bundle.precision)
    precision = "bf16" if in_bf16 else "fp32"

    def opened(file: str, precision: str = "fp32") -> Runner:
        return stack.enter_context(open_runner(target, bundle.file(file), threads, precision))

    return Graphs(
        runner,
        precision if bundle.precision == "fp32" else bundle.precision,
        bundle.sizes,
        opened(ENCODER_FILE, precision),
        opened(STEP_FILE),
        opened(BEAM_FILE) if bundle.beam else None,
    )


def _from_engines(stack: ExitStack, bundle: Bundle, engines: Path | None) -> Graphs:
    """The plans in ``engines``, which must have been built from ``bundle``'s own graphs."""
    if engines is None:
        raise BadParameter(
            "The runner tensorrt needs --engines: the folder that hmer-export engine wrote."
        )
    infos: dict[str, EngineInfo] = {}

    def opened(graph: str) -> Runner:
        plan = engines / (graph + PLAN_SUFFIX)
        infos[graph] = read_sidecar(plan)
        check_bundle(infos[graph], plan, bundle)
        return stack.enter_context(open_runner(TENSORRT, plan))

    encoder, step = opened(contract.ENCODER), opened(contract.DECODER_STEP)
    beam = opened(contract.DECODER_BEAM) if bundle.beam else None
    settings = bundle.preprocess
    return Graphs(
        TENSORRT,
        bundle.precision,
        bundle.sizes,
        encoder,
        step,
        beam,
        any_shape=False,
        greatest=size_class(settings.max_height, settings.max_width),
        max_rows=min(info.profiles[0].axes["batch"][2] for info in infos.values()),
    )


@contextmanager
def _pytorch(bundle: Bundle, model: Recogniser, threads: int) -> Iterator[Graphs]:
    specs = contract.models(bundle.sizes)
    one = contract.models(replace(bundle.sizes, k=1))
    # int8 is made of the traced graph: what PyTorch has is the network that it is made of.
    precision = bundle.precision if bundle.precision in HALVES else "fp32"
    network = lower(fold_batch_norm(model)[0], precision)
    modules: dict[str, nn.Module] = {
        contract.ENCODER: EncoderGraph(network),
        contract.DECODER_STEP: DecoderStepGraph(network, bundle.k),
    }
    if bundle.beam:
        modules[contract.DECODER_BEAM] = DecoderBeamGraph(network, bundle.beam)
    single = TorchRunner(DecoderStepGraph(network, 1), one[contract.DECODER_STEP])
    runners = {name: TorchRunner(module, specs[name]) for name, module in modules.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(thread_count(threads))
    try:
        yield Graphs(
            PYTORCH,
            precision,
            bundle.sizes,
            runners[contract.ENCODER],
            runners[contract.DECODER_STEP],
            runners.get(contract.DECODER_BEAM),
            single,
        )
    finally:
        torch.set_num_threads(before)
        for runner in (*runners.values(), single):
            runner.close()
