"""The training loop: resuming bit for bit, ranks that add up, freezing, clipping, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import Cursor
from arclab.methods.recursive.encoders import TaskContext
from arclab.methods.recursive.halting import draw_min_steps
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.model import build_model
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.methods.recursive.setting import build_setting
from arclab.methods.recursive.training import step as step_module
from arclab.methods.recursive.training.parts import batch_parts
from arclab.methods.recursive.training.trainer import train
from arclab.metrics.logger import read_rows
from arclab.runs.folder import open_run
from arclab.runs.ranks import Ranks

from ....conftest import ROOT, TINY, TINY_TRM, compose, script_env
from .common import CPU, identical, run_training

Tiny = Callable[..., ExperimentConfig]


def weights(config: ExperimentConfig, step: int) -> dict[str, torch.Tensor]:
    folder = Path(config.runs_dir) / config.experiment_name / config.name / "checkpoints" / f"step_{step:08d}"
    return load_file(folder / "model.safetensors") | {f"ema.{k}": v for k, v in load_file(folder / "ema.safetensors").items()}


@pytest.mark.parametrize(
    "kind", ["standard", "bucketed", "trm", "muon", "colors", "recurrent", "lpn_variational", "in_context"]
)
def test_resumed_run_is_bit_identical(tiny: Tiny, kind: str) -> None:
    """Stop after a checkpoint in mid-carry, remove what came after, run the same command: same weights, each step once."""
    common = (
        "trainer.steps=6",
        "trainer.checkpoint_every=3",
        "dataset.num_augmentations=2",
        "trainer.keep_last=9",
        "trainer.grad_accumulation=2",
        *(["trainer.optimizer=muon"] if kind == "muon" else []),
        *(["decoder.color_embedding=shared", "trainer.canvas=bucketed", "trainer.batch_size=16"] if kind == "colors" else []),
        *([] if kind in ("standard", "bucketed", "trm", "muon", "colors") else [f"encoder={kind}", "encoder.num_heads=2"]),
        *(["trainer.canvas=bucketed", "trainer.batch_size=16"] if kind == "bucketed" else []),
        *(["encoder.width=16", "encoder.latent_dim=8"] if kind == "lpn_variational" else []),
    )
    trm = kind == "trm"
    whole = tiny(*common, "name=whole", trm=trm)
    run_training(whole)
    again = tiny(*common, "name=again", trm=trm)
    run_training(again)
    assert identical(weights(whole, 6), weights(again, 6))
    shutil.rmtree(Path(again.runs_dir) / "quickstart" / "again" / "checkpoints" / "step_00000006")
    run_training(again)
    assert identical(weights(whole, 6), weights(again, 6))
    assert not identical(weights(whole, 3), weights(whole, 6))
    rows = read_rows(Path(again.runs_dir) / "quickstart" / "again" / "metrics.jsonl")
    assert [r["_step"] for r in rows] == [0, 1, 2, 3, 4, 5, 6]


def test_without_the_saved_carry_the_continued_run_differs(tiny: Tiny) -> None:
    """The control of the test above: the carry is what makes it exact."""
    common = ("trainer.steps=6", "trainer.checkpoint_every=3", "trainer.keep_last=9", "trainer.save_carry=false")
    whole, again = tiny(*common, "name=whole"), tiny(*common, "name=again")
    run_training(whole)
    run_training(again)
    shutil.rmtree(Path(again.runs_dir) / "quickstart" / "again" / "checkpoints" / "step_00000006")
    run_training(again)
    assert not identical(weights(whole, 6), weights(again, 6))


@pytest.mark.parametrize("overrides", [[*TINY, "trainer.canvas=bucketed"]], ids=["bucketed"])
@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_continues(overrides: list[str], tmp_path: Path) -> None:
    """kill -9 at two moments, then the same command until it is done: the weights of an uninterrupted run."""
    common = [*overrides, "trainer.steps=24", "trainer.checkpoint_every=3", f"runs_dir={tmp_path}"]
    # Nothing is killed in the whole run, so it needs no process of its own.
    pretrain_in_ranks(compose("pretrain_encoder", [*common, "name=whole"]), CPU)
    command = [sys.executable, "pretrain_encoder.py", *common, "name=killed"]
    log = tmp_path / "quickstart" / "killed" / "metrics.jsonl"
    for kill_after_step in (4, 13):
        process = subprocess.Popen(command, cwd=ROOT, env=script_env(), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (log.is_file() and read_rows(log) and read_rows(log)[-1]["_step"] >= kill_after_step):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, env=script_env(), check=True, capture_output=True)
    whole, killed = (
        load_file(tmp_path / "quickstart" / n / "checkpoints/step_00000024/model.safetensors") for n in ("whole", "killed")
    )
    assert identical(whole, killed)
    assert [r["_step"] for r in read_rows(log)] == list(range(25))
    assert json.loads((tmp_path / "quickstart" / "killed" / "status.json").read_text())["state"] == "DONE"


@pytest.mark.parametrize("overrides", [TINY_TRM, [*TINY, "trainer.canvas=bucketed"]], ids=["trm", "bucketed"])
@pytest.mark.slow
def test_two_ranks_make_the_gradients_of_one(overrides: list[str], tmp_path: Path) -> None:
    """2 ranks x 4 rows under torchrun against 1 rank x 8 rows: same norms, losses and counts at every step."""
    common = [*overrides, "dataset.num_augmentations=2", f"runs_dir={tmp_path}", "trainer.checkpoint_every=4"]
    pretrain_in_ranks(compose("pretrain_encoder", [*common, "name=one"]), CPU)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*torchrun, "pretrain_encoder.py", *common, "name=two"], cwd=ROOT, env=script_env(), check=True, capture_output=True
    )
    one, two = (read_rows(tmp_path / "quickstart" / n / "metrics.jsonl") for n in ("one", "two"))
    assert [r["_step"] for r in one] == [r["_step"] for r in two] == [0, 1, 2, 3, 4]
    for a, b in zip(one[1:], two[1:], strict=True):
        names = [n for n in a if n.startswith(("grad/", "train/")) and "encoder_" not in n] + ["train/encoder_output_norm"] * (
            "train/encoder_output_norm" in a
        )
        for name in names:
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-6), (a["_step"], name)
    ours, theirs = (
        load_file(tmp_path / "quickstart" / n / "checkpoints/step_00000004/model.safetensors") for n in ("one", "two")
    )
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=1e-3)
    assert (tmp_path / "quickstart/two/checkpoints/step_00000004/carry_rank1.safetensors").is_file()


def test_bucketed_training_has_the_gradient_of_its_rows_on_their_own_canvases(tiny: Tiny) -> None:
    """One step with a part for each canvas moves the weights as the weighted sum over parts says, and each part has its carry."""
    config = tiny("trainer.canvas=bucketed", "trainer.batch_size=9", "trainer.steps=1", "trainer.checkpoint_every=1")
    training = run_training(config)
    assert training.carries is not None and len(training.parts) == len(training.carries) > 1
    assert any(abs(part.weight - 1) > 0.01 for part in training.parts)  # else weights could be left out unnoticed
    for part, carry in zip(training.parts, training.carries, strict=True):
        assert len(carry.steps_B) == part.num_rows and carry.data.inputs_BS.shape[1] == part.data.canvas**2
    setting = build_setting(config)
    torch.manual_seed(config.seed)
    model = build_model(config, setting.data.space.num_puzzles)
    loss = 0.0
    for part in training.parts:
        batch = part.data.batch(Cursor.first(config.seed), part.num_rows, 0, part.num_rows)
        min_steps_B = draw_min_steps(config.halting, 9, config.seed, 1)[part.start : part.start + part.num_rows]
        _, output = model(model.initial_carry(batch), batch, min_steps_B)
        losses = row_losses(output.logits_BSV, output.q_halt_B, output.labels_BS)
        (losses.total(config.halting.halt_loss_weight) * part.weight / 9).backward()
        loss += losses.lm.sum().item() * part.weight / sum(p.weight * p.num_rows for p in training.parts)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.decoder.parameters() if p.grad is not None])
    (row,) = [r for r in read_rows(Path(config.runs_dir) / "quickstart" / "t" / "metrics.jsonl") if r["_step"] == 1]
    assert row["grad/inner_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert (row["grad/decoder_norm"], row["train/decoder_lr"]) == (row["grad/inner_norm"], row["train/lr"])
    assert row["train/lm_loss"] == pytest.approx(loss, rel=1e-4)  # metrics weigh rows as the loss does


def test_gradient_accumulation_changes_nothing_but_memory(tiny: Tiny) -> None:
    runs = [
        tiny("trainer.steps=3", "trainer.checkpoint_every=3", f"trainer.grad_accumulation={n}", f"name=a{n}") for n in (1, 4)
    ]
    for config in runs:
        run_training(config)
    for a, b in zip(weights(runs[0], 3).values(), weights(runs[1], 3).values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


def parts(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "decoder": {k: v for k, v in tensors.items() if k.startswith("decoder.") and "start_" not in k},
        "encoder": {k: v for k, v in tensors.items() if k.startswith(("encoder.", "adapter."))},
    }


@pytest.mark.parametrize("frozen", ["decoder", "encoder"])
def test_a_frozen_group_stands_still_and_then_moves(tiny: Tiny, frozen: str) -> None:
    config = tiny("trainer.steps=4", "trainer.checkpoint_every=1", "trainer.keep_last=9", f"{frozen}.optim.freeze_steps=2")
    other = "encoder" if frozen == "decoder" else "decoder"
    run_training(config)
    at = {step: parts(weights(config, step)) for step in (1, 2, 3)}
    assert identical(at[1][frozen], at[2][frozen]) and not identical(at[2][frozen], at[3][frozen])
    assert not any(torch.equal(at[1][other][k], at[2][other][k]) for k in at[1][other])
    rows = read_rows(Path(config.runs_dir) / "quickstart" / "t" / "metrics.jsonl")[1:]
    assert [r[f"train/{frozen}_frozen"] for r in rows] == [1, 1, 0, 0] and rows[0][f"train/{other}_frozen"] == 0


def test_clipping_comes_after_measuring(tiny: Tiny) -> None:
    """A tight clip shows in grad/clip_factor, not in grad/total_norm; without clipping the factor is 1."""
    rows = {}
    for clip in (0.01, 0.0):
        config = tiny("trainer.steps=1", f"trainer.clip_norm={clip}", f"name=c{clip}")
        run_training(config)
        rows[clip] = read_rows(Path(config.runs_dir) / "quickstart" / config.name / "metrics.jsonl")[-1]
    assert (
        rows[0.01]["grad/total_norm"] == pytest.approx(rows[0.0]["grad/total_norm"], rel=1e-6)
        and rows[0.0]["grad/total_norm"] > 0.1
    )
    assert rows[0.0]["grad/clip_factor"] == 1
    assert rows[0.01]["grad/clip_factor"] == pytest.approx(0.01 / rows[0.01]["grad/total_norm"], rel=1e-3)
    squares = sum(rows[0.0][f"grad/{part}_norm"] ** 2 for part in ("encoder", "adapter", "inner"))
    assert squares == pytest.approx(rows[0.0]["grad/total_norm"] ** 2, rel=1e-5)


@pytest.mark.parametrize("frozen", ["decoder", "encoder"])
def test_what_stands_still_does_not_clip_the_rest(tiny: Tiny, frozen: str) -> None:
    """While a part is frozen its gradient counts neither in the total nor, through it, in the clipping of the other."""
    config = tiny("trainer.steps=3", f"{frozen}.optim.freeze_steps=2", "trainer.clip_norm=0.01")
    run_training(config)
    parts_of = {"decoder": ("inner",), "encoder": ("encoder", "adapter")}
    rest = parts_of["encoder" if frozen == "decoder" else "decoder"]
    rows = read_rows(Path(config.runs_dir) / "quickstart/t/metrics.jsonl")[1:]
    for row, names in zip(rows, (rest, rest, ("inner", "encoder", "adapter")), strict=True):
        total = sum(row[f"grad/{name}_norm"] ** 2 for name in names) ** 0.5
        assert row["grad/total_norm"] == pytest.approx(total, rel=1e-5)
        assert row["grad/clip_factor"] == pytest.approx(min(1.0, 0.01 / total), rel=1e-3)
        assert all(row[f"grad/{name}_norm"] > 0 for name in ("inner", "encoder"))


def test_puzzle_rows_move_by_sign_sgd_and_others_do_not(tiny: Tiny) -> None:
    config = tiny("trainer.steps=1", "trainer.checkpoint_every=1", "dataset.num_augmentations=3", trm=True)
    run_training(config)
    table = weights(config, 1)["puzzle_table.weight"]
    moved = table.abs().sum(1) > 0
    assert 0 < moved.sum() < len(table) and not moved[0]
    assert torch.allclose(table[moved].abs(), torch.tensor(0.01))  # lr 1e-2 from zero


def test_the_spread_of_contexts_does_not_depend_on_the_rows_of_a_micro_batch() -> None:
    torch.manual_seed(0)
    rows_BTD = torch.randn(4096, 2, 3)
    spreads = {
        size: statistics.fmean(
            step_module.encoder_stats([TaskContext(rows)])["train/encoder_cross_sample_var"].item()
            for rows in rows_BTD.split(size)
        )
        for size in (2, 16)
    }
    assert spreads[2] == pytest.approx(1, abs=0.05) and spreads[16] == pytest.approx(1, abs=0.05)
    assert step_module.encoder_stats([TaskContext(rows_BTD[:1])])["train/encoder_cross_sample_var"] == 0


def test_losses_that_divide_demonstrations_need_two(tiny: Tiny) -> None:
    for weight in ("contrastive", "reconstruction"):
        config = tiny("dataset.max_demos=1", f"encoder.{weight}.weight=1.0")
        with pytest.raises(ValueError, match=r"divide the demonstrations of a row, but the training tasks show one alone"):
            batch_parts(config, build_setting(config).data, CPU)
    config = tiny("dataset.max_demos=1", "encoder.contrastive.weight=1.0", "encoder.contrastive.view=augmentations")
    assert batch_parts(config, build_setting(config).data, CPU)


def test_a_puzzle_vector_has_one_owner(tiny: Tiny, tmp_path: Path) -> None:
    """Files of the same name in the training and the evaluation folder would share a vector."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        pair = {"input": [[1, 0]], "output": [[0, 1 + (folder == "b")]]}
        (tmp_path / folder / "task000.json").write_text(json.dumps({"train": [pair, pair], "test": [pair]}))
    sources = [f'dataset.train_sources=["folder:{tmp_path}/a"]', f'dataset.eval_sources=["folder:{tmp_path}/b"]']
    with pytest.raises(ValueError, match=r"task000 is both a training task and one of the scored tasks \(1 ids are\); rename"):
        build_setting(
            tiny(*sources, "dataset.train_ids=null", "dataset.validation_ids=null", "evaluation.split=evaluation", trm=True)
        )


def test_batch_must_be_divisible(tiny: Tiny) -> None:
    setting = build_setting(config := tiny("trainer.batch_size=6", "trainer.grad_accumulation=2"))
    three_ranks = Ranks(0, 2, torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"trainer.batch_size=6 must be divisible by ranks x trainer.grad_accumulation = 2 x 2"
    ):
        train(config, build_model(config, 1), setting.data, open_run(config, ()), three_ranks, score=None, stamps=[])


def test_a_micro_batch_of_one_row_has_nothing_to_contrast(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"the smallest one here has 1 row .*raise trainer\.batch_size"):
        run_training(tiny("encoder.contrastive.weight=1.0", "trainer.grad_accumulation=8"))


@pytest.mark.slow
def test_training_learns(tiny: Tiny) -> None:
    """The real thing in small: three tasks, the loss falls well below its start."""
    config = tiny("dataset.max_train_tasks=3", "dataset.num_augmentations=0", "halting.halt_exploration_prob=0.1", "trainer.steps=120",
                  "trainer.checkpoint_every=120", "trainer.batch_size=16", "decoder.width=32", "trainer.warmup_steps=20")  # fmt: skip
    run_training(config)
    rows = read_rows(Path(config.runs_dir) / "quickstart/t/metrics.jsonl")
    losses = [r["train/lm_loss"] for r in rows if "train/lm_loss" in r]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
