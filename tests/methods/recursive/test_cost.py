"""What a run is said to need is what it needs, and moves with what decides it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from arclab.config.schema import ExperimentConfig
from arclab.methods.recursive.cost import ModelSize, Placement, evaluation_cost, training_cost
from arclab.methods.recursive.model import build_model
from arclab.methods.recursive.setting import build_setting
from arclab.methods.recursive.training.batch_size import measure
from arclab.runs.cost import Cost

from ...conftest import compose

Tiny = Callable[..., ExperimentConfig]
ONE = Placement("cpu", 1)
SMALL = ("evaluation.batch_size=1", "dataset.max_train_tasks=8", "decoder.h_cycles=1")


def cost_of(config: ExperimentConfig, place: Placement = ONE) -> Cost:
    setting = build_setting(config)
    with torch.device("meta"):
        model = build_model(config, setting.record.num_puzzles)
    return training_cost(config, ModelSize.of(model), setting.data, setting.scored, place)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("dataset.canvas=10", "trainer.canvas=bucketed"),
        ("trainer.recompute=true", "encoder.reconstruction.weight=1.0"),
        ("encoder=cross_attention", "encoder.contrastive.weight=1.0"),
        ("encoder.inner_steps=2",),
    ],
)
def test_memory_is_what_a_step_needs(tiny: Tiny, overrides: tuple[str, ...]) -> None:
    """Between two batch sizes, so that what is there with any batch does not hide it."""
    sizes, found = (4, 8), []
    for num_rows in sizes:
        config = tiny(*SMALL, *overrides, f"trainer.batch_size={num_rows}")
        setting = build_setting(config)
        torch.manual_seed(0)
        measured = measure(config, build_model(config, 1), setting.data, torch.device("cpu"), num_rows)
        assert measured is not None
        found.append((cost_of(config).memory_bytes, measured.peak_bytes))
    (small, small_measured), (large, large_measured) = found
    assert 1 / 1.5 < (large - small) / (large_measured - small_measured) < 1.5


def test_it_moves_with_what_decides_it(tiny: Tiny) -> None:
    base = cost_of(tiny(*SMALL))

    def ratio(*overrides: str, place: Placement = ONE) -> tuple[float, float]:
        other = cost_of(tiny(*SMALL, *overrides), place)
        return other.step_flops / base.step_flops, other.memory_bytes / base.memory_bytes

    assert math.isclose(ratio("trainer.batch_size=16")[0], 2, rel_tol=0.2)
    assert ratio("trainer.batch_size=64")[1] > ratio("trainer.batch_size=16")[1] > 1
    assert all(r > 1.05 for r in ratio("dataset.canvas=15"))
    assert all(r > 1.05 for r in ratio("decoder.width=128"))
    assert ratio("decoder.num_layers=4")[0] > 1.3 and ratio("encoder.num_layers=4")[0] > 1.3
    assert math.isclose(ratio("trainer.batch_size=8", place=Placement("cpu", 2))[0], 0.5, rel_tol=0.1)
    assert ratio("trainer.batch_size=auto")[0] < 0.2
    assert base.evaluation_flops < cost_of(tiny(*SMALL, "evaluation.num_augmentations=7")).evaluation_flops / 3


def test_an_evaluation_needs_no_gradients(tiny: Tiny) -> None:
    config = tiny("decoder.width=64")
    setting = build_setting(config)
    size = ModelSize.of(build_model(config, 1))
    trained = training_cost(config, size, setting.data, setting.scored, ONE)
    scored = evaluation_cost(config, size, setting.data, setting.scored, ONE)
    assert scored.memory_bytes < trained.memory_bytes
    assert scored.evaluation_flops == trained.evaluation_flops > 0 == scored.step_flops


def test_a_search_is_counted(tiny: Tiny) -> None:
    """Its steps, supervision steps and starts, and the gradients that it keeps; evaluate.py says it before it begins."""
    config = tiny("decoder.width=64")
    setting = build_setting(config)
    size = ModelSize.of(build_model(config, 1))

    def cost(*overrides: str) -> Cost:
        wanted = compose("evaluate", ["checkpoint=x", "adaptation=latent", *(f"adaptation.{o}" for o in overrides)])
        return evaluation_cost(config, size, setting.data, setting.scored, ONE, wanted.adaptation)

    plain = evaluation_cost(config, size, setting.data, setting.scored, ONE)
    few, many = cost("steps=9"), cost("steps=19")
    added = few.evaluation_flops - plain.evaluation_flops
    assert added > plain.evaluation_flops / config.halting.halt_max_steps and few.memory_bytes > plain.memory_bytes
    for twice in (many, cost("steps=9", "unroll=2"), cost("steps=9", "num_starts=2", "sigma=0.1")):
        assert math.isclose(twice.evaluation_flops - plain.evaluation_flops, 2 * added, rel_tol=0.01)


def test_the_published_size_is_known_from_its_shapes(tiny: Tiny) -> None:
    """benchmarks/results/train_step_nvidia_h100_80gb_hbm3.json: 128 rows of TRM on the full canvas in bf16 had a peak of 28.5 GiB."""
    config = tiny(
        "decoder=trm", "dataset.canvas=30", "trainer.batch_size=128", "trainer.precision=bf16", "dataset.translate=true",
        trm=True,
    )  # fmt: skip
    config.decoder.width, config.decoder.num_heads = 512, 8
    cost = cost_of(config, Placement("cuda", 1))
    assert 28.5 / 1.2 < cost.memory_bytes / 2**30 < 28.5 * 1.2
    assert 0.407 / 1.1 < cost.step_flops / 128e12 < 0.407 * 1.1
