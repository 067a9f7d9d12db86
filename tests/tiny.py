"""A tiny network with random weights, for tests: exported in seconds, decoded in milliseconds.

Its answers mean nothing, but they behave like answers: they differ from image to image,
most end with ``<eos>`` after 5 to 25 tokens, some never do, and no decision is so close
that rounding turns it.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hmer.bundle import Bundle, load_bundle
from hmer.preprocess import PreprocessSettings
from hmer.vocab import EOS_ID, Vocabulary
from training.checkpoint import save_checkpoint
from training.network import NetworkConfig, Recogniser

TOKENS = (
    r"\frac", r"\sqrt", "{", "}", "_", "^", "+", "-", "=", "(", ")",
    "0", "1", "2", "3", "a", "b", "n", "x", "y",
)  # fmt: skip
VOCABULARY = Vocabulary(TOKENS)
CONFIG = NetworkConfig(
    vocabulary_size=len(VOCABULARY),
    widths=(8, 8, 16, 16),
    strides=(2, 2, 2, 1, 1),
    attention=16,
    hidden=24,
    embedding=8,
)
ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".pytest_cache" / "tiny"
EXPORT_CODE = (  # what decides the exported bytes
    *("export/onnx_export.py", "export/trace.py", "export/graphs.py", "export/storage.py"),
    *("export/beam_graph.py", "export/precision.py", "export/quantise.py"),
    *("training/network.py", "training/encoder.py", "training/checkpoint.py", "tests/tiny.py"),
    *("hmer/bundle.py", "hmer/contract.py", "hmer/vocab.py", "hmer/preprocess.py"),
)
SETTINGS = PreprocessSettings(multiple=CONFIG.stride)


def make_network(seed: int = 1, config: NetworkConfig = CONFIG) -> Recogniser:
    """The network in evaluation mode; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Recogniser(config)
        for name, weight in model.named_parameters():
            # Larger than PyTorch's initial weights, so that states wander and answers differ.
            if not name.startswith("encoder") and weight.dim() > 1:
                weight.mul_(3.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # statistics that folding must not lose
                module.running_mean.normal_(0.0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
                module.weight.uniform_(0.8, 1.6)
                module.bias.normal_(0.0, 0.1)
        model.output.bias[:2] = -50.0  # never <pad> or <sos>
        model.output.bias[EOS_ID] += 2.0
    return model.eval()


def make_checkpoint(folder: str | Path, seed: int = 1) -> Bundle:
    """Save ``make_network`` to ``folder`` as hmer-train would."""
    return save_checkpoint(
        folder, make_network(seed), VOCABULARY, SETTINGS, {"note": "random weights, for tests"}
    )


def make_graphs(
    folder: str | Path, k: int = 3, seed: int = 1, beam: int = 0, precision: str = "fp32"
) -> Bundle:
    """Export ``make_checkpoint``'s network to ``folder`` as ``hmer-export onnx`` would.

    ``beam`` candidates of ``decoder_beam``; 0 leaves that graph out, and spares its tracing.
    Whatever a ``precision`` costs is accepted: random weights lose much.

    Tracing takes half a minute, so the result is kept in pytest's cache folder for as long
    as the code that it depends on is the same.
    """
    shutil.copytree(_exported(k, seed, beam, precision), folder, dirs_exist_ok=True)
    return load_bundle(folder)


def _exported(k: int, seed: int, beam: int, precision: str) -> Path:
    key = hashlib.sha256(f"{k} {seed} {beam} {precision} {torch.__version__}".encode())
    for path in sorted(path for pattern in EXPORT_CODE for path in ROOT.glob(pattern)):
        key.update(path.read_bytes())
    kept = CACHE / key.hexdigest()[:24]
    if not kept.is_dir():
        from export.onnx_export import export_bundle

        CACHE.mkdir(parents=True, exist_ok=True)
        (CACHE / ".gitignore").write_text("*\n", encoding="utf-8")
        with tempfile.TemporaryDirectory(dir=CACHE) as home:
            make_checkpoint(Path(home, "checkpoint"), seed)
            export_bundle(
                Path(home, "checkpoint"),
                Path(home, "graphs"),
                k=k,
                beam=beam,
                precision=precision,
                accept_loss=True,
                images=named_images(6),
            )
            with contextlib.suppress(OSError):  # another process was faster
                Path(home, "graphs").rename(kept)
    return kept


def images(count: int, seed: int = 0, multiple: int = CONFIG.stride) -> list[NDArray[np.uint8]]:
    """Pictures of bars and blocks as preprocessing gives them: uint8 (H, W) of several sizes."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        height, width = rng.integers(2, 6) * multiple, rng.integers(2, 12) * multiple
        image = np.zeros((height, width), np.uint8)
        for _ in range(rng.integers(2, 8)):
            left, top = rng.integers(0, width - 6), rng.integers(0, height - 6)
            image[top : top + rng.integers(2, 7), left : left + rng.integers(2, 14)] = 255
        result.append(image)
    return result


def named_images(count: int, seed: int = 0) -> dict[str, NDArray[np.uint8]]:
    """``images`` under the names that a parity report shows."""
    return {f"image-{index}": image for index, image in enumerate(images(count, seed))}
