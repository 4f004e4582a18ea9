"""trainer.profile=true: where the time of a few training steps goes, as a trace and as a page.

    with StepProfiler(run.path / "profile", ranks, is_on=True, rows_per_rank=96, dtype=torch.float32) as profiler:
        ...
        profiler.step()          # after every optimiser step

Rank 0 records _RECORDED_STEPS steps after _WARM_UP_STEPS and writes to that folder: trace.json (open it at ui.perfetto.dev) and
profile.md with seconds and share of a step by part, the largest operators, floating-point operations per second against the
rate of one large matrix product measured there, and peak memory. The recorded steps are slower than others; shares are what to
read.
"""

from __future__ import annotations

import resource
import time
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile

from arclab.config.run import MIN_PROFILED_STEPS
from arclab.files import write_atomically
from arclab.runs.ranks import Ranks

PART = "arclab."  # how parts of a step are named: record_function(PART + "losses")
# Steps before the record: caches, allocator and compiled kernels settle.
_WARM_UP_STEPS = 3
_RECORDED_STEPS = 3
assert _WARM_UP_STEPS + _RECORDED_STEPS <= MIN_PROFILED_STEPS
_TOP_OPERATORS = 12


class StepProfiler:
    """Does nothing unless is_on, and on ranks other than 0."""

    def __init__(self, folder: Path, ranks: Ranks, *, is_on: bool, rows_per_rank: int, dtype: torch.dtype) -> None:
        """dtype: of the matrix products that the step's rate is compared with."""
        self.is_on = is_on and ranks.is_main
        self.folder, self.device, self.dtype, self.rows = folder, ranks.device, dtype, rows_per_rank
        self.done, self.started_at = 0, 0.0
        on_gpu = [ProfilerActivity.CUDA] if ranks.device.type == "cuda" else []
        self.profile = profile(activities=[ProfilerActivity.CPU, *on_gpu], with_flops=True) if self.is_on else None

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.profile is not None and _WARM_UP_STEPS <= self.done < _WARM_UP_STEPS + _RECORDED_STEPS:
            self.profile.stop()  # the run ended within the record

    def step(self) -> None:
        """Call after each optimiser step."""
        if self.profile is None:
            return
        self.done += 1
        if self.done == _WARM_UP_STEPS:
            self._synchronize()
            self.profile.start()
            self.started_at = time.perf_counter()
        elif self.done == _WARM_UP_STEPS + _RECORDED_STEPS:
            self._synchronize()
            seconds = (time.perf_counter() - self.started_at) / _RECORDED_STEPS
            self.profile.stop()
            self.folder.mkdir(exist_ok=True)
            self.profile.export_chrome_trace(str(self.folder / "trace.json"))
            write_atomically(self.folder / "profile.md", self._page(self.profile, seconds))

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _page(self, record: profile, seconds: float) -> str:
        events = record.key_averages()
        on_gpu = self.device.type == "cuda"

        def total_s(event: object) -> float:
            return float(getattr(event, "device_time_total" if on_gpu else "cpu_time_total")) / 1e6 / _RECORDED_STEPS

        parts = {e.key.removeprefix(PART): total_s(e) for e in events if e.key.startswith(PART)}
        flops = sum(e.flops for e in events if e.flops) / _RECORDED_STEPS
        lines = [
            f"# Profile of {_RECORDED_STEPS} steps",
            "",
            f"{seconds:.4f} s a step, {self.rows / seconds:.1f} rows/s on this rank.",
            "",
            "| part | s a step | share |",
            "|---|---|---|",
        ]
        lines += [f"| {name} | {s:.4f} | {100 * s / seconds:.1f} % |" for name, s in sorted(parts.items(), key=lambda p: -p[1])]
        rest = seconds - sum(parts.values())
        lines += [f"| rest (data, logging, waiting) | {rest:.4f} | {100 * rest / seconds:.1f} % |", ""]
        rate = _matmul_rate(self.device, self.dtype)
        lines += [f"Counted products: {flops / 1e9:.2f} GFLOP a step, {flops / seconds / 1e9:.1f} GFLOP/s; one large "
            f"matrix product reaches {rate / 1e9:.1f} GFLOP/s here ({str(self.dtype).removeprefix('torch.')}): "
            f"{100 * flops / seconds / rate:.0f} % of it.",
                  f"Peak memory: {_peak_mib(self.device):.0f} MiB ({'device' if on_gpu else 'process'}).", ""]  # fmt: skip
        key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        operators = sorted((e for e in events if not e.key.startswith(PART)), key=lambda e: -getattr(e, key))[:_TOP_OPERATORS]
        lines += ["| operator | calls a step | s a step (itself) |", "|---|---|---|"]
        lines += [
            f"| {e.key} | {e.count / _RECORDED_STEPS:.0f} | {getattr(e, key) / 1e6 / _RECORDED_STEPS:.4f} |" for e in operators
        ]
        return "\n".join([*lines, ""])


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(3):
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            start = time.perf_counter()
            float((a @ a)[0, 0])  # reading a value waits for the product
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
