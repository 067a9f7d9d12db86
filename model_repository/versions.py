"""New weights take over from old ones on a running server, without a failed request.

A version has its bundle beside the first one (``bundle-2``) and a folder ``2`` in every model.
``recognize`` of version 2 calls ``encoder`` and ``decode`` of version 2 only, so those are loaded
first, beside the old ones; when ``recognize`` 2 is ready, Triton sends it all new requests, and
unloads ``recognize`` 1 when it has answered its last. Then the old version's folders are removed.

The server must have been started with ``hmer-serve --model-control``: whoever reaches its ports can
then load and unload models, so it is off by default.
"""

from __future__ import annotations

import http.client
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import click

from hmer import contract
from hmer.bundle import BEAM_FILE, BUNDLE_FILE, ENCODER_FILE, GRAPHS, STEP_FILE, load_bundle
from hmer.errors import BadParameter, HmerError, InferenceFailed, ServerError, ServerUnavailable
from model_repository.repository import Repository, open_repository

# What the others call comes first.
_ORDER = (
    *(contract.ENCODER, contract.DECODER_STEP, contract.DECODER_BEAM, contract.DECODE),
    *(contract.RECOGNIZE, contract.RECOGNIZE_STREAM, contract.PREPROCESS),
)
# Of these two versions serve side by side; of the others the newest, as soon as it is there.
_BESIDE = _ORDER[:4]
_GRAPHS = {
    contract.ENCODER: ENCODER_FILE,
    contract.DECODER_STEP: STEP_FILE,
    contract.DECODER_BEAM: BEAM_FILE,
}
LOAD_TIMEOUT_S = 60.0


def versions_of(repository: Repository) -> list[int]:
    """The versions in the repository, oldest first."""
    folder = repository.folder / "models" / contract.RECOGNIZE
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def add_version(repository: Repository, bundle_folder: str | Path) -> int:
    """Write the graphs bundle into the repository as its next version; the version.

    Raises ``BundleError``, and ``BadParameter`` for a network of other sizes or an engine.
    """
    new = load_bundle(bundle_folder, GRAPHS)
    old = load_bundle(repository.folder / "bundle", GRAPHS)
    if repository.engines:
        raise BadParameter(
            "The repository holds TensorRT engines, which are built for one bundle. Assemble a new "
            "repository, and start a server of its own."
        )
    if new.sizes != old.sizes:
        raise BadParameter(
            f"The new network's tensors have other sizes ({new.sizes}) than the served ones "
            f"({old.sizes}). Assemble a repository of its own with hmer-export repository."
        )
    version = versions_of(repository)[-1] + 1
    target = repository.folder / f"bundle-{version}"
    names = json.loads(new.file(BUNDLE_FILE).read_text(encoding="utf-8"))["files"]
    target.mkdir()
    for name in (BUNDLE_FILE, *names):
        shutil.copyfile(new.file(name), target / name)
    load_bundle(target, GRAPHS)  # what was copied is what was verified
    for model in repository.models:
        folder = repository.folder / "models" / model
        (folder / str(version)).mkdir()
        for path in (folder / str(version - 1)).iterdir():
            if path.is_file():
                source = new.file(_GRAPHS[model]) if path.suffix == ".onnx" else path
                shutil.copyfile(source, folder / str(version) / path.name)
    return version


def take_over(url: str, repository: Repository) -> list[int]:
    """Let the newest version serve and the others go; ``url``: the server's HTTP address.

    Returns the versions that went. Raises ``ServerError``; then the old version still serves.
    """
    *old, newest = versions_of(repository)
    models = [name for name in _ORDER if name in repository.models]
    try:
        for model in models:
            _load(url, model)
    except HmerError:
        if old:
            _remove(repository, [newest])  # a restart must not try it again
        raise
    _remove(repository, old)
    for model in models:
        if model in _BESIDE:
            _load(url, model)  # again, without those that are gone
    return old


def _remove(repository: Repository, versions: Sequence[int]) -> None:
    newest = versions_of(repository)[-1]
    for version in versions:
        for model in repository.models:
            shutil.rmtree(repository.folder / "models" / model / str(version), ignore_errors=True)
        # The first version's bundle is the default of all others, and what is checked at a start.
        if version != 1 or newest == 1:
            shutil.rmtree(repository.folder / f"bundle-{version}", ignore_errors=True)


def _load(url: str, model: str) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port or 80, timeout=LOAD_TIMEOUT_S
    )
    try:
        connection.request("POST", f"/v2/repository/models/{model}/load", "{}")
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
    except OSError as error:
        raise ServerUnavailable(f"There is no server at {url} ({error}).") from None
    finally:
        connection.close()
    if answer.status == 200:
        return
    if "explicit model load / unload is not allowed" in text:
        raise ServerError(
            f"The server at {url} does not let models be loaded. Start it with hmer-serve "
            "--model-control."
        )
    raise InferenceFailed(f"{model} did not load: {text.strip()}")


@click.command(epilog="\b\nExample:\n  python -m model_repository.versions repository new-bundle")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def main(repository: Path, bundle: Path, url: str, as_json: bool) -> None:
    """Serve BUNDLE in place of what a running server serves from REPOSITORY."""
    try:
        opened = open_repository(repository)
        version = add_version(opened, bundle)
        old = take_over(url, opened)
    except HmerError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps({"version": version, "replaced": old}))
    else:
        click.echo(f"Version {version} serves; {', '.join(map(str, old))} went.")


if __name__ == "__main__":
    main()
