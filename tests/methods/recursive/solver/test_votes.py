"""Counting a batch at once is the same as decoding, inverting and counting one prediction after the other."""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
import pytest

from arclab.data.augment import Augmentation
from arclab.data.codec import FIRST_COLOR, decode, encode
from arclab.methods.recursive.solver.votes import VoteBox, restore_grids, top_votes

from ....conftest import grid_key

KEYS = [("a", 0), ("a", 1), ("b", 0)]


def random_augmentations(rng: np.random.Generator, rows: int) -> np.ndarray:
    table = np.zeros((rows, 11), dtype=np.uint8)
    table[:, 0] = rng.integers(0, 8, rows)
    table[:, 2:] = 1 + rng.random((rows, 9)).argsort(axis=1)
    return table


def random_tokens(rng: np.random.Generator, rows: int, canvas: int) -> np.ndarray:
    """Clean grids, grids with damage, ragged noise, and rows whose first cell is no colour."""
    tokens = np.zeros((rows, canvas**2), dtype=np.uint8)
    for n in range(rows):
        grid = rng.integers(0, 3, (rng.integers(1, canvas + 1), rng.integers(1, canvas + 1))).astype(np.uint8)
        tokens[n] = encode(grid, canvas)
        if n % 4 == 1:
            tokens[n, rng.integers(0, canvas**2, 3)] = rng.integers(0, 12, 3)
        if n % 4 == 2:
            tokens[n] = np.where(rng.random(canvas**2) < 0.8, rng.integers(2, 12, canvas**2), rng.integers(0, 2, canvas**2))
        if n % 16 == 3:
            tokens[n, 0] = rng.integers(0, FIRST_COLOR)
    return tokens


@pytest.mark.parametrize("canvas", [4, 10])
def test_restored_grids_are_those_of_decode_and_invert(canvas: int) -> None:
    rng = np.random.default_rng(canvas)
    tokens, table = random_tokens(rng, 600, canvas), random_augmentations(rng, 600)
    restored = restore_grids(tokens, table, canvas)
    shown = [decode(row, canvas) for row in tokens]
    assert 20 < sum(grid is None for grid in shown) < 300
    for n, grid in enumerate(shown):
        expected = None if grid is None else Augmentation.from_row(table[n]).invert(grid)
        sides = (0, 0) if expected is None else expected.shape
        assert (restored.heights_B[n], restored.widths_B[n]) == sides
        if expected is not None:
            assert np.array_equal(restored.cells_BS[n].reshape(canvas, canvas)[: sides[0], : sides[1]], expected)


def test_a_batch_is_counted_as_one_by_one() -> None:
    """Few distinct grids, so that votes pile up and tie; the ranking is (votes, mean confidence, content)."""
    rng, canvas, rows = np.random.default_rng(0), 4, 3000
    table = random_augmentations(rng, rows)
    grids = [None, *(rng.integers(0, 2, rng.integers(1, 3, 2)).astype(np.uint8) for _ in range(12))]
    chosen = [grids[i] for i in rng.integers(0, len(grids), rows)]
    tokens = np.stack([np.zeros(16, np.uint8) if g is None else encode(Augmentation.from_row(r).apply_grid(g), canvas)
                       for g, r in zip(chosen, table, strict=True)])  # fmt: skip
    test_B, confidence_B = rng.integers(0, 3, rows), rng.integers(0, 5, rows) / 4
    parts = (VoteBox(), VoteBox())
    for start in range(0, rows, 700):
        part = slice(start, start + 700)
        parts[start % 2].count(KEYS, test_B[part], restore_grids(tokens[part], table[part], canvas), confidence_B[part])
    box = VoteBox()
    box.merge(parts)
    serial: dict = defaultdict(lambda: defaultdict(list))
    for grid, test, confidence in zip(chosen, test_B, confidence_B, strict=True):
        serial[KEYS[test]][grid_key(grid)].append(confidence)
    for key in KEYS:
        expected = [(len(c), sum(c) / len(c), g) for g, c in serial[key].items()]
        expected.sort(key=lambda e: (-e[0], -e[1], e[2] is None, e[2] or ()))
        assert [(c.votes, pytest.approx(c.confidence), grid_key(c.grid)) for c in box.ranked(key)] == expected
        assert top_votes(parts, key, 3) == [e[0] for e in expected[:3]]


def test_sums_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.random(1000).astype(np.float32)
    grids = restore_grids(
        np.full((1000, 16), 3, np.uint8), random_augmentations(rng, 1000) * 0 + np.arange(11, dtype=np.uint8), 4
    )
    results = set()
    for order in (np.arange(1000), rng.permutation(1000)):
        box = VoteBox()
        box.count(KEYS, np.zeros(1000, np.int64), grids, confidence[order])
        results.add(box.ranked(KEYS[0])[0].confidence)
    assert len(results) == 1 and results.pop() == pytest.approx(confidence.mean())


def test_counting_is_fast() -> None:
    """20,000 predictions of the largest canvas, all different, in batches: 400,000 are a matter of seconds."""
    rng, box = np.random.default_rng(2), VoteBox()
    tokens, table = rng.integers(2, 12, (1000, 900)).astype(np.uint8), random_augmentations(rng, 1000)
    start = time.perf_counter()
    for _ in range(20):
        box.count(KEYS, rng.integers(0, 3, 1000), restore_grids(tokens, table, 30), rng.random(1000))
    assert time.perf_counter() - start < 10


def test_a_large_batch_of_sure_votes_does_not_overflow() -> None:
    """1024 rows of confidence 1 are 2^63 units: one more than a whole number of 64 bits holds."""
    rows, box = 8192, VoteBox()
    tokens = np.repeat(encode(np.ones((1, 1), dtype=np.uint8), 4).reshape(1, -1), rows, axis=0)
    table = np.tile(np.arange(-1, 10).clip(0).astype(np.uint8), (rows, 1))
    box.count(KEYS, np.zeros(rows, dtype=np.int64), restore_grids(tokens, table, 4), np.ones(rows))
    (best,) = box.ranked(KEYS[0])
    assert (best.votes, best.confidence) == (rows, 1.0)
