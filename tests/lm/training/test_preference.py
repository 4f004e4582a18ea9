"""Reward models: they learn separable pairs and nothing else, weights count, and what texts share is read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from arclab.config.run import DeviceChoice
from arclab.lm.training import preference as module
from arclab.lm.training.preference import collate_pairs, common_prefix, prefer, read_values, value_network
from arclab.lm.training.sft import SftSettings, StageCadence, Where
from arclab.metrics.logger import MetricLogger
from arclab.runs.folder import RunDir
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks

PAD = 2
RANKS = Ranks(0, 1, torch.device("cpu"))


def train(network: Any, rows: list[dict[str, list[Any]]], folder: Path, steps: int, batch: int = 8, pieces: int = 1) -> int:
    folder.mkdir(exist_ok=True)
    run = RunDir(folder)
    settings = SftSettings(
        batch_size=batch, grad_accumulation=pieces, lr=3e-3, warmup_steps=2, schedule="constant_with_warmup", weight_decay=0.0,
        clip_norm=None, seed=0,
    )  # fmt: skip
    cadence = StageCadence(steps, 1, DeviceChoice.cpu, 10, 50)
    with MetricLogger(run.metrics, None, resume_step=-1, runtime_s=0.0) as logger:
        where = Where(
            cadence=cadence, run=run, ranks=RANKS, stop=StopRequest(run, RANKS, None), logger=logger, monitor=None, title="t",
            keep_last=1,
        )  # fmt: skip
        return prefer(network, rows, settings, where, pad_id=PAD, divergence_remedy="lower lr", record={})


def pairs(count: int, seed: int, *, is_shuffled: bool = False) -> list[dict[str, list[Any]]]:
    """The better text holds token 40 somewhere before its end, the worse one token 41."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        prefix = rng.integers(50, 60, rng.integers(2, 5)).tolist()
        texts = [[*prefix, mark, *rng.integers(50, 60, rng.integers(1, 3)).tolist()] for mark in (40, 41)]
        if is_shuffled and rng.random() < 0.5:
            texts.reverse()
        rows.append({"chosen": texts[0], "rejected": texts[1], "weight": [1.0]})
    return rows


def accuracy(network: Any, rows: list[dict[str, list[Any]]]) -> float:
    better, worse = (read_values(network.eval(), [row[side] for row in rows], PAD) for side in ("chosen", "rejected"))
    return float(np.mean([one > two for one, two in zip(better, worse, strict=True)]))


def test_separable_pairs_are_learned_and_shuffled_ones_are_not(tiny_lm: Path, tmp_path: Path) -> None:
    held = pairs(200, 1)
    learned, shuffled = (value_network(str(tiny_lm), PAD) for _ in range(2))
    assert accuracy(learned, held) == 0 and read_values(learned, [[50, 51]], PAD) == [0.0]  # a new head says nothing
    assert train(learned, pairs(200, 0), tmp_path / "a", 60) == 60
    train(shuffled, pairs(200, 0, is_shuffled=True), tmp_path / "b", 60)
    assert accuracy(learned, held) > 0.95
    # Labels of held-out pairs that are drawn, too: nobody can know them.
    assert 0.38 < accuracy(shuffled, pairs(200, 1, is_shuffled=True)) < 0.62
    learned.save_pretrained(tmp_path / "saved")
    again = value_network(str(tmp_path / "saved"), PAD, is_trained=True)
    assert read_values(again.eval(), [held[0]["chosen"]], PAD) == pytest.approx(read_values(learned, [held[0]["chosen"]], PAD))


def test_the_loss_is_weighted_and_does_not_depend_on_the_pieces(tiny_lm: Path, tmp_path: Path) -> None:
    """By hand: w x -log sigmoid(difference), mean over the rows. Divided by the weights of the batch, 9 and 9 would be 1 and 1."""
    rows = pairs(4, 0)
    for row, weight in zip(rows, (0.0, 0.5, 1.5, 2.0), strict=True):
        row["weight"] = [weight]
    network = value_network(str(tiny_lm), PAD)
    with torch.no_grad():
        network.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    differences = torch.tensor(
        [read_values(network.eval(), [row["chosen"]], PAD)[0] - read_values(network, [row["rejected"]], PAD)[0] for row in rows]
    )
    wanted = -(torch.tensor([0.0, 0.5, 1.5, 2.0]) * logsigmoid(differences)).mean()
    trainer: Any = module._Preference.__new__(module._Preference)
    trainer.args = type("Arguments", (), {"gradient_accumulation_steps": 1})()
    assert trainer.compute_loss(network, collate_pairs(rows, PAD)).item() == pytest.approx(wanted.item(), rel=1e-4)
    weights = []
    for pieces in (1, 2):
        fresh = value_network(str(tiny_lm), PAD)
        fresh.load_state_dict(network.state_dict())
        train(fresh, rows, tmp_path / str(pieces), 1, batch=4, pieces=pieces)
        weights.append(fresh.score.weight.detach().clone())
    torch.testing.assert_close(*weights)


def test_what_texts_share_is_read_once_and_changes_no_value(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = value_network(str(tiny_lm), PAD).eval()
    with torch.no_grad():
        network.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    prefix = list(range(50, 80))
    rows = [[*prefix, 40], [*prefix, 41, 42, 43], [*prefix, 40, 44]]
    plain = [
        network(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long)).logits[0, 0].item()
        for row in rows
    ]
    seen: list[int] = []
    forward = network.base_model.forward

    def counting(*given: Any, **named: Any) -> Any:
        seen.append(named["input_ids"].numel())
        return forward(*given, **named)

    monkeypatch.setattr(network.base_model, "forward", counting)
    assert read_values(network, rows, PAD) == pytest.approx(plain, rel=1e-4, abs=1e-5)
    assert seen == [30, 3 * 3]
    assert common_prefix([[1, 2], [1, 2]]) == 1 and common_prefix([[1], [1, 2]]) == 0 and common_prefix([[1, 2, 3]]) == 2
