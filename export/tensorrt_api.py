"""The libraries `tensorrt` 10.x and 11.x and `tensorrt_rtx`, as one interface.

They share parser, network, profiles and builder. What differs is looked up by name: flags and
enums moved or went between 10 and 11 (`EXPLICIT_BATCH` and the precision flags are gone in 11).
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from hmer.engine import FLAVOURS, TENSORRT, TENSORRT_RTX
from hmer.errors import BadParameter, ExportError, MissingDependency

# A library's module, or an object of it; they carry no types.
Module = Any

EXTRAS = {TENSORRT: "gpu", TENSORRT_RTX: "rtx"}
OLDEST = (10, 0)  # strongly typed networks and named dimensions of the parser
_KEPT = 40  # messages


def load(flavour: str) -> Module:
    """The module ``tensorrt`` or ``tensorrt_rtx``.

    Raises ``MissingDependency`` with the extra to install, ``ExportError`` for an old version.
    """
    if flavour not in FLAVOURS:
        raise BadParameter(f"The flavour is one of {', '.join(FLAVOURS)}, not {flavour}.")
    try:
        trt = importlib.import_module(flavour)
        version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    except (ImportError, OSError, AttributeError, ValueError) as error:
        raise MissingDependency(
            f"{flavour} cannot be imported ({str(error).splitlines()[0]}). Install it with: "
            f"pip install 'hmer[{EXTRAS[flavour]}]'"
            + (
                ", or run this command in NVIDIA's image nvcr.io/nvidia/tensorrt of the same tag "
                "as the Triton image that will serve the engine."
                if flavour == TENSORRT
                else "."
            )
        ) from error
    if flavour == TENSORRT and version < OLDEST:
        raise ExportError(
            f"TensorRT {trt.__version__} is too old: 10.0 or later is needed. Install it with: "
            f"pip install --upgrade 'hmer[{EXTRAS[flavour]}]'"
        )
    return trt


@functools.cache
def logger(trt: Module) -> Any:
    """The process's one logger for this library, never freed.

    TensorRT keeps a pointer to it in every object: a logger that dies first ends the process.
    ``logger(trt).errors()`` gives what it said since the last call.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._errors = [*self._errors, message.strip()][-_KEPT:]

        def errors(self) -> list[str]:
            found, self._errors = self._errors, []
            return found

    return Log()


def strongly_typed(trt: Module) -> int:
    """The flags of ``create_network``: types come from the graph, never from the builder.

    Where the enum has no such flag, every network is strongly typed.
    """
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def member(enum: Any, name: str, trt: Module, purpose: str) -> Any:
    """``enum.name``. Raises ``ExportError`` if this version of the library does not have it."""
    found = getattr(enum, name, None)
    if found is None:
        raise ExportError(
            f"{trt.__name__} {trt.__version__} has no {enum.__name__}.{name}, so it cannot "
            f"{purpose}."
        )
    return found


def message(lines: list[str]) -> str:
    """The first of TensorRT's messages, without what only its developers read."""
    text = next((line for line in lines if line), "it gave no reason")
    return " ".join(text.split())[:400].rstrip(". ")
