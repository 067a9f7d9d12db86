"""The client: a Python API and ``hmer-client``."""

from client.api import Recognizer
from client.async_api import AsyncRecognizer
from client.cancellation import Cancellation
from client.local import LocalRecognizer
from client.protocol import FormulaRecognizer
from client.results import Health, Partial
from client.retry import Retry
from hmer.recognizer import Alternative, Recognition

__all__ = [
    "Alternative",
    "AsyncRecognizer",
    "Cancellation",
    "FormulaRecognizer",
    "Health",
    "LocalRecognizer",
    "Partial",
    "Recognition",
    "Recognizer",
    "Retry",
]
