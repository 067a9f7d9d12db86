"""The ``docker run`` line that serves a repository in NVIDIA's image."""

from __future__ import annotations

import shlex
from pathlib import Path

from model_repository.endpoints import Endpoints

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3"


def docker_line(repository: str | Path, endpoints: Endpoints, *, gpu: bool) -> str:
    """A shell command for a repository assembled with ``--host container``.

    The image's Python lacks what ``preprocess`` needs, so it is installed first; the Python
    backend passes tensors through shared memory, of which a container has 64 MB by default.
    """
    inside = (
        "pip install --quiet -r /repository/requirements.txt && "
        "exec tritonserver --model-repository=/repository/models"
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
            "-e PIP_BREAK_SYSTEM_PACKAGES=1",
            f"-v {shlex.quote(str(Path(repository).resolve()))}:/repository:ro",
            IMAGE,
            f"sh -c {shlex.quote(inside)}",
        ]
    )
