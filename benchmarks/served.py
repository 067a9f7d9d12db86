"""A server that a measurement starts and stops: ``hmer-serve`` in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from benchmarks.process_tree import Usage, usage
from hmer.errors import ServerSetupError

START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 30.0


class ServedProcess:
    """``hmer-serve`` over a repository in free ports; a context manager that waits until ready.

    ``ready_s``: seconds from the start of the command until it said that it is ready.
    """

    def __init__(
        self,
        repository: Path,
        options: Sequence[str] = (),
        *,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is started yet.

        ``options``: further ones of ``hmer-serve``. ``prefix``: a command that runs it.
        ``environment``: variables beside this process's own.
        """
        self.repository = repository
        self._options, self._prefix = tuple(options), tuple(prefix)
        self._environment = {**os.environ, **(environment or {})}
        self.ready_s = 0.0
        self.about: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    def __enter__(self) -> ServedProcess:
        """Start it. Raises ``ServerSetupError`` with what the command said."""
        ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
        began = time.perf_counter()
        serve = [sys.executable, "-m", "model_repository.serve", *ports, "--json"]
        command = [*self._prefix, *serve, *self._options]
        # A file, not a pipe: nobody reads while it runs, and a full pipe would stop it.
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*command, "--repository", str(self.repository.resolve())],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=self._said,
            cwd=_root(),
            # A Ctrl-C reaches this program alone, which stops the server in good order.
            start_new_session=True,
        )
        try:
            self.about = self._announced(began + START_TIMEOUT_S)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.ready_s = time.perf_counter() - began
        return self

    def _announced(self, deadline: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            while time.perf_counter() < deadline:
                if not waiting.select(timeout=0.5):
                    continue
                line = process.stdout.readline().decode("utf-8", errors="replace")
                if line.startswith("{"):
                    found: dict[str, Any] = json.loads(line)
                    return found
                if not line:
                    process.wait(_STOP_TIMEOUT_S)
                    said = self.said().strip()
                    reason = said.splitlines()[-1] if said else "it ended without a word"
                    raise ServerSetupError(
                        f"The server of {self.repository} did not start: "
                        f"{reason.removeprefix('error: ')}"
                    )
        raise ServerSetupError(
            f"The server of {self.repository} was not ready after {START_TIMEOUT_S:.0f} s."
        )

    def said(self) -> str:
        """What the command has written to stderr so far."""
        assert self._said is not None
        size = os.fstat(self._said.fileno()).st_size
        # At a place of its own: the command's place in the file is shared with this descriptor.
        return os.pread(self._said.fileno(), size, 0).decode("utf-8", errors="replace")

    def ended(self, timeout: float) -> int | None:
        """The command's exit code once it has ended by itself; ``None`` after ``timeout`` s."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout)
        return None

    @property
    def grpc(self) -> str:
        """``HOST:PORT``."""
        return str(self.about["grpc"])

    @property
    def http(self) -> str:
        """``http://HOST:PORT``."""
        return str(self.about["http"])

    @property
    def metrics(self) -> str:
        """The address of its metrics page."""
        return str(self.about["metrics"])

    def usage(self) -> Usage:
        """Of the command, the server and its models together."""
        assert self._process is not None
        return usage(self._process.pid)

    @property
    def pid(self) -> int:
        """Of the command."""
        assert self._process is not None
        return self._process.pid

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        process, self._process = self._process, None
        said, self._said = self._said, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdout, said):
            if stream is not None:
                stream.close()


def _root() -> Path:
    """Where the packages lie, so that a checkout need not be installed."""
    spec = importlib.util.find_spec("hmer")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))).parent
