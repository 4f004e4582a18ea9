"""Demonstrations laid end to end give what padded ones and groups of them give, in values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from arclab.config.encoder_schema import DemoAttention
from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import Batch
from arclab.methods.recursive.encoders import Demonstrations, Memory
from arclab.methods.recursive.encoders.blocks import TokenStage
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.varlen import Packing, attend_one_by_one, dense_attention, is_varlen

from .common import setup
from .test_canvases import CANVAS, tokens_of
from .test_encoders import config_of

Tiny = Callable[..., ExperimentConfig]
CPU = torch.device("cpu")


def read(model: RecursiveModel, batch: Batch) -> tuple[Memory, dict[str, torch.Tensor]]:
    """The memory and the gradients of a loss that weighs every number of it differently."""
    assert model.encoder is not None
    model.zero_grad()
    memory = model.encoder.read(Demonstrations.from_batch(batch), torch.float32)
    kept = memory.tokens_BMD[memory.mask_BM]
    (kept * torch.linspace(-1, 1, kept.numel()).view_as(kept)).mean().backward()
    return memory, {n: p.grad for n, p in model.encoder.named_parameters() if p.grad is not None}


def stage_of(model: RecursiveModel) -> TokenStage:
    return next(m for m in model.modules() if isinstance(m, TokenStage))


@pytest.mark.parametrize("layout", ["concat", "aligned", "symmetry"])
@pytest.mark.parametrize("kind", ["standard", "hybrid", "hierarchical", "in_context", "cross_attention"])
def test_end_to_end_gives_what_padded_and_grouped_demonstrations_give(tiny: Tiny, kind: str, layout: str) -> None:
    options = ["encoder.num_layers=1", f"dataset.canvas={CANVAS}"]
    model, _, batch = setup(config_of(tiny, kind, "encoder.demo_attention=varlen", *options, layout=layout))
    stage, tokens = stage_of(model), tokens_of(model)
    flat, flat_gradients = read(model, batch.rows(0, 4))
    stage.demo_attention, canvases = DemoAttention.dense, tokens.canvases
    for tokens.canvases in (canvases, canvases[-1:]):
        dense, gradients = read(model, batch.rows(0, 4))
        mask = dense.mask_BM
        assert torch.equal(flat.mask_BM, mask) and mask.any() and not mask.all()
        torch.testing.assert_close(flat.tokens_BMD[mask], dense.tokens_BMD[mask], atol=1e-5, rtol=0)
        assert flat_gradients.keys() == gradients.keys() and len(gradients) > 3
        for name, gradient in gradients.items():
            torch.testing.assert_close(flat_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("pooling", ["max", "attention", "weighted", "colors"])
def test_every_pooling_reads_tokens_that_lie_end_to_end(tiny: Tiny, pooling: str) -> None:
    extra = ["encoder.tokens_per_demo=10"] if pooling == "colors" else []
    options = ["encoder.demo_attention=varlen", f"encoder.pooling={pooling}", "encoder.num_layers=1", *extra]
    model, _, batch = setup(config_of(tiny, "standard", *options, layout="concat"))
    flat, _ = read(model, batch)
    stage_of(model).demo_attention = DemoAttention.dense
    dense, _ = read(model, batch)
    assert torch.equal(flat.mask_BM, dense.mask_BM)
    torch.testing.assert_close(flat.tokens_BMD, dense.tokens_BMD, atol=1e-5, rtol=0)


def test_a_packing_by_hand() -> None:
    used = torch.tensor([[False, True, True], [False, False, False], [True, True, True], [False, False, True]])
    packing = Packing.of(used)
    assert packing.starts_N.tolist() == [0, 2, 2, 5, 6] and packing.starts_N.dtype == torch.int32 and packing.longest == 3
    assert packing.cell_T.tolist() == used.flatten().nonzero()[:, 0].tolist()
    assert packing.padded(packing.cell_T + 1).tolist() == [[2, 3, 0], [0, 0, 0], [7, 8, 9], [12, 0, 0]]
    assert packing.used().tolist() == [[True, True, False], [False] * 3, [True] * 3, [True, False, False]]


def test_nothing_is_attended_to_across_sequences() -> None:
    torch.manual_seed(0)
    packing = Packing.of(torch.tensor([[True, True, False], [True, True, True]]))
    q, k, v = (torch.randn(5, 2, 4) for _ in range(3))
    same = torch.tensor([[a == b for b in (0, 0, 1, 1, 1)] for a in (0, 0, 1, 1, 1)])
    scores = torch.einsum("qhc,khc->hqk", q, k) / 2
    expected = torch.einsum("hqk,khc->qhc", scores.masked_fill(~same, -torch.inf).softmax(-1), v)
    torch.testing.assert_close(attend_one_by_one(q, k, v, packing), expected)


def test_half_precision_attention_on_a_cpu_runs_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backward in bf16 is about ten times slower there (a fact of torch's CPU kernel, so it is the kernel's input that is checked)."""
    seen: list[torch.dtype] = []
    kernel = F.scaled_dot_product_attention

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None) -> torch.Tensor:
        seen.append(q.dtype)
        return kernel(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 4, requires_grad=True) for _ in range(3))
    mask = torch.tensor([True, True, True, False, True])[None, None, None]
    mixed = dense_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    assert seen == [torch.float32] and mixed.dtype is torch.bfloat16
    torch.testing.assert_close(mixed.float(), kernel(q, k, v, attn_mask=mask), atol=0.03, rtol=0.03)
    mixed.sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (q, k, v))


def test_where_demonstrations_are_laid_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU in half precision; on a CPU only where it is asked for."""
    assert [is_varlen(choice, CPU, torch.float32, 64) for choice in DemoAttention] == [False, False, True]
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    for capability, dtype, channels, can in (
        ((9, 0), torch.bfloat16, 64, True), ((9, 0), torch.float32, 64, False), ((7, 5), torch.float16, 64, False),
        ((8, 0), torch.bfloat16, 60, False), ((8, 0), torch.bfloat16, 264, False),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert is_varlen(DemoAttention.auto, gpu, dtype, channels) is can and not is_varlen(
            DemoAttention.dense, gpu, dtype, channels
        )
        if not can:
            with pytest.raises(ValueError, match=r"encoder\.demo_attention=varlen needs trainer\.precision=bf16"):
                is_varlen(DemoAttention.varlen, gpu, dtype, channels)


def test_varlen_in_fp32_on_a_gpu_is_refused_at_once(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"encoder\.demo_attention=varlen does not go with trainer\.precision=fp32 on a GPU"):
        tiny("encoder.demo_attention=varlen", "trainer.precision=fp32", "trainer.device=cuda")
