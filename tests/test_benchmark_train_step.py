"""The step benchmark: what it counts for sequences of different lengths, and what its table says."""

from __future__ import annotations

import torch
from benchmarks.train_step import Timing, _varlen_formulas, table
from torch.utils.flop_counter import FlopCounterMode


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
