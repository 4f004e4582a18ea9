"""Numbers about contexts: known answers on constructed contexts, and a model whose use of demonstrations is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arclab.config.schema import CanvasRule, ExperimentConfig
from arclab.data.codec import FIRST_COLOR, VOCAB_SIZE
from arclab.data.sampler import Batch
from arclab.methods.recursive import evaluation
from arclab.methods.recursive.encoders.base import TaskContext
from arclab.methods.recursive.evaluation import context_metrics
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.methods.recursive.probes import encoder_health as module
from arclab.methods.recursive.probes.context_ablations import zero_context_drop
from arclab.methods.recursive.probes.encoder_health import (
    HealthSettings,
    between_task_share,
    effective_rank,
    encoder_health,
    retrieval_accuracy,
    spread_sample,
    view_spread,
)
from arclab.methods.recursive.setting import Setting, build_setting
from arclab.metrics.names import REGISTRY
from arclab.runs.ranks import Ranks

Tiny = Callable[..., ExperimentConfig]
CPU = Ranks(0, 1, torch.device("cpu"))
N = 8
IDENTICAL = torch.full((N, 12), 3.0)
ORTHOGONAL = 5 * torch.eye(N)
RANK_1 = torch.arange(N)[:, None] * torch.tensor([[1.0, -2.0, 0.5]])


def test_between_task_share() -> None:
    assert between_task_share(IDENTICAL) == 0
    assert between_task_share(ORTHOGONAL) == pytest.approx(1 - 1 / N)
    assert between_task_share(100 * ORTHOGONAL) == pytest.approx(1 - 1 / N)  # scale-free
    assert between_task_share(torch.cat([ORTHOGONAL, -ORTHOGONAL])) == pytest.approx(1)
    assert math.isnan(between_task_share(torch.zeros(N, 3)))


def test_effective_rank() -> None:
    assert effective_rank(IDENTICAL) == 0
    assert effective_rank(RANK_1) == pytest.approx(1)
    assert effective_rank(RANK_1 + 7) == pytest.approx(1)  # what all contexts share does not count
    assert effective_rank(ORTHOGONAL) == pytest.approx(N - 1)


def test_view_spread() -> None:
    assert view_spread(ORTHOGONAL, ORTHOGONAL) == 0
    assert math.isnan(view_spread(IDENTICAL, IDENTICAL))
    torch.manual_seed(0)
    assert view_spread(torch.randn(400, 50), torch.randn(400, 50)) == pytest.approx(1, abs=0.03)  # unrelated views
    assert view_spread(ORTHOGONAL, ORTHOGONAL + 0.1) < 0.01


def test_retrieval_accuracy() -> None:
    assert retrieval_accuracy(ORTHOGONAL, ORTHOGONAL + 0.1) == 1
    assert retrieval_accuracy(ORTHOGONAL, ORTHOGONAL.roll(1, 0)) == 0
    assert retrieval_accuracy(IDENTICAL, IDENTICAL) == pytest.approx(1 / N)  # chance, not luck
    half_known = ORTHOGONAL.clone()
    half_known[N // 2 :] = half_known[N // 2 :].roll(1, 0)
    assert retrieval_accuracy(ORTHOGONAL, half_known) == 0.5


def setting_of(config: ExperimentConfig) -> tuple[Setting, RecursiveModel, list[Batch], HealthSettings]:
    setting = build_setting(config)
    torch.manual_seed(0)
    model = build_model(config, 1)
    settings = HealthSettings(64, config.dataset.canvas, config.evaluation.canvas, 0, config.dataset.max_demos, 5, CPU.device)
    space = module.PuzzleSpace(setting.split.train, 1, 0, config.dataset.canvas)
    return setting, model, module.render_by_canvas(space, settings, module._demos(space, settings, slice(None))), settings


def answers(right_B: Tensor, data: Batch) -> tuple[Tensor, Tensor]:
    """The true labels where right, blanks elsewhere."""
    tokens = torch.where(right_B[:, None], data.labels_BS.long(), 0)
    return torch.nn.functional.one_hot(tokens, VOCAB_SIZE).float() * 100, torch.ones(len(data))


@pytest.mark.parametrize("canvas", ["full", "bucketed"])
def test_swap_drop_of_a_model_that_needs_its_demonstrations(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, canvas: str) -> None:
    """The oracle is right only with its own demonstrations: everything is lost. One that reads the query alone loses nothing."""
    setting, model, batches, settings = setting_of(tiny(f"evaluation.canvas={canvas}"))
    own = {int(t): demos[0] for b in batches for t, demos in zip(b.task_id_B, b.demo_inputs_BKS, strict=True)}
    answered: list[int] = []

    def shown(tokens_S: Tensor) -> Tensor:
        return tokens_S[tokens_S >= FIRST_COLOR]

    def needs_demos(_: RecursiveModel, data: Batch) -> tuple[Tensor, Tensor]:
        answered.append(data.inputs_BS.shape[1])
        pairs = zip(data.task_id_B, data.demo_inputs_BKS[:, 0], strict=True)
        return answers(torch.tensor([torch.equal(shown(own[int(t)]), shown(demos)) for t, demos in pairs]), data)

    monkeypatch.setattr(RecursiveModel, "predict", needs_demos)
    metrics = encoder_health(model, setting.split.train, settings)
    assert metrics["exact_accuracy"] == metrics["swap_drop"] == metrics["swap_drop_cells"] == 1
    # Every task here fits on canvas 6, and some on 4, with room for the end marks.
    assert set(answered) == ({36} if canvas == "full" else {16, 36})
    assert sum(len(b) for b in batches) == 12
    monkeypatch.setattr(RecursiveModel, "predict", lambda _, data: answers(torch.ones(len(data), dtype=torch.bool), data))
    metrics = encoder_health(model, setting.split.train, settings)
    assert metrics["exact_accuracy"] == 1 and metrics["swap_drop"] == metrics["swap_drop_cells"] == 0


def test_zeroed_context_reaches_the_decoder_and_is_given_back(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, (batch,), _ = setting_of(tiny())
    before = model.predict(batch)[0]

    def needs_context(self: RecursiveModel, data: Batch) -> tuple[Tensor, Tensor]:
        prefix = self.condition(data).prefix_BPD
        return answers(prefix.abs().sum((1, 2)) > 0, data)

    with monkeypatch.context() as patch:
        patch.setattr(RecursiveModel, "predict", needs_context)
        drop = zero_context_drop(model, [batch])
        assert (drop.intact.exact, drop.exact, drop.cells) == (1, 1, 1)
    assert torch.equal(before, model.predict(batch)[0])
    assert math.isfinite(zero_context_drop(model, [batch], chunk_rows=5).cells)


def test_the_model_on_real_tasks(tiny: Tiny) -> None:
    """Every number is there, registered and in range; chunks change nothing; halves share no demonstration."""
    setting, model, _, settings = setting_of(tiny())
    metrics = encoder_health(model, setting.split.train, settings)
    assert {f"encoder/{n}" for n in metrics} == {n for n in REGISTRY if n.startswith("encoder/")}
    assert metrics["tasks"] == 12 and metrics["retrieval_chance"] == pytest.approx(1 / 12)
    assert 0 < metrics["between_task_share"] < 1 and 1 < metrics["effective_rank"] <= 11
    assert metrics["augmentation_spread"] > 0 and metrics["subset_spread"] > 0
    whole = encoder_health(model, setting.split.train, HealthSettings(64, 6, CanvasRule.full, 0, 10, 1000, CPU.device))
    assert whole == pytest.approx(metrics, rel=1e-4)
    space = module.PuzzleSpace(setting.split.train, 0, 0, 6)
    even, odd = (module._demos(space, settings, slice(i, None, 2)) for i in (0, 1))
    for n, task in enumerate(setting.split.train):
        kept = [{int(d) for d in half[n] if d >= 0} for half in (even, odd)]
        assert not kept[0] & kept[1] and len(kept[0] | kept[1]) == len(task.demos)


def test_a_constant_encoder_shows_in_every_number(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, model, _, settings = setting_of(tiny())
    assert model.encoder is not None
    monkeypatch.setattr(model.encoder, "write", lambda memory, *_: TaskContext(torch.ones(len(memory.mask_BM), 16, 16)))
    metrics = encoder_health(model, setting.split.train, settings)
    assert metrics["between_task_share"] == metrics["effective_rank"] == metrics["swap_drop_cells"] == 0
    assert metrics["retrieval_accuracy"] == pytest.approx(metrics["retrieval_chance"])
    assert "augmentation_spread" not in metrics and "subset_spread" not in metrics  # 0 / 0


def test_no_numbers_without_an_encoder_or_tasks(tiny: Tiny) -> None:
    setting, model, _, settings = setting_of(tiny())
    assert encoder_health(model, setting.split.train[:1], settings) == {}
    config = tiny(trm=True)
    table = build_model(config, build_setting(config).data.space.num_puzzles)
    assert encoder_health(table, setting.split.train, settings) == {}
    assert [t.id for t in spread_sample(setting.split.train, 3)] == [setting.split.train[i].id for i in (0, 6, 11)]
    assert spread_sample(setting.split.train, 0) == []


def test_scored_and_training_tasks_are_told_apart(tiny: Tiny) -> None:
    """On a held-out split both samples are measured, neither larger than what is scored; where training tasks are scored there
    is one."""
    config = tiny("dataset.canvas=30", "dataset.max_train_tasks=3", "dataset.validation_ids=arc1_validation",
                  "evaluation.split=validation", "evaluation.max_tasks=2", "halting.halt_max_steps=2", "decoder.h_cycles=1")  # fmt: skip
    setting = build_setting(config)
    metrics = context_metrics(config, setting, build_model(config, 1), CPU)
    assert metrics["encoder/tasks"] == 2 and metrics["train_encoder/tasks"] == 2
    config.evaluation.health_tasks = 0
    assert context_metrics(config, setting, build_model(config, 1), CPU) == {}
    fit = tiny()
    metrics = context_metrics(fit, build_setting(fit), build_model(fit, 1), CPU)
    assert metrics["encoder/tasks"] == 2 and not any(n.startswith("train_encoder/") for n in metrics)


def test_a_bar_counts_every_answer_that_the_model_is_asked_for(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends where it said it would, and moves on the way; nothing is predicted twice."""
    config = tiny("evaluation.max_tasks=null", "evaluation.batch_size=5")
    setting, model = build_setting(config), build_model(config, 1)
    predicted: list[int] = []
    steps: list[int] = []
    original = RecursiveModel.predict
    monkeypatch.setattr(RecursiveModel, "predict", lambda self, data: (predicted.append(len(data)), original(self, data))[1])

    class Bar:
        def __init__(self, *, total: int, **_: object) -> None:
            self.total = total

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            assert sum(steps) == self.total == sum(predicted) == 3 * len(setting.scored)

        def update(self, count: int) -> None:
            steps.append(count)

    monkeypatch.setattr(evaluation, "progress_bar", Bar)
    assert "encoder/swap_drop" in context_metrics(config, setting, model, CPU)
    assert max(steps) == 5
