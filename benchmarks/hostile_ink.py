"""Hostile ink: InkML and JSON strokes, each from a random generator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.hostile_pictures import Make, Rng, flipped, pick, spliced, truncated
from benchmarks.hostile_seeds import inkmls, strokes

# Numbers that parsers take, or should not take.
_NUMBERS = (
    *("nan", "NaN", "inf", "-inf", "Infinity", "1e308", "-1e308", "1e999", "1e12", "1e13", "0x10"),
    *(
        "1_0",
        "",
        "-",
        "1.",
        ".",
        "1e",
        "--1",
        "٣",
        "1" * 5_000,
        "0." + "0" * 20_000 + "1",
        "1e-320",
    ),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, "1", "", {}, [], {"x": 1}, [[]], [[1]], [[1, "2"]], [[None, 1]], 0, -1),
    *([1, 2], [[1, 2], 3], [[[1, 2]]], [[1, 2, 3]], [{"0": 1, "1": 2}], ["ab", "cd"], [[1, [2]]]),
)


def xml_entities(rng: Rng) -> bytes:
    """Entities that expand to gigabytes, or name other files."""
    choice = int(rng.integers(4))
    if choice == 0:  # a billion laughs
        rows = ['<!ENTITY a0 "lol">']
        rows += [f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10)]
        entities, use = "".join(rows), "&a9;"
    elif choice == 1:  # one long entity, often
        entities, use = f'<!ENTITY a "{"1 2," * 10_000}">', "&a;" * 5_000
    elif choice == 2:
        entities, use = '<!ENTITY a SYSTEM "file:///etc/passwd">', "&a;"
    else:
        entities, use = '<!ENTITY % a SYSTEM "http://127.0.0.1:1/a.dtd"> %a;', "&b;"
    return f"<!DOCTYPE ink [{entities}]><ink><trace>{use}</trace></ink>".encode()


def xml_deep(rng: Rng) -> bytes:
    """Elements in elements, closed or not."""
    depth = int(rng.choice([100, 10_000, 500_000]))
    return b"<ink>" + b"<a>" * depth + b"</a>" * (depth if rng.random() < 0.5 else 0) + b"</ink>"


def xml_wide(rng: Rng) -> bytes:
    """Hundreds of thousands of elements or attributes, or one long word."""
    many = int(rng.integers(1_000, 300_000))
    choice = int(rng.integers(4))
    if choice == 0:
        return b"<ink>" + b"<trace/>" * many + b"</ink>"
    if choice == 1:
        return b"<ink " + b"".join(b'a%d="" ' % i for i in range(many)) + b"/>"
    if choice == 2:
        return b"<ink><trace>" + b"1" * (20 * many) + b" 2</trace></ink>"
    return b"<ink><trace>" + b"1 " * many + b"</trace></ink>"


def xml_encoding(rng: Rng) -> bytes:
    """Declarations of encodings that the text does not have, or that there are not."""
    names = (
        "utf-7",
        "cp037",
        "utf-32",
        "rot13",
        "hex",
        "zlib",
        "A" * 10_000,
        "utf-16",
        "",
        "koi8-r",
    )
    name = names[int(rng.integers(len(names)))]
    body = pick(rng, inkmls())[40:]
    mark = [b"", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf"][int(rng.integers(4))]
    return mark + f'<?xml version="1.0" encoding="{name}"?><ink>'.encode() + body


def ink_numbers(rng: Rng) -> bytes:
    """Coordinates that are no numbers, not finite, or too large, in either format."""
    words = [_NUMBERS[int(i)] for i in rng.integers(0, len(_NUMBERS), 4)]
    if rng.random() < 0.5:
        text = f"<ink><trace>0 0, {words[0]} {words[1]}, 10 40, {words[2]} 7</trace></ink>"
        return text.encode()
    return f"[[[0, 0], [{words[0]}, {words[1]}], [10, 40], [{words[2]}, 7]]]".encode()


def json_shapes(rng: Rng) -> bytes:
    """Values where strokes, points or numbers should be."""
    value = _VALUES[int(rng.integers(len(_VALUES)))]
    forms: tuple[Any, ...] = (
        *(value, [value], [[[0, 0], [1, 9]], value], [[value, [1, 2]]], [[[value, 2], [1, 9]]]),
        *(
            {"strokes": value},
            {"strokes": [value]},
            {"latex": value, "strokes": [[[0, 0], [9, 9]]]},
        ),
        {"stroke": [[[1, 2]]]},
    )
    return json.dumps(forms[int(rng.integers(len(forms)))]).encode()


def json_deep(rng: Rng) -> bytes:
    """Lists in lists, or objects in objects."""
    depth = int(rng.choice([50, 900, 100_000, 400_000]))
    if rng.random() < 0.5:
        return b"[" * depth + b"]" * (depth if rng.random() < 0.5 else 0)
    return b'{"strokes":' * depth + b"[]" + b"}" * depth


def many_strokes(rng: Rng) -> bytes:
    """Up to a million strokes of one point."""
    many = int(rng.choice([9_999, 50_000, 1_000_000]))
    if rng.random() < 0.5:
        return b"[" + b"[[1,2]]," * (many - 1) + b"[[9,9]]]"
    return b"<ink>" + b"<trace>1 2</trace>" * many + b"</ink>"


def many_points(rng: Rng) -> bytes:
    """Up to a million points in one stroke."""
    many = int(rng.choice([150_000, 300_000, 1_000_000]))
    if rng.random() < 0.5:
        return b"[[" + b"[1,2],[2,1]," * (many // 2) + b"[9,9]]]"
    return b"<ink><trace>" + b"1 2,2 1," * (many // 2) + b"9 9</trace></ink>"


def scribble(rng: Rng) -> bytes:
    """A pen that goes to and fro over a drawing as wide as there may be."""
    many, wide = int(rng.integers(100, 8_000)), int(rng.choice([100, 12_000, 10**9]))
    points = [
        [wide * (i % 2) + int(x), int(x) % 48] for i, x in enumerate(rng.integers(0, 50, many))
    ]
    return json.dumps([points]).encode()


def far_apart(rng: Rng) -> bytes:
    """Tiny strokes with kilometres between them."""
    far = 10.0 ** rng.integers(2, 13, 2)
    points = [[[0, 0], [1, 1]], [[far[0], far[1]], [far[0] + 1, far[1] + 1]]]
    return json.dumps({"strokes": points}).encode()


def nothing(rng: Rng) -> bytes:
    """Nothing, or next to nothing."""
    words = (
        b"",
        b" ",
        b"\n" * 600,
        b"<",
        b"[",
        b"{",
        b"[]",
        b"{}",
        b"<a/>",
        b"null",
        b"x+1",
        b"\0",
    )
    return words[int(rng.integers(len(words)))]


# Kind -> what makes one, and how often it comes.
KINDS: Mapping[str, tuple[Make, int]] = {
    "inkml, bytes changed": (lambda rng: flipped(rng, pick(rng, inkmls())), 12),
    "inkml, truncated": (lambda rng: truncated(rng, pick(rng, inkmls())), 8),
    "inkml, spliced": (lambda rng: spliced(rng, pick(rng, inkmls()), pick(rng, inkmls())), 8),
    "inkml, entities": (xml_entities, 6),
    "inkml, deep": (xml_deep, 3),
    "inkml, wide": (xml_wide, 3),
    "inkml, encodings": (xml_encoding, 6),
    "json, bytes changed": (lambda rng: flipped(rng, pick(rng, strokes())), 12),
    "json, truncated": (lambda rng: truncated(rng, pick(rng, strokes())), 8),
    "json, shapes": (json_shapes, 12),
    "json, deep": (json_deep, 4),
    "ink, numbers": (ink_numbers, 12),
    "ink, a million strokes": (many_strokes, 2),
    "ink, a million points": (many_points, 2),
    "ink, scribble": (scribble, 3),
    "ink, far apart": (far_apart, 4),
    "nothing": (nothing, 6),
}
