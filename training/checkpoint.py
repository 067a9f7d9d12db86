"""Checkpoints: a network's weights as safetensors in a bundle of kind ``checkpoint``.

Nothing is pickled, so a checkpoint from elsewhere cannot run code.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmer.bundle import CHECKPOINT, WEIGHTS_FILE, Bundle, load_bundle, save_bundle
from hmer.errors import CorruptBundle, MissingDependency, VocabularyMismatch
from hmer.preprocess import PreprocessSettings
from hmer.vocab import Vocabulary
from training.network import NetworkConfig, Recogniser

try:
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save
except ImportError as error:  # pragma: no cover - the extra "train" brings it
    raise MissingDependency(
        "Checkpoints need safetensors. Install it with: pip install 'hmer[train]'"
    ) from error


def save_checkpoint(
    folder: str | Path,
    model: Recogniser,
    vocabulary: Vocabulary,
    preprocess: PreprocessSettings,
    details: dict[str, Any],
    dtype: torch.dtype = torch.float16,
) -> Bundle:
    """Write ``model`` to ``folder`` (made if need be); its weights are stored as ``dtype``.

    Integer buffers keep their type. The weights appear whole or not at all: written
    beside and renamed, ``bundle.json`` last.
    """
    if model.config.vocabulary_size != len(vocabulary):
        raise VocabularyMismatch(
            f"The network has {model.config.vocabulary_size} outputs and the vocabulary "
            f"{len(vocabulary)} tokens; give the vocabulary that the network was made for."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bundle = Bundle(
        folder=folder,
        kind=CHECKPOINT,
        vocabulary=vocabulary,
        preprocess=preprocess,
        network=model.config.to_dict(),
        details=details,
    )
    draft = folder / f"{WEIGHTS_FILE}.part"
    weights = {name: _stored(value, dtype) for name, value in model.state_dict().items()}
    draft.write_bytes(save(weights))  # save_file would make it unreadable for others
    os.replace(draft, bundle.file(WEIGHTS_FILE))
    save_bundle(bundle, [WEIGHTS_FILE])
    return bundle


def load_checkpoint(folder: str | Path) -> tuple[Bundle, Recogniser]:
    """The bundle and its network, on the CPU, in float32 and in evaluation mode.

    Raises ``BundleError`` (``MissingBundle``, ``CorruptBundle``, ``ContractMismatch``,
    ``VocabularyMismatch``) with a sentence about what does not fit.
    """
    bundle = load_bundle(folder, kind=CHECKPOINT)
    path = bundle.file(WEIGHTS_FILE)
    try:
        config = NetworkConfig.from_dict(bundle.network)
        model = Recogniser(config)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise CorruptBundle(
            f"The network described in {bundle.folder} cannot be built ({error}). Install the "
            "version of hmer that trained it, or train again."
        ) from error
    if config.vocabulary_size != len(bundle.vocabulary):
        raise VocabularyMismatch(
            f"The network in {bundle.folder} has {config.vocabulary_size} outputs and its "
            f"vocabulary {len(bundle.vocabulary)} tokens: they do not belong together. Copy the "
            "checkpoint again."
        )
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptBundle(
            f"{path} is not a whole safetensors file ({error}). Copy the checkpoint again."
        ) from error
    _check_weights(path, weights, model.state_dict())
    model.load_state_dict(weights)  # copies into float32 parameters
    return bundle, model.float().eval()


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().cpu()
    return (value.to(dtype) if value.is_floating_point() else value).contiguous()


def _check_weights(path: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Refuse the weights of another network: by name, by shape, or not finite."""
    unlike = sorted(found.keys() ^ wanted.keys())
    if unlike:
        where = "the file" if unlike[0] in wanted else "the network"
        raise CorruptBundle(
            f"{path} holds the weights of another network: {len(unlike)} names differ, for "
            f"example {unlike[0]}, which {where} does not have. Give a checkpoint of this "
            "project, written by this version."
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise CorruptBundle(
                f"{path} holds {name} as {tuple(value.shape)}, but {tuple(wanted[name].shape)} "
                "is what the bundle's sizes ask for. Copy the checkpoint again."
            )
        if not bool(torch.isfinite(value).all()):
            raise CorruptBundle(
                f"{path} holds values in {name} that are not finite: training diverged, or a "
                "value was too large for its storage type. Use an earlier checkpoint."
            )
