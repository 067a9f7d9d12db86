"""A request between two models of one process: what the Python backend's are, without Triton.

Nothing is copied, and nobody but the two models sees it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from typing import Any


class LocalSender:
    """Takes the one response, and lets the caller wait for it."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._response: Any = None

    def send(self, response: Any, flags: int = 0) -> None:
        """The response; ``flags`` as of the Python backend, whose models send it as the last."""
        self._response = response
        self._done.set()

    def is_cancelled(self) -> bool:
        """Never: who calls from here cancels by the reply (``model_repository.reply``)."""
        return False

    def wait(self) -> Any:
        """The response, when it is there."""
        self._done.wait()
        return self._response


class LocalRequest:
    """``inputs`` are tensors of the Python backend; ``timeout_us``: microseconds, 0 for none."""

    def __init__(
        self,
        inputs: Iterable[Any],
        parameters: Mapping[str, int | str | bool],
        timeout_us: int,
        request_id: str,
    ) -> None:
        self._inputs = {tensor.name(): tensor for tensor in inputs}
        self._parameters, self._timeout, self._id = dict(parameters), timeout_us, request_id
        self.sender = LocalSender()

    def tensor(self, name: str) -> Any:
        """The input of this name, ``None`` if there is none."""
        return self._inputs.get(name)

    def parameters(self) -> str:
        """As JSON."""
        return json.dumps(self._parameters)

    def timeout(self) -> int:
        """Microseconds, 0 for none."""
        return self._timeout

    def request_id(self) -> str:
        """Of the request that the call is made for."""
        return self._id

    def get_response_sender(self) -> LocalSender:
        """Where the answer goes."""
        return self.sender
