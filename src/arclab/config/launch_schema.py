"""Where and how a run is started: ranks, nodes, and what to ask SLURM for. Nothing here changes the experiment.

gpus=0 and cpus of 0 or 1 on one node is one process; anything else is a torchrun job. The values are in conf/launch/*.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Optional

from arclab.config.rules import at_least, sized

SHARDS = "shards"  # the folder of all shards, in that of the whole


class ShardsOn(Enum):
    """local: processes of this machine, all at once. slurm: jobs."""

    local = "local"
    slurm = "slurm"


@dataclass(kw_only=True, slots=True)
class LaunchConfig:
    """gpus and cpus: ranks per node, on GPUs or (with gpus=0) on CPU cores; a rank gets cpus_per_rank cores and threads.

    mem_gib: per node. timeout_min: the job's time limit. signal_delay_s: how long before the limit the job is told to save.
    max_requeues: how often a job that ran into its limit continues; preemptions are not counted. setup: shell lines before
    the job. check_memory: refuse to start a run that needs clearly more memory than there is (its default is for runs that
    were made before it was a key). partition, account, qos, constraint, mem_gib: null leaves them to SLURM. Without SLURM
    only the ranks and check_memory count.

    shards: parts into which the tasks of an evaluation are divided, each a job of its own with these resources, on shards_on.
    steal: a shard that has done its tasks takes those of others that nobody has begun. shard: which of them this process is,
    from 0; the jobs of shards have it, and null is the whole. Their defaults are for runs that were made before they were keys.
    """

    gpus: int
    cpus: int
    nodes: int
    cpus_per_rank: int
    mem_gib: Optional[int]
    timeout_min: int
    signal_delay_s: int
    max_requeues: int
    partition: Optional[str]
    account: Optional[str]
    qos: Optional[str]
    constraint: Optional[str]
    setup: list[str]
    check_memory: bool = True
    shards: int = 1
    shards_on: ShardsOn = ShardsOn.local
    steal: bool = False
    shard: Optional[int] = None

    @property
    def ranks_per_node(self) -> int:
        return self.gpus or max(self.cpus, 1)

    @property
    def num_ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def is_divided(self) -> bool:
        """Is it the whole of several shards?"""
        return self.shards > 1 and self.shard is None

    def shard_folder(self, whole: Path, number: int) -> Path:
        """whole: the folder of all shards."""
        return whole / SHARDS / f"{number}_of_{self.shards}"

    def folder_in(self, whole: Path) -> Path:
        """The folder of this process."""
        return whole if self.shard is None else self.shard_folder(whole, self.shard)

    def check(self, path: str) -> list[str]:
        problems = [
            *at_least(path, 1, shards=self.shards),
            *at_least(path, 1, nodes=self.nodes, timeout_min=self.timeout_min),
            *sized(path, 1, cpus_per_rank=self.cpus_per_rank),
            *sized(path, 0, gpus=self.gpus, cpus=self.cpus),
            *at_least(path, 0, max_requeues=self.max_requeues),
            *at_least(path, 1, signal_delay_s=self.signal_delay_s),
            *([] if self.mem_gib is None else at_least(path, 1, mem_gib=self.mem_gib)),
        ]
        if self.shard is not None and not 0 <= self.shard < self.shards:
            problems.append(
                f"{path}.shard={self.shard} is none of {path}.shards={self.shards}; give a number from 0 to {self.shards - 1}, "
                "or null for the whole."
            )
        if self.steal and self.shards == 1:
            problems.append(f"{path}.steal=true has nobody to take tasks from; set {path}.shards=N, or {path}.steal=false.")
        if self.gpus > 0 and self.cpus > 0:
            problems.append(
                f"{path}.gpus={self.gpus} does not go with {path}.cpus={self.cpus}: ranks run on GPUs or on CPU cores; set "
                f"one of them to 0 (cores of a rank are {path}.cpus_per_rank)."
            )
        if self.signal_delay_s >= self.timeout_min * 60 > 0:
            problems.append(
                f"{path}.timeout_min={self.timeout_min} is {self.timeout_min * 60} s, not longer than "
                f"{path}.signal_delay_s={self.signal_delay_s}: the job would be told to save before it starts; raise the "
                "limit or lower the delay."
            )
        # submitit takes a signal for a time limit in the last fifth of the job or its last ten minutes; SLURM may send it a
        # minute early.
        longest_s = max(600, 12 * self.timeout_min) - 60
        if longest_s < self.signal_delay_s < self.timeout_min * 60:
            problems.append(
                f"{path}.signal_delay_s={self.signal_delay_s} of {path}.timeout_min={self.timeout_min} comes so early that it "
                f"would pass for a preemption, and max_requeues would never be reached; use at most {longest_s}."
            )
        return problems
