"""Fixtures: a tiny exported bundle, and real servers over it and over the shipped one."""

from __future__ import annotations

import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from export.config import RepositoryOptions
from export.repository import assemble
from hmer.bundle import BEAM_FILE, ENCODER_FILE, STEP_FILE, Bundle, load_bundle, save_bundle
from hmer.errors import HmerError, from_wire
from model_repository import embedded
from model_repository.endpoints import Endpoints
from model_repository.repository import open_repository
from model_repository.server import DEFAULTS, EmbeddedServer
from model_repository.settings import ServerSettings

ANY_PORTS = Endpoints(http_port=0, grpc_port=0, metrics_port=0)
SHIPPED = Path(__file__).resolve().parents[1] / "hmer" / "pretrained"


@pytest.fixture(scope="session")
def tiny_graphs(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The exported tiny network of ``tests.tiny``, with its graph for beams."""
    from tests.tiny import make_graphs

    return make_graphs(tmp_path_factory.mktemp("tiny") / "graphs", beam=6)


@pytest.fixture
def beamless_graphs(tiny_graphs: Bundle, tmp_path: Path) -> Bundle:
    """The same bundle as it is without the graph for beams."""
    folder = tmp_path / "beamless"
    shutil.copytree(tiny_graphs.folder, folder, ignore=shutil.ignore_patterns(BEAM_FILE))
    save_bundle(replace(tiny_graphs, folder=folder, beam=0), [ENCODER_FILE, STEP_FILE])
    return load_bundle(folder)


def need_embedded() -> None:
    """Skip, with the reason, where the embedded server cannot run."""
    try:
        embedded.find()
    except HmerError as error:
        pytest.skip(str(error))


def serve(
    bundle: Path,
    folder: Path,
    options: RepositoryOptions,
    settings: ServerSettings = DEFAULTS,
) -> EmbeddedServer:
    """A server over a repository that is assembled in ``folder``; enter it to start."""
    assemble(bundle, folder, options)
    return EmbeddedServer(open_repository(folder), ANY_PORTS, settings=settings)


@pytest.fixture(scope="session")
def server(
    tiny_graphs: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedServer]:
    """A running server over the tiny network, in-process steps."""
    need_embedded()
    folder = tmp_path_factory.mktemp("served") / "tiny"
    with serve(tiny_graphs.folder, folder, RepositoryOptions(slots=8, preprocessors=1)) as running:
        yield running


@pytest.fixture(scope="session")
def shipped_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A running server over the shipped weights."""
    if not (SHIPPED / "bundle.json").is_file():
        pytest.skip(f"There are no shipped weights in {SHIPPED}.")
    need_embedded()
    folder = tmp_path_factory.mktemp("served") / "shipped"
    with serve(SHIPPED, folder, RepositoryOptions()) as running:
        yield running


def picture(seed: int) -> bytes:
    """Random strokes; the seed also sets the size."""
    rng = np.random.default_rng(seed)
    page = np.full((110 + 20 * (seed % 3), 100 + 45 * (seed % 7)), 255, np.uint8)
    for _ in range(3 + seed % 3):
        points = rng.integers(12, np.array(page.shape[::-1]) - 12, (5, 2)).tolist()
        for start, end in pairwise(points):
            cv2.line(page, start, end, (0,), 3)
    return cv2.imencode(".jpg" if seed % 4 == 3 else ".png", page)[1].tobytes()


def metrics(
    server: EmbeddedServer, prefix: str = "hmer_decode", labels: str = ""
) -> dict[str, float]:
    """The metrics whose names begin with ``prefix`` and whose labels have ``labels``."""
    with urllib.request.urlopen(server.endpoints.metrics, timeout=5) as page:
        lines = page.read().decode("utf-8").splitlines()
    return {
        line.split("{")[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith(prefix) and labels in line
    }


def wait_for(
    server: EmbeddedServer, prefix: str = "hmer_decode", labels: str = "", **wanted: float
) -> None:
    """Until the server's metrics (published once a second) have these values."""

    def values() -> dict[str, float | None]:
        found = metrics(server, prefix, labels)
        return {name: found.get(f"{prefix}_{name}") for name in wanted}

    until(lambda: values() == wanted, lambda: f"{values()}, not {wanted}")


def until(happens: Callable[[], bool], otherwise: Callable[[], str] = str) -> None:
    """Wait, a while, until it ``happens``; ``otherwise`` says what there is instead."""
    deadline = time.monotonic() + 10
    while not happens():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.02)


class Raw:
    """Requests below the client: parameters, cancellation, other models."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.grpc: Any = pytest.importorskip("tritonclient.grpc")
        self.client = self.grpc.InferenceServerClient(server.endpoints.grpc)

    def tensors(self, **arrays: Any) -> list[Any]:
        types = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32", "object": "BYTES"}
        result = []
        for name, values in arrays.items():
            tensor = self.grpc.InferInput(name, values.shape, types[str(values.dtype)])
            tensor.set_data_from_numpy(values)
            result.append(tensor)
        return result

    def recognize(self, rows: list[bytes], **options: Any) -> list[tuple[str, ...]]:
        """The tokens of every row of one request."""
        rows_tensor = np.array([[row] for row in rows], dtype=np.object_)
        try:
            result = self.client.infer("recognize", self.tensors(input=rows_tensor), **options)
        except self.grpc.InferenceServerException as error:
            raise from_wire(error.message()) from None
        return [tuple(row.decode().split()) for row in result.as_numpy("tokens")[:, 0]]

    def array_of(self, tensor: Any) -> NDArray[Any]:
        """The values of an input that ``tensors`` or ``features`` made; not of bytes."""
        dtype = {"INT32": np.int32, "FP32": np.float32}[tensor.datatype()]
        return np.frombuffer(tensor._get_content() or b"", dtype).reshape(tensor.shape())

    def features(self, data: bytes) -> list[Any]:
        """The inputs of ``decode``."""
        row = np.array([[data]], dtype=np.object_)
        prepared = self.client.infer("preprocess", self.tensors(input=row))
        encoded = self.client.infer(
            "encoder",
            self.tensors(image=prepared.as_numpy("image"), size=prepared.as_numpy("size")),
        )
        names = ("values", "keys", "feature_size", "state")
        return self.tensors(**{name: encoded.as_numpy(name) for name in names})
