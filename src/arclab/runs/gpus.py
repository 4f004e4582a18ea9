"""Which GPUs of this machine a process is to see, as CUDA_VISIBLE_DEVICES names them.

    gpus_of(config.launch)           # ["2", "3"]; []: none; None: those that it sees anyway

Shards that are processes of one machine take its GPUs in turn; a job of SLURM was given its own. Neither torch nor CUDA is
asked: a process that has begun to use CUDA keeps the GPUs that it saw then.
"""

from __future__ import annotations

import os
import subprocess

from arclab.config.launch_schema import LaunchConfig, ShardsOn

_TIMEOUT_S = 60


def gpus_of(launch: LaunchConfig) -> list[str] | None:
    if launch.gpus == 0 and launch.cpus > 0:
        return []
    if launch.shard is None or launch.shards_on is not ShardsOn.local or not (visible := visible_gpus()):
        return None
    count = max(1, launch.gpus)
    return list(dict.fromkeys(visible[(launch.shard * count + each) % len(visible)] for each in range(count)))


def visible_gpus() -> list[str]:
    """Those of CUDA_VISIBLE_DEVICES; without it all of the machine that its driver knows."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []
