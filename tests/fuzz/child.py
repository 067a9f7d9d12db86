"""The fuzzer itself, in a process of its own: ``tests.fuzz.run`` starts it.

``python -m tests.fuzz.child TARGET FINDINGS [libFuzzer's arguments]``. A finding (anything but an
error of ``hmer.errors``) is written to the folder FINDINGS, once for each place that it came from,
and the fuzzing goes on; what ends the process itself is left to libFuzzer's own artefacts.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hmer", "PIL", "defusedxml", "json"]):
    from tests.fuzz import targets

warnings.simplefilter("ignore")  # each distinct one would be kept


def main() -> None:
    """Fuzz until libFuzzer's limits."""
    target, _ = targets.TARGETS[sys.argv[1]]
    findings = Path(sys.argv[2])
    seen: set[str] = set()

    def one(data: bytes) -> None:
        try:
            targets.holds(target, data)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} {Path(frame.filename).name}:{frame.lineno}"
            if place in seen:
                return
            seen.add(place)
            name = hashlib.sha256(place.encode()).hexdigest()[:12]
            (findings / name).write_bytes(data)
            (findings / f"{name}.txt").write_text(
                f"{place}\n{''.join(traceback.format_exception(error))}", encoding="utf-8"
            )

    atheris.Setup([sys.argv[0], *sys.argv[3:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
