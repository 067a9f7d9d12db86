"""Open a model repository: is it one, of this version, and intact?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hmer.bundle import GRAPHS, load_bundle
from hmer.contract import CONTRACT_VERSION
from hmer.engine import EngineInfo, check_bundle, read_sidecar
from hmer.errors import ContractMismatch, MissingBundle, ServerSetupError
from hmer.serving import REPOSITORY_FILE, REPOSITORY_FORMAT


@dataclass(frozen=True)
class Repository:
    """A repository that ``hmer-export repository`` wrote."""

    folder: Path
    description: dict[str, Any]
    engines: Mapping[str, EngineInfo] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        """The models' names."""
        return tuple(sorted(path.name for path in (self.folder / "models").iterdir()))

    def plan(self, model: str) -> Path:
        """Where ``model``'s TensorRT engine lies, if it has one."""
        return self.folder / "models" / model / "1" / "model.plan"


def open_repository(folder: str | Path) -> Repository:
    """Check that ``folder`` is a repository of this version with an intact bundle.

    Raises ``MissingBundle``, ``ContractMismatch`` and the errors of ``load_bundle``; for a
    TensorRT engine that is not of this bundle, or has no sidecar, ``BundleError``.
    """
    folder = Path(folder).resolve()
    path = folder / REPOSITORY_FILE
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingBundle(
            f"{folder} is not a model repository (there is no {REPOSITORY_FILE} in it). Write one "
            f"with: hmer-export repository BUNDLE --output {folder}"
        ) from None
    except (OSError, ValueError) as error:
        raise ServerSetupError(
            f"{path} cannot be read ({error}). Write the repository again."
        ) from None
    if not isinstance(description, dict) or description.get("format") != REPOSITORY_FORMAT:
        raise ServerSetupError(f"{path} does not describe a repository of this project.")
    if description.get("contract") != CONTRACT_VERSION:
        raise ContractMismatch(
            f"{folder} was assembled for contract version {description.get('contract')}, and this "
            f"is version {CONTRACT_VERSION}. Assemble it again with hmer-export repository --force."
        )
    bundle = load_bundle(folder / "bundle", GRAPHS)
    repository = Repository(folder, description)
    engines = {}
    for model in repository.models:
        plan = repository.plan(model)
        if plan.is_file():
            engines[model] = read_sidecar(plan)
            check_bundle(engines[model], plan, bundle)
    return replace(repository, engines=engines)
