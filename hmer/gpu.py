"""Which NVIDIA GPU this process would use, asked of the driver's own ``nvidia-smi``."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from hmer.errors import ServerSetupError

_FIELDS = ("index", "uuid", "name", "compute_cap", "memory.total", "driver_version")


@dataclass(frozen=True)
class Gpu:
    """A GPU: ``compute_capability`` like "8.9", ``memory_mib`` in all."""

    index: str
    uuid: str
    name: str
    compute_capability: str
    memory_mib: int
    driver: str

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability as numbers: (8, 9)."""
        major, _, minor = self.compute_capability.partition(".")
        return int(major), int(minor or 0)


def find_gpu() -> Gpu | None:
    """The first GPU that CUDA would show to this process; ``None`` where there is none.

    ``CUDA_VISIBLE_DEVICES`` is honoured. Raises ``ServerSetupError`` if there is a driver that
    does not answer.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        gpus = [_parse(line) for line in run.stdout.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ServerSetupError(
            f"nvidia-smi does not tell about the GPU ({error}). Does the driver work? Run "
            "nvidia-smi by itself to see."
        ) from error
    return _visible(gpus)


def _parse(line: str) -> Gpu:
    index, uuid, name, capability, memory, driver = (part.strip() for part in line.split(","))
    return Gpu(index, uuid, name, capability, int(memory), driver)


def _visible(gpus: list[Gpu]) -> Gpu | None:
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return gpus[0] if gpus else None
    first = wanted.split(",")[0].strip()
    for gpu in gpus:
        # CUDA takes a number, or the beginning of a UUID.
        if first and (gpu.index == first or gpu.uuid.startswith(first)):
            return gpu
    return None
