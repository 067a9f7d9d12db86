"""Assemble a model repository: everything that a Triton server needs, in one folder.

::

    REPOSITORY/models/MODEL/config.pbtxt   what `tritonserver --model-repository` is given
    REPOSITORY/models/MODEL/1/             model.py, or the graph for a backend of Triton's own
    REPOSITORY/bundle/                     the verified bundle
    REPOSITORY/lib/                        the code of hmer and model_repository
    REPOSITORY/requirements.txt            what that code needs of the server's Python
    REPOSITORY/repository.json             host, target, contract version

The folder can be moved: nothing in it names a path outside. It appears whole or not at all.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.config import (
    AUTO,
    MANY,
    ONE,
    ONNXRUNTIME,
    OPENVINO,
    TENSORRT,
    RepositoryOptions,
    model_configs,
    to_text,
)
from export.output import GRAPH_FILES, draft
from export.repository_engines import copy_engine, use_engines
from export.targets import Choice, choose, resolve
from hmer import contract
from hmer.bundle import BUNDLE_FILE, GRAPHS, Bundle, load_bundle
from hmer.errors import BadParameter, ExportError, MissingDependency
from hmer.serving import REPOSITORY_FILE, REPOSITORY_FORMAT

_CODE = ("hmer", "model_repository")
# Of what the models import; opencv-python-headless 4.12 and later want NumPy 2.
_REQUIREMENTS = ("numpy", "opencv-python-headless<4.12", "pillow", "defusedxml")


@dataclass(frozen=True)
class Assembled:
    """A finished repository."""

    folder: Path
    models: tuple[str, ...]
    missing: tuple[str, ...]  # files that TensorRT has yet to build on the machine with the GPU
    options: RepositoryOptions  # as given, but with what was chosen in place of ``auto``
    choice: Choice | None = None  # what was measured for ``auto``


def assemble(
    bundle_folder: str | Path,
    output: str | Path,
    options: RepositoryOptions,
    *,
    engines: str | Path | None = None,
    force: bool = False,
) -> Assembled:
    """Write the repository of a graphs bundle to ``output``.

    ``engines``: a folder with a ``MODEL.plan`` for every graph, for TensorRT.
    ``force`` replaces a repository that is there. For the target ``auto`` the CPU runtimes are
    measured first; the choice and its figures go into ``repository.json``. Raises
    ``BundleError``, ``ExportError``, ``BadParameter``.
    """
    bundle = load_bundle(bundle_folder, GRAPHS)
    output = Path(output)
    check_output(output, force)
    choice = None
    if options.target == AUTO:
        choice = choose(bundle, threads=options.threads)
        options = resolve(options, choice)
    _check_precision(bundle, options)
    configs = model_configs(bundle.sizes, options)
    plans = _plans(engines, options, [name for name in GRAPH_FILES if name in configs])
    use_engines(configs, plans, bundle)
    with draft(output) as new:
        _copy_bundle(bundle, new / "bundle")
        _copy_code(new / "lib")
        for name, config in configs.items():
            folder = new / "models" / name
            (folder / "1").mkdir(parents=True)
            (folder / "config.pbtxt").write_text(to_text(config), encoding="utf-8")
            if config.backend == "python":
                shutil.copyfile(_package("model_repository") / "entry.py", folder / "1/model.py")
            elif options.target == ONNXRUNTIME and name in GRAPH_FILES:
                shutil.copyfile(bundle.file(GRAPH_FILES[name]), folder / "1/model.onnx")
            elif name in plans:
                copy_engine(plans[name], folder / "1")
            else:  # an ensemble needs a version folder too, and not every copy keeps empty ones
                (folder / "1" / ".keep").touch()
        (new / "requirements.txt").write_text(
            "\n".join([*_REQUIREMENTS, *options.runtimes]) + "\n", encoding="utf-8"
        )
        (new / REPOSITORY_FILE).write_text(
            json.dumps(_description(options, choice), indent=1) + "\n", encoding="utf-8"
        )
    missing = [
        str(output / "models" / name / "1" / "model.plan")
        for name in GRAPH_FILES
        if options.target == TENSORRT and name in configs and name not in plans
    ]
    return Assembled(output, tuple(configs), tuple(missing), options, choice)


def _check_precision(bundle: Bundle, options: RepositoryOptions) -> None:
    if bundle.precision == "bf16" and ONNXRUNTIME in options.runtimes:
        raise BadParameter(
            f"{bundle.folder} computes in bf16, and ONNX Runtime has no operators for it on a "
            f"CPU. Use --target {OPENVINO} or {TENSORRT}, or export in another precision."
        )


def _description(options: RepositoryOptions, choice: Choice | None) -> dict[str, Any]:
    return {
        "format": REPOSITORY_FORMAT,
        "contract": contract.CONTRACT_VERSION,
        **asdict(options),
        "step": options.decode_step,
        "processes": ONE if options.one_process else MANY,
        **({"auto": choice.to_dict()} if choice else {}),
    }


def check_output(output: Path, force: bool) -> None:
    """Raise ``ExportError`` unless a repository may be written to ``output``."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ExportError(f"{output} is a file. Give a folder that does not exist yet.")
    if not any(output.iterdir()):
        return
    if not force:
        raise ExportError(
            f"{output} is not empty. Give another folder, or --force to replace a repository."
        )
    if not (output / REPOSITORY_FILE).is_file():
        raise ExportError(
            f"{output} is not a repository that this command wrote (there is no "
            f"{REPOSITORY_FILE} in it), so --force does not replace it. Give another folder."
        )


def _copy_bundle(bundle: Bundle, target: Path) -> None:
    names = json.loads(bundle.file(BUNDLE_FILE).read_text(encoding="utf-8"))["files"]
    target.mkdir()
    for name in [BUNDLE_FILE, *names]:
        shutil.copyfile(bundle.file(name), target / name)
    load_bundle(target, GRAPHS)  # what was copied is what was verified


def _copy_code(target: Path) -> None:
    for name in _CODE:
        source = _package(name)
        for path in sorted(source.rglob("*.py")):
            copy = target / name / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def _package(name: str) -> Path:
    # Located, not imported: export doesn't depend on model_repository.
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency(
            f"The package {name} is not installed beside this one. Install the project as a whole."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _plans(
    engines: str | Path | None, options: RepositoryOptions, graphs: Sequence[str]
) -> dict[str, Path]:
    if engines is None:
        return {}
    if options.target != TENSORRT:
        raise BadParameter("--engines is for --target tensorrt.")
    plans = {name: Path(engines) / f"{name}.plan" for name in graphs}
    for path in plans.values():
        if not path.is_file():
            raise ExportError(
                f"There is no {path}. Build the engine on the machine that will serve it."
            )
    return plans
