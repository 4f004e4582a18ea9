"""Rows of an adaptation show demonstrations of their tasks, never a test pair, and depend on the seed alone."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import torch

from arclab.data.augment import ViewRule
from arclab.data.codec import PAD
from arclab.data.sampler import Batch
from arclab.data.tasks import ArcTask, Pair
from arclab.methods.recursive.adaptation.rows import DemonstrationRows

from .common import TASKS, etrm, trm

VIEWS = "dataset.num_augmentations=5"


def rows_of(tasks: list[ArcTask], seed: int = 0, *, table: bool = False, **changes: object) -> DemonstrationRows:
    config, model = trm() if table else etrm(VIEWS)
    return DemonstrationRows(model, replace(config, **changes), tasks, ViewRule.content, seed)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch))


def test_no_test_pair_is_shown_or_asked() -> None:
    answered = [replace(t, tests=tuple(Pair(p.input, np.full((3, 3), 9, np.uint8)) for p in t.tests)) for t in TASKS]
    hidden = [replace(t, tests=tuple(Pair(p.input, None) for p in t.tests)) for t in TASKS]
    for table in (False, True):
        a, b = rows_of(answered, table=table), rows_of(hidden, table=table)
        assert same(a.originals(), b.originals())
        for _ in range(4):
            batch = a.next(8)
            assert same(batch, b.next(8)) and len(batch) == 8
            assert (batch.labels_BS != PAD).any(1).all(), "every row has an answer to learn"


def test_an_encoder_is_asked_what_it_is_not_shown() -> None:
    rows = rows_of(TASKS)
    for batch in (rows.originals(), rows.next(32)):
        assert (batch.num_demos_B == 2).all(), "of three demonstrations"
        asked = torch.cat([batch.inputs_BS, batch.labels_BS], 1)
        shown = torch.cat([batch.demo_inputs_BKS, batch.demo_outputs_BKS], 2)
        assert not (shown == asked[:, None]).all(2).any()
    assert len(rows.originals()) == 3 * len(TASKS)
    alone = rows_of([replace(TASKS[0], demos=TASKS[0].demos[:1])]).next(4)
    assert torch.equal(alone.demo_inputs_BKS[:, 0], alone.inputs_BS), "there is no other one to show"


def test_rows_are_random_views_drawn_by_the_seed_alone() -> None:
    for table in (False, True):
        first, again, other = (rows_of(TASKS[:1], seed, table=table) for seed in (0, 0, 1))
        batches = [first.next(8) for _ in range(3)]
        assert all(same(batch, again.next(8)) for batch in batches)
        assert not same(batches[0], batches[1]) and not same(batches[0], other.next(8))
        views = {bytes(row.numpy().tobytes()) for batch in batches for row in batch.inputs_BS}
        assert len(views) > 3, "more than the three demonstrations as they are"


def test_a_table_is_asked_with_the_vectors_of_the_views_that_vote() -> None:
    rows = rows_of(TASKS, table=True)
    assert rows.space.num_puzzles == 1 + 3 * len(TASKS)
    seen = torch.cat([rows.next(16).puzzle_id_B for _ in range(20)])
    assert set(seen.tolist()) == set(range(1, 1 + 3 * len(TASKS)))
    assert rows.originals().puzzle_id_B.tolist() == [1 + 3 * t for t in range(len(TASKS)) for _ in range(3)]


def test_a_model_of_several_canvases_learns_on_the_smallest() -> None:
    config, model = etrm(VIEWS, "dataset.canvas=10", "trainer.canvas=bucketed")
    assert DemonstrationRows(model, config, TASKS, ViewRule.content, 0).next(4).inputs_BS.shape[1] == 4**2
