"""Numbers about the vectors of a puzzle table: a model whose use of them is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arclab.config.schema import ExperimentConfig
from arclab.data.codec import VOCAB_SIZE
from arclab.data.sampler import Batch
from arclab.methods.recursive.evaluation import context_metrics
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.methods.recursive.setting import Setting, build_setting, require_trained_rows
from arclab.metrics.names import REGISTRY
from arclab.runs.ranks import Ranks

Tiny = Callable[..., ExperimentConfig]
CPU = Ranks(0, 1, torch.device("cpu"))


def table_model(config: ExperimentConfig) -> tuple[Setting, RecursiveModel]:
    """Its table holds the number of each row, plus one."""
    setting = build_setting(config)
    model = build_model(config, setting.record.num_puzzles)
    assert model.puzzle_table is not None
    model.puzzle_table.weight[:] = torch.arange(1.0, 1 + len(model.puzzle_table.weight))[:, None]
    return setting, model


def answers_right(model: RecursiveModel, setting: Setting, uses_table: bool) -> Callable[[Batch], tuple[Tensor, Tensor]]:
    """A predict() that answers right, if it uses the table only with the vector of the task's own first row."""
    first_T = torch.tensor([setting.puzzle_rows[task.id] for task in setting.scored])

    def predict(data: Batch) -> tuple[Tensor, Tensor]:
        assert model.puzzle_table is not None
        is_own_B = model.puzzle_table(data.puzzle_id_B)[:, 0] == 1 + first_T[data.task_id_B]
        labels_BS = data.labels_BS.long().clamp(min=0)
        shown_BS = torch.where((is_own_B | (not uses_table))[:, None], labels_BS, (labels_BS + 1) % VOCAB_SIZE)
        return F.one_hot(shown_BS, VOCAB_SIZE).float(), torch.zeros(len(data))

    return predict


@pytest.mark.parametrize(("uses_table", "lost"), [(True, 1.0), (False, 0.0)])
def test_wrong_and_blank_vectors_cost_what_the_table_is_worth(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, uses_table: bool, lost: float
) -> None:
    config = tiny(trm=True)
    setting, model = table_model(config)
    assert len(setting.scored) > 1
    monkeypatch.setattr(model, "predict", answers_right(model, setting, uses_table))
    found = context_metrics(config, setting, model, CPU)
    assert set(found) <= set(REGISTRY) and found["puzzle/tasks"] == len(setting.scored)
    assert found["puzzle/exact_accuracy"] == 1.0
    assert found["puzzle/wrong_id_drop"] == found["puzzle/blank_id_drop"] == lost
    assert found["puzzle/wrong_id_drop_cells"] == found["puzzle/blank_id_drop_cells"] == lost


def test_the_model_is_left_as_it_was_and_a_real_prediction_works(tiny: Tiny) -> None:
    config = tiny(trm=True)
    setting, model = table_model(config)
    assert model.puzzle_table is not None
    before = model.puzzle_table.weight.clone()
    found = context_metrics(config, setting, model, CPU)
    assert 0 <= found["puzzle/exact_accuracy"] <= 1
    assert torch.equal(model.puzzle_table.weight, before) and "forward" not in vars(model.puzzle_table)
    assert not torch.equal(model.puzzle_table(torch.tensor([1])), torch.zeros(1, before.shape[1]))


def test_rows_of_a_table_are_listed_once_not_for_each_task(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(trm=True)
    setting, model = table_model(config)
    rows, asked = setting.puzzle_rows, []
    monkeypatch.setattr(Setting, "puzzle_rows", property(lambda _: asked.append(1) or rows))
    require_trained_rows(config, setting)
    assert setting.known_rows == {task.id: rows[task.id] for task in setting.scored} and len(setting.scored) > 1
    context_metrics(config, setting, model, CPU)
    assert len(asked) <= 3  # of 80,000 toy tasks the list takes a while


def test_no_table_and_one_task_have_no_such_numbers(tiny: Tiny) -> None:
    config = tiny()
    setting = build_setting(config)
    assert not [name for name in context_metrics(config, setting, build_model(config, 1), CPU) if name.startswith("puzzle/")]
    alone = tiny("evaluation.max_tasks=1", trm=True)
    assert context_metrics(alone, *table_model(alone), CPU) == {}
