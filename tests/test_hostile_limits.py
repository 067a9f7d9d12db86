"""What one input may cost: the limits, and what hostile files ran into before there were any."""

from __future__ import annotations

import io
import json
import struct
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from benchmarks import hostile_pictures, hostile_seeds
from hmer import ink, limits, pictures, preprocess
from hmer.bundle import Bundle
from hmer.errors import BadInk, BadParameter, HmerError, UnreadableImage
from hmer.picture_structure import MAX_CHUNKS, MAX_SCANS, MAX_SEGMENTS, MAX_TAGS, check_structure
from hmer.serving import from_request
from tests import fake_triton as fake
from tests.fuzz import targets
from tests.model_fixtures import error_of, load_model


def test_limits_are_set_by_the_environment() -> None:
    assert limits.from_environment({}) == limits.Limits()
    found = limits.from_environment({"HMER_MAX_PIXELS": "1000000", "HMER_MAX_STROKES": " 7 "})
    assert (found.pixels, found.strokes, found.points) == (1_000_000, 7, limits.Limits().points)
    for wrong in ("many", "-1", "0", "1.5", "9" * 20):
        with pytest.raises(BadParameter, match=r"HMER_MAX_PIXELS .* whole number"):
            limits.from_environment({"HMER_MAX_PIXELS": wrong})
        assert limits.from_environment({"HMER_MAX_PIXELS": wrong}, strict=False) == limits.Limits()


def test_a_served_model_refuses_a_limit_that_is_no_number(
    tiny_graphs: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMER_MAX_INK_BYTES", "lots")
    with pytest.raises(fake.TritonModelException, match="HMER_MAX_INK_BYTES"):
        load_model(tiny_graphs, "recognize")


# -- pictures


def test_structures_that_no_picture_has() -> None:
    part = hostile_pictures.chunk(b"tEXt", b"a\0")
    many = hostile_pictures.png(40, 30, part * (MAX_CHUNKS + 1))
    scans = hostile_seeds.pictures()["progressive.jpg"]
    last = scans.rindex(b"\xff\xda")
    seed = np.random.default_rng(0)
    refused = {
        "chunks": many,
        "scans": scans[:last] + scans[last:-2] * (MAX_SCANS + 1),
        "segments": b"\xff\xd8" + b"\xff\xfe\0\2" * (MAX_SEGMENTS + 1),
        "tags": hostile_pictures.tiff(seed, MAX_TAGS + 1, 3, 1),
        "values in a tag": hostile_pictures.tiff(seed, 3, 4, 10**6),
        "longer than its file": hostile_pictures.tiff(seed, 30, 7, 10**6),
    }
    for what, data in refused.items():
        began = time.process_time()
        with pytest.raises(UnreadableImage, match=what):
            preprocess.decode_image(data)
        assert time.process_time() - began < 2.0
    for data in hostile_seeds.pictures().values():
        check_structure(data)


def test_an_offset_beyond_everything() -> None:
    """The fuzzer's: a BigTIFF's offset is larger than what struct takes."""
    data = b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**64 - 1) + bytes(100)
    with pytest.raises(UnreadableImage):
        preprocess.decode_image(data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_pillow(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    page = Image.fromarray(hostile_seeds.writing())
    for form, options in (("PNG", {}), ("TIFF", {}), ("JPEG", {"quality": 90})):
        data = hostile_seeds.encoded(page, form, exif=exif, **options)
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert np.array_equal(preprocess.decode_image(data), np.asarray(turned.convert("L")))


def test_bands_of_a_large_picture_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "gray_of_colours", lambda rgb: None)  # not of large ones
    whole = {n: preprocess.decode_image(d) for n, d in hostile_seeds.pictures().items()}
    monkeypatch.setattr(pictures, "MAX_FINE_PIXELS", 700)
    for name, expected in whole.items():
        found = preprocess.decode_image(hostile_seeds.pictures()[name])
        assert np.array_equal(found, expected), name


def test_real_levels() -> None:
    page = hostile_seeds.writing().astype(np.float32)
    for scale in (1.0, 1 / 255, 257.0):
        data = hostile_seeds.encoded(Image.fromarray(page * np.float32(scale)), "TIFF")
        assert np.abs(preprocess.decode_image(data) - page).max() <= 1
    page[3, 4:9] = np.nan
    assert preprocess.decode_image(hostile_seeds.encoded(Image.fromarray(page), "TIFF"))[3, 5] == 0


def test_text_in_utf16_is_ink() -> None:
    assert preprocess.decode(hostile_seeds.inkmls()["utf16.inkml"]).any()


# -- ink


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[" + b"[[1,2]]," * ink.MAX_STROKES + b"[[9,9]]]", "strokes or more"),
        (b"<ink>" + b"<trace>1 2</trace>" * (ink.MAX_STROKES + 1) + b"</ink>", "strokes or more"),
        (b"<ink>" + b"<a/>" * 200_000 + b"</ink>", "of '<'"),
        (b"[" + b"{}," * 200_000 + b"{}]", "of '{'"),
        (b"[" * 10**6, r"of '\['"),
        (b"[" + b" " * ink.MAX_BYTES + b"]", "bytes; at most"),
        (b"<ink><trace>" + b"1" * 10**6 + b" 2</trace></ink>", "not two numbers"),
        (json.dumps([[[9999 * (i % 2), i * 9 % 960] for i in range(9_000)]]).encode(), "scribbl"),
        (b'<?xml version="1.0" encoding="' + b"A" * 10**5 + b'"?><ink/>', "cannot be parsed"),
    ],
    ids=["strokes", "traces", "elements", "objects", "lists", "bytes", "digits", "pen", "encoding"],
)  # fmt: skip
def test_ink_that_costs_too_much(data: bytes, said: str) -> None:
    began = time.process_time()
    with pytest.raises(BadInk, match=said) as caught:
        preprocess.decode(data)
    assert len(str(caught.value)) < 400
    assert time.process_time() - began < 5.0  # 0.3 s usually; minutes before


def test_strokes_far_apart_make_no_huge_drawing() -> None:
    far = [[[0, 0], [9, 30]], [[5_000, 5_000], [5_009, 5_030]]]
    assert ink.render([np.array(stroke, np.float32) for stroke in far]).size < 5_000_000


# -- requests


def test_parameters_are_not_quoted_at_length() -> None:
    for values in ({"encoding": "x" * 10**6}, {"y" * 10**6: 1}, {"beam": ["z"] * 10**5},
                   {"length_penalty": 10**400}, {"length_penalty": "w" * 10**5}):  # fmt: skip
        with pytest.raises(BadParameter) as caught:
            from_request(values, 256)
        assert len(str(caught.value)) < 400


def test_inputs_that_wait_are_limited_by_their_bytes(
    tiny_graphs: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_graphs, "recognize", workers="1")
    front, row = model.front, np.array([[b"x" * 600]], dtype=np.object_)
    try:
        front._max_bytes = 1_000
        monkeypatch.setattr(front._road, "go", lambda job, left: time.sleep(0.5))
        senders: list[Any] = []
        for _ in range(3):
            request = fake.request({"input": row})
            model.execute([request])
            senders.append(request.sender)
        codes = {error_of(sender.result()).code for sender in senders[1:]}
        assert codes == {"overloaded"}  # the first alone is not refused, however large
    finally:
        model.finalize()


@pytest.mark.parametrize(
    ("shape", "size", "said"),
    [
        ((1, 1, 1024, 4096), [[8, 8]], "at most"),
        ((1, 1, 20, 20), [[8, 8]], "multiples"),
        ((1, 1, 32, 32), [[33, 8]], "do not lie within"),
        ((1, 1, 32, 32), [[8, -1]], "do not lie within"),
        ((1, 1, 0, 32), [[1, 1]], "are needed"),
        ((2, 1, 32, 32), [[8, 8]], "are needed"),
    ],
)
@pytest.mark.parametrize("queue", ["0", "8"])
def test_the_encoder_refuses_what_no_preprocessing_makes(
    tiny_graphs: Bundle, shape: tuple[int, ...], size: list[list[int]], said: str, queue: str
) -> None:
    model = load_model(tiny_graphs, "encoder", max_queue=queue)
    good = {"image": np.zeros((1, 1, 32, 32), np.uint8), "size": np.array([[32, 32]], np.int32)}
    bad = {"image": np.zeros(shape, np.uint8), "size": np.array(size, np.int32)}
    requests = [fake.request(bad), fake.request(good)]
    answers = model.execute(requests) or [request.sender.result() for request in requests]
    error: HmerError = error_of(answers[0])
    assert isinstance(error, BadParameter)
    assert said in str(error)
    assert answers[1].arrays()["values"].shape[0] == 1
    model.finalize()


# -- the fuzzers' seeds and the hostile files, without the fuzzer


@pytest.mark.parametrize("target", sorted(targets.TARGETS))
def test_the_seeds_are_good(target: str) -> None:
    function, seeds = targets.TARGETS[target]
    for name, data in seeds().items():
        assert targets.holds(function, data) is None, name


@pytest.mark.parametrize("target", ["image", "inkml", "strokes"])
def test_mutated_seeds_give_a_result_or_a_sentence(target: str) -> None:
    function, seeds = targets.TARGETS[target]
    rng, good = np.random.default_rng(1), seeds()
    results = set()
    for _ in range(150):
        data = hostile_pictures.flipped(rng, hostile_pictures.pick(rng, good))
        results.add(type(targets.holds(function, data)).__name__)
    assert "BadInk" in results or {"NoneType", "UnreadableImage"} <= results


def test_the_property_can_fail() -> None:
    def breaks(data: bytes) -> None:
        raise KeyError(data)

    def mumbles(data: bytes) -> None:
        raise BadInk("no full stop")

    def dawdles(data: bytes) -> None:
        while time.process_time() < start + 0.05:
            pass

    start = time.process_time()
    for function, kind in ((breaks, KeyError), (mumbles, AssertionError),
                           (dawdles, targets.TooSlow)):  # fmt: skip
        with pytest.raises(kind):
            targets.holds(function, b"", limit_s=0.01)
