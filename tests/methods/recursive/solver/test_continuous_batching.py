"""Continuous batching gives every row what it gets alone, and what the published loop gives; early rows really end sooner."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from arclab.config.schema import EvalHalting, ExperimentConfig
from arclab.data.sampler import Batch
from arclab.methods.recursive.encoders import Demonstrations
from arclab.methods.recursive.evaluation import build_solver
from arclab.methods.recursive.model import Reading, RecursiveModel, build_model
from arclab.methods.recursive.setting import build_setting
from arclab.methods.recursive.solver.continuous_batching import ReadyRows, run_rows
from arclab.results.attempts import Budget
from arclab.runs.ranks import Ranks

from ..common import ROWS, setup

Tiny = Callable[..., ExperimentConfig]
CPU = Ranks(0, 1, torch.device("cpu"))
# With random weights recurrent_trm magnifies the rounding of another batch size tenfold at every step: few cycles, few steps.
STEPS = {"recurrent_trm": 3}
KINDS = ["standard_tiny", "recurrent", "recurrent_trm", "in_context", "puzzle_table"]


def setup_kind(tiny: Tiny, kind: str) -> tuple[RecursiveModel, Batch]:
    steps = f"halting.halt_max_steps={STEPS.get(kind, 6)}"
    if kind == "puzzle_table":
        config = tiny(steps, trm=True)
    else:
        wide = [] if kind == "standard_tiny" else ["encoder.num_heads=2", "encoder.width=32", "encoder.num_layers=1"]
        wide += ["encoder.h_cycles=1", "encoder.l_cycles=1"] if kind == "recurrent_trm" else []
        config = tiny(steps, f"encoder={kind}", *wide)
    model, _, batch = setup(config)
    if model.puzzle_table is not None:
        model.puzzle_table.weight.normal_()
    q_halt = torch.stack([q for _, q in published_loop(model, batch, 3)])
    with torch.no_grad():
        model.decoder.q_head.bias -= q_halt.max(0).values.quantile(0.5)  # half of the rows end in the first three steps
    return model, batch


@torch.no_grad()
def published_loop(model: RecursiveModel, data: Batch, num_steps: int) -> list[tuple[Tensor, Tensor]]:
    """Logits and halt logits after each step, with all rows together from the first step to the last."""
    demos, memory, state, outputs = None, None, None, []
    if model.encoder is not None:
        demos = Demonstrations.from_batch(data)
        memory, state = model.encoder.read(demos, torch.float32), model.encoder.state_for(demos, torch.float32)
    latents = model.initial_carry(data).latents
    for _ in range(num_steps):
        if model.encoder is None:
            now = model.condition(data)
        else:
            assert memory is not None
            context = model.encoder.write(memory, state, None)
            state, now = context.state, model._from_context(context)
        latents, *output = model.decoder(latents, data.inputs_BS, now.prefix_BPD, now.memory)
        outputs.append((output[0], output[1]))
    return outputs


def flown(
    model: RecursiveModel, batch: Batch, num_rows: int, *, early: bool, chunk: int = 5
) -> dict[int, tuple[Tensor, Tensor, int]]:
    """Row -> logits, halt logit and steps, with the rows read in chunks."""
    chunks = iter(range(0, len(batch), chunk))

    def take() -> ReadyRows | None:
        start = next(chunks, None)
        if start is None:
            return None
        part = batch.rows(start, start + chunk)
        rows = np.arange(start, start + len(part))
        return ReadyRows(rows, part.inputs_BS, part.labels_BS, model.read(part), torch.arange(len(part)))

    results = {}
    for finished in run_rows(model, take, num_rows, early=early):
        assert len(finished.rows_B) <= num_rows
        for place, row in enumerate(finished.rows_B.tolist()):
            assert row not in results and torch.equal(finished.labels_BS[place], batch.labels_BS[row])
            results[row] = (finished.logits_BSV[place], finished.q_halt_B[place], int(finished.steps_B[place]))
    return results


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_every_row_gets_what_the_published_loop_gives(tiny: Tiny, kind: str) -> None:
    """all_steps: the logits of the last step. early: those of the first step with a positive halt logit."""
    model, batch = setup_kind(tiny, kind)
    last = STEPS.get(kind, 6)
    steps = published_loop(model, batch, last)
    torch.testing.assert_close(model.predict(batch), steps[-1], atol=1e-5, rtol=1e-5)
    all_steps, early = flown(model, batch, 7, early=False), flown(model, batch, 7, early=True)
    assert len(all_steps) == len(early) == ROWS
    atol = 1e-3 if kind == "recurrent_trm" else 1e-4
    for row in range(ROWS):
        logits, q_halt, count = all_steps[row]
        assert count == last
        torch.testing.assert_close((logits, q_halt), (steps[-1][0][row], steps[-1][1][row]), atol=atol, rtol=0)
        first = next((n for n, (_, q) in enumerate(steps) if q[row] > 0), last - 1)
        logits, q_halt, count = early[row]
        assert count == first + 1
        torch.testing.assert_close((logits, q_halt), (steps[first][0][row], steps[first][1][row]), atol=atol, rtol=0)


def test_rows_that_end_make_room_at_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as rows wait, the batch is full; early rows cost fewer row-steps than all steps."""
    model, batch = setup_kind(tiny, "standard_tiny")
    sizes: list[int] = []
    original = RecursiveModel.refine
    monkeypatch.setattr(
        RecursiveModel, "refine", lambda self, latents, inputs, reading: (sizes.append(len(inputs)), original(self, latents, inputs, reading))[1]
    )  # fmt: skip
    results = flown(model, batch, 4, early=True)
    counts = [count for _, _, count in results.values()]
    assert 1 <= min(counts) < max(counts) and sum(sizes) == sum(counts) < 6 * ROWS
    assert sizes[0] == 4 and sizes == sorted(sizes, reverse=True)  # full until nobody waits, then only shrinking
    full = sum(size == 4 for size in sizes)
    assert full >= (ROWS - 4) // 4


def test_mean_of_steps_is_reported_and_early_ends_sooner(tiny: Tiny) -> None:
    config = tiny("halting.halt_max_steps=6", "evaluation.max_tasks=4")
    model, _, _ = setup(config)
    setting = build_setting(config)
    full = build_solver(config, setting, model, CPU, batch_size=5).solve(setting.scored, Budget(2))
    config.evaluation.halting = EvalHalting.early
    early = build_solver(config, setting, model, CPU, batch_size=5).solve(setting.scored, Budget(2))
    assert full.statistics["all.steps"] == 6 and 1 <= early.statistics["all.steps"] < 6
    assert early.statistics["all.count"] == full.statistics["all.count"]


def test_demonstrations_are_read_once_per_augmented_puzzle(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a task with several test inputs, and for any batch size."""
    config = tiny("evaluation.max_tasks=null")
    setting = build_setting(config)
    assert any(len(task.tests) > 1 for task in setting.scored)
    model = build_model(config, 1)
    read: list[int] = []
    original = RecursiveModel.read

    def spy(self: RecursiveModel, data: Batch) -> Reading:
        read.append(len(data))
        return original(self, data)

    monkeypatch.setattr(RecursiveModel, "read", spy)
    attempts = build_solver(config, setting, model, CPU, batch_size=3).solve(setting.scored, Budget(2))
    assert sum(read) == 3 * len(setting.scored) < attempts.statistics["all.count"]
