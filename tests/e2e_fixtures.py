"""Fixtures: a tiny exported bundle, and real servers over it and over the shipped one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from export.config import RepositoryOptions
from export.repository import assemble
from hmer.bundle import BEAM_FILE, ENCODER_FILE, STEP_FILE, Bundle, load_bundle, save_bundle
from hmer.errors import HmerError
from model_repository import embedded
from model_repository.endpoints import Endpoints
from model_repository.repository import open_repository
from model_repository.server import EmbeddedServer

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


def serve(bundle: Path, folder: Path, options: RepositoryOptions) -> EmbeddedServer:
    """A server over a repository that is assembled in ``folder``; enter it to start."""
    assemble(bundle, folder, options)
    return EmbeddedServer(open_repository(folder), ANY_PORTS)


@pytest.fixture(scope="session")
def server(
    tiny_graphs: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedServer]:
    """A running server over the tiny network, in-process steps."""
    need_embedded()
    folder = tmp_path_factory.mktemp("served") / "tiny"
    with serve(tiny_graphs.folder, folder, RepositoryOptions(slots=8)) as running:
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
