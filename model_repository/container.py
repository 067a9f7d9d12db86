"""What a container runs: check the repository, then become ``tritonserver``.

::

    python3 -m model_repository.container REPOSITORY [--check] [OPTION OF tritonserver ...]

Triton loads a TensorRT plan without asking where it came from. So at every start the bundle and
every engine must be the files that their hashes describe, and fit the image (``HMER_IMAGE``) and
the GPU; what does not is refused with a sentence. ``--check`` ends there. It needs no more of
Python than the models do: it is started in images where nothing of this project is installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from hmer.engine_images import DEFAULT
from hmer.errors import HmerError, ServerSetupError
from hmer.serving import LOG_VARIABLE, MAX_WORKERS, TRACE_VARIABLE
from model_repository.docker import check_engines
from model_repository.repository import Repository, open_repository
from model_repository.settings import ServerSettings

IMAGE_VARIABLE = "HMER_IMAGE"


def check(folder: str, image: str) -> Repository:
    """The repository in ``folder``, if ``image`` may serve it. Raises an ``HmerError``."""
    repository = open_repository(folder)
    if repository.description.get("host") != "container":
        raise ServerSetupError(
            f"{folder} was assembled for the embedded server. Assemble it with: hmer-export "
            "repository BUNDLE --host container --output DIR"
        )
    if warning := check_engines(repository, image):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return repository


def command(repository: Repository, options: Sequence[str]) -> list[str]:
    """The server's command line; ``options`` come last, and win."""
    settings = ServerSettings(
        log_requests=os.environ.get(LOG_VARIABLE) or None,
        trace_url=os.environ.get(TRACE_VARIABLE) or None,
    )
    compatible = any(engine.version_compatible for engine in repository.engines.values())
    return [
        "tritonserver",
        f"--model-repository={repository.folder / 'models'}",
        "--disable-auto-complete-config",
        f"--backend-config=python,thread-pool-size={MAX_WORKERS}",
        *(["--backend-config=tensorrt,version-compatible=true"] if compatible else []),
        *settings.arguments(),
        *options,
    ]


def main(arguments: Sequence[str]) -> None:
    """Does not return: becomes the server, or ends with 0 after ``--check``, with 1 at an error."""
    if not arguments or arguments[0].startswith("-"):
        sys.exit("error: Give the repository: python3 -m model_repository.container REPOSITORY")
    folder, *options = arguments
    try:
        repository = check(folder, os.environ.get(IMAGE_VARIABLE, DEFAULT.name))
    except HmerError as error:
        sys.exit(f"error: {error}")
    if options[:1] == ["--check"]:
        sys.exit(0)
    line = command(repository, options)
    try:
        os.execvp(line[0], line)
    except OSError as error:
        sys.exit(f"error: {line[0]} cannot be started here ({error.strerror}).")


if __name__ == "__main__":
    main(sys.argv[1:])
