"""How fast a device is, measured in a tenth of a second: what arclab.runs.cost turns work into seconds with.

    speed = measure_speed(torch.device("cpu"), torch.float32)

It draws no random number and leaves nothing behind. On a busy machine it is as slow as the run would be now.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from arclab.runs.cost import Speed

_PROBE_S = 0.06  # for each of the two
# Of the rate of large matrix products, what those of a model reach; seconds to start an operation.
_MATMUL_SHARE, _KERNEL_S = 0.8, 6e-6


def measure_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """With the threads that torch has. dtype: of the matrix products; elementwise operations are timed in fp32."""
    side, num = (4096, 2**26) if device.type == "cuda" else (384, 2**20)
    matrix = torch.full((side, side), 0.5, device=device, dtype=dtype)
    product = torch.empty_like(matrix)
    numbers = torch.ones(num, device=device)
    matmul_s = _seconds(lambda: torch.mm(matrix, matrix, out=product), device)
    pass_s = _seconds(lambda: numbers * 1.5, device)
    return Speed(_MATMUL_SHARE * 2 * side**3 / matmul_s, 8 * num / pass_s, _KERNEL_S)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of a call, as the mean of as many as fit: what other processes take from this one counts."""
    work()
    _wait(device)
    start, num_calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < _PROBE_S:
        work()
        _wait(device)
        num_calls += 1
    return elapsed / num_calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
