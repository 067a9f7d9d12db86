"""A rival in a process, and an interpreter, of its own: ``PYTHON rival_worker.py NAME``.

This file imports the rival and the standard library alone, so that it runs in a virtual
environment without this project. It talks in lines of JSON: first what was loaded, then, for each
line ``{"image": base64 of a PNG}`` or ``{"strokes": [[[x, y], ...], ...]}``, an answer with the
seconds that the rival itself took. What the rival prints goes to stderr.
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import sys
import time
from importlib import import_module, metadata
from typing import Any, Protocol

# Median larger side of a stroke, in pixels, that strokes are scaled to for mathnote-ocr, whose pen
# and distances have sizes: of 10, 15, 20, 30, 40, 60 and the ink's own unit the best on 85
# expressions of CROHME's training set.
STROKE_SIZE = 40.0


class Worker(Protocol):
    """A rival; ``tokens`` are its symbols and structures in LaTeX."""

    tokens: list[str]

    def prepare(self, item: dict[str, Any]) -> Any:
        """What comes before its own work."""

    def read(self, prepared: Any) -> str:
        """Its own work: the LaTeX."""


class Pmsh:
    """``pmsh-ocr``: a picture, black on white, to LaTeX by its CTC output."""

    def __init__(self) -> None:
        """Load the weights in the wheel."""
        self._cv2, self._numpy = import_module("cv2"), import_module("numpy")
        self._ocr: Any = import_module("pmsh").PMSHOCR()
        self.tokens: list[str] = list(import_module("pmsh.recognize").RAW_VOCABULARY)

    def prepare(self, item: dict[str, Any]) -> Any:
        """Decode the picture."""
        data = self._numpy.frombuffer(base64.b64decode(item["image"]), self._numpy.uint8)
        return self._cv2.imdecode(data, self._cv2.IMREAD_COLOR)

    def read(self, prepared: Any) -> str:
        """See ``Worker``."""
        found = self._ocr.inference(prepared)
        return "" if found is None else str(found["ctc_text"])


class MathNote:
    """``mathnote-ocr``: strokes to LaTeX with its default configuration."""

    def __init__(self) -> None:
        """Load the weights in the wheel."""
        import_torchvision()
        self._ocr: Any = import_module("mathnote_ocr").MathOCR()
        tree_latex = import_module("mathnote_ocr.tree_parser.tree_latex")
        names = self._ocr.classifier.label_names
        structure = ["{", "}", "^", "_", "\\frac", "\\sqrt"]
        functions = list(tree_latex._FUNC_SEQUENCES.values())
        self.tokens: list[str] = (
            [tree_latex._sym_to_latex(n) for n in names] + structure + functions
        )

    def prepare(self, item: dict[str, Any]) -> Any:
        """Scale the strokes."""
        strokes = [stroke for stroke in item["strokes"] if stroke]
        sizes = [
            max(max(p[axis] for p in stroke) - min(p[axis] for p in stroke) for axis in (0, 1))
            for stroke in strokes
        ]
        scale = STROKE_SIZE / (statistics.median(sizes) or max(sizes) or STROKE_SIZE)
        return [[(p[0] * scale, p[1] * scale) for p in stroke] for stroke in strokes]

    def read(self, prepared: Any) -> str:
        """See ``Worker``."""
        return str(self._ocr.detect(prepared).latex)


def import_torchvision() -> None:
    """Import it, also beside a CPU build of PyTorch.

    The index's wheel of torchvision is built for CUDA: its compiled operators don't load there,
    and the import fails over their names. mathnote-ocr needs only the transforms, which are
    Python; the names alone let those be imported.
    """
    try:
        import_module("torchvision")
    except RuntimeError:
        torch: Any = import_module("torch")
        library = torch.library.Library("torchvision", "FRAGMENT")
        names = ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
        for name in (*names, "deform_conv2d"):
            library.define(f"{name}(Tensor x) -> Tensor")
        import_module("torchvision")


RIVALS: dict[str, type[Worker]] = {"pmsh-ocr": Pmsh, "mathnote-ocr": MathNote}


def main() -> None:
    """Load the rival that the command line names, then answer the lines of stdin."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the rival prints

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    name = sys.argv[1]
    try:
        began = time.perf_counter()
        rival = RIVALS[name]()
        load_s = time.perf_counter() - began
        about = metadata.metadata(name).json
    except Exception as error:  # whatever is wrong with it, this process's parent reports
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        say({"error": f"{type(error).__name__}: {error}", "missing": missing})
        return
    licence = str(about.get("license_expression") or about.get("license") or "not stated")
    ready = {"version": about["version"], "license": licence.splitlines()[0]}
    say({**ready, "load_s": load_s, "tokens": rival.tokens, "python": sys.version.split()[0]})
    for line in sys.stdin:
        try:
            prepared = rival.prepare(json.loads(line))
            began = time.perf_counter()
            latex = rival.read(prepared)
            say({"latex": latex, "seconds": time.perf_counter() - began})
        except Exception as error:  # an answer that is missing is wrong
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
