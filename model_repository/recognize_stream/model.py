"""The decoupled twin of ``recognize``: the same class; its configuration says that it streams."""

from __future__ import annotations

from model_repository.recognize.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
