"""Swap drop and context drop tell a solver that reads the demonstrations from one that does not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from arclab.data.codec import VOCAB_SIZE
from arclab.data.sampler import Batch
from arclab.data.synthetic import load_toy
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.methods.recursive.probes.ablations import context_drop, swap_demonstrations, swap_drop
from arclab.methods.recursive.probes.context_ablations import zeroed_context
from arclab.methods.recursive.solver.solver import RecursiveSolver
from arclab.runs.ranks import Ranks

from ....conftest import compose
from ..solver.common import answer_by_rule, answer_labels

CPU = Ranks(0, 1, torch.device("cpu"))
TASKS = load_toy("toy:color_map+dihedral?tasks=30&side=4")


@pytest.fixture
def model() -> RecursiveModel:
    torch.manual_seed(0)
    return build_model(compose("pretrain_encoder", ["experiment=toy_control", "decoder.width=16", "decoder.num_heads=2"]), 1)


def solver_of(model: RecursiveModel) -> RecursiveSolver:
    return RecursiveSolver(model, CPU, canvas=6, seed=0, batch_size=16, max_demos=10)


def colours_as_demonstrated(batch: Batch) -> torch.Tensor:
    """Right for every colour map: the token that stood at a position of a demonstration becomes the one beside it."""
    rows = len(batch)
    table = torch.zeros(rows, VOCAB_SIZE, dtype=torch.uint8)
    return table.scatter_(1, batch.demo_inputs_BKS.reshape(rows, -1).long(), batch.demo_outputs_BKS.reshape(rows, -1))


def test_a_reader_of_demonstrations_loses_its_answers(model: RecursiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_by_rule(monkeypatch, colours_as_demonstrated)
    drop = swap_drop(solver_of(model), [t for t in TASKS if t.source == "toy:color_map"])
    assert drop.intact.value == 1.0 and drop.ablated.value < 0.3 and drop.value > 0.7


def test_who_ignores_demonstrations_loses_nothing(model: RecursiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_labels(monkeypatch)
    assert swap_drop(solver_of(model), TASKS).value == 0.0
    assert context_drop(solver_of(model), model, TASKS).value == 0.0


def test_swapped_tasks_differ_in_their_demonstrations_only() -> None:
    swapped = swap_demonstrations(TASKS, seed=1)
    rule_of = {id(t.demos): (t.source, t.rule) for t in TASKS}
    for task, other in zip(TASKS, swapped, strict=True):
        source, rule = rule_of[id(other.demos)]
        assert (task.id, task.tests) == (other.id, other.tests) and source == task.source and rule != task.rule
    assert [t.demos is s.demos for t, s in zip(swapped, swap_demonstrations(TASKS, seed=2), strict=True)].count(False) > 5
    with pytest.raises(ValueError, match="is the only one of source toy:"):
        swap_demonstrations(TASKS[:2])


def test_zero_context_is_zero_and_ends(model: RecursiveModel) -> None:
    solver = solver_of(model)
    seen: list[torch.Tensor] = []
    handle = model.adapter.register_forward_hook(lambda module, given, out: seen.append(out))  # pyright: ignore[reportOptionalMemberAccess]
    with zeroed_context(model):
        context_drop(solver, model, TASKS[:2])
    assert all(float(out.abs().max()) == 0 for out in seen)
    seen.clear()
    context_drop(solver, model, TASKS[:2])
    assert [float(out.abs().max()) > 0 for out in seen] == [True, False]
    handle.remove()
    model.encoder = None
    with pytest.raises(ValueError, match="has no encoder"), zeroed_context(model):
        pass


def test_files_of_one_folder_exchange_demonstrations() -> None:
    """Each task of a folder: source names its own file."""
    files = [dataclasses.replace(task, source=f"tasks/{task.id}.json", rule=None) for task in TASKS[:4]]
    assert all(a.demos is not b.demos for a, b in zip(files, swap_demonstrations(files), strict=True))
