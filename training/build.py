"""From the options of ``hmer-train train`` to a ``Trainer``."""

from __future__ import annotations

from typing import Any

import click
import torch

from hmer.errors import BadParameter
from hmer.preprocess import PreprocessSettings
from hmer.vocab import Vocabulary
from training.augment import AugmentSettings
from training.checkpoint import load_checkpoint
from training.data import Example, Split, pack_of, read_pack, split_by_writer_and_label
from training.network import NetworkConfig
from training.train import Trainer, TrainSettings


def build_trainer(options: dict[str, Any]) -> Trainer:
    """The run that the options of ``hmer-train train`` describe, new or resumed."""
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    examples = read_pack(pack_of(options["data"]))
    split = split_by_writer_and_label(examples, options["held_out"], options["seed"])
    initial = None
    if options["init_from"]:
        bundle, initial = load_checkpoint(options["init_from"])
        vocabulary, network, preprocess = bundle.vocabulary, initial.config, bundle.preprocess
        split = Split(_known(split.train, vocabulary), _known(split.held_out, vocabulary))
    else:
        vocabulary = Vocabulary.from_labels(example.tokens for example in examples)
        network = NetworkConfig(
            len(vocabulary),
            widths=_integers(options["widths"], "--widths", 4),  # type: ignore[arg-type]
            strides=_integers(options["strides"], "--strides", 5),  # type: ignore[arg-type]
            drop_attention=options["drop_attention"],
        )
        height = options["symbol_height"]
        preprocess = PreprocessSettings(symbol_height=height, multiple=network.stride)
    if network.features % 4:
        raise BadParameter("The last of --widths must be a multiple of 4: the position "
                           "embedding has a sine and a cosine for each axis.")  # fmt: skip
    settings = TrainSettings(
        steps=options["steps"],
        learning_rate=options["learning_rate"],
        decay_share=options["decay_share"],
        pixels=options["pixels"],
        limit=options["batch_size"],
        seed=options["seed"],
        evaluate_every=options["evaluate_every"],
        save_every=options["save_every"],
        patience=options["patience"],
    )
    options["save_dir"].mkdir(parents=True, exist_ok=True)
    return Trainer(
        options["save_dir"],
        split.train,
        split.held_out,
        vocabulary,
        network,
        preprocess,
        settings,
        AugmentSettings(),
        initial=initial,
    )


def _known(examples: list[Example], vocabulary: Vocabulary) -> list[Example]:
    """The examples that a given vocabulary can spell; says how many it cannot."""
    known = [e for e in examples if all(token in vocabulary for token in e.tokens)]
    if len(known) < len(examples):
        click.echo(
            f"{len(examples) - len(known)} of {len(examples)} examples have a token that the "
            "checkpoint's vocabulary lacks; they are left out.",
            err=True,
        )
    return known


def _integers(text: str, option: str, count: int) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count or min(values) < 1:
        raise BadParameter(f"{option} must be {count} positive whole numbers, separated by commas.")
    return values
