"""Bucketed batches: the same tasks, as often, each on the smallest canvas that holds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from arclab.config.schema import CanvasRule, ExperimentConfig
from arclab.data.buckets import bucketed, task_canvases
from arclab.data.codec import EOS, PAD
from arclab.data.sampler import Cursor, TrainingData, build_training_data, next_cursors, start_cursors
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask, Grid, Pair
from arclab.methods.recursive.token_views import corner_cells

Tiny = Callable[..., ExperimentConfig]


def task(name: str, side: int, output_side: int | None = None, pairs: int = 3) -> ArcTask:
    def pair(number: int) -> Pair:
        cells = np.random.default_rng([side, number]).integers(0, 10, (side, side), dtype=np.uint8)
        return Pair(cells, np.resize(cells, (output_side or side,) * 2).astype(np.uint8))

    return ArcTask(name, tuple(pair(k) for k in range(pairs - 1)), (pair(pairs),), "made")


TASKS = [*(task(f"small{k}", 3) for k in range(7)), task("output", 3, 9), task("wide", 14), task("full", 30)]


def data_of(tiny: Tiny, trm: bool = False, *overrides: str) -> TrainingData:
    config = tiny("dataset.canvas=30", "dataset.num_augmentations=3", *overrides, trm=trm)
    return build_training_data(TASKS, (), config.dataset, 0)


def test_a_task_is_on_the_smallest_canvas_that_holds_every_pair(tiny: Tiny) -> None:
    assert task_canvases(data_of(tiny)).tolist() == [4] * 7 + [10, 15, 30]


@pytest.mark.parametrize("hidden", [None, 4, 12, 28])
def test_a_test_output_that_is_not_trained_on_changes_no_batch(tiny: Tiny, hidden: int | None) -> None:
    """A scored task, of which demonstrations alone are trained on: its canvas would tell the size of its answer."""
    shown = task("scored", 5)

    def rows(output: Grid | None) -> list[object]:
        scored = replace(shown, tests=(Pair(shown.tests[0].input, output),))
        config = tiny("dataset.canvas=30", "dataset.num_augmentations=3", "dataset.translate=true", trm=True)
        data = build_training_data(TASKS, (scored,), config.dataset, 0)
        assert task_canvases(data)[-1] == 6
        plans = (part.data.batch(Cursor.first(0), part.num_rows, 0, part.num_rows) for part in bucketed(data, 24, 1))
        return [(len(b.inputs_BS[0]), b.inputs_BS.tolist(), b.labels_BS.tolist()) for b in plans]

    grid = None if hidden is None else np.full((hidden, hidden), 3, np.uint8)
    assert rows(grid) == rows(np.full((2, 2), 1, np.uint8))


def test_a_part_gives_every_pair_once_an_epoch_whatever_its_batch(tiny: Tiny) -> None:
    """Batches of three rows cut tasks of five pairs; what is left of them comes next."""
    tasks = [task(f"t{side}", side, pairs=5) for side in (3, 3, 3, 9)]
    config = tiny("dataset.canvas=30", "dataset.num_augmentations=3", trm=True)
    data = build_training_data(tasks, (), config.dataset, 0)
    (part, _) = bucketed(data, 6, 1)
    cursor, seen, pairs = Cursor.first(0), [], 15
    for _ in range(2 * pairs // 3):
        seen += part.data.plan(cursor, 3).query_B.tolist()
        cursor = part.data.next_cursor(cursor, 3)
    assert sorted(seen[:pairs]) == sorted(seen[pairs:]) == list(range(pairs)) and seen[:pairs] != seen[pairs:]
    assert (cursor.epoch, cursor.index, cursor.taken) == (2, 0, 0)


@pytest.mark.parametrize("trm", [False, True])
def test_every_task_weighs_what_it_weighs_on_the_full_canvas(tiny: Tiny, trm: bool) -> None:
    data = data_of(tiny, trm)
    parts = bucketed(data, 24, 2)
    assert [p.data.canvas for p in parts] == [4, 10, 15, 30]
    assert all(p.num_rows % 2 == 0 for p in parts)
    assert [p.start for p in parts] == np.cumsum([0, *(p.num_rows for p in parts[:-1])]).tolist() and sum(
        p.num_rows for p in parts
    ) == 24
    # rows x weight is the expected number of rows of the full canvas
    assert [p.num_rows * p.weight for p in parts] == pytest.approx([0.7 * 24, 2.4, 2.4, 2.4])
    cursors, seen = start_cursors(parts, 0), Counter[int]()
    for _ in range(35):
        for part, cursor in zip(parts, cursors, strict=True):
            seen.update(part.data.batch(cursor, part.num_rows, 0, part.num_rows).task_id_B.tolist())
        cursors = next_cursors(parts, cursors)
    counts = np.array([seen[t] for t in range(len(TASKS))])
    assert counts[:7].min() >= 0.9 * counts[:7].max() and counts.min() > 0


@pytest.mark.parametrize("translate", [False, True])
def test_rows_of_a_part_are_those_of_the_full_canvas_cut_to_its_corner(tiny: Tiny, translate: bool) -> None:
    data = data_of(tiny, False, f"dataset.translate={translate}")
    for part in bucketed(data, 12, 1):
        plan = part.data.plan(Cursor.first(0), 6)
        small = part.data.batch(Cursor.first(0), 6, 0, 6)
        wide = data.space.render(plan, with_puzzle_ids=False)
        cells = corner_cells(part.data.canvas, 30)
        for name in ("inputs_BS", "labels_BS", "demo_inputs_BKS", "demo_outputs_BKS"):
            assert torch.equal(getattr(small, name), getattr(wide, name)[..., cells])
            outside = getattr(wide, name).clone()
            outside[..., cells] = PAD
            # A translated grid may stand at the edge, without the marks of its end, as on the full canvas.
            assert not outside.any() or (translate and outside.unique().tolist() == [PAD, EOS])


def test_puzzle_ids_are_those_of_all_tasks(tiny: Tiny) -> None:
    data = data_of(tiny, True)
    part = bucketed(data, 24, 1)[-1]
    batch = part.data.batch(Cursor.first(0), 4, 0, 4)
    assert batch.task_id_B.tolist() == [9] * 4 and batch.puzzle_id_B.min() > 9 * 3


def test_a_batch_too_small_for_its_canvases_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"trainer\.batch_size=7.*4, 10, 15, 30.*raise it to 8"):
        bucketed(data_of(tiny), 7, 2)


def test_scores_are_taken_on_the_canvases_of_the_training_unless_told_otherwise(tiny: Tiny) -> None:
    assert tiny().evaluation.canvas is CanvasRule.full
    assert tiny("trainer.canvas=bucketed").evaluation.canvas is CanvasRule.bucketed
    assert tiny("trainer.canvas=bucketed", "evaluation.canvas=full").evaluation.canvas is CanvasRule.full


def test_quickstart_tasks_fit(tiny: Tiny) -> None:
    config = tiny()
    data = build_training_data(load_tasks(config.dataset).train, (), config.dataset, 0)
    assert [p.data.canvas for p in bucketed(data, 8, 1)] == sorted({*task_canvases(data).tolist()})
