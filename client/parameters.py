"""What a request may ask for, checked before it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict

from client.cancellation import Cancellation
from hmer.errors import BadParameter
from hmer.serving import to_request

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Options(TypedDict, total=False):
    """How a formula is searched for. What is left out, or ``None``, the server decides.

    ``beam``, ``n_best``, ``length_penalty``: see ``hmer.decode.SearchOptions``; greedy decoding by
    default. ``max_tokens``: the longest answer. ``k``, ``priority``: see
    ``hmer.serving.RequestParameters``. ``attention``: where the network looked for each token, too.
    ``looks``: at how many sizes the input is recognised (``hmer.looks``).
    """

    beam: int | None
    n_best: int | None
    length_penalty: float | None
    max_tokens: int | None
    k: int | None
    attention: bool
    priority: str | None
    looks: int | None


class RequestOptions(Options, total=False):
    """Of one request to a server.

    ``timeout``: seconds, instead of the recognizer's. ``request_id`` (a random one by default)
    names the request in the server's log and messages. ``cancellation`` ends it from another
    thread.
    """

    timeout: float | None
    request_id: str
    cancellation: Cancellation | None


def to_parameters(**options: Unpack[Options]) -> Mapping[str, int | str | bool]:
    """The parameters that travel. Raises ``BadParameter`` for what no server would take."""
    if unknown := sorted(set(options) - set(Options.__annotations__)):
        raise BadParameter(
            f"There is no option {unknown[0]!r}. There are: {', '.join(Options.__annotations__)}."
        )
    return to_request(**options)


def check_version(version: str | int) -> str:
    """A model's version as the wire has it; "": the server's choice. Raises ``BadParameter``."""
    text = str(version)
    if text and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise BadParameter(f"A model's version is a whole number from 1 on, not {text!r}.")
    return text


def check_timeout(timeout: float | None) -> float | None:
    """Seconds; ``None``: no limit. Raises ``BadParameter``."""
    if timeout is not None and not 0 < timeout < float("inf"):
        raise BadParameter(f"A timeout is a number of seconds above 0, not {timeout}.")
    return timeout
