"""The embedded Triton as a child process: start, wait until ready, stop."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from hmer.errors import HmerError, InferenceFailed, ServerSetupError, from_wire
from hmer.serving import MAX_WORKERS
from model_repository import embedded
from model_repository.endpoints import Endpoints
from model_repository.repository import Repository
from model_repository.settings import ServerSettings

DEFAULTS = ServerSettings()
READY_TIMEOUT_S = 120.0
# Requests under way are short; what is still there after this is abandoned.
STOP_TIMEOUT_S = 5
STOP_GRACE_S = 10
# Of a temporary log: a server runs for months, and its folder may be in memory.
MAX_LOG_BYTES = 16 * 2**20

# Becomes the server, which the kernel is to terminate when its parent dies, however that dies
# (1 is PR_SET_PDEATHSIG). A program of its own, because little is safe between fork and exec. Its
# threads get stacks of a GiB, of which they take what they touch (not where the kernel wants all
# of it reserved): Triton 2.51 reads nested JSON and bodies in chunks on the stack, and with the
# usual 8 MB 200 KB of brackets end it by signal 11.
_LAUNCH = (
    "import ctypes, os, resource, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "soft, hard = resource.getrlimit(resource.RLIMIT_STACK)\n"
    "wanted = 1 << 30 if hard < 0 else min(1 << 30, hard)\n"
    "strict = open('/proc/sys/vm/overcommit_memory').read().strip() == '2'\n"
    "if not strict and 0 <= soft < wanted:\n"
    "    resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)


class EmbeddedServer:
    """``tritonserver`` over a repository, as a context manager that waits until it is ready.

    The server is a child in a session of its own, so that a Ctrl-C reaches only this process,
    which then stops it in good order; if this process is killed, the kernel stops it.
    """

    def __init__(
        self,
        repository: Repository,
        endpoints: Endpoints,
        *,
        log: str | Path | None = None,
        settings: ServerSettings = DEFAULTS,
    ) -> None:
        """``log``: where the server's output goes; by default a file that a clean stop removes."""
        if repository.description.get("host") != "embedded":
            raise ServerSetupError(
                f"{repository.folder} was assembled for NVIDIA's container. Run it there "
                "(hmer-serve --print-docker shows how), or assemble it with --host embedded."
            )
        self.repository = repository
        self._wanted = endpoints
        self.endpoints = endpoints
        self._folder: Path | None = None
        self._settings = settings
        self._keep_log = log is not None
        self.log = Path(log).absolute() if log is not None else Path()
        self._log_from = 0  # where the present child's part of the log begins
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the child. Raises ``ServerSetupError`` or ``MissingDependency``."""
        triton = embedded.find()
        self.endpoints = self._wanted.reserve()
        try:
            self._folder = _scratch_folder()
            if not self._keep_log:
                self.log = self._folder / "tritonserver.log"
            # The Python backend starts its stubs through a shell, without quoting: the paths
            # that it gets to see are ours, and have no spaces.
            (self._folder / "models").symlink_to(self.repository.folder / "models")
            embedded.lay_out(triton, self._folder)
            self.log.write_bytes(b"")
            self._launch(triton)
        except OSError as error:
            self._remove()
            raise _cannot_start(error) from None

    def _launch(self, triton: embedded.EmbeddedTriton) -> None:
        assert self._folder is not None
        command = self._command(triton, self._folder / "backends")
        # Appended, so that it can be cut off while the server writes to it.
        with self.log.open("ab") as output:
            self._log_from = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCH, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # The stub puts its working directory first in sys.path.
                cwd=self._folder,
                env=embedded.environment(triton) | self._settings.environment(),
                start_new_session=True,
            )

    def kill(self) -> None:
        """End the child by force, with its workers and its shared memory; ``restart`` may follow.

        Clients notice at once, where a child that lost a worker would let them wait.
        """
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # the group is the child's own
            process.wait()
        self._remove_regions()

    def restart(self) -> None:
        """Start a child in place of one that was killed: same ports, same folder, same log.

        Raises ``ServerSetupError`` or ``MissingDependency``.
        """
        assert self._folder is not None
        assert self._process is None
        try:
            self._launch(embedded.find())
        except OSError as error:
            raise _cannot_start(error) from None

    def _command(self, triton: embedded.EmbeddedTriton, backends: Path) -> list[str]:
        e = self.endpoints
        return [
            str(triton.binary),
            f"--model-repository={backends.parent / 'models'}",
            f"--backend-directory={backends}",
            *self._settings.arguments(),
            "--disable-auto-complete-config",
            # A slow disk or CPU may need more than the default 30 s to load a model.
            f"--backend-config=python,stub-timeout-seconds={int(READY_TIMEOUT_S)}",
            f"--backend-config=python,shm-region-prefix-name={backends.parent.name}-",
            # Its requests in flight are what a model has calls under way for.
            f"--backend-config=python,thread-pool-size={MAX_WORKERS}",
            f"--exit-timeout-secs={STOP_TIMEOUT_S}",
            f"--http-address={e.host}",
            f"--http-port={e.http_port}",
            f"--grpc-address={e.host}",
            f"--grpc-port={e.grpc_port}",
            f"--metrics-address={e.host}",
            f"--metrics-port={e.metrics_port}",
            "--allow-gpu-metrics=false",
        ]

    def wait_ready(
        self,
        timeout: float = READY_TIMEOUT_S,
        on_progress: Callable[[set[str]], bool] | None = None,
    ) -> None:
        """Return when every model serves.

        ``on_progress`` gets the loaded models' names; if it returns false, waiting ends early.
        Raises the error that a model gave (a ``BundleError``), or ``ServerSetupError``.
        """
        deadline = time.monotonic() + timeout
        while not self.ready():
            if on_progress is not None:
                loaded = set(re.findall(r"successfully loaded '(\w+)'", self._log_text()))
                if not on_progress(loaded):
                    return
            if self.returncode() is not None:
                raise self._failure()
            if time.monotonic() > deadline:
                raise ServerSetupError(
                    f"The server was not ready after {timeout:.0f} s. Its log: {self.log}"
                )
            time.sleep(0.05)
        if on_progress is not None:
            on_progress(set(self.repository.models))

    def ready(self) -> bool:
        """Whether the server answers and all its models are loaded."""
        connection = http.client.HTTPConnection(
            self.endpoints.client_host, self.endpoints.http_port, timeout=5
        )
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def returncode(self) -> int | None:
        """The exit code once the child has ended by itself."""
        return self._process.poll() if self._process is not None else None

    def _log_text(self) -> str:
        try:
            with self.log.open("rb") as stream:
                # From the beginning if it was cut off meanwhile.
                stream.seek(self._log_from if self._log_from <= stream.seek(0, 2) else 0)
                return stream.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def trim_log(self) -> None:
        """Cut off a temporary log that has become long; one of the caller's own is the caller's."""
        if not self._keep_log:
            with contextlib.suppress(OSError):
                if self.log.stat().st_size > MAX_LOG_BYTES:
                    os.truncate(self.log, 0)

    def keep_log(self) -> None:
        """Leave the log where it is when the server is stopped."""
        self._keep_log = True

    def _failure(self) -> HmerError:
        self.keep_log()
        return load_failure(self._log_text(), self.returncode(), self.log)

    def stop(self) -> None:
        """Stop the child: politely, then by force. More calls do nothing."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT_S + STOP_GRACE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            # Stubs that the server could not take along; the group is the child's own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        self._remove()

    def _remove(self) -> None:
        """Remove the temporary folder, except a log that somebody may need, and shared memory."""
        self._remove_regions()
        folder, self._folder = self._folder, None
        if folder is None:
            return
        if self._keep_log and self.log.parent == folder:
            shutil.rmtree(folder / "backends", ignore_errors=True)
            (folder / "models").unlink(missing_ok=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_regions(self) -> None:
        if self._folder is not None:
            for region in Path("/dev/shm").glob(f"{self._folder.name}-*"):  # of one that was killed
                region.unlink(missing_ok=True)

    def __enter__(self) -> EmbeddedServer:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _cannot_start(error: OSError) -> ServerSetupError:
    return ServerSetupError(f"The server cannot be started: {error.strerror} ({error.filename}).")


def _scratch_folder() -> Path:
    """A new temporary folder whose path a shell takes for one word."""
    plain = re.fullmatch(r"[\w/.+-]+", tempfile.gettempdir())
    return Path(tempfile.mkdtemp(prefix="hmer-serve-", dir=None if plain else "/tmp"))


def load_failure(log_text: str, returncode: int | None, log: Path) -> HmerError:
    """Why the server ended before it was ready, from its log."""
    # An exception of a model's initialize: the text ends at the quote or the traceback.
    for text in re.findall(r"(\[[a-z_]+\] .*?)(?:\\n|\"|$)", log_text, re.MULTILINE):
        error = from_wire(text)
        if not isinstance(error, InferenceFailed):
            return error
    last = [
        line
        for line in log_text.splitlines()
        if re.match(r"E\d{4} |error: |.*loading shared", line)
    ]
    reason = f" It said: {last[-1].strip()}" if last else ""
    return ServerSetupError(
        f"The server ended while it loaded (exit code {returncode}).{reason} Its log: {log}"
    )
