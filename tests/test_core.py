"""Vocabulary, bundle and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hmer import errors
from hmer.bundle import (
    BUNDLE_FILE,
    CHECKPOINT,
    GRAPHS,
    WEIGHTS_FILE,
    Bundle,
    load_bundle,
    save_bundle,
)
from hmer.contract import Sizes, models
from hmer.preprocess import PreprocessSettings
from hmer.vocab import EOS_ID, UnknownToken, Vocabulary

NETWORK = {"widths": [8, 8, 16, 16], "strides": [2, 2, 2, 1, 1], "attention": 4, "hidden": 6}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / WEIGHTS_FILE).write_bytes(b"weights")
    made = Bundle(
        tmp_path, CHECKPOINT, Vocabulary(["x", "y"]), PreprocessSettings(margin=3), NETWORK
    )
    save_bundle(made, [WEIGHTS_FILE])
    return made


def edit(bundle: Bundle, **changes: object) -> None:
    path = bundle.file(BUNDLE_FILE)
    document = json.loads(path.read_text(encoding="utf-8"))
    document.update(changes)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_vocabulary_round_trip() -> None:
    vocabulary = Vocabulary.from_labels([["x", "^", "{", "2", "}"], ["y", "x"]])
    ids = vocabulary.encode(["x", "^", "{", "2", "}"])
    assert vocabulary.decode([1, *ids, EOS_ID, *ids]) == ["x", "^", "{", "2", "}"]
    assert Vocabulary.from_dict(vocabulary.to_dict()).tokens == vocabulary.tokens


def test_vocabulary_does_not_hang_on_the_order_of_labels() -> None:
    labels = [["a", "b"], ["c"], ["b", "d"]]
    assert (
        Vocabulary.from_labels(labels).fingerprint
        == Vocabulary.from_labels(reversed(labels)).fingerprint
        != Vocabulary.from_labels(labels[1:]).fingerprint
    )


def test_unknown_token_is_named() -> None:
    with pytest.raises(UnknownToken, match="Pi"):
        Vocabulary(["x"]).encode(["x", "\\Pi"])


def test_bundle_round_trip(bundle: Bundle) -> None:
    read = load_bundle(bundle.folder, CHECKPOINT)
    assert read.vocabulary.tokens == bundle.vocabulary.tokens
    assert read.preprocess == bundle.preprocess
    assert read.network == NETWORK
    assert read.sizes == Sizes(features=16, attention=4, hidden=6, stride=8, k=1)


def test_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingBundle, match="hmer-train"):
        load_bundle(tmp_path / "nowhere")


def test_bundle_of_the_other_kind(bundle: Bundle) -> None:
    with pytest.raises(errors.BundleError, match="hmer-export"):
        load_bundle(bundle.folder, GRAPHS)


def test_changed_vocabulary_is_refused(bundle: Bundle) -> None:
    edit(bundle, vocabulary={"tokens": ["y", "x"], "sha256": bundle.vocabulary.fingerprint})
    with pytest.raises(errors.VocabularyMismatch, match="export"):
        load_bundle(bundle.folder)


def test_other_contract_version_is_refused(bundle: Bundle) -> None:
    edit(bundle, contract=99)
    with pytest.raises(errors.ContractMismatch, match="99"):
        load_bundle(bundle.folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": "hmer-bundle"}'])
def test_unreadable_description(bundle: Bundle, content: str) -> None:
    bundle.file(BUNDLE_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(errors.BundleError):
        load_bundle(bundle.folder)


@pytest.mark.parametrize("content", [b"weight", b"weightz"])
def test_changed_or_truncated_weights_are_refused(bundle: Bundle, content: bytes) -> None:
    bundle.file(WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(errors.CorruptBundle, match="truncated or changed"):
        load_bundle(bundle.folder)


def test_file_outside_the_bundle_is_refused(bundle: Bundle) -> None:
    edit(bundle, files={"../weights": {"sha256": "", "bytes": 0}})
    with pytest.raises(errors.CorruptBundle, match="outside"):
        load_bundle(bundle.folder)


def every_error() -> list[type[errors.HmerError]]:
    found, todo = [], [errors.HmerError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    return found


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in every_error()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("kind", every_error())
def test_an_error_survives_the_wire(kind: type[errors.HmerError]) -> None:
    error = errors.from_wire("in ensemble 'recognize', " + kind("What is wrong.").to_wire())
    assert type(error) is kind
    assert str(error) == "What is wrong."


def test_foreign_message_becomes_a_failure() -> None:
    error = errors.from_wire("CUDA out of memory")
    assert isinstance(error, errors.InferenceFailed)
    assert "CUDA out of memory" in str(error)


def test_what_one_model_gives_the_next_one_takes() -> None:
    specs = models(Sizes(features=8, attention=4, hidden=6, stride=8, k=2))
    given = {spec.name: spec for name in ("preprocess", "encoder") for spec in specs[name].outputs}
    taken = [*specs["encoder"].inputs, *specs["decode"].inputs]
    assert [given[spec.name] for spec in taken] == taken
    step = specs["decoder_step"]
    for name in ("values", "keys", "feature_size", "state"):
        assert step.input(name) == given[name]
    for name in ("state", "coverage"):
        assert step.output(f"next_{name}").dims == step.input(name).dims
