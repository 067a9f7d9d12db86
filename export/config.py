"""``config.pbtxt`` of every served model, from the tensor contract.

The configurations are built as Triton's own protobuf messages, written as text, and read
back before anybody gets to see them; no text is ever edited.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from export.repository_options import (
    AUTO,
    CONTAINER,
    EMBEDDED,
    HOSTS,
    MANY,
    ONE,
    ONNXRUNTIME,
    OPENVINO,
    PROCESSES,
    TARGETS,
    TENSORRT,
    RepositoryOptions,
)
from hmer import contract
from hmer.contract import ModelSpec, Sizes, TensorSpec
from hmer.errors import ExportError, MissingDependency
from hmer.serving import (
    BLS,
    MAX_ROWS,
    MAX_WORKERS,
    DecodeParameters,
    GraphParameters,
    PreprocessParameters,
    RecognizeParameters,
    to_strings,
)

__all__ = [
    "AUTO",
    "CONTAINER",
    "EMBEDDED",
    "HOSTS",
    "MANY",
    "ONE",
    "ONNXRUNTIME",
    "OPENVINO",
    "PROCESSES",
    "TARGETS",
    "TENSORRT",
    "RepositoryOptions",
    "from_text",
    "model_configs",
    "to_text",
]

# A message of Triton's model_config.proto; the library carries no types.
ModelConfig = Any

QUEUE_TIMEOUT_S = 60
# With so many pictures at least a server counts as full: fewer leave it idle now and then.
LEAST_FULL = 16

_DATA_TYPES = {
    "bytes": "TYPE_STRING",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "float32": "TYPE_FP32",
}
_PLATFORMS = {ONNXRUNTIME: "onnxruntime_onnx", TENSORRT: "tensorrt_plan"}
_MODEL_FILES = {ONNXRUNTIME: "model.onnx", TENSORRT: "model.plan"}


def model_configs(sizes: Sizes, options: RepositoryOptions) -> dict[str, ModelConfig]:
    """The configuration of every served model for a network of these ``sizes``.

    ``decoder_step``, and ``decoder_beam`` if ``sizes.beam`` says that it exists, are served where
    ``decode`` calls them.
    """
    specs = contract.models(sizes)
    graph = GraphParameters(
        target=options.target,
        precision=options.precision,
        threads=options.threads,
        max_queue=options.max_queue,
        workers=options.encoder_workers,
        batch_pixels=options.batch_pixels,
    )
    # A step is bound by reading the weights: a second thread gains little, and takes the
    # encoder's CPU. In fp32 because bf16 gains nothing there.
    step = GraphParameters(
        target=options.step_target or options.target,
        threads=options.step_threads,
    )
    decode = DecodeParameters(
        step=options.decode_step,
        target=step.target,
        threads=step.threads,
        slots=options.slots,
        max_queue=options.max_queue,
        max_tokens=options.max_tokens,
        guards=options.guards,
    )
    recognize = RecognizeParameters(
        workers=min(MAX_WORKERS, 2 * options.slots + 8),
        max_queue=options.max_queue,
        full=max(LEAST_FULL, options.slots),
        max_wait_ms=options.max_wait_ms,
        max_tokens=options.max_tokens,
    )
    configs = {
        contract.RECOGNIZE: _python(specs[contract.RECOGNIZE], to_strings(recognize), 1),
        contract.RECOGNIZE_STREAM: _streaming(
            _python(specs[contract.RECOGNIZE_STREAM], to_strings(recognize), 1, max_batch_size=1)
        ),
        contract.ENCODER: _graph(specs[contract.ENCODER], options, graph, MAX_ROWS),
        # One instance owns all slots.
        contract.DECODE: _python(specs[contract.DECODE], to_strings(decode), 1),
    }
    if options.one_process:
        held = replace(
            recognize,
            encoder=json.dumps(to_strings(graph)),
            decode=json.dumps(to_strings(decode)),
        )
        twin = replace(recognize, through=contract.RECOGNIZE)
        one, stream = specs[contract.RECOGNIZE], specs[contract.RECOGNIZE_STREAM]
        return {
            contract.RECOGNIZE: _python(one, to_strings(held), 1),
            contract.RECOGNIZE_STREAM: _streaming(
                _python(stream, to_strings(twin), 1, max_batch_size=1)
            ),
        }
    # The encoder on a CPU takes requests off this queue at once, into its own. Triton's batches
    # on a GPU have one padded size, and never wait: one forms while the one before it runs.
    preferred = 1 if options.python_graphs and not options.queue_delay_us else None
    _queue(configs[contract.ENCODER], options.max_queue, preferred, options.queue_delay_us)
    # A new version of `recognize` calls its own version of these, the old one the old ones.
    calls = {contract.ENCODER, contract.DECODE}
    # `decode` bounds its own queue. `decoder_step` has one caller, which waits for each
    # answer and sends all its slots as one batch.
    for name in (contract.DECODER_STEP, contract.DECODER_BEAM):
        # Where `decode` loads the graph itself, serving it too would cost an idle process.
        if name in specs and options.decode_step == BLS:
            configs[name] = _graph(specs[name], options, step, options.slots)
            calls.add(name)
    for name in calls:
        configs[name].version_policy.latest.num_versions = 2
    if options.preprocessors:  # for whoever wants the encoder's input: `recognize` makes its own
        configs[contract.PREPROCESS] = _python(
            specs[contract.PREPROCESS], to_strings(PreprocessParameters()), options.preprocessors
        )
    return configs


def _queue(config: ModelConfig, size: int, preferred: int | None, delay_us: int) -> None:
    """Batch, waiting ``delay_us`` at most; refuse requests above ``size``, drop overdue ones."""
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = delay_us
    if preferred is not None:
        batching.preferred_batch_size.append(preferred)
    policy = batching.default_queue_policy
    policy.max_queue_size = size
    # A request's own timeout may be shorter, but takes effect only beside a default.
    policy.default_timeout_microseconds = QUEUE_TIMEOUT_S * 1_000_000
    policy.allow_timeout_override = True


def to_text(config: ModelConfig) -> str:
    """The text of ``config.pbtxt``. Raises ``ExportError`` if it doesn't read back as it was."""
    text_format, _ = _protobuf()
    text = str(text_format.MessageToString(config))
    if from_text(text) != config:
        raise ExportError(f"The configuration of {config.name} changed on its way through text.")
    return text


def from_text(text: str) -> ModelConfig:
    """Parse a ``config.pbtxt``; ``ExportError`` if it is not one."""
    text_format, messages = _protobuf()
    try:
        return text_format.Parse(text, messages.ModelConfig())
    except text_format.ParseError as error:
        raise ExportError(f"This is no Triton model configuration: {error}.") from None


def _protobuf() -> tuple[Any, Any]:
    try:
        text_format = import_module("google.protobuf.text_format")
        messages = import_module("tritonclient.grpc.model_config_pb2")
    except ImportError as error:
        raise MissingDependency(
            "Writing a model repository needs Triton's protobuf messages: "
            "pip install 'hmer[serve]'."
        ) from error
    return text_format, messages


def _interface(spec: ModelSpec, max_batch_size: int) -> ModelConfig:
    _, messages = _protobuf()
    config = messages.ModelConfig(name=spec.name, max_batch_size=max_batch_size)
    for tensor in spec.inputs:
        config.input.add(name=tensor.name, data_type=_data_type(tensor), dims=_dims(tensor))
    for tensor in spec.outputs:
        config.output.add(name=tensor.name, data_type=_data_type(tensor), dims=_dims(tensor))
    return config


def _data_type(tensor: TensorSpec) -> int:
    _, messages = _protobuf()
    return int(messages.DataType.Value(_DATA_TYPES[tensor.dtype]))


def _dims(tensor: TensorSpec) -> list[int]:
    return [-1 if isinstance(dim, str) else dim for dim in tensor.dims]


def _python(spec: ModelSpec, parameters: Mapping[str, str], instances: int,
            max_batch_size: int = MAX_ROWS) -> ModelConfig:  # fmt: skip
    _, messages = _protobuf()
    config = _interface(spec, max_batch_size)
    config.backend = "python"
    config.default_model_filename = "model.py"
    config.instance_group.add(count=instances, kind=messages.ModelInstanceGroup.KIND_CPU)
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    return config


def _graph(spec: ModelSpec, options: RepositoryOptions, parameters: GraphParameters,
           max_batch_size: int) -> ModelConfig:  # fmt: skip
    if options.python_graphs:
        return _python(spec, to_strings(parameters), 1, max_batch_size)
    config = _interface(spec, max_batch_size)
    config.platform = _PLATFORMS[options.target]
    config.default_model_filename = _MODEL_FILES[options.target]
    config.instance_group.add(count=1)
    if options.target == ONNXRUNTIME and parameters.threads:
        config.parameters["intra_op_thread_count"].string_value = str(parameters.threads)
    return config


def _streaming(config: ModelConfig) -> ModelConfig:
    config.model_transaction_policy.decoupled = True
    return config
