"""How a client is let in: TLS and the headers of every request, for both wires."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hmer.errors import BadParameter, MissingInput

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2: a token
_VALUE = re.compile(r"[\x20-\x7e]*")  # what gRPC's metadata takes, too
_OWN = frozenset({"content-length", "content-type", "host", "transfer-encoding", "te"})


@dataclass(frozen=True)
class Access:
    """Checked headers (names in lower case) and, for TLS, files of PEM.

    ``ca``: the authorities that are trusted instead of the system's. ``certificate`` and ``key``:
    the client's own, where the server wants to know who asks.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def wants_tls(self) -> bool:
        """Whether a file was given that only TLS uses."""
        return any((self.ca, self.certificate, self.key))

    def context(self) -> ssl.SSLContext:
        """For HTTPS. Raises ``BadParameter`` for files that hold something else."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (ssl.SSLError, OSError) as error:
            raise _not_pem(self, error) from None
        return context

    def pem(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Authorities, key and certificate for gRPC. Raises ``BadParameter``."""
        self.context()  # gRPC itself would only log that a file is no PEM
        files = (self.ca, self.key or self.certificate, self.certificate)
        authorities, key, certificate = (None if f is None else f.read_bytes() for f in files)
        return authorities, key, certificate


def make_access(
    headers: Mapping[str, str] | None = None,
    token: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    certificate: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
) -> Access:
    """Check and gather; ``token`` becomes ``authorization: Bearer TOKEN``.

    Raises ``BadParameter``, or ``MissingInput`` for a file that is not there.
    """
    checked = {}
    for name, value in (headers or {}).items():
        checked[_name(name)] = _value(name, value)
    if token is not None:
        checked["authorization"] = "Bearer " + _value("authorization", token)
    if key is not None and certificate is None:
        raise BadParameter("A key without its certificate proves nothing. Give both.")
    return Access(checked, _file(ca), _file(certificate), _file(key))


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadParameter(f"{name!r} is not the name of a header.")
    if name.lower() in _OWN or name.lower().startswith(("grpc-", ":")):
        raise BadParameter(f"The header {name!r} is set by the client itself.")
    return name.lower()


def _value(name: str, value: str) -> str:
    if not _VALUE.fullmatch(value):
        # The value itself may be a secret: it stays out of the sentence.
        raise BadParameter(f"The value of the header {name!r} must be printable ASCII on one line.")
    return value.strip()


def _file(path: str | os.PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    if not Path(path).is_file():
        raise MissingInput(f"There is no file {path}.")
    return Path(path)


def _not_pem(access: Access, error: Exception) -> BadParameter:
    files = [str(f) for f in (access.ca, access.certificate, access.key) if f is not None]
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return BadParameter(
        f"TLS cannot be set up with {', '.join(files) or 'the system'} ({reason}). Give PEM files: "
        "authorities, or a certificate with its unencrypted key."
    )
