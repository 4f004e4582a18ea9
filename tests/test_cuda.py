"""The same numbers on a GPU as on the CPU. Skipped where there is none.

python -m pytest tests/test_cuda.py        # seconds on one GPU, more where something is compiled
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arclab.config.encoders import ENCODERS as ROWS
from arclab.config.llm_schema import Dtype, HfModelConfig, LmAttention
from arclab.config.run import DeviceChoice
from arclab.config.schema import ExperimentConfig, WeightsKind
from arclab.data.sampler import Batch
from arclab.lm.language_model import Message
from arclab.lm.models import load_language_model
from arclab.methods.recursive.compiled import compile_model
from arclab.methods.recursive.encoders import Demonstrations
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.run import pretrain
from arclab.methods.recursive.saved import TrainedRun
from arclab.methods.recursive.setting import build_setting
from arclab.metrics.logger import read_rows

from .lm.conftest import sampling
from .methods.recursive.common import setup

Tiny = Callable[..., ExperimentConfig]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda")
ENCODERS = tuple(kind for kind, row in ROWS.items() if row.module is not None)
SMALL = {"hybrid": ["encoder.num_layers=2"], "hybrid_variational": ["encoder.num_layers=2"]}
# Dozens of matrices multiply what bf16's 8 bits lose, on any device: what the CPU loses in bf16 is the measure.
MORE_THAN_ON_CPU = 1.5


def small(tiny: Tiny, encoder: str, *overrides: str) -> ExperimentConfig:
    heads = [] if encoder.startswith("lpn") else ["encoder.num_heads=2"]
    latent = ["encoder.latent_dim=8"] if "variational" in encoder else []
    return tiny(f"encoder={encoder}", *heads, *latent, *SMALL.get(encoder, ()), "decoder.width=32", *overrides)


def one_step(model: RecursiveModel, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Logits of two supervision steps, and all gradients of the second's loss, on the CPU."""
    never = torch.zeros(len(batch), dtype=torch.int64, device=batch.inputs_BS.device)
    carry, _ = model(model.initial_carry(batch), batch, never)
    _, output = model(carry, batch, never)
    row_losses(output.logits_BSV.float(), output.q_halt_B, output.labels_BS).total(0.5).backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    model.zero_grad()
    return output.logits_BSV.detach().float().cpu(), [g.float().cpu() for g in grads]


def relative_error(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp(min=1e-12)).item()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_step_in_fp32_is_that_of_the_cpu(tiny: Tiny, encoder: str) -> None:
    model, _, batch = setup(small(tiny, encoder))
    logits, grads = one_step(model, batch)
    logits_cuda, grads_cuda = one_step(model.to(CUDA), batch.to(CUDA))
    assert relative_error(logits_cuda, logits) < 1e-4
    assert relative_error(torch.cat([g.flatten() for g in grads_cuda]), torch.cat([g.flatten() for g in grads])) < 3e-3


@pytest.mark.parametrize("encoder", ["standard", "hybrid", "hierarchical", "in_context", "cross_attention"])
def test_a_context_in_bf16_is_as_near_to_fp32_as_that_of_the_cpu(tiny: Tiny, encoder: str) -> None:
    model, _, batch = setup(small(tiny, encoder, "encoder.demo_layout=symmetry"))
    encoder = model.encoder
    assert encoder is not None

    def read(rows: Batch, dtype: torch.dtype) -> Tensor:
        memory = encoder.read(Demonstrations.from_batch(rows), dtype)
        assert memory.tokens_BMD.dtype is dtype
        return (
            (memory.tokens_BMD * memory.mask_BM[..., None]).detach().float().cpu()
        )  # what nobody reads depends on the packing

    exact, on_cpu = read(batch, torch.float32), read(batch, torch.bfloat16)
    encoder.to(CUDA)
    assert relative_error(read(batch.to(CUDA), torch.bfloat16), exact) < MORE_THAN_ON_CPU * relative_error(on_cpu, exact)


@pytest.mark.parametrize("encoder", ["standard", "hybrid", "in_context"])
def test_a_compiled_bf16_step_is_as_near_to_fp32_as_that_of_the_cpu(tiny: Tiny, encoder: str) -> None:
    config = small(tiny, encoder, "trainer.precision=bf16")
    model, _, batch = setup(config)
    exact, _, _ = setup(small(tiny, encoder))
    wanted, on_cpu = one_step(exact, batch)[0], one_step(model, batch)[0]
    compiled, _, _ = setup(config)
    compile_model(compiled.to(CUDA))
    logits, grads = one_step(compiled, batch.to(CUDA))
    assert relative_error(logits, wanted) < MORE_THAN_ON_CPU * relative_error(on_cpu, wanted)
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("overrides", [[], ["trainer.compile=true", "trainer.precision=bf16"]])
def test_training_learns_on_a_gpu(tiny: Tiny, overrides: list[str]) -> None:
    config = tiny(
        "trainer.device=cuda",
        "trainer.steps=40",
        "decoder.width=32",
        "encoder.num_heads=2",
        "trainer.checkpoint_every=20",
        *overrides,
    )
    pretrain(config)
    losses = [row["train/lm_loss"] for row in read_rows(config.folder / "metrics.jsonl") if "train/lm_loss" in row]
    assert losses[-1] < 0.9 * losses[0]


def test_predictions_in_fp32_are_those_of_the_cpu(tiny: Tiny) -> None:
    model, _, batch = setup(tiny("decoder.width=32"))
    grids = model.predict(batch)[0].argmax(-1)
    moved = model.to(CUDA).predict(batch.to(CUDA))[0].argmax(-1).cpu()
    assert (grids == moved).float().mean() > 0.999


def test_the_table_of_puzzles_learns_on_a_gpu(tiny: Tiny) -> None:
    config = tiny("trainer.device=cuda", trm=True)
    pretrain(config)
    setting = build_setting(config)
    model = TrainedRun.open(config.folder).model(WeightsKind.ema, setting.data.space.num_puzzles)
    assert model.puzzle_table is not None and model.puzzle_table.weight.any()


def test_a_language_model_says_the_same_on_a_gpu(hf_fields: Callable[..., HfModelConfig]) -> None:
    prompts = [(Message("user", "0 1 2\n3 4 5"),), (Message("user", "x"),)]

    def said(device: DeviceChoice) -> list[list[str]]:
        replies = load_language_model(hf_fields(device=device)).generate(prompts, 1, sampling(temperature=0.0))
        return [[c.text for c in reply.completions] for reply in replies]

    assert said(DeviceChoice.cuda) == said(DeviceChoice.cpu)


@pytest.fixture
def hf_fields(tiny_lm: Path) -> Callable[..., HfModelConfig]:
    def build(device: DeviceChoice) -> HfModelConfig:
        return HfModelConfig(kind="hf", name=str(tiny_lm), max_context=None, thinking=None, adapter=None, dtype=Dtype.float32,
                             attention=LmAttention.sdpa, device=device, batch_size=4)  # fmt: skip

    return build
