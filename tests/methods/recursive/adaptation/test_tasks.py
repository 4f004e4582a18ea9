"""Adapting changes what its kind says, learns the demonstrations, and leaves the model as it was, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from arclab.config.adaptation_schema import ShownTask, TableStart, WeightParts
from arclab.config.schema import ExperimentConfig
from arclab.data.augment import ViewRule
from arclab.methods.recursive.adaptation.tasks import TaskAdapter
from arclab.methods.recursive.model import RecursiveModel
from arclab.runs.preempt import ToldToEnd
from arclab.runs.ranks import Ranks

from .common import TASKS, adapter_of, changed, etrm, tensors, trm, wanted

Build = Callable[[], tuple[ExperimentConfig, RecursiveModel]]
HEADS = {"decoder.lm_head.weight", "decoder.q_head.weight", "decoder.q_head.bias"}
KINDS: dict[str, tuple[Build, str, dict[str, object], set[str]]] = {
    "everything": (etrm, "weights", {}, {"decoder", "encoder", "adapter"}),
    "the decoder": (etrm, "weights", {"parts": WeightParts.decoder}, {"decoder"}),
    "the encoder": (etrm, "weights", {"parts": WeightParts.encoder}, {"encoder", "adapter"}),
    "adapters": (etrm, "lora", {}, {"decoder"}),
    "adapters of all": (etrm, "lora", {"parts": WeightParts.all}, {"decoder", "encoder"}),
    "vectors": (trm, "embeddings", {}, set()),
    "vectors and weights": (trm, "weights", {}, {"decoder"}),
    "vectors and adapters": (trm, "lora", {}, {"decoder"}),
    "vectors, then all": (trm, "embeddings_then_weights", {}, {"decoder"}),
    "vectors all along": (trm, "embeddings_then_weights", {"share": 1.0}, set()),
}


@pytest.mark.parametrize("case", KINDS)
def test_a_kind_trains_its_parts_and_sets_them_back(case: str) -> None:
    build, kind, changes, parts = KINDS[case]
    config, model = build()
    before, table = tensors(model), model.puzzle_table
    adapter = adapter_of(config, model, wanted(kind, **changes))
    with adapter.adapted(TASKS[1]):
        trained = changed(before, tensors(model) | ({} if table is None else {"puzzle_table.weight": table.weight}))
        if table is not None:
            assert model.puzzle_table is not None and len(model.puzzle_table.weight) == 1 + 3
            assert not torch.equal(model.puzzle_table.weight[1], table.weight[1:].mean(0)), "vectors learn in every kind"
    assert {name.partition(".")[0] for name in trained} == parts
    assert not (kind == "lora" and trained & HEADS)
    figures = adapter.figures
    assert figures["adapt/loss_after"] < figures["adapt/loss_before"] and figures["adapt/seconds"] > 0
    after = tensors(model)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert model.puzzle_table is table and all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("build", "kind"), [(etrm, "weights"), (etrm, "lora"), (trm, "embeddings_then_weights")])
def test_neither_order_nor_what_was_scored_before_matters(build: Build, kind: str) -> None:
    config, model = build()

    def adapted(numbers: list[int]) -> dict[int, dict[str, torch.Tensor]]:
        adapter, found = adapter_of(config, model, wanted(kind, steps=3)), {}
        for number in numbers:
            with adapter.adapted(TASKS[number]):
                found[number] = tensors(model)
        return found

    forwards, backwards = adapted([0, 1, 2]), adapted([2, 0])
    for number in (0, 2):
        assert all(torch.equal(a, backwards[number][name]) for name, a in forwards[number].items())
    assert changed(forwards[0], forwards[1])


def test_an_adaptation_that_fails_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = etrm()
    before = tensors(model)
    for kind in ("weights", "lora"):
        with pytest.raises(KeyboardInterrupt), adapter_of(config, model, wanted(kind)).adapted(TASKS[0]):
            raise KeyboardInterrupt
        assert not changed(before, tensors(model))


@pytest.mark.parametrize("start", TableStart)
def test_an_unknown_task_starts_as_asked_and_a_known_one_from_its_own_vectors(start: TableStart) -> None:
    config, model = trm()
    assert model.puzzle_table is not None
    known = model.puzzle_table.weight.clone()
    adapter = adapter_of(config, model, wanted("embeddings", steps=0, start=start), trained_rows={TASKS[1].id: 7})
    with adapter.adapted(TASKS[1]):
        assert torch.equal(model.puzzle_table.weight[1:], known[7:10])
    with adapter.adapted(TASKS[0]):
        rows = model.puzzle_table.weight[1:].clone()
    if start is TableStart.mean:
        assert torch.equal(rows, known[1:].mean(0).repeat(3, 1))
    elif start is TableStart.zeros:
        assert not rows.any()
    else:
        assert 0.05 < rows.std() < 0.2 and len(rows.unique()) == rows.numel()
        with adapter.adapted(TASKS[0]):
            assert torch.equal(rows, model.puzzle_table.weight[1:]), "drawn by the task"


def test_the_control_learns_another_task() -> None:
    for build, kind in ((etrm, "weights"), (trm, "embeddings")):
        config, model = build()
        own, other = (adapter_of(config, model, wanted(kind, demonstrations=shown)) for shown in ShownTask)
        found = []
        for adapter, task in ((own, TASKS[1]), (other, TASKS[0]), (own, TASKS[0]), (other, TASKS[3])):
            with adapter.adapted(task):
                found.append(tensors(model))
        assert all(torch.equal(a, found[1][name]) for name, a in found[0].items()), "task 0 gets what task 1 does"
        assert all(torch.equal(a, found[3][name]) for name, a in found[2].items()), "and the last one what the first does"


def test_jointly_one_table_learns_all_tasks() -> None:
    config, model = trm()
    adapter = adapter_of(config, model, wanted("embeddings", steps=20, joint=True), trained_rows={TASKS[1].id: 7})
    before = model.puzzle_table
    with adapter.adapted_jointly():
        table = model.puzzle_table
        assert table is not None and len(table.weight) == 1 + 3 * len(TASKS)
    assert adapter.figures["adapt/loss_after"] < adapter.figures["adapt/loss_before"]
    assert adapter.puzzle_rows() == {task.id: 1 + 3 * number for number, task in enumerate(TASKS)}
    assert model.puzzle_table is before, "set back like any other"


@pytest.mark.parametrize(
    ("build", "kind", "changes"),
    [
        (etrm, "weights", {"steps": 9}),
        (etrm, "weights", {"rows_per_step": 5}),
        (etrm, "weights", {"lr": 0.005}),
        (etrm, "weights", {"lr": None}),
        (etrm, "lora", {"rank": 3}),
        (trm, "embeddings", {"table_lr": 0.01}),
        (trm, "embeddings_then_weights", {"share": 0.5}),
    ],
)
def test_keys_change_what_is_learned(build: Build, kind: str, changes: dict[str, object]) -> None:
    config, model = build()
    found = []
    for settings in (wanted(kind), wanted(kind, **changes)):
        with adapter_of(config, model, settings).adapted(TASKS[0]):
            found.append(tensors(model))
    assert not all(torch.equal(a, found[1][name]) for name, a in found[0].items())


def test_jointly_no_rank_goes_on_alone() -> None:
    """One that was not told to end leaves with the one that was, which would never send it what it found."""

    class OtherIsTold(Ranks):
        def gather_objects(self, value: Any) -> list[Any]:
            return [value, True]

    config, model = etrm()
    before = tensors(model)
    adapter = TaskAdapter(
        model, config, wanted("weights", joint=True, steps=2), TASKS, {}, ViewRule.content, first_step=1000,
        ranks=OtherIsTold(0, 2, torch.device("cpu")),
    )  # fmt: skip
    with pytest.raises(ToldToEnd, match="begins anew"), adapter.adapted_jointly():
        pass
    assert not changed(before, tensors(model))
