"""The client: a Python API and ``hmer-client``."""

from client.api import Health, Recognizer
from client.retry import Retry
from hmer.recognizer import Recognition

__all__ = ["Health", "Recognition", "Recognizer", "Retry"]
