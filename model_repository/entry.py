"""The ``1/model.py`` of every Python model: finds the code beside the models and the class.

A repository carries the code that it was assembled with (``lib/``), so that the server needs
nothing of this project installed, and an upgrade cannot come between code and bundle.
"""

import importlib
import sys
from pathlib import Path

_MODEL = Path(__file__).resolve().parents[1]  # REPOSITORY/models/MODEL
sys.path.insert(0, str(_MODEL.parents[1] / "lib"))

importlib.import_module("model_repository.memory").keep_small()
TritonPythonModel = importlib.import_module(
    f"model_repository.{_MODEL.name}.model"
).TritonPythonModel
