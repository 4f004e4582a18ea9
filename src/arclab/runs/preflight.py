"""Before a run starts: one line on the time and memory that it will take here, and a refusal of what cannot fit.

    announce(config, cost, ranks, num_steps=1800, num_evaluations=2, dtype=torch.float32, advice="lower trainer.batch_size=32")

The estimate is its method's (arclab.runs.cost.Cost). It is no measurement: a run is refused only where it needs clearly more
than there is, and launch.check_memory=false starts it all the same. It looks at the memory of this machine, container, job and
GPU; what will be there on another machine is for arclab.launch.queue.estimates to compare.
"""

from __future__ import annotations

import logging
import os

import torch

from arclab.config.compose import ConfigError
from arclab.config.run import RunConfig
from arclab.runs.cost import CLEAR_MARGIN, Cost, gib, run_seconds, sentence
from arclab.runs.memory import available_bytes
from arclab.runs.ranks import Ranks
from arclab.runs.speed import measure_speed

log = logging.getLogger(__name__)


def announce(
    config: RunConfig, cost: Cost, ranks: Ranks, *, num_steps: int, num_evaluations: int, dtype: torch.dtype, advice: str
) -> None:
    """Say the line on rank 0. ConfigError, before anything is written, if the run cannot fit here. num_steps, num_evaluations:
    what is left to do. advice: which settings to change."""
    if not ranks.is_main:
        return
    device, num_local = ranks.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    speed = measure_speed(device, dtype)
    seconds = run_seconds(cost, speed, num_steps, num_evaluations)
    log.info("%s: %s", config.title[1], sentence(cost.memory_bytes, seconds, _place(device, num_local)))
    free = free_bytes(device) // (1 if device.type == "cuda" else num_local)
    if config.launch.check_memory and cost.memory_bytes > CLEAR_MARGIN * free:
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
        share = f" for each of {num_local} ranks" if num_local > 1 and device.type != "cuda" else ""
        raise ConfigError(
            f"this run needs about {gib(cost.memory_bytes)} of memory, and {what} has {gib(free)} free{share}; {advice}, or "
            "start it all the same with launch.check_memory=false."
        )


def free_bytes(device: torch.device) -> int:
    """Of the GPU, or of the machine and the containers that this process is in."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()


def _place(device: torch.device, num_ranks: int) -> str:
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    if num_ranks == 1:
        return f"this {what}"
    return f"each of {num_ranks} GPUs ({what})" if device.type == "cuda" else f"each of {num_ranks} ranks on this CPU"
