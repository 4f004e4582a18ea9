"""Batches: pure functions of the cursor, the rules for queries and demonstrations, exact tensor contents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch

from arclab.config.schema import ExperimentConfig
from arclab.data.augment import Augmentation
from arclab.data.buckets import bucketed
from arclab.data.codec import decode
from arclab.data.sampler import Batch, Cursor, Cursors, TrainingData, batch_loader, build_training_data, start_cursors, whole
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask, Grid, Pair

Tiny = Callable[..., ExperimentConfig]


def build(config: ExperimentConfig, demo_only: tuple[ArcTask, ...] = ()) -> TrainingData:
    return build_training_data(load_tasks(config.dataset).train, demo_only, config.dataset, config.seed)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch))


def read(data: TrainingData, tokens: torch.Tensor) -> Grid:
    """The grid of an untranslated token row."""
    grid = decode(tokens.numpy(), data.space.canvas)
    assert grid is not None
    return grid


@pytest.mark.parametrize("split", ["full", "bucketed"])
@pytest.mark.parametrize("trm", [False, True])
def test_order_does_not_depend_on_workers_or_on_where_it_resumes(tiny: Tiny, trm: bool, split: str) -> None:
    data = build(tiny("dataset.num_augmentations=5", "dataset.translate=true", trm=trm))
    parts = whole(data, 10) if split == "full" else bucketed(data, 10, 1)

    def run(start: Cursors, num_batches: int, num_workers: int) -> list[tuple[Cursors, list[Batch]]]:
        return list(batch_loader(parts, start, lambda rows: (0, rows), num_batches=num_batches, num_workers=num_workers))

    plain, with_workers = run(start_cursors(parts, 7), 6, 0), run(start_cursors(parts, 7), 6, 2)
    resumed = run(plain[2][0], 3, 1)
    for (cursors_a, a), (cursors_b, b) in [*zip(plain, with_workers, strict=True), *zip(plain[3:], resumed, strict=True)]:
        assert cursors_a == cursors_b and all(map(same, a, b)) and len(a) == len(parts)
    assert not same(plain[0][1][0], plain[1][1][0])
    assert not same(plain[0][1][0], run(start_cursors(parts, 8), 1, 0)[0][1][0])


@pytest.mark.parametrize("trm", [False, True])
def test_ranks_share_the_global_batch(tiny: Tiny, trm: bool) -> None:
    data = build(tiny("dataset.num_augmentations=3", trm=trm))
    whole = data.batch(Cursor.first(0), 12, 0, 12)
    for start in (0, 4, 8):
        assert same(whole.rows(start, start + 4), data.batch(Cursor.first(0), 12, start, start + 4))


def test_few_shot_rows_are_what_they_say(tiny: Tiny) -> None:
    """Query and demonstrations are different pairs of the row's task under one augmentation; every pair becomes a query."""
    data = build(tiny("dataset.num_augmentations=7"))
    cursor, queries, sizes = Cursor.first(0), set(), set()
    for _ in range(12):
        plan, batch = data.plan(cursor, 40), data.batch(cursor, 40, 0, 40)
        for b in range(40):
            t = int(batch.task_id_B[b])
            task, table = data.space.tasks[t], data.space.table[data.space.first_augmentation_T[t] :]
            view = Augmentation.from_row(table[plan.augmentation_B[b]]).apply(task)
            number = int(plan.query_B[b] - data.space.store.first_pair_T[t])
            pair = view.pairs[number]
            assert np.array_equal(read(data, batch.inputs_BS[b]), pair.input)
            assert np.array_equal(read(data, batch.labels_BS[b]), pair.output)  # type: ignore[arg-type]
            chosen = [int(p - data.space.store.first_pair_T[t]) for p in plan.demos_BK[b] if p >= 0]
            assert number not in chosen and len(set(chosen)) == len(chosen) == int(batch.num_demos_B[b]) >= 1
            for k, demo in enumerate(chosen):
                assert np.array_equal(read(data, batch.demo_inputs_BKS[b, k]), view.pairs[demo].input)
                assert np.array_equal(read(data, batch.demo_outputs_BKS[b, k]), view.pairs[demo].output)  # type: ignore[arg-type]
            assert not batch.demo_inputs_BKS[b, len(chosen) :].any() and not batch.demo_outputs_BKS[b, len(chosen) :].any()
            queries.add((t, number))
            sizes.add((t, len(chosen)))
        cursor = data.next_cursor(cursor, 40)
    assert queries == {(t, p) for t, task in enumerate(data.space.tasks) for p in range(len(task.pairs))}
    assert {s for t, s in sizes if len(data.space.tasks[t].pairs) == 4} == {1, 2, 3}


def test_an_epoch_visits_every_task_once(tiny: Tiny) -> None:
    data = build(tiny())
    count = len(data.space.tasks)
    batch = data.batch(Cursor.first(0), count, 0, count)
    assert sorted(batch.task_id_B.tolist()) == list(range(count))
    assert data.next_cursor(Cursor.first(0), count) == Cursor(0, 1, 0, 1)


def test_published_query_rule(tiny: Tiny) -> None:
    data = build(tiny("dataset.query_rule=test_pairs", "dataset.max_demos=3"))
    plan = data.plan(Cursor.first(0), 60)
    store = data.space.store
    for b in range(60):
        t = plan.task_B[b]
        first, demos = store.first_pair_T[t], store.num_demos_T[t]
        assert first + demos <= plan.query_B[b] < first + store.num_pairs_T[t]
        expected = [first + i for i in range(min(demos, 3))]
        assert plan.demos_BK[b].tolist() == expected + [-1] * (3 - len(expected))


def test_puzzle_id_gives_all_pairs_of_one_puzzle_and_its_row(tiny: Tiny) -> None:
    config = tiny("dataset.num_augmentations=4", trm=True)
    tasks = load_tasks(config.dataset).train
    data = build_training_data(tasks[:4], tasks[4:6], config.dataset, 0)
    seen = set()
    cursor = Cursor.first(0)
    for _ in range(200):
        plan = data.plan(cursor, 16)
        batch = data.batch(cursor, 16, 0, 16)
        assert batch.demo_inputs_BKS.shape == (16, 0, 36) and len(batch) == 16
        assert np.array_equal(batch.puzzle_id_B.numpy(), data.space.puzzle_ids(plan.task_B, plan.augmentation_B))
        seen |= {(int(t), int(q - data.space.store.first_pair_T[t])) for t, q in zip(plan.task_B, plan.query_B, strict=True)}
        first_visit = plan.query_B[: data.trainable_T[plan.task_B[0]]]
        assert len(set(first_visit.tolist())) == len(first_visit)
        assert len(set(batch.puzzle_id_B[: len(first_visit)].tolist())) == 1
        cursor = data.next_cursor(cursor, 16)
    demo_only = {(t, p) for t in (4, 5) for p in range(len(data.space.tasks[t].demos))}
    assert seen == {(t, p) for t in range(4) for p in range(len(data.space.tasks[t].pairs))} | demo_only
    assert data.space.num_puzzles == 1 + sum(data.space.num_augmentations_T)


def test_translation_moves_input_and_output_together_and_stays_on_the_canvas(tiny: Tiny) -> None:
    config = tiny("dataset.translate=true", "dataset.num_augmentations=7")
    data = build(config)
    plan, batch = data.plan(Cursor.first(0), 400), data.batch(Cursor.first(0), 400, 0, 400)
    moved = plan.offsets_BP2[:, 0].any(axis=1)
    assert 0.2 < moved.mean() < 0.95
    still = build(tiny("dataset.num_augmentations=7")).batch(Cursor.first(0), 400, 0, 400)
    colours = (batch.inputs_BS >= 2).sum(1), (batch.labels_BS >= 2).sum(1), (batch.demo_outputs_BKS >= 2).sum((1, 2))
    expected = (still.inputs_BS >= 2).sum(1), (still.labels_BS >= 2).sum(1), (still.demo_outputs_BKS >= 2).sum((1, 2))
    assert all(torch.equal(a, b) for a, b in zip(colours, expected, strict=True))  # nothing falls off the canvas
    assert not torch.equal(batch.inputs_BS, still.inputs_BS)


@pytest.mark.parametrize("trm", [False, True])
def test_of_the_pairs_that_are_trained_on_one_stays_in_the_corner(tiny: Tiny, trm: bool) -> None:
    """Among 2 demonstrations of a task whose 6 tests are scored that is every second one, not every eighth."""
    pair = Pair(np.array([[1]], dtype=np.uint8), np.array([[2]], dtype=np.uint8))
    seen, scored = ArcTask("seen", (pair,) * 3, (pair,), "here"), ArcTask("scored", (pair,) * 2, (pair,) * 6, "here")
    config = tiny("dataset.translate=true", "dataset.canvas=30", trm=trm)
    data = build_training_data([seen], (scored,) if trm else (), config.dataset, 0)
    plan = data.plan(Cursor.first(0), 6000)
    still_B = ~plan.offsets_BP2[:, 0].any(axis=1)
    for task, expected in enumerate((1 / 4, 1 / 2)[: len(data.space.tasks)]):
        # A moved pair lands in the corner as well, once in 900.
        assert still_B[plan.task_B == task].mean() == pytest.approx(expected, abs=0.03)


def test_augmentations_are_spread_and_task_ids_are_positions(tiny: Tiny) -> None:
    data = build(tiny("dataset.num_augmentations=20"))
    plan = data.plan(Cursor.first(0), 600)
    assert len(set(zip(plan.task_B.tolist(), plan.augmentation_B.tolist(), strict=True))) > 150
    assert (plan.augmentation_B < data.space.num_augmentations_T[plan.task_B]).all()
