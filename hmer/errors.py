"""Every error that a person may see, as one tree.

::

    HmerError                        has a stable ``code`` and a sentence
    +-- InputError                   the input is at fault; other inputs are unaffected
    |   +-- MissingInput             (also FileNotFoundError)
    |   +-- EmptyInput
    |   +-- UnreadableImage          not an image, truncated, or an unknown format
    |   +-- BlankImage
    |   +-- ImageTooSmall
    |   +-- ImageTooLarge
    |   +-- BadInk                   broken InkML or strokes, or none in it
    |   +-- BadParameter             (also ValueError) an option or parameter out of range
    +-- BundleError                  an artefact folder that cannot be used
    |   +-- MissingBundle            (also FileNotFoundError)
    |   +-- CorruptBundle            unreadable, truncated, or of another hash
    |   +-- VocabularyMismatch
    |   +-- ContractMismatch         made for another contract version
    +-- ExportError
    |   +-- ParityError              an exported graph answers differently
    +-- DatasetError                 training data that cannot be used
    +-- MissingDependency            (also ImportError) names the extra to install
    +-- ServerError                  something on the way to or in the server
        +-- ServerUnavailable        nobody answers, or not ready
        +-- UnknownModel             no such model or version
        +-- Overloaded               above the admission limit; try again later
        +-- DeadlineExceeded         (also TimeoutError)
        +-- Cancelled
        +-- InferenceFailed          the model failed; the server's log says more
        +-- ServerSetupError         the server cannot be started here

An error crosses the server's wire as ``[code] sentence`` (``to_wire``), and the client
turns it back into the same class (``from_wire``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_WIRE = re.compile(r"\[([a-z_]+)\] (.*)", re.DOTALL)
_RETRY_AFTER = re.compile(r"Try again in (\d+(?:\.\d+)?) s\.")


class HmerError(Exception):
    """Base of all errors; ``code`` is stable, ``str(error)`` is a sentence for a person."""

    code = "error"
    request_id = ""  # of the request that failed, by which the server's log names it

    def to_dict(self) -> dict[str, str]:
        """``{"code": ..., "message": ...}`` for JSON output."""
        return {"code": self.code, "message": str(self)}

    def to_wire(self) -> str:
        """The text that carries this error through Triton's error message."""
        return f"[{self.code}] {self}"


class InputError(HmerError):
    """The input is at fault."""

    code = "bad_input"


class MissingInput(InputError, FileNotFoundError):
    """No such file."""

    code = "missing_input"


class EmptyInput(InputError):
    """Nothing in the input."""

    code = "empty_input"


class UnreadableImage(InputError):
    """Not an image, truncated, or in a format that cannot be read."""

    code = "unreadable_image"


class BlankImage(InputError):
    """No ink in the picture."""

    code = "blank_image"


class ImageTooSmall(InputError):
    """Fewer pixels than a symbol needs."""

    code = "image_too_small"


class ImageTooLarge(InputError):
    """More pixels than the limit."""

    code = "image_too_large"


class BadInk(InputError):
    """Broken InkML or strokes, or no strokes in it."""

    code = "bad_ink"


class BadParameter(InputError, ValueError):
    """An option or a request parameter out of its range."""

    code = "bad_parameter"


class BundleError(HmerError):
    """An artefact folder that cannot be used."""

    code = "bad_bundle"


class MissingBundle(BundleError, FileNotFoundError):
    """No bundle in that folder."""

    code = "missing_bundle"


class CorruptBundle(BundleError):
    """A bundle that cannot be read or whose files have other hashes."""

    code = "corrupt_bundle"


class VocabularyMismatch(BundleError):
    """The vocabulary's hash differs from the recorded one."""

    code = "vocabulary_mismatch"


class ContractMismatch(BundleError):
    """The bundle was made for another version of the tensor contract."""

    code = "contract_mismatch"


class ExportError(HmerError):
    """A checkpoint could not be exported."""

    code = "export_failed"


class ParityError(ExportError):
    """An exported graph answers differently from the checkpoint."""

    code = "parity"


class DatasetError(HmerError):
    """Training data that cannot be used."""

    code = "bad_dataset"


class MissingDependency(HmerError, ImportError):
    """A library that an extra installs is not there."""

    code = "missing_dependency"


class ServerError(HmerError):
    """Something on the way to or in the server."""

    code = "server_error"


class ServerUnavailable(ServerError):
    """Nobody answers, or the server is not ready."""

    code = "server_unavailable"
    taken = False  # whether the connection ended after the request had gone out


class UnknownModel(ServerError):
    """The server has no such model or version."""

    code = "unknown_model"


class Overloaded(ServerError):
    """More requests than the admission limit; try again later."""

    code = "overloaded"

    @classmethod
    def until(cls, reason: str, seconds: float) -> Overloaded:
        """One that says when to try again; ``reason`` is a sentence."""
        return cls(f"{reason} Try again in {seconds:.2f} s.")

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the server expects to have room, if it said so.

        Read from the sentence: nothing else crosses Triton's wire.
        """
        match = _RETRY_AFTER.search(str(self))
        return float(match[1]) if match else None


class DeadlineExceeded(ServerError, TimeoutError):
    """The request's time was up before its formula was complete."""

    code = "deadline_exceeded"


class Cancelled(ServerError):
    """The client went away or cancelled."""

    code = "cancelled"


class InferenceFailed(ServerError):
    """The model failed; the server's log says more."""

    code = "inference_failed"


class ServerSetupError(ServerError):
    """The server cannot be started on this machine."""

    code = "server_setup"


def _tree(root: type[HmerError]) -> Iterator[type[HmerError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def from_wire(text: str) -> HmerError:
    """The error that ``to_wire`` wrote, found anywhere in ``text``; else ``InferenceFailed``.

    Triton puts words of its own before a composing model's message.
    """
    match = _WIRE.search(text)
    if match:
        for kind in _tree(HmerError):
            if kind.code == match[1]:
                return kind(match[2].strip())
    return InferenceFailed(text.strip() or "The server gave no reason.")
