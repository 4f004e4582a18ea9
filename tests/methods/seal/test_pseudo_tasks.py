"""Augmentations and leave-one-out tasks: golden numbers of them, that each can be undone, and what must not be in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arclab.config.seal_schema import PseudoTaskConfig
from arclab.data.tasks import ArcTask, Pair
from arclab.lm.training.rows import Row
from arclab.methods.seal.augmenters import GROUPS, augmenters
from arclab.methods.seal.pseudo_tasks import chosen_rows, pseudo_tasks

ALL = PseudoTaskConfig(
    leave_out=[1, 2], min_demos=0, basic=True, size=True, chain=True, repeat=True, permutations=1, permute_colors=True, max_count=250
)  # fmt: skip
NONE = replace(ALL, basic=False, size=False, chain=False, repeat=False)


def task_of(num_demos: int, side: int = 5, seed: int = 0) -> ArcTask:
    """Grids without any symmetry, so that no two augmentations show the same."""
    rng = np.random.default_rng(seed)
    pairs = [Pair(*(rng.integers(10, size=(side, side + 1)).astype(np.uint8) for _ in range(2))) for _ in range(num_demos + 1)]
    return ArcTask("a", tuple(pairs[:-1]), (pairs[-1],), "test")


def test_sets_have_the_sizes_that_are_published() -> None:
    assert {name: len(group) for name, group in GROUPS.items()} == {"basic": 11, "size": 3, "chain": 6, "repeat": 3}
    names = [augmenter.name for augmenter in augmenters(*GROUPS)]
    assert len(set(names)) == 23


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (ALL, {2: 192, 3: 432, 4: 768, 5: 1200, 6: 1728}),
        (replace(NONE, basic=True), {2: 96, 3: 216, 4: 384, 5: 600, 6: 864}),
        (replace(NONE, size=True), {2: 32, 3: 72, 4: 128, 5: 200, 6: 288}),
        (replace(NONE, chain=True), {2: 56, 3: 126, 4: 224, 5: 350, 6: 504}),
        (replace(NONE, repeat=True), {2: 32, 3: 72, 4: 128, 5: 200, 6: 288}),
    ],
)
def test_golden_sizes(config: PseudoTaskConfig, sizes: dict[int, int]) -> None:
    """2 N^2 (1 + A) before the cap."""
    for num_demos, size in sizes.items():
        if num_demos < 5 or config is not ALL:
            assert len(pseudo_tasks(task_of(num_demos), config, seed=0)) == size


def test_large_grids_have_fewer() -> None:
    """What would be longer than 30 cells is left out: of grids 20 cells wide, everything that doubles the width."""
    task = task_of(2, side=14)
    wide = replace(task, demos=tuple(Pair(*(np.pad(g, [(0, 0), (0, 5)]) for g in (p.input, p.output))) for p in task.demos if p.output is not None))  # fmt: skip
    assert len(pseudo_tasks(task, ALL, 0)) == 192 and len(pseudo_tasks(wide, replace(NONE, size=True), 0)) == 2 * 4 * 2


def test_without_augmentations_other_orders_are_left_and_nothing_twice() -> None:
    only = replace(NONE, permute_colors=False)
    for num_demos, most in ((2, 4), (3, 15), (4, 32)):
        found = pseudo_tasks(task_of(num_demos), only, seed=0)
        assert num_demos**2 <= len(found) <= most
        assert len({str(task.pairs) for task in found}) == len(found)


def test_too_few_demonstrations() -> None:
    """Two demonstrations less two are none; one demonstration less one is none."""
    shown = replace(ALL, min_demos=1)
    assert len(pseudo_tasks(task_of(2), shown, 0)) == 2 * 2 * 24
    assert pseudo_tasks(task_of(1), shown, 0) == [] and len(pseudo_tasks(task_of(1), ALL, 0)) == 2 * 24
    assert {len(task.demos) for task in pseudo_tasks(task_of(3), shown, 0)} == {1, 2}


GRIDS = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).integers(10, size=drawn[:2]).astype(np.uint8)
)


@given(GRIDS, st.sampled_from(augmenters(*GROUPS)), st.integers(0, 99))
def test_every_augmentation_can_be_undone(grid: np.ndarray, augmenter: object, seed: int) -> None:
    transform = augmenter.drawn(np.random.default_rng(seed))  # pyright: ignore[reportAttributeAccessIssue]
    shown = transform.apply(grid)
    assert shown.dtype == np.uint8 and shown.flags.c_contiguous and np.array_equal(transform.invert(shown), grid)


def test_input_and_output_are_transformed_alike() -> None:
    """A task whose outputs are its inputs stays one, under every augmentation and every draw."""
    task = task_of(3)
    same = replace(task, demos=tuple(Pair(pair.input, pair.input) for pair in task.demos))
    moved = set()
    for made in pseudo_tasks(same, ALL, seed=1):
        assert all(pair.output is not None and np.array_equal(pair.input, pair.output) for pair in made.pairs)
        moved |= {word for word in made.id.split(", ") if word.startswith("moved")}
    assert len(moved) > 1 and "moved_0_0" not in moved  # every task has a draw of its own


def test_test_pairs_are_not_looked_at_and_draws_are_the_tasks_own() -> None:
    task = task_of(3)
    other = replace(task, tests=task_of(3, seed=5).tests)
    first, second = (str([made.pairs for made in pseudo_tasks(each, ALL, seed=3)]) for each in (task, other))
    assert first == second
    assert first != str([made.pairs for made in pseudo_tasks(task, ALL, seed=4)])


def test_the_cap_is_filled_from_what_fits_and_the_rest_is_counted() -> None:
    def row_of(task: ArcTask) -> Row | None:
        return None if max(task.tests[0].input.shape) > 6 else {"input_ids": [1], "labels": [1]}

    found = chosen_rows(task_of(3), replace(ALL, max_count=20), 0, row_of)
    assert len(found.rows) == len(found.tasks) == 20 and found.num_made == 432 and found.num_too_long > 5
    again = chosen_rows(task_of(3), replace(ALL, max_count=20), 0, row_of)
    assert [task.id for task in again.tasks] == [task.id for task in found.tasks]
    names = " ".join(task.id for task in chosen_rows(task_of(3), ALL, 0, lambda _: {}).tasks)
    assert all(word in names for word in ("asks 1", "asks 3 without 2", "tile_both", "rotate_90_twice", "order and colours"))
    every = chosen_rows(task_of(2), ALL, 0, row_of)
    assert len(every.rows) + every.num_too_long == every.num_made == 192
