"""The step benchmark: what it counts for sequences of different lengths, and what its table says."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import build_training_data, whole
from arclab.data.splits import load_tasks
from arclab.methods.recursive.model import RecursiveModel
from arclab.runs.ranks import Ranks
from benchmarks import train_step
from benchmarks.train_step import Timing, _varlen_formulas, table


def test_operations_of_the_varlen_kernel_are_those_of_its_sequences() -> None:
    """As torch counts two products for attention within each sequence, and five for its gradient."""
    q, starts = torch.zeros(8, 2, 4), torch.tensor([0, 3, 3, 8], dtype=torch.int32)
    forward, backward = _varlen_formulas().values()
    with FlopCounterMode(display=False) as counter:
        for length in (3, 5):
            scores = torch.zeros(2, length, 4) @ torch.zeros(2, 4, length)
            scores @ torch.zeros(2, length, 4)
    assert forward(q, q, q, starts, starts, 5, 5, out_val=None) == counter.get_total_flops()
    assert backward(q, q, q, q, q, q, starts, starts, 5, 5) == 2.5 * counter.get_total_flops()


def test_the_table_has_every_form_with_its_share_of_the_matmul_rate() -> None:
    forms = {
        name: Timing(seconds, 4, 8e12, 2**30, 8.0).figures() | {"published_hours": 10 * seconds, "evaluation_hours": 1.5}
        for name, seconds in (("full", 2.0), ("bucketed", 1.0))
    }
    text = table({"systems": {"TRM": forms}, "matmul_flops_per_s": 16e12, "precision": "bf16"})
    assert (
        "| TRM | full | 2 | 2.00 | 1.0 GiB | 20 h | 0.5 | 1.5 h |" in text
        and "| TRM | bucketed | 4 | 1.00 | 1.0 GiB | 10 h |" in text
    )
    assert "TRM full 25 % (2 TFLOP a row), TRM bucketed 50 % (2 TFLOP a row)" in text


def test_a_prediction_is_one_reading_and_all_supervision_steps(
    tiny: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("halting.halt_max_steps=7")
    data = build_training_data(load_tasks(config.dataset).train, (), config.dataset, 0)
    calls, timed = [], []
    for name in ("read", "refine"):
        method = getattr(RecursiveModel, name)
        monkeypatch.setattr(
            RecursiveModel, name, lambda self, *args, name=name, method=method: (calls.append(name), method(self, *args))[1]
        )
    median = train_step.median_seconds

    def kept(*args: Any, **kwargs: Any) -> float:
        timed.append(median(*args, **kwargs))
        return timed[-1]

    monkeypatch.setattr(train_step, "median_seconds", kept)
    given = argparse.Namespace(repeats=1, device="cpu")
    seconds = train_step.prediction_seconds(config, whole(data, 2)[0], Ranks(0, 1, torch.device("cpu")), given, padded=False)
    assert calls == ["read", "read", "refine", "refine"]  # one to start from, one timed; one to warm up, one timed
    assert seconds == timed[0] + 7 * timed[1] > 0
