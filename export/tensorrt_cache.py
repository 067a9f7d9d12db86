"""Timing caches: what TensorRT measured of its kernels, kept for the next build.

A cache is good for one version of TensorRT on one kind of GPU, so its file is named after both.
A second build of the same graph then takes seconds instead of minutes.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from export.tensorrt_api import Module
from hmer.gpu import Gpu


def cache_folder() -> Path:
    """``HMER_CACHE``, or ``hmer`` in the user's cache folder."""
    own = os.environ.get("HMER_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(own) if own else Path(base) / "hmer"


class TimingCache:
    """The cache file of one library version and GPU; an unreadable or stale one is ignored."""

    def __init__(self, trt: Module, gpu: Gpu, folder: Path | None = None) -> None:
        """``folder`` defaults to ``cache_folder()``; it is made when the cache is saved."""
        gpu_name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
        name = f"{trt.__name__}-{trt.__version__}-{gpu_name}-sm{gpu.compute_capability}.timing"
        self.path = (folder or cache_folder()) / name
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Give ``config`` what is known; keep this object until the engine is built."""
        known = self.path.read_bytes() if self.path.is_file() else b""
        # The header is checked strictly: a cache of another device or version does not attach.
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        self._cache = cache

    def save(self, config: Any) -> None:
        """Write what ``config`` knows after a build. A folder that cannot be written is ignored:
        a build that went well must not fail for its cache."""
        cache = config.get_timing_cache()
        if cache is None:
            return
        data = bytes(cache.serialize())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path.parent, delete=False) as draft:
                draft.write(data)
            os.replace(draft.name, self.path)
        except OSError:
            return
