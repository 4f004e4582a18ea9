"""Memory: how much of it a run may use, and out of memory as a sentence with the settings to lower (torch names none of them).

    memory_budget(torch.device("cuda"), num_local_ranks=1)     # bytes
    with advice_if_out_of_memory("lower trainer.batch_size=768"): ...

It measures nothing that a run does (arclab.methods.recursive.training.batch_size).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

# Of what is free now. On a GPU the rest is for fragments and kernels' workspaces; a machine has other users, and what is
# counted there is tensors alone.
GPU_SHARE, MACHINE_SHARE = 0.9, 0.5
_CGROUPS = Path("/sys/fs/cgroup")
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


def memory_budget(device: torch.device, num_local_ranks: int) -> int:
    """Bytes that one rank may use: its GPU is its own, the machine's memory is shared by the ranks on it."""
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return int(MACHINE_SHARE * available_bytes() / num_local_ranks)


def available_bytes(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """What the machine has left, or the containers and jobs that this process is in, if that is less."""
    left = [psutil.virtual_memory().available]
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):  # version 2 has one tree, version 1 one for memory
            root = cgroups / controllers
            folder = root / name.lstrip("/")
            groups = [g for g in (folder, *folder.parents) if g == root or root in g.parents]
            left += [bytes_left for g in groups if (bytes_left := _left_in(g)) is not None]
    return max(0, min(left))


def _left_in(group: Path) -> int | None:
    """Limit minus use of a control group, cached file pages not counted; None without a limit."""
    for limit, used, cache in (("memory.max", "memory.current", "inactive_file"),
                               ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")):  # fmt: skip
        if (group / limit).is_file() and (group / used).is_file():
            text = (group / limit).read_text().strip()
            stat = (group / "memory.stat").read_text() if (group / "memory.stat").is_file() else ""
            pages = dict(line.split() for line in stat.splitlines())
            return None if text == "max" else int(text) - int((group / used).read_text()) + int(pages.get(cache, 0))
    return None
