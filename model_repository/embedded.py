"""The real ``tritonserver`` that the wheel of nvidia-pytriton carries: find it, lay it out.

The wheel holds the server and its Python backend, but keeps the backend's stub (the program
that runs one Python model) once for every Python version, outside the backend's folder. The
server wants both in one folder, so ``lay_out`` links them into a folder of our own.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import secrets
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hmer.errors import MissingDependency, ServerSetupError
from hmer.serving import INNER_VARIABLE

_SERVE_EXTRA = "pip install 'hmer[serve]'"
_STUB = "triton_python_backend_stub"
_HINT = "Or serve with NVIDIA's image: hmer-serve --print-docker shows how."


@dataclass(frozen=True)
class EmbeddedTriton:
    """Where the server's parts are."""

    binary: Path
    python_backend: Path  # folder of libtriton_python.so and its utilities
    stub: Path
    libraries: tuple[Path, ...]  # folders for the loader: the wheel's own, then libpython's
    python: Path  # folder that holds the `python3` which the stub shall be


def find() -> EmbeddedTriton:
    """The embedded server for this interpreter.

    Raises ``MissingDependency`` or ``ServerSetupError`` with the part that is missing.
    """
    check_platform(platform.system(), platform.machine())
    folder = _wheel()
    root = folder / "tritonserver"
    libraries = folder.parent / "nvidia_pytriton.libs"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    binary = root / "bin" / "tritonserver"
    backend = root / "backends" / "python"
    for part in (binary, backend / "libtriton_python.so", libraries):
        if not part.exists():
            raise ServerSetupError(
                f"{part} is missing: the installed nvidia-pytriton is not the wheel with the "
                f"server. Install it again: {_SERVE_EXTRA}."
            )
    stub = root / "python_backend_stubs" / version / _STUB
    if not stub.is_file():
        raise unsupported_python(version, root / "python_backend_stubs")
    check_numpy()
    loader = [libraries]
    if not list(libraries.glob(f"libpython3-*.{sys.version_info.minor}.so*")):
        loader.append(find_libpython(version))
    return EmbeddedTriton(binary, backend, stub, tuple(loader), _python_folder())


def lay_out(triton: EmbeddedTriton, folder: Path) -> Path:
    """Link the Python backend and its stub into ``folder``; the server's backend directory."""
    backends = folder / "backends"
    target = backends / "python"
    target.mkdir(parents=True)
    for part in [*triton.python_backend.iterdir(), triton.stub]:
        if part.is_file():
            (target / part.name).symlink_to(part)
    return backends


def environment(triton: EmbeddedTriton) -> dict[str, str]:
    """The server's environment: this process's, with the loader's and the stub's needs."""
    values = dict(os.environ)
    # The stub is whichever `python3` comes first in PATH, and so are its packages.
    values["PATH"] = _prepend(triton.python, values.get("PATH"))
    for library in reversed(triton.libraries):
        values["LD_LIBRARY_PATH"] = _prepend(library, values.get("LD_LIBRARY_PATH"))
    values["PYTHONUNBUFFERED"] = "1"
    values[INNER_VARIABLE] = secrets.token_hex(16)
    # A heap for every thread that allocates at the same time as others keeps what each once needed.
    values.setdefault("MALLOC_ARENA_MAX", "2")
    # What is large goes back when it is freed: glibc would keep up to 32 MB a piece, and after some
    # thousand hostile requests the server held three times the memory. With 1 MiB the encoder,
    # whose activations would go back after every layer, takes a tenth longer.
    values.setdefault("MALLOC_MMAP_THRESHOLD_", str(16 << 20))
    values.setdefault("MALLOC_TRIM_THRESHOLD_", str(32 << 20))
    return values


def _prepend(folder: Path, path: str | None) -> str:
    return os.pathsep.join([str(folder), *([path] if path else [])])


def check_platform(system: str, machine: str) -> None:
    """Raise ``ServerSetupError`` unless the wheel has a server for this kind of machine."""
    if system != "Linux" or machine not in ("x86_64", "AMD64", "aarch64"):
        raise ServerSetupError(
            f"The embedded Triton runs on Linux (x86-64 or Arm), and this is {system} on "
            f"{machine}. {_HINT}"
        )


def unsupported_python(version: str, stubs: Path) -> ServerSetupError:
    """The error for an interpreter that no stub was built for."""
    known = sorted((path.name for path in stubs.glob("3.*")), key=lambda v: int(v.split(".")[1]))
    return ServerSetupError(
        f"The embedded Triton has no support for Python {version}. Make the virtual environment "
        f"with one of Python {', '.join(known) or '3.10 to 3.13'}. {_HINT}"
    )


def _wheel() -> Path:
    # Found without importing: the package itself is not needed, and is slow to import.
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        if sys.version_info >= (3, 13):
            raise ServerSetupError(
                "The embedded Triton needs NumPy 1, which has no wheel for Python "
                f"{platform.python_version()}. Make the virtual environment with Python 3.10 to "
                f"3.12. {_HINT}"
            )
        raise MissingDependency(
            f"The server is not installed: {_SERVE_EXTRA} (nvidia-pytriton, 55 MB). {_HINT}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def check_numpy() -> None:
    """Raise ``ServerSetupError`` for NumPy 2, with which every model returns empty tensors."""
    try:
        version = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        raise MissingDependency(f"NumPy is not installed: {_SERVE_EXTRA}.") from None
    if int(version.split(".")[0]) >= 2:
        raise ServerSetupError(
            f"NumPy {version} is installed, and the embedded Triton needs NumPy 1: with NumPy 2 "
            "its models return empty tensors. Run: "
            "pip install 'numpy<2' 'opencv-python-headless<4.12'"
        )


def find_libpython(version: str) -> Path:
    """The folder of ``libpython3.X.so.1.0``, which the stub is linked to."""
    name = f"libpython{version}.so.1.0"
    for folder in _library_folders():
        if (folder / name).is_file():
            return folder
    raise ServerSetupError(
        f"{name} was not found, and the server's Python models need it: this Python was built "
        f"without a shared library. On Debian or Ubuntu: apt-get install libpython{version}. With "
        "pyenv: build it with PYTHON_CONFIGURE_OPTS=--enable-shared. Or use the Python of uv or "
        "conda, which have it."
    )


def _library_folders() -> Iterator[Path]:
    """Where a shared library of the interpreter may be, likeliest first."""
    base = Path(sys.base_prefix)
    yield from (base / "lib", base / "lib64")
    variables = sysconfig.get_config_vars()
    if folder := variables.get("LIBDIR"):
        yield Path(folder)
        if architecture := variables.get("MULTIARCH"):
            yield Path(folder) / architecture
    for line in _loader_cache():
        yield Path(line.rsplit("=> ", 1)[1]).parent
    yield from (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib64"), Path("/usr/local/lib"))


def _loader_cache() -> list[str]:
    try:
        run = subprocess.run(
            ["/sbin/ldconfig", "-p"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in run.stdout.splitlines() if "libpython" in line and "=> " in line]


def _python_folder() -> Path:
    folder = Path(sys.executable).parent
    python = folder / "python3"
    # A virtual environment may hold copies of the interpreter instead of links.
    own = (folder.parent / "pyvenv.cfg").is_file()
    if not python.exists() or not (own or python.resolve() == Path(sys.executable).resolve()):
        raise ServerSetupError(
            f"The server's models would run under {python}, which is not the interpreter of this "
            f"command ({sys.executable}). Install into a virtual environment and run it from there."
        )
    return folder
