"""Inputs from the web, by HTTP(S)."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from typing import IO
from urllib.parse import quote, urlsplit

from client.inputs import MAX_BYTES, checked
from hmer.errors import MissingInput

FETCH_TIMEOUT = 30.0  # seconds for all of it
_PART = 1 << 16  # bytes


def is_url(name: str) -> bool:
    """Whether an input's name is an address to fetch."""
    return name.lower().startswith(("http://", "https://"))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A page may send elsewhere, but not to other protocols."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not is_url(newurl):
            fp.close()
            raise urllib.error.URLError(f"it leads to {urlsplit(newurl).scheme}:")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _all(response: http.client.HTTPResponse, end: float) -> bytes:
    """The body, or a byte more than is sent of it; a host that drips is given up at ``end``."""
    parts: list[bytes] = []
    left = MAX_BYTES + 1
    while left > 0 and (part := response.read1(min(left, _PART))):
        parts.append(part)
        left -= len(part)
        if time.monotonic() > end:
            raise TimeoutError
    return b"".join(parts)


def fetch(url: str, timeout: float = FETCH_TIMEOUT) -> bytes:
    """What lies at ``url``. Raises ``MissingInput``, ``EmptyInput`` or ``ImageTooLarge``."""
    end = time.monotonic() + timeout
    opener = urllib.request.build_opener(_Redirects)
    opener.addheaders = [("User-Agent", "hmer-client"), ("Accept", "image/*, */*")]
    try:
        with opener.open(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), timeout=timeout) as response:
            return checked(_all(response, end), url)
    except urllib.error.HTTPError as error:
        error.close()
        raise MissingInput(f"{url} cannot be fetched: {error.code} {error.reason}.") from None
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise MissingInput(f"{url} cannot be fetched: {str(reason).rstrip('.')}.") from None
    except TimeoutError:
        raise MissingInput(f"{url} was not there after {timeout:g} s.") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise MissingInput(f"{url} cannot be fetched: {error or type(error).__name__}.") from None
