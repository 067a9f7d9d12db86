"""The life cycle of ``decode``: load, hand requests to the scheduler, stop.

``execute`` only enqueues. The scheduler's thread decodes all requests together and answers
each through its own response sender the moment it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from hmer import contract
from hmer.bundle import BEAM_FILE, STEP_FILE, Bundle
from hmer.calibration import Calibration
from hmer.decode import Guards, Scheduler
from hmer.errors import BadParameter, HmerError
from hmer.runtime import open_runner
from hmer.serving import BLS, IN_PROCESS, DecodeParameters
from hmer.slots import BeamSlots, Run, SlotStep, lanes_for
from hmer.vocab import Vocabulary
from model_repository.decode.adapter import BlsRunner, enqueue
from model_repository.decode.metrics import DecodeMetrics
from model_repository.triton import Request, model_bundle, model_parameters, refuse


class TritonPythonModel:
    """Features to LaTeX: ``values``, ``keys``, ``feature_size``, ``state`` in, the answer out."""

    vocabulary: Vocabulary
    calibration: Calibration | None
    scheduler: Scheduler
    max_tokens: int

    def initialize(self, args: Mapping[str, str]) -> None:
        """Verify the bundle, make the step function and start the decoding thread."""
        self._resources = ExitStack()
        try:
            parameters = model_parameters(args, DecodeParameters)
            bundle = model_bundle(args, parameters.bundle)
            self.vocabulary = bundle.vocabulary
            self.calibration = Calibration.from_details(bundle.details)
            self.max_tokens = parameters.max_tokens
            self.scheduler = Scheduler(
                self._step(parameters, bundle),
                max_queue=parameters.max_queue,
                beam_step=self._beam_step(parameters, bundle) if bundle.beam else None,
                guards=Guards(bundle.vocabulary) if parameters.guards else None,
            )
        except HmerError as error:
            self._resources.close()
            refuse(error)
        self.scheduler.start()
        self._resources.callback(self.scheduler.stop)
        self._resources.enter_context(DecodeMetrics(self.scheduler.stats))

    def _step(self, parameters: DecodeParameters, bundle: Bundle) -> SlotStep:
        run = self._run(contract.DECODER_STEP, STEP_FILE, parameters, bundle)
        return SlotStep(run, bundle.sizes, parameters.slots, lanes=_lanes(parameters))

    def _beam_step(self, parameters: DecodeParameters, bundle: Bundle) -> BeamSlots:
        run = self._run(contract.DECODER_BEAM, BEAM_FILE, parameters, bundle)
        return BeamSlots(run, bundle.sizes, parameters.slots, lanes=_lanes(parameters))

    def _run(self, model: str, file: str, parameters: DecodeParameters, bundle: Bundle) -> Run:
        """How a graph of the bundle is run: by calls to the served ``model``, or in here."""
        if parameters.step == BLS:
            return BlsRunner(contract.models(bundle.sizes)[model])
        if parameters.step != IN_PROCESS:
            raise BadParameter(f"The step is {IN_PROCESS} or {BLS}, not {parameters.step}.")
        runner = self._resources.enter_context(
            open_runner(
                parameters.target,
                bundle.file(file),
                threads=parameters.threads,
                precision=parameters.precision,
            )
        )
        return runner.infer

    def execute(self, requests: list[Request]) -> None:
        """Enqueue; the responses go out from the decoding thread."""
        for request in requests:
            enqueue(request, self.scheduler, self.vocabulary, self.max_tokens, self.calibration)

    def finalize(self) -> None:
        """Stop the thread; requests under way are answered with an error."""
        self._resources.close()


def _lanes(parameters: DecodeParameters) -> tuple[int, ...]:
    # Every BLS call is a trip through the server: one batch, not several.
    return () if parameters.step == BLS else lanes_for(parameters.target)
