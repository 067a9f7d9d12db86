"""From the options of ``hmer-train train`` to a ``Trainer``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hmer.bundle import BUNDLE_FILE, CHECKPOINT, load_bundle
from hmer.errors import BadParameter, VocabularyMismatch
from hmer.preprocess import PreprocessSettings
from hmer.vocab import Vocabulary
from training.augment import AugmentSettings
from training.checkpoint import load_checkpoint
from training.data import Example, estimate_size, plan_epoch, split_by_writer_and_label
from training.network import NetworkConfig
from training.recombine import RecombineSettings, recombination
from training.settings import SHORT_FIRST, TrainSettings
from training.sources import Loaded, open_source, own_eval
from training.train import Trainer

BEST = "best"  # the folder of a run with its best checkpoint
EVALUATE_EVERY = 500  # steps
# Ten epochs of a small set are over before the network could learn anything.
LEAST_BETWEEN = 50  # steps from one evaluation to the next, with ``--task``


class Data(NamedTuple):
    """What a run learns from and is watched on, and the sources with what they left out."""

    train: list[Example]
    held_out: list[Example]
    vocabulary: Vocabulary
    sources: list[Loaded]


class Run(NamedTuple):
    """A trainer, new or resumed, and its data."""

    trainer: Trainer
    data: Data


def load_data(options: dict[str, Any], vocabulary: Vocabulary | None = None) -> Data:
    """Read ``--data``: its own part for evaluation is held out, or else a drawn one.

    ``vocabulary`` is that of the weights to start from; a new one is made from the labels.
    """
    shared = {
        "image_dir": options["image_dir"],
        "sequence_length": options["sequence_length"],
        "strict": options["strict"],
    }
    paths = [options["data"], *options["extra"]]
    loaded, *extra = (
        open_source(path, split="train", vocabulary=vocabulary, **shared) for path in paths
    )
    more = [example for source in extra for example in source.examples]
    known = vocabulary or Vocabulary.from_labels(e.tokens for e in [*loaded.examples, *more])
    apart = own_eval(options["data"], options["image_dir"])
    if apart is None:
        split = split_by_writer_and_label(loaded.examples, options["held_out"], options["seed"])
        # The extra examples may have the same writers and labels.
        writers = {e.writer for e in split.held_out} - {""}
        labels = {e.tokens for e in split.held_out}
        more = [e for e in more if e.writer not in writers and e.tokens not in labels]
        return Data([*split.train, *more], split.held_out, known, [loaded, *extra])
    watched = open_source(
        apart, split="eval", vocabulary=known, limit=TrainSettings.held_out_limit, **shared
    )
    return Data([*loaded.examples, *more], watched.examples, known, [loaded, *extra, watched])


def build_run(options: dict[str, Any]) -> Run:
    """The run that the options of ``hmer-train train`` describe, new or resumed."""
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    augmentation = _augmentation(options)
    initial = None
    if options["init_from"]:
        bundle, initial = load_checkpoint(options["init_from"])
        network, preprocess = initial.config, bundle.preprocess
        data = load_data(options, bundle.vocabulary)
    else:
        widths = _integers(options["widths"], "--widths", 4)
        strides = _integers(options["strides"], "--strides", 5)
        data = load_data(options)
        network = NetworkConfig(
            len(data.vocabulary),
            widths=widths,  # type: ignore[arg-type]
            strides=strides,  # type: ignore[arg-type]
            attention=options["attention"],
            hidden=options["hidden"],
            embedding=options["embedding"],
            dropout=options["dropout"],
            drop_attention=options["drop_attention"],
            reach=int(options["reach"]),
        )
        height = options["symbol_height"]
        preprocess = PreprocessSettings(symbol_height=height, multiple=network.stride)
    _check_vocabulary(options["save_dir"], data)
    every = options["evaluate_every"] or EVALUATE_EVERY
    if options["evaluate_every"] is None and options["task"]:
        zooms = augmentation.zoom
        every = max(LEAST_BETWEEN, steps_an_epoch(data.train, preprocess, zooms, options))
    settings = TrainSettings(
        steps=options["steps"],
        learning_rate=options["learning_rate"],
        decay_share=options["decay_share"],
        pixels=options["pixels"],
        limit=options["batch_size"],
        seed=options["seed"],
        evaluate_every=every,
        save_every=options["save_every"],
        patience=options["patience"],
        max_hours=options["max_hours"] or 0.0,
        precision=options["precision"],
        label_smoothing=options["label_smoothing"],
        average=options["average"],
        curriculum=SHORT_FIRST if options["curriculum"] else (),
        attention_weight=options["attention_weight"],
        symbols_weight=options["symbols_weight"],
        consistency=options["consistency"],
        freeze_norm=options["freeze_norm"],
        workers=options["workers"],
        compile=options["compile_"],
        few_shapes=options["few_shapes"],
        tensorboard=options["tensorboard"],
    )
    options["save_dir"].mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        options["save_dir"],
        data.train,
        data.held_out,
        data.vocabulary,
        network,
        preprocess,
        settings,
        augmentation,
        initial=initial,
        device=options["device"],
        variation=partial(recombination, RecombineSettings()) if options["recombine"] else None,
    )
    return Run(trainer, data)


def steps_an_epoch(
    examples: list[Example],
    preprocess: PreprocessSettings,
    zooms: tuple[float, float],
    options: dict[str, Any],
) -> int:
    """About how many batches the examples make: with ``--task``, patience counts epochs."""
    sizes = [estimate_size(example, preprocess) for example in examples]
    rng = np.random.default_rng(options["seed"])
    return len(plan_epoch(sizes, zooms, options["pixels"], options["batch_size"], rng))


def _check_vocabulary(folder: Path, data: Data) -> None:
    """Refuse to go on with a run whose vocabulary is another, and say where they differ."""
    if not (folder / BEST / BUNDLE_FILE).is_file():
        return
    old = load_bundle(folder / BEST, kind=CHECKPOINT).vocabulary
    if old.fingerprint == data.vocabulary.fingerprint:
        return
    new = [token for token in data.vocabulary.tokens if token not in old]
    reason = f"{len(set(old.tokens) - set(data.vocabulary.tokens))} of its tokens are in no label"
    if new:
        first = next(e for e in data.train + data.held_out if new[0] in e.tokens)
        reason = f"it lacks {len(new)} tokens of the labels, {new[0]!r} first ({first.where})"
    raise VocabularyMismatch(
        f"{folder} holds a run with another vocabulary: {reason}. Give the same data to go on, "
        f"another --save-dir to start anew, or --init-from {folder / BEST} with another "
        "--save-dir to use its weights and skip what its vocabulary lacks."
    )


def _augmentation(options: dict[str, Any]) -> AugmentSettings:
    """The usual augmentation with the options' zooms and strength."""
    try:
        low, high = (float(part) for part in options["zoom"].split(","))
    except ValueError:
        low = high = 0.0
    if not 0.1 <= low <= high <= 10.0:
        raise BadParameter(
            "--zoom must be two factors from 0.1 to 10, the smaller one first: 0.65,1.15."
        )
    try:
        pens = tuple(int(part) for part in options["pens"].split(","))
    except ValueError:
        pens = ()
    if not pens or not 1 <= min(pens) <= max(pens) <= 50:
        raise BadParameter("--pens must be whole numbers of pixels from 1 to 50: 2,3,3,4.")
    usual = AugmentSettings(
        zoom=(low, high),
        pens=pens,
        degraded=options["degrade"],
        jitter=options["jitter"],
    )
    return usual.times(options["distortion"])


def _integers(text: str, option: str, count: int) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count or min(values) < 1:
        raise BadParameter(f"{option} must be {count} positive whole numbers, separated by commas.")
    if option == "--widths" and values[-1] % 4:
        raise BadParameter(
            "The last of --widths must be a multiple of 4: the position embedding has a sine and "
            "a cosine for each axis."
        )
    return values
