"""Assembling a model repository: configurations, layout, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from export.config import (
    CONTAINER,
    EMBEDDED,
    HOSTS,
    MANY,
    ONNXRUNTIME,
    OPENVINO,
    TARGETS,
    TENSORRT,
    RepositoryOptions,
    from_text,
    model_configs,
    to_text,
)
from hmer import contract
from hmer.contract import Sizes
from hmer.errors import (
    BadParameter,
    ExportError,
)
from hmer.serving import (
    MAX_WORKERS,
    DecodeParameters,
    GraphParameters,
    RecognizeParameters,
    from_strings,
    to_strings,
)

SIZES = Sizes(features=6, attention=5, hidden=7, stride=8, k=3)
COMBINATIONS = [
    (host, target) for host in HOSTS for target in TARGETS if (host, target) != (EMBEDDED, TENSORRT)
]
TYPES = {
    "bytes": "TYPE_STRING",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "float32": "TYPE_FP32",
}


@pytest.mark.parametrize(("host", "target"), COMBINATIONS)
def test_every_config_reads_back_and_agrees_with_the_contract(host: str, target: str) -> None:
    options = RepositoryOptions(host, target, preprocessors=1)
    configs = model_configs(SIZES, options)
    models = contract.models(SIZES)
    called = {contract.DECODER_STEP, contract.DECODER_BEAM} & set(models)
    assert set(configs) == set(models) - (called if options.decode_step == "in_process" else set())
    for name in configs:
        spec = models[name]
        config = from_text(to_text(configs[name]))
        assert config == configs[name]
        assert config.name == name
        assert config.max_batch_size > 0
        for tensors, specs in ((config.input, spec.inputs), (config.output, spec.outputs)):
            found = {
                t.name: (type(t).DESCRIPTOR.fields_by_name["data_type"]
                         .enum_type.values_by_number[t.data_type].name, list(t.dims))
                for t in tensors
            }  # fmt: skip
            assert found == {
                t.name: (TYPES[t.dtype], [-1 if isinstance(d, str) else d for d in t.dims])
                for t in specs
            }


@pytest.mark.parametrize(("host", "target"), COMBINATIONS)
def test_the_two_that_recognize(host: str, target: str) -> None:
    options = RepositoryOptions(host, target, max_queue=7, max_tokens=9, processes=MANY)
    configs = model_configs(SIZES, options)
    for name, streams in (("recognize", False), ("recognize_stream", True)):
        config = from_text(to_text(configs[name]))
        assert config.backend == "python"
        assert config.model_transaction_policy.decoupled == streams
        values = {key: p.string_value for key, p in config.parameters.items()}
        parameters = from_strings(RecognizeParameters, values)
        assert (parameters.max_queue, parameters.max_tokens) == (7, 9)
        # Each request under way is a call that another model waits for.
        assert parameters.workers <= MAX_WORKERS
    assert configs["encoder"].max_batch_size >= configs["recognize"].max_batch_size
    assert configs["decode"].max_batch_size >= configs["recognize"].max_batch_size


@pytest.mark.parametrize(
    ("host", "target", "platform", "step"),
    [
        (EMBEDDED, ONNXRUNTIME, "python", "in_process"),
        (EMBEDDED, OPENVINO, "python", "in_process"),
        (CONTAINER, OPENVINO, "python", "in_process"),
        (CONTAINER, ONNXRUNTIME, "onnxruntime_onnx", "bls"),
        (CONTAINER, TENSORRT, "tensorrt_plan", "bls"),
    ],
)
def test_who_runs_the_graphs(host: str, target: str, platform: str, step: str) -> None:
    configs = model_configs(SIZES, RepositoryOptions(host, target, slots=4, processes=MANY))
    assert platform in (configs["encoder"].platform, configs["encoder"].backend)
    assert configs["decode"].parameters["step"].string_value == step
    assert ("decoder_step" in configs) == (step == "bls"), "nobody would call it"
    if step == "bls":
        assert configs["decoder_step"].platform == platform
        # A batch of all slots is one call; waiting for others would only delay it.
        assert configs["decoder_step"].max_batch_size == 4
        assert not configs["decoder_step"].HasField("dynamic_batching")
    assert configs["encoder"].dynamic_batching.max_queue_delay_microseconds == 0


@pytest.mark.parametrize(
    ("host", "target", "step", "served"),
    [
        (EMBEDDED, ONNXRUNTIME, None, False),  # `decode` loads the graph itself
        (EMBEDDED, ONNXRUNTIME, "bls", True),
        (CONTAINER, ONNXRUNTIME, None, True),
        (CONTAINER, TENSORRT, None, True),
    ],
)
def test_the_beam_graph_is_served_where_decode_calls_it(
    host: str, target: str, step: str | None, served: bool
) -> None:
    options = RepositoryOptions(host, target, step, slots=5)
    sizes = replace(SIZES, beam=4)
    configs = model_configs(sizes, options)
    assert ("decoder_beam" in configs) == served
    assert "decoder_beam" not in model_configs(SIZES, options)
    if served:
        config = from_text(to_text(configs["decoder_beam"]))
        spec = contract.models(sizes)["decoder_beam"]
        assert [t.name for t in config.input] == [t.name for t in spec.inputs]
        assert [list(t.dims) for t in config.output if t.name == "candidates"] == [[4]]
        assert config.max_batch_size == 5


def test_parameters_survive_the_text() -> None:
    options = RepositoryOptions(slots=3, max_queue=5, max_tokens=7, threads=2, step="bls")
    configs = {n: from_text(to_text(c)) for n, c in model_configs(SIZES, options).items()}

    def read(name: str) -> dict[str, str]:
        return {key: p.string_value for key, p in configs[name].parameters.items()}

    assert from_strings(DecodeParameters, read("decode")) == DecodeParameters(
        step="bls", slots=3, max_queue=5, max_tokens=7
    )
    assert from_strings(GraphParameters, read("encoder")) == GraphParameters(threads=2, max_queue=5)
    assert from_strings(GraphParameters, read("decoder_step")) == GraphParameters(threads=1)
    with pytest.raises(BadParameter, match="slots is 'many'"):
        from_strings(DecodeParameters, {**to_strings(DecodeParameters()), "slots": "many"})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"target": TENSORRT}, "no TensorRT"),
        ({"host": CONTAINER, "target": TENSORRT, "step": "in_process"}, "Leave the option out"),
        ({"precision": "bf16"}, "needs --target openvino"),
        ({"slots": 0}, "at least 1"),
        ({"preprocessors": -1}, "0 or more"),
        ({"step": "elsewhere"}, "in_process or bls"),
    ],
)
def test_options_that_do_not_go_together(values: dict[str, Any], text: str) -> None:
    with pytest.raises(BadParameter, match=text):
        RepositoryOptions(**values)


def test_a_text_that_is_no_configuration() -> None:
    with pytest.raises(ExportError, match="no Triton model configuration"):
        from_text('name: "x" nonsense: 3')
