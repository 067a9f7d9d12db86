"""How a repository is hosted: what ``hmer-export repository`` is asked for, checked."""

from __future__ import annotations

from dataclasses import dataclass

from hmer.errors import BadParameter
from hmer.serving import BLS, IN_PROCESS, DecodeParameters

EMBEDDED, CONTAINER = "embedded", "container"
HOSTS = (EMBEDDED, CONTAINER)
ONNXRUNTIME, OPENVINO, TENSORRT = "onnxruntime", "openvino", "tensorrt"
TARGETS = (ONNXRUNTIME, OPENVINO, TENSORRT)
AUTO = "auto"  # measured when the repository is assembled: see export.targets
ONE, MANY = "one", "many"
PROCESSES = (ONE, MANY)

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
