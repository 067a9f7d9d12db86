"""The model repositories of a comparison: the product's own, and those of the references."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hmer import contract
from hmer.bundle import CHECKPOINT, GRAPHS, WEIGHTS_FILE, Bundle, load_bundle, sha256_of
from hmer.errors import ExportError, MissingDependency
from hmer.serving import BUNDLE_PATH
from hmer.serving import REPOSITORY_FILE as DESCRIPTION

EAGER, EAGER_ALONE, NAIVE, BATCHED = "eager", "eager1", "naive", "batched"

# A reference's 1/model.py: the code lies beside the models, as in every repository.
_ENTRY = """\
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "lib"))
from benchmarks.reference.{module} import TritonPythonModel  # noqa: E402, F401
"""
_TYPES = {
    "bytes": "TYPE_STRING",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "float32": "TYPE_FP32",
}
_ROWS = 16  # requests that Triton may give to a reference at once


@dataclass(frozen=True)
class Chosen:
    """What a repository runs its graphs with, as its own description tells."""

    target: str
    step_target: str
    precision: str  # of the encoder

    @classmethod
    def of(cls, repository: Path) -> Chosen:
        """What ``repository.json`` says."""
        found = json.loads((repository / DESCRIPTION).read_text(encoding="utf-8"))
        target = str(found.get("target", "onnxruntime"))
        return cls(target, str(found.get("step_target") or target), str(found["precision"]))


def with_k(checkpoint: Path, k: int, work: Path, beam: int = 0) -> Path:
    """The graphs of ``checkpoint`` at ``k`` tokens a call; exported once, and kept in ``work``.

    ``beam`` as of ``export_bundle``: 0 leaves the graph for beams out.

    Raises the errors of ``export.onnx_export.export_bundle``.
    """
    bundle = load_bundle(checkpoint, CHECKPOINT)
    key = hashlib.sha256(sha256_of(bundle.file(WEIGHTS_FILE)).encode())
    for path in _exporting_code():  # other code may export other graphs
        key.update(path.read_bytes())
    folder = work / "bundles" / f"{key.hexdigest()[:12]}-k{k}{f'-beam{beam}' * (beam > 0)}"
    if folder.is_dir():
        return folder
    from export.images import gather
    from export.onnx_export import export_bundle

    folder.parent.mkdir(parents=True, exist_ok=True)
    images = dict(list(gather(bundle.preprocess, None, None).items())[:8])
    export_bundle(checkpoint, folder, k=k, beam=beam, images=images, runtimes=["onnxruntime"])
    return folder


def assemble(bundle: Path, output: Path, *options: str) -> Path:
    """The product's repository of ``bundle``, by its own command with these ``options``.

    Raises ``ExportError`` with what the command said.
    """
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "export.cli", "repository", str(bundle.resolve())]
    done = subprocess.run(
        [*command, "--output", str(output.resolve()), *options],
        capture_output=True,
        text=True,
        cwd=_package("hmer").parent,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise ExportError(f"A repository of {bundle} could not be assembled: {said[-1]}")
    return output


def reference(kind: str, bundle: Path, output: Path, chosen: Chosen, checkpoint: Path) -> Path:
    """The repository of the reference ``kind``, with the same runtimes as ``chosen``.

    Preprocessing, encoder and step are the product's models. ``eager`` and
    ``eager1`` (with one thread) need the ``checkpoint``.
    """
    options = ["--target", chosen.target, "--step", "bls", "--preprocessors", "1"]
    if chosen.precision == "bf16":
        options += ["--precision", "bf16"]
    assemble(bundle, output, *options)
    loaded = load_bundle(output / "bundle", GRAPHS)
    _copy_code(output / "lib", ["hmer"] + ["training"] * (kind in (EAGER, EAGER_ALONE)))
    if kind == BATCHED:
        _keep(output, (contract.RECOGNIZE, contract.PREPROCESS, contract.ENCODER))
        parameters = {"target": chosen.step_target, "threads": "1", "bundle": BUNDLE_PATH}
        _model(output, loaded, contract.DECODE, kind, parameters, ragged=True)
    elif kind == NAIVE:
        _keep(output, (contract.PREPROCESS, contract.ENCODER, contract.DECODER_STEP))
        _model(output, loaded, contract.RECOGNIZE, kind, {"bundle": BUNDLE_PATH})
    else:
        load_bundle(checkpoint, CHECKPOINT)
        _keep(output, ())
        shutil.copytree(checkpoint, output / "checkpoint")
        threads = "1" if kind == EAGER_ALONE else "0"
        parameters = {"checkpoint": "../../checkpoint", "threads": threads}
        _model(output, loaded, contract.RECOGNIZE, EAGER, parameters)
    return output


def _keep(repository: Path, models: Sequence[str]) -> None:
    for folder in (repository / "models").iterdir():
        if folder.name not in models:
            shutil.rmtree(folder)


def _model(
    repository: Path,
    bundle: Bundle,
    model: str,
    module: str,
    parameters: Mapping[str, str],
    *,
    ragged: bool = False,
) -> None:
    """Write ``models/MODEL`` over ``benchmarks.reference.MODULE``.

    ``ragged``: images of any sizes come as one batch, as they wait when the last one is done.
    """
    try:
        text_format = import_module("google.protobuf.text_format")
        messages = import_module("tritonclient.grpc.model_config_pb2")
    except ImportError as error:
        raise MissingDependency(
            "The references need Triton's protobuf messages: pip install 'hmer[bench]'"
        ) from error
    spec = contract.models(bundle.sizes)[model]
    config: Any = messages.ModelConfig(name=model, max_batch_size=_ROWS, backend="python")
    config.default_model_filename = "model.py"
    config.instance_group.add(count=1, kind=messages.ModelInstanceGroup.KIND_CPU)
    for tensors, target in ((spec.inputs, config.input), (spec.outputs, config.output)):
        for tensor in tensors:
            dims = [-1 if isinstance(dim, str) else dim for dim in tensor.dims]
            entry = target.add(name=tensor.name, dims=dims)
            entry.data_type = messages.DataType.Value(_TYPES[tensor.dtype])
            if ragged and target is config.input:
                entry.allow_ragged_batch = True
    if ragged:
        config.dynamic_batching.max_queue_delay_microseconds = 0
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    folder = repository / "models" / model
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    (folder / "1" / "model.py").write_text(_ENTRY.format(module=module), encoding="utf-8")


def _copy_code(library: Path, packages: Sequence[str]) -> None:
    skip = shutil.ignore_patterns("pretrained", "__pycache__")
    for name in packages:
        shutil.copytree(_package(name), library / name, ignore=skip, dirs_exist_ok=True)
    (library / "benchmarks").mkdir()
    own = _package("benchmarks")
    shutil.copyfile(own / "__init__.py", library / "benchmarks" / "__init__.py")
    shutil.copytree(own / "reference", library / "benchmarks" / "reference", ignore=skip)


def _exporting_code() -> list[Path]:
    network = [_package("training") / name for name in ("network.py", "encoder.py")]
    return [*sorted(_package("export").glob("*.py")), *network]


def code_hash() -> str:
    """Of the product's sources: figures of other code are figures of something else."""
    found = hashlib.sha256()
    for package in ("hmer", "model_repository", "export"):
        folder = _package(package)
        for path in sorted(folder.rglob("*.py")):
            found.update(f"{package}/{path.relative_to(folder).as_posix()}".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency(f"The package {name} is not installed beside this one.")
    return Path(next(iter(spec.submodule_search_locations)))
