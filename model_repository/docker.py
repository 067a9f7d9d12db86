"""The ``docker run`` line that serves a repository in NVIDIA's image."""

from __future__ import annotations

import shlex
from pathlib import Path

from hmer import contract
from hmer.engine import check_gpu
from hmer.engine_images import DEFAULT, check_image, image_named
from hmer.errors import MissingBundle
from hmer.gpu import find_gpu
from model_repository.endpoints import Endpoints
from model_repository.repository import Repository

IMAGE = DEFAULT.name
_GRAPHS = (contract.ENCODER, contract.DECODER_STEP, contract.DECODER_BEAM)


def check_engines(repository: Repository, image: str) -> str | None:
    """Refuse engines that ``image``, or the GPU at hand, cannot load.

    Returns a warning where nobody can tell: an image whose TensorRT is not known. Raises
    ``MissingBundle`` for an engine that is not there, ``BundleError`` for one that does not fit.
    """
    if repository.description.get("target") != "tensorrt":
        return None
    graphs = [name for name in _GRAPHS if name in repository.models]
    missing = [name for name in graphs if name not in repository.engines]
    if missing:
        raise MissingBundle(
            f"{repository.plan(missing[0])} is missing: the engine was not built yet. On the "
            f"machine with the GPU: hmer-export engine {repository.folder / 'bundle'} --output "
            "engines, then assemble again with hmer-export repository --engines engines --force."
        )
    known, gpu = image_named(image), find_gpu()
    for name, info in repository.engines.items():
        plan = repository.plan(name)
        if known is not None:
            check_image(info, plan, known)
        check_gpu(info, plan, gpu.compute_capability if gpu else None)
    if known is not None:
        return None
    version = repository.engines[graphs[0]].version
    return f"which TensorRT {image} carries is not known here; the engines need {version}."


def docker_line(
    repository: str | Path,
    endpoints: Endpoints,
    *,
    gpu: bool,
    image: str = IMAGE,
) -> str:
    """A shell command for a repository assembled with ``--host container``.

    The image's Python lacks what ``preprocess`` needs, so it is installed first; the Python
    backend passes tensors through shared memory, of which a container has 64 MB by default.
    ``model_repository.container``, from the repository's own code, checks it and starts Triton.
    """
    inside = (
        "pip install --quiet -r /repository/requirements.txt && "
        "exec env PYTHONPATH=/repository/lib python3 -m model_repository.container /repository"
    )
    ports = [
        f"-p {endpoints.host}:{port}:{inner}"
        for port, inner in (
            (endpoints.http_port, 8000),
            (endpoints.grpc_port, 8001),
            (endpoints.metrics_port, 8002),
        )
    ]
    return " ".join(
        [
            "docker run --rm",
            *(["--gpus all"] if gpu else []),
            "--shm-size=1g",
            *ports,
            "-e PIP_BREAK_SYSTEM_PACKAGES=1 -e PYTHONDONTWRITEBYTECODE=1",
            f"-e HMER_IMAGE={shlex.quote(image)}",
            f"-v {shlex.quote(str(Path(repository).resolve()))}:/repository:ro",
            shlex.quote(image),
            f"sh -c {shlex.quote(inside)}",
        ]
    )
