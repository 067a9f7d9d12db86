"""Folders that appear whole or not at all: written beside, then renamed into place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hmer import contract
from hmer.bundle import BEAM_FILE, ENCODER_FILE, STEP_FILE
from hmer.errors import ExportError, HmerError

GRAPH_FILES = {
    contract.ENCODER: ENCODER_FILE,
    contract.DECODER_STEP: STEP_FILE,
    contract.DECODER_BEAM: BEAM_FILE,
}
"""The graphs of a bundle: model of the contract -> file. ``decoder_beam`` may be absent."""


@contextmanager
def draft(output: Path) -> Iterator[Path]:
    """A new folder beside ``output`` that takes its place if the block ends well.

    Whatever was at ``output`` stays until then, and stays if anything fails; a full disk
    leaves nothing half-written. Raises ``ExportError`` where the folder cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=output.parent, prefix=f".{output.name}.", ignore_cleanup_errors=True
        ) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            new.mkdir()
            yield new
            if output.exists():
                os.rename(output, old)
            try:
                os.rename(new, output)
            except OSError:
                if old.exists():
                    os.rename(old, output)
                raise
    except HmerError:  # some are OSErrors too
        raise
    except OSError as error:
        raise ExportError(
            f"{output} cannot be written: {error.strerror or error}. Nothing was left of it."
        ) from error
