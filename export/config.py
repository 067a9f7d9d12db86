"""``config.pbtxt`` of every served model, from the tensor contract.

The configurations are built as Triton's own protobuf messages, written as text, and read
back before anybody gets to see them; no text is ever edited.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from hmer import contract
from hmer.contract import ModelSpec, Sizes, TensorSpec
from hmer.errors import BadParameter, ExportError, MissingDependency
from hmer.serving import (
    BLS,
    IN_PROCESS,
    MAX_ROWS,
    MAX_WORKERS,
    DecodeParameters,
    GraphParameters,
    PreprocessParameters,
    RecognizeParameters,
    to_strings,
)

EMBEDDED, CONTAINER = "embedded", "container"
HOSTS = (EMBEDDED, CONTAINER)
ONNXRUNTIME, OPENVINO, TENSORRT = "onnxruntime", "openvino", "tensorrt"
TARGETS = (ONNXRUNTIME, OPENVINO, TENSORRT)
AUTO = "auto"  # measured when the repository is assembled: see export.targets

# A message of Triton's model_config.proto; the library carries no types.
ModelConfig = Any

ONE, MANY = "one", "many"
PROCESSES = (ONE, MANY)

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


@dataclass(frozen=True)
class RepositoryOptions:
    """How a repository is hosted.

    ``host``: ``embedded`` (the server of a PyPI wheel, CPU) or ``container`` (NVIDIA's image).
    ``target``: what runs the graphs, or ``auto`` to measure it while assembling.
    ``step_target``: what runs the decoder's; ``None``: the same. ``step``: how ``decode`` runs
    its steps; ``None`` means the host's default. ``precision``: of the encoder, ``fp32`` (what
    the graph says) or ``bf16`` (OpenVINO only).
    ``threads``: of the encoder, 0 for every CPU. ``slots``, ``max_queue``, ``max_tokens``:
    see ``hmer.serving.DecodeParameters``. ``preprocessors``: instances of ``preprocess``, which
    ``recognize`` does not need and which is served only where this is not 0.
    ``step_threads`` of the decoder's step. ``encoder_workers`` and ``batch_pixels``: see
    ``hmer.serving.GraphParameters``. ``queue_delay_us``: how long Triton may wait for a batch of
    the encoder; of use only where Triton itself batches. ``max_wait_ms``: see
    ``hmer.serving.RecognizeParameters``. ``processes``: ``many``, one for each of the models, or
    ``one``, in which ``recognize`` holds ``encoder`` and ``decode``; ``None``: one where it can.
    ``hmer-bench tune`` measures these.
    """

    host: str = EMBEDDED
    target: str = ONNXRUNTIME
    step: str | None = None
    precision: str = "fp32"
    threads: int = 0
    slots: int = DecodeParameters.slots
    max_queue: int = DecodeParameters.max_queue
    max_tokens: int = DecodeParameters.max_tokens
    preprocessors: int = 0
    guards: bool = DecodeParameters.guards
    step_target: str | None = None
    step_threads: int = 1
    encoder_workers: int = 0
    batch_pixels: int = 0
    queue_delay_us: int = 0
    max_wait_ms: int = 100
    processes: str | None = None

    def __post_init__(self) -> None:
        if self.host not in HOSTS or self.target not in (*TARGETS, AUTO):
            raise BadParameter(f"There is no host {self.host} with the target {self.target}.")
        if self.host == EMBEDDED and self.target == TENSORRT:
            raise BadParameter(
                "The embedded server has no TensorRT. Use --host container for it, or "
                "--target onnxruntime or openvino."
            )
        if self.target == AUTO and self.host != EMBEDDED:
            raise BadParameter(
                f"--target {AUTO} measures this machine's CPU, and a container may be served on "
                f"another. Name the target: {', '.join(TARGETS)}."
            )
        if self.step_target is not None and (
            self.step_target not in (ONNXRUNTIME, OPENVINO) or not self.python_graphs
        ):
            raise BadParameter(
                f"The decoder's target is {ONNXRUNTIME} or {OPENVINO}, and differs from the "
                "encoder's only where Python models run the graphs."
            )
        if self.step not in (None, IN_PROCESS, BLS):
            raise BadParameter(f"The step is {IN_PROCESS} or {BLS}, not {self.step}.")
        if self.step == IN_PROCESS and not self.python_graphs:
            raise BadParameter(
                f"With --host {self.host} --target {self.target} Triton itself runs the step, so "
                f"--step {IN_PROCESS} does not apply. Leave the option out."
            )
        if self.processes not in (None, *PROCESSES):
            raise BadParameter(f"processes is {ONE} or {MANY}, not {self.processes}.")
        if self.processes == ONE and not self._can_be_one:
            raise BadParameter(
                "One process can hold encoder and decoder only where Python models run both: with "
                f"--processes {ONE} leave out --preprocessors and --step {BLS}, and serve on a CPU."
            )
        if self.precision not in ("fp32", "bf16"):
            raise BadParameter(f"The precision is fp32 or bf16, not {self.precision}.")
        if self.precision == "bf16" and self.target != OPENVINO:
            raise BadParameter("--precision bf16 needs --target openvino.")
        for name in ("slots", "max_queue", "max_tokens", "step_threads"):
            if getattr(self, name) < 1:
                raise BadParameter(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.threads < 0:
            raise BadParameter(f"threads is {self.threads}; it must be 0 (every CPU) or more.")
        for name in ("preprocessors", "encoder_workers", "batch_pixels", "queue_delay_us",
                     "max_wait_ms"):  # fmt: skip
            if getattr(self, name) < 0:
                raise BadParameter(f"{name} is {getattr(self, name)}; it must be 0 or more.")

    @property
    def python_graphs(self) -> bool:
        """Whether ``encoder`` and ``decoder_step`` are Python models over ``hmer.runtime``.

        They are where Triton has no backend of its own for the target: everywhere on the
        embedded server, and for OpenVINO, whose Triton backend is beta, in the container.
        """
        return self.host == EMBEDDED or self.target == OPENVINO

    @property
    def _can_be_one(self) -> bool:
        return self.python_graphs and self.decode_step == IN_PROCESS and not self.preprocessors

    @property
    def one_process(self) -> bool:
        """Whether ``recognize`` holds ``encoder`` and ``decode`` in its own process."""
        return self._can_be_one if self.processes is None else self.processes == ONE

    @property
    def decode_step(self) -> str:
        """``step``, or the host's default."""
        return self.step or (IN_PROCESS if self.python_graphs else BLS)

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The CPU runtimes that the server's Python needs."""
        if not self.python_graphs:
            return ()
        return tuple(dict.fromkeys((self.target, self.step_target or self.target)))

    @property
    def model_file(self) -> str | None:
        """The file that a backend of Triton's own loads, in ``1/``; ``None`` for Python."""
        return None if self.python_graphs else _MODEL_FILES[self.target]


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
