"""Rows of features in one buffer, whatever their sizes and the layout."""

from __future__ import annotations

import numpy as np

from hmer.padded_rows import PaddedRows


def test_padded_rows_show_nothing_of_who_was_there() -> None:
    rows = PaddedRows((2,), "float32")
    rows.lay_out((4, 5), 1, [])
    rows.put(0, np.full((4, 5, 2), np.nan, np.float32))
    rows.put(0, np.ones((2, 3, 2), np.float32))
    expected = np.zeros((1, 4, 5, 2))
    expected[0, :2, :3] = 1.0
    assert np.array_equal(rows.view(1), expected)


def test_padded_rows_keep_their_content_through_any_layouts() -> None:
    rng = np.random.default_rng(0)
    rows = PaddedRows((3,), "float32")
    shapes = [(int(h), int(w)) for h, w in rng.integers(1, 9, (6, 2))]
    contents = [rng.normal(size=(h, w, 3)).astype(np.float32) for h, w in shapes]
    kept = [(row, *shape) for row, shape in enumerate(shapes)]
    rows.lay_out((8, 8), 6, [])
    for row, content in enumerate(contents):
        rows.put(row, content)
    for _ in range(60):
        layout = int(rng.integers(8, 14)), int(rng.integers(8, 14))
        rows.lay_out(layout, int(rng.integers(6, 12)), kept)
        view = rows.view(6)
        assert view.shape == (6, *layout, 3)
        assert view.flags.c_contiguous
        for row, content in enumerate(contents):
            h, w = shapes[row]
            assert np.array_equal(view[row, :h, :w], content)
            assert not view[row, h:].any()
            assert not view[row, :, w:].any()
