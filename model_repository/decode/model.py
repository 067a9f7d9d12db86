"""The life cycle of ``decode``: load, hand requests to the scheduler, stop.

``execute`` only enqueues. The scheduler's thread decodes all requests together and answers
each through its own response sender the moment it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from hmer import contract
from hmer.bundle import BEAM_FILE, STEP_FILE, Bundle
from hmer.calibration import Calibration
from hmer.decode import EncodedImage, Guards, Scheduler
from hmer.errors import BadParameter, HmerError
from hmer.following import AttentionFollower
from hmer.runtime import open_runner
from hmer.serving import BLS, IN_PROCESS, DecodeParameters
from hmer.slots import Batches, BeamSlots, Run, SlotStep, batches_for
from model_repository.bls import BlsRunner
from model_repository.decode.adapter import Loop, enqueue
from model_repository.decode.metrics import Durations, decode_metrics
from model_repository.decode.warmup import warm_up
from model_repository.reply import ReplySender
from model_repository.triton import (
    Request,
    model_bundle,
    model_parameters,
    model_version,
    refuse,
)


class TritonPythonModel:
    """Features to LaTeX: ``values``, ``keys``, ``feature_size``, ``state`` in, the answer out."""

    scheduler: Scheduler
    loop: Loop

    def initialize(self, args: Mapping[str, str]) -> None:
        """Verify the bundle, make the steps, run them once, and start the decoding thread."""
        self._resources = ExitStack()
        self._version = model_version(args)
        self._one_token: list[tuple[Run, bool]] = []  # graphs that can, and whether for beams
        try:
            parameters = model_parameters(args, DecodeParameters)
            bundle = model_bundle(args, parameters.bundle)
            run_beam = self._beam_run(parameters, bundle) if bundle.beam else None
            step = self._step(parameters, bundle, run_beam)
            beams = self._beam_step(parameters, bundle, run_beam) if run_beam else None
            if parameters.step == IN_PROCESS:  # other models may not be called yet
                warm_up(step, beams, bundle.sizes)
            self.scheduler = Scheduler(
                step,
                max_queue=parameters.max_queue,
                beam_step=beams,
                guards=Guards(bundle.vocabulary) if parameters.guards else None,
            )
            self.loop = self._loop(parameters, bundle)
        except HmerError as error:
            self._resources.close()
            refuse(error)
        self.scheduler.start()
        self._resources.callback(self.scheduler.stop)
        self._resources.enter_context(
            decode_metrics(self.scheduler.stats, self.loop.durations, str(self._version))
        )

    def _loop(self, parameters: DecodeParameters, bundle: Bundle) -> Loop:
        replies = ReplySender()
        self._resources.callback(replies.close)
        tracer = self._resources.enter_context(ThreadPoolExecutor(1, "hmer-attention"))
        pixels, stride = bundle.preprocess.max_pixels, bundle.sizes.stride
        return Loop(
            self.scheduler,
            bundle.vocabulary,
            parameters.max_tokens,
            # Twice what preprocessing makes, for the padding to a size class.
            2 * (pixels // stride**2 + 1),
            bundle.sizes.k,
            Calibration.from_details(bundle.details),
            self._follow(),
            replies,
            tracer,
            Durations(),
        )

    def _follow(self) -> Callable[[EncodedImage], AttentionFollower] | None:
        if not self._one_token:
            return None
        run, beam = self._one_token[-1]
        return lambda encoded: AttentionFollower(run, encoded, beam)

    def _step(
        self, parameters: DecodeParameters, bundle: Bundle, one_token: Run | None
    ) -> SlotStep:
        run = self._run(contract.DECODER_STEP, STEP_FILE, parameters, bundle)
        return SlotStep(
            run, bundle.sizes, parameters.slots, one_token=one_token, **_batches(parameters)
        )

    def _beam_run(self, parameters: DecodeParameters, bundle: Bundle) -> Run:
        return self._run(contract.DECODER_BEAM, BEAM_FILE, parameters, bundle)

    def _beam_step(self, parameters: DecodeParameters, bundle: Bundle, run: Run) -> BeamSlots:
        return BeamSlots(run, bundle.sizes, parameters.slots, **_batches(parameters))

    def _run(self, model: str, file: str, parameters: DecodeParameters, bundle: Bundle) -> Run:
        """How a graph of the bundle is run: by calls to the served ``model``, or in here."""
        if parameters.step not in (BLS, IN_PROCESS):
            raise BadParameter(f"The step is {IN_PROCESS} or {BLS}, not {parameters.step}.")
        run: Run
        if parameters.step == BLS:
            run = BlsRunner(contract.models(bundle.sizes)[model], self._version)
        else:
            run = self._resources.enter_context(
                open_runner(
                    parameters.target,
                    bundle.file(file),
                    threads=parameters.threads,
                    precision=parameters.precision,
                )
            ).infer
        if model == contract.DECODER_BEAM or bundle.sizes.k == 1:
            self._one_token.append((run, model == contract.DECODER_BEAM))
        return run

    def execute(self, requests: list[Request]) -> None:
        """Enqueue; the responses go out from the decoding thread."""
        for request in requests:
            enqueue(request, self.loop)

    def finalize(self) -> None:
        """Stop the thread; requests under way are answered with an error."""
        self._resources.close()


def _batches(parameters: DecodeParameters) -> Batches:
    return batches_for(parameters.target, parameters.slots, parameters.step == BLS)
