"""Our network, training step and optimisers against values recorded from the published TRM code (fixtures/official_trm.json)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from arclab.config.encoder_schema import OptimConfig
from arclab.config.schema import AttentionKernel, DecoderConfig, HaltingConfig, Positions, TrainerConfig
from arclab.data.codec import PAD
from arclab.data.sampler import Batch
from arclab.methods.recursive.decoder import Decoder
from arclab.methods.recursive.decoder_init import OUR_TABLE, from_published, load_decoder, read_tensors
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.model import PuzzleTable, RecursiveModel
from arclab.methods.recursive.training.optim import AdamATan2, lr_factor, sign_sgd_rows

FIXTURE = Path(__file__).parents[2] / "fixtures" / "official_trm.safetensors"
PREFIX = "_orig_mod.model.inner."
HALTING = HaltingConfig(halt_max_steps=16, halt_exploration_prob=0.0, halt_loss_weight=0.5)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FIXTURE)


def build(positions: Positions = Positions.rope, *, mlp_t: bool = False, canvas: int = 30) -> RecursiveModel:
    optim = OptimConfig(lr=1e-4, weight_decay=0.1, freeze_steps=0)
    config = DecoderConfig(width=32, num_heads=4, num_layers=2, expansion=4.0, h_cycles=3, l_cycles=4, mlp_t=mlp_t,
                           positions=positions, attention=AttentionKernel.sdpa, optim=optim)  # fmt: skip
    return RecursiveModel(
        Decoder(config, canvas, torch.float32), HALTING, encoder=None, adapter=None, puzzle_table=PuzzleTable(6, 32)
    )


def load(model: RecursiveModel, golden: dict[str, Tensor], *extra: str) -> RecursiveModel:
    published = {n.removeprefix("weights."): t for n, t in golden.items() if n.startswith("weights.")}
    for group in extra:
        published |= {n.removeprefix(f"{group}."): t for n, t in golden.items() if n.startswith(f"{group}.")}
    if model.decoder.config.mlp_t:
        published = {n: t for n, t in published.items() if "self_attn" not in n}
    state = from_published(published)
    load_decoder(model.decoder, state, "fixture", transductive=True)
    assert model.puzzle_table is not None
    model.puzzle_table.weight.copy_(state[OUR_TABLE])
    return model


def to_batch(golden: dict[str, Tensor], name: str) -> Batch:
    labels = golden[f"{name}.labels"]
    rows, cells = labels.shape
    none = torch.zeros(rows, 0, cells, dtype=torch.uint8)
    return Batch(
        task_id_B=torch.zeros(rows, dtype=torch.int64),
        puzzle_id_B=golden[f"{name}.puzzle_identifiers"].long(),
        inputs_BS=golden[f"{name}.inputs"].to(torch.uint8),
        labels_BS=torch.where(labels < 0, PAD, labels).to(torch.uint8),
        demo_inputs_BKS=none, demo_outputs_BKS=none, num_demos_B=torch.zeros(rows, dtype=torch.int64),
    )  # fmt: skip


def close(actual: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual.detach().float(), expected.float(), atol=atol, rtol=0)


def test_evaluation_outputs(golden: dict[str, Tensor]) -> None:
    model = load(build(), golden)
    batch = to_batch(golden, "batch0")
    with torch.no_grad():
        prefix = model.condition(batch).prefix_BPD
        latents = model.decoder.start(len(batch), batch.inputs_BS.shape[1])
        for call in range(3):
            latents, logits, q_halt = model.decoder(latents, batch.inputs_BS, prefix)
            close(logits[:, :200], golden[f"eval.call{call}.logits_0_200"])
            close(logits[:, 400:500], golden[f"eval.call{call}.logits_400_500"])
            close(q_halt, golden[f"eval.call{call}.q_halt_logits"])
    close(latents.z_H[:, golden["eval.z_H_positions"].long()], golden["eval.z_H"])


@pytest.mark.parametrize("variant", ["learned", "mlp_t"])
def test_variants(golden: dict[str, Tensor], variant: str) -> None:
    if variant == "learned":
        model = load(build(Positions.learned), golden, "weights_learned")
        batch, cells = to_batch(golden, "batch0"), slice(0, 64)
        expected = golden["learned.logits_0_64"]
    else:
        model = load(build(Positions.none, mlp_t=True, canvas=5), golden, "weights_mlp_t")
        batch, cells = to_batch(golden, "mlp_t"), slice(None)
        expected = golden["mlp_t.logits"]
    with torch.no_grad():
        _, logits, q_halt = model.decoder(
            model.decoder.start(len(batch), batch.inputs_BS.shape[1]), batch.inputs_BS, model.condition(batch).prefix_BPD
        )
    close(logits[:, cells], expected, atol=2e-4)
    close(q_halt, golden[f"{variant}.q_halt_logits"])


def test_training_steps(golden: dict[str, Tensor]) -> None:
    """Carry, halting, labels of the carry, losses, metrics and gradients over three calls."""
    model = load(build(), golden)
    never = torch.zeros(3, dtype=torch.int64)
    carry = model.initial_carry(to_batch(golden, "batch0"))
    for call in range(3):
        name = f"train.call{call}"
        model.zero_grad()
        carry, output = model(carry, to_batch(golden, f"batch{call}"), never)
        losses = row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS)
        total = losses.total(0.5)
        (total / 3).backward()
        close(total, golden[f"{name}.loss"].reshape(()))
        assert torch.equal(output.halted_B, golden[f"{name}.halted"].bool())
        assert torch.equal(output.steps_B, golden[f"{name}.steps"].long())
        assert torch.equal(carry.data.puzzle_id_B, golden[f"{name}.current_puzzle_identifiers"].long())
        labels = output.labels_BS.long()
        assert torch.equal(torch.where(labels == PAD, -100, labels).sum(1), golden[f"{name}.labels_row_sum"].long())
        counted = output.halted_B & losses.has_labels
        ours = {
            "count": counted.sum(), "accuracy": losses.accuracy[counted].sum(), "exact_accuracy": losses.exact[counted].sum(),
            "q_halt_accuracy": losses.q_halt_correct[counted].sum(), "steps": output.steps_B[counted].sum(),
            "lm_loss": losses.lm.sum(), "q_halt_loss": losses.q_halt.sum(),
        }  # fmt: skip
        for metric, value in ours.items():
            close(value, golden[f"{name}.metrics.{metric}"].reshape(()))
    grads = from_published(
        {n.removeprefix("train.call2.grad."): t for n, t in golden.items() if n.startswith(f"train.call2.grad.{PREFIX}")}
    )
    ours_by_name = {f"decoder.{n}": p.grad for n, p in model.decoder.named_parameters()}
    assert grads.keys() == ours_by_name.keys()
    for name, expected in grads.items():
        grad = ours_by_name[name]
        assert grad is not None
        close(grad, expected, atol=1e-4 * float(expected.abs().max()))
    assert output.puzzle_rows_BD is not None and output.puzzle_rows_BD.grad is not None
    expected = golden["train.call2.grad.puzzle_emb_local"]
    close(output.puzzle_rows_BD.grad, expected, atol=1e-4 * float(expected.abs().max()))


def test_row_without_labels_counts_as_right_for_the_halt_loss_only(golden: dict[str, Tensor]) -> None:
    q_halt = torch.tensor([0.3, -0.2])
    logits, labels = torch.zeros(2, 4, 12), torch.tensor([[2, 3, 0, 0], [0, 0, 0, 0]], dtype=torch.uint8)
    losses = row_losses(logits, q_halt, labels)
    assert losses.has_labels.tolist() == [True, False] and losses.exact.tolist() == [False, True]
    assert losses.lm[1] == 0 and losses.lm[0] > 0


def test_sign_sgd(golden: dict[str, Tensor]) -> None:
    table = golden["signsgd.before"].clone()
    sign_sgd_rows(table, golden["signsgd.ids"].long(), golden["signsgd.grad"], lr=1e-2, weight_decay=0.1)
    torch.testing.assert_close(table, golden["signsgd.after"], atol=1e-7, rtol=0)


def test_adam_atan2(golden: dict[str, Tensor]) -> None:
    p = torch.nn.Parameter(golden["atan2.before"].clone())
    optimizer = AdamATan2([p], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for step in (1, 2, 3):
        p.grad = golden[f"atan2.grad{step}"].clone()
        optimizer.step()
        torch.testing.assert_close(p.detach(), golden[f"atan2.after{step}"], atol=1e-6, rtol=0)


def test_official_size() -> None:
    """The published network has 6,829,058 parameters without the puzzle table and two start states."""
    optim = OptimConfig(lr=1e-4, weight_decay=0.1, freeze_steps=0)
    config = DecoderConfig(width=512, num_heads=8, num_layers=2, expansion=4.0, h_cycles=3, l_cycles=4, mlp_t=False,
                           positions=Positions.rope, attention=AttentionKernel.sdpa, optim=optim)  # fmt: skip
    decoder = Decoder(config, 30, torch.float32)
    assert sum(p.numel() for p in decoder.parameters()) == 6_829_058
    assert len(decoder.state_dict()) == 14


@pytest.mark.parametrize("prefix", ["_orig_mod.model.inner.", "model.inner.", "module._orig_mod.model.inner.", ""])
def test_published_prefixes(golden: dict[str, Tensor], prefix: str, tmp_path: Path) -> None:
    published = {n.removeprefix(f"weights.{PREFIX}"): t for n, t in golden.items() if n.startswith("weights.")}
    path = tmp_path / "step_1"
    torch.save({prefix + n: t for n, t in published.items()}, path)
    model = build()
    report = load_decoder(model.decoder, from_published(read_tensors(path)), str(path), transductive=True)
    assert len(report.loaded) == len(report.expected) == 14
    assert report.dropped == (OUR_TABLE,)
    assert torch.equal(model.decoder.lm_head.weight, published["lm_head.weight"])


def test_missing_decoder_tensor_is_an_error(golden: dict[str, Tensor], tmp_path: Path) -> None:
    published = {n.removeprefix("weights."): t for n, t in golden.items() if n.startswith("weights.") and "lm_head" not in n}
    save_file(published, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="lacks 1 of 14 decoder tensors"):
        load_decoder(build().decoder, from_published(read_tensors(tmp_path / "w.safetensors")), "w", transductive=True)


def test_learning_rate_schedule() -> None:
    """Linear from 1/warmup at the first step to 1, then cosine to the minimum."""
    config = TrainerConfig.__new__(TrainerConfig)
    config.steps, config.warmup_steps, config.lr_min_ratio = 110, 10, 0.1
    assert lr_factor(config, 1) == pytest.approx(0.1) and lr_factor(config, 10) == pytest.approx(1.0)
    assert lr_factor(config, 60) == pytest.approx(0.55) and lr_factor(config, 110) == pytest.approx(0.1)
