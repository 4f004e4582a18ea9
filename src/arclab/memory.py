"""Out of memory as a sentence: which settings to lower. torch's own message names none of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What torch's CPU allocator says; it has no error class of its own.
_CPU_MESSAGE = "DefaultCPUAllocator: can't allocate memory"


@contextmanager
def advice_if_out_of_memory(advice: str) -> Iterator[None]:
    """ValueError with the advice if the device or the machine has no memory left."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(f"the GPU ran out of memory; {advice} ({_first_line(error)}).") from error
    except RuntimeError as error:
        if _CPU_MESSAGE not in str(error):
            raise
        raise ValueError(f"the machine ran out of memory; {advice} ({_first_line(error)}).") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
