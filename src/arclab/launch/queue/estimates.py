"""What the lines of a job file will take, as far as their methods count it: time, memory, and what cannot fit.

    for estimate in estimates(plan.runs, sizes.counts):
        estimate.text, estimate.problem       # "about 4 minutes and 0.6 GiB on this CPU", ""

It imports no torch, and measures this machine with numpy for a tenth of a second. A line with GPUs is reckoned for an H100,
whose rates were measured (benchmarks/results/train_step_nvidia_h100_80gb_hbm3.json); one for CPU cores as if its job ran on
cores like these. Its memory is compared with launch.mem_gib, where that is set: the machine that submits may be small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from arclab.config.run import DeviceChoice
from arclab.launch.queue.plan import PlannedRun
from arclab.launch.sizes import Counts
from arclab.runs.cost import GIB, Cost, Speed, gib, num_evaluations, run_seconds, sentence

# bf16; a step that is not compiled.
_H100 = Speed(flops_per_s=0.8 * 763e12, bytes_per_s=2.6e12, kernel_s=6e-6)
_H100_GIB = 80
_PROBE_S = 0.05
# As arclab.runs.speed, which measures with torch.
_MATMUL_SHARE, _KERNEL_S = 0.8, 6e-6


@dataclass(frozen=True, slots=True)
class Estimate:
    """text: empty if the method counts no cost. problem: why it cannot fit, as the end of a sentence; empty if it can."""

    text: str
    problem: str


def estimates(runs: Sequence[PlannedRun], counts: Sequence[Counts | None]) -> list[Estimate]:
    """counts: of every run, see arclab.launch.sizes."""
    return [_estimate(run, Cost.of(count or {})) for run, count in zip(runs, counts, strict=True)]


def problems_of(runs: Sequence[PlannedRun], found: Sequence[Estimate]) -> list[str]:
    """A sentence for every line that cannot fit."""
    return [f"{run.name} (line {run.job.line}) {e.problem}." for run, e in zip(runs, found, strict=True) if e.problem]


def _estimate(run: PlannedRun, cost: Cost | None) -> Estimate:
    if cost is None:
        return Estimate("", "")
    config: Any = run.config
    launch, trainer = config.launch, getattr(config, "trainer", None)
    num_scored = num_evaluations(trainer.steps, trainer.eval_every) if trainer is not None else 1
    is_on_gpu = launch.gpus > 0 or (trainer is not None and trainer.device is DeviceChoice.cuda)
    seconds = run_seconds(cost, _H100 if is_on_gpu else _this_machine(), run.config.num_steps or 0, num_scored)
    ranks, kind = launch.ranks_per_node * launch.nodes, "H100" if is_on_gpu else "CPU"
    where = f"each of {ranks} {kind}s" if ranks > 1 and is_on_gpu else f"each of {ranks} ranks" if ranks > 1 else (
        f"an {kind}" if is_on_gpu else "this CPU")  # fmt: skip
    return Estimate(sentence(cost.memory_bytes, seconds, where), _problem(cost, launch, is_on_gpu=is_on_gpu))


def _problem(cost: Cost, launch: Any, *, is_on_gpu: bool) -> str:
    if is_on_gpu:
        too_much = cost.memory_bytes > _H100_GIB * GIB
        remedy = "lower trainer.batch_size, raise trainer.grad_accumulation, or set trainer.recompute=true"
        return f"needs about {gib(cost.memory_bytes)} on each GPU, and an H100 has {_H100_GIB}; {remedy}" if too_much else ""
    needed = cost.memory_bytes * launch.ranks_per_node
    if launch.mem_gib is not None and needed > launch.mem_gib * GIB:
        return (
            f"needs about {gib(needed)} on a node, and launch.mem_gib={launch.mem_gib}; raise it, or lower trainer.batch_size"
        )
    return ""


@cache
def _this_machine() -> Speed:
    import numpy as np  # only for a line that runs on a CPU

    matrix, numbers = np.ones((384, 384), np.float32), np.ones(2**20, np.float32)
    product = np.empty_like(matrix)
    matmul_s = _seconds(lambda: np.matmul(matrix, matrix, out=product))
    return Speed(_MATMUL_SHARE * 2 * 384**3 / matmul_s, 8 * 2**20 / _seconds(lambda: numbers * np.float32(1.5)), _KERNEL_S)


def _seconds(work: Callable[[], object]) -> float:
    work()
    start, num_calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < _PROBE_S:
        work()
        num_calls += 1
    return elapsed / num_calls
