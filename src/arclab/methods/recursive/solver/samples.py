"""evaluation.samples=K and carry_noise: each row is predicted K times from noisy start latents, and the surest answer votes.

    take = with_samples(take, 4, 0.5, seed_of)                     # rows enter K times, each time with noise of its own
    for finished in surest(run_rows(model, take, ...), 4): ...     # one answer a row: that of the highest halt logit

Row r enters as rows K * r to K * r + K - 1. The noise of a sample depends on its seed alone, whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from arclab.methods.recursive.solver.continuous_batching import FinishedRows, IntArray, ReadyRows, StartNoise

Take = Callable[[], ReadyRows | None]


def with_samples(take: Take, num_samples: int, scale: float, seed_of: Callable[[int, int], int]) -> Take:
    """seed_of: (row, sample) -> its seed."""

    def taken() -> ReadyRows | None:
        ready = take()
        if ready is None:
            return None
        of_row = np.repeat(np.arange(len(ready.rows_B)), num_samples)
        sample = np.tile(np.arange(num_samples), len(ready.rows_B))
        index = torch.from_numpy(of_row).to(ready.inputs_BS.device)
        rows = ready.rows_B[of_row]
        seeds = np.array([seed_of(int(row), int(k)) for row, k in zip(rows, sample, strict=True)], dtype=np.int64)
        return replace(
            ready, rows_B=rows * num_samples + sample, inputs_BS=ready.inputs_BS[index], labels_BS=ready.labels_BS[index],
            puzzle_B=ready.puzzle_B[index], noise=StartNoise(seeds, scale),
        )  # fmt: skip

    return taken


@dataclass(slots=True)
class _Surest:
    """The best answer of a row so far, of so many samples. rank: the halt logit, and of equal ones the first sample."""

    num: int
    rank: tuple[float, int]
    labels_S: Tensor
    logits_SV: Tensor
    q_halt: Tensor
    steps: int
    facts_F: Tensor | None


def surest(finished: Iterable[FinishedRows], num_samples: int) -> Iterator[FinishedRows]:
    """Rows all of whose samples have ended, with the answer of the highest halt logit. Samples of a row enter together, so few
    wait for the others."""
    open_rows: dict[int, _Surest] = {}
    for part in finished:
        whole: list[int] = []
        q_B = part.q_halt_B.tolist()
        for b, (row, sample) in enumerate(zip(*(n.tolist() for n in np.divmod(part.rows_B, num_samples)), strict=True)):
            mine = (q_B[b], -sample)
            best = open_rows.get(row)
            num = 1 if best is None else best.num + 1
            if best is None or mine > best.rank:
                best = _Surest(
                    num, mine, part.labels_BS[b], part.logits_BSV[b], part.q_halt_B[b], int(part.steps_B[b]),
                    None if part.facts_BF is None else part.facts_BF[b],
                )  # fmt: skip
                open_rows[row] = best
            best.num = num
            if num == num_samples:
                whole.append(row)
        if whole:
            yield _joined(whole, [open_rows.pop(row) for row in whole])
    assert not open_rows, "every row has all its samples"


def _joined(rows: list[int], best: list[_Surest]) -> FinishedRows:
    labels, logits, q_halt = ([getattr(one, name) for one in best] for name in ("labels_S", "logits_SV", "q_halt"))
    numbers: list[IntArray] = [np.array(rows, dtype=np.int64), np.array([one.steps for one in best], dtype=np.int64)]
    facts = [one.facts_F for one in best if one.facts_F is not None]
    return FinishedRows(
        numbers[0], torch.stack(labels), torch.stack(logits), torch.stack(q_halt), numbers[1],
        torch.stack(facts) if facts else None,
    )  # fmt: skip
