"""``encoder`` and ``decode`` inside the process of ``recognize``, instead of one process each.

On a CPU this saves the copies of every picture and of its features, a process' memory for each,
and the hops between them. They are the very same classes; only who calls them differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hmer import contract
from model_repository.bls import ANY_VERSION, failure
from model_repository.decode.model import TritonPythonModel as Decode
from model_repository.encoder.model import TritonPythonModel as Encoder
from model_repository.local_request import LocalRequest

_MODELS: dict[str, Any] = {contract.ENCODER: Encoder, contract.DECODE: Decode}


class Hosted:
    """The models that are hosted here. ``call`` is ``bls.call`` for them."""

    def __init__(self, args: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        """Load them, at the same time. ``args``: as the host's ``initialize`` gets them.

        ``parameters``: model -> JSON of its own (``hmer.serving.to_strings``). Raises what their
        ``initialize`` raises; then nothing is left loaded.
        """
        self._models = {name: _MODELS[name]() for name in parameters}
        with ThreadPoolExecutor(len(parameters)) as loaders:
            loading = {
                name: loaders.submit(model.initialize, _args(args, name, parameters[name]))
                for name, model in self._models.items()
            }
        failed = [future for future in loading.values() if future.exception() is not None]
        if failed:
            for name, future in loading.items():
                if future not in failed:
                    self._models[name].finalize()
            failed[0].result()

    def call(
        self,
        model: str,
        inputs: Sequence[Any],
        outputs: Sequence[str],
        *,
        version: int = ANY_VERSION,
        parameters: Mapping[str, int | str | bool] | None = None,
        timeout_us: int = 0,
        request_id: str = "",
    ) -> dict[str, Any]:
        """See ``bls.call``; the ``version`` is the host's own."""
        request = LocalRequest(inputs, parameters or {}, timeout_us, request_id)
        at_once = self._models[model].execute([request])
        result = at_once[0] if at_once else request.sender.wait()
        if result.has_error():
            raise failure(model, str(result.error().message()))
        found = {tensor.name(): tensor for tensor in result.output_tensors()}
        return {name: found[name] for name in outputs if name in found}

    def close(self) -> None:
        """Stop and free them; calls under way are answered with an error."""
        for model in self._models.values():
            model.finalize()


def _args(args: Mapping[str, str], name: str, parameters: str) -> dict[str, str]:
    strings = json.loads(parameters)
    config = {
        "name": name,
        "parameters": {key: {"string_value": value} for key, value in strings.items()},
    }
    return {**args, "model_config": json.dumps(config), "model_name": name}
