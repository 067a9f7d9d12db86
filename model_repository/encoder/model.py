"""Padded images to the decoder's memory: the encoder's graph, with a queue of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from hmer.bundle import ENCODER_FILE
from hmer.contract import ENCODER, IMAGE, SIZE
from hmer.encoding import BATCH_PIXELS, EncodeJob, EncodeQueue, step_back, workers_for
from hmer.encoding import Tensors as Encoded
from hmer.errors import BadParameter, HmerError, InferenceFailed
from hmer.runtime import thread_count
from hmer.serving import GraphParameters
from model_repository.graph import GraphModel, Tensors
from model_repository.triton import (
    Request,
    Response,
    array,
    error_response,
    model_parameters,
    refuse,
    response,
)

# Heights and widths that are run before the first request: a short formula, a common one, a
# fraction. Each takes some 10 ms, or 50 where the runtime prepares its operators for a new size.
WARM_UP = ((64, 128), (96, 256), (128, 384))


class TritonPythonModel(GraphModel):
    """``image``, ``size`` to ``values``, ``keys``, ``feature_size`` and ``state``.

    With ``max_queue`` it takes requests off Triton's queue at once and chooses among them
    (``hmer.encoding``), and answers each through its own sender; without, in Triton's batches.
    """

    model = ENCODER
    file = ENCODER_FILE

    queue: EncodeQueue | None = None

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the graph, run it once in some sizes, and start the workers."""
        with ThreadPoolExecutor(1, initializer=step_back) as loader:  # its threads are the graph's
            loader.submit(self._load, args).result()
        parameters = model_parameters(args, GraphParameters)
        if parameters.max_queue:
            threads = thread_count(parameters.threads)
            self.queue = EncodeQueue(
                self._infer,
                workers=workers_for(parameters.target, threads, parameters.workers),
                max_queue=parameters.max_queue,
                batch_pixels=parameters.batch_pixels or BATCH_PIXELS,
            )
            self.queue.start()

    def _load(self, args: Mapping[str, str]) -> None:
        super().initialize(args)
        for height, width in WARM_UP:
            image = np.zeros((1, 1, height, width), np.uint8)
            try:
                self._infer({IMAGE.name: image, SIZE.name: np.array([[height, width]], np.int32)})
            except HmerError as error:
                refuse(error)

    def execute(self, requests: list[Request]) -> list[Response] | None:  # type: ignore[override]
        """Enqueue; the responses go out from the workers."""
        if self.queue is None:
            return super().execute(requests)
        for request in requests:
            self._enqueue(request, self.queue)
        return None

    def check(self, feed: Tensors) -> None:
        """Refuse what no preprocessing makes: it would take gigabytes, or be read beyond its end.

        Raises ``BadParameter``.
        """
        image, size = feed[IMAGE.name], feed[SIZE.name]
        if image.ndim != 4 or size.shape != (len(image), 2) or not image.size:
            raise BadParameter(
                f"The pictures have the shape {list(image.shape)} and their sizes "
                f"{list(size.shape)}; [rows, 1, height, width] and [rows, 2] are needed."
            )
        height, width = image.shape[2:]
        # Twice what preprocessing makes, for the padding to a size class.
        most, multiple = 2 * self.bundle.preprocess.max_pixels, self.bundle.preprocess.multiple
        if height * width > most:
            raise BadParameter(
                f"The pictures have {height} x {width} pixels; at most {most:,} in all are "
                "accepted. Scale them down."
            )
        if height % multiple or width % multiple:
            raise BadParameter(
                f"The pictures have {height} x {width} pixels; multiples of {multiple} are needed."
            )
        if (size < 1).any() or (size > (height, width)).any():
            raise BadParameter(
                f"The true sizes {size[:4].tolist()} do not lie within the pictures' {height} x "
                f"{width} pixels."
            )

    def _enqueue(self, request: Request, queue: EncodeQueue) -> None:
        send = partial(_send, request.get_response_sender())
        try:
            # Copies, for the memory is Triton's.
            feed = {name: array(request, name).copy() for name in (IMAGE.name, SIZE.name)}
            self.check(feed)
            timeout = int(request.timeout())  # in microseconds; 0: none
            deadline = time.monotonic() + timeout * 1e-6 if timeout > 0 else None
            queue.submit(EncodeJob(feed[IMAGE.name], feed[SIZE.name], send, deadline))
        except HmerError as error:
            send(error)
        except Exception as error:
            send(InferenceFailed(f"The request cannot be read: {type(error).__name__}: {error}"))

    def finalize(self) -> None:
        """Stop the workers, and free the graph."""
        if self.queue is not None:
            self.queue.stop()
        super().finalize()


def _send(sender: Any, result: Encoded | HmerError) -> None:
    message = error_response(result) if isinstance(result, HmerError) else response(result)
    sender.send(message, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
