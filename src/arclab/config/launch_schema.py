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


class ModelServer(Enum):
    """Which program answers lm=endpoint. command: any other, see launch.server_command."""

    vllm = "vllm"
    sglang = "sglang"
    transformers = "transformers"
    command = "command"


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
    from 0; the jobs of shards have it, and null is the whole.

    server: for lm=endpoint, a server of the model lm.name that the process starts, watches and ends, on the gpus of the node;
    null: none. server_command: of server=command, its command line with {model} and {port}. server_env: the folder of an
    environment (venv, conda) of its own, in whose bin it is found; null: this one's. server_start_s: how long it may take to
    become healthy. server_silent_s: after so long without a sign of health it is ended. server_restarts: how often it is
    started again.

    The defaults are for runs that were made before these were keys.
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
    server: Optional[ModelServer] = None
    server_command: Optional[str] = None
    server_env: Optional[str] = None
    server_start_s: float = 1800.0
    server_silent_s: float = 120.0
    server_restarts: int = 3

    @property
    def devices_per_node(self) -> int:
        """GPUs, or CPU cores (of cpus_per_rank threads)."""
        return self.gpus or max(self.cpus, 1)

    @property
    def ranks_per_node(self) -> int:
        """A server has all devices to itself, and one process asks it."""
        return self.devices_per_node if self.server is None else 1

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

    def shard_folders(self, whole: Path) -> dict[str, Path]:
        """What the whole needs: the folders of its shards. Empty for everybody else."""
        numbers = range(self.shards) if self.is_divided else ()
        return {f"shard {number}": self.shard_folder(whole, number) for number in numbers}

    def folder_in(self, whole: Path) -> Path:
        """The folder of this process."""
        return whole if self.shard is None else self.shard_folder(whole, self.shard)

    @property
    def shard_suffix(self) -> str:
        """Of a shard's name in lists."""
        return "" if self.shard is None else f"-shard{self.shard}"

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
        problems += self._broken_server(path)
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

    def _broken_server(self, path: str) -> list[str]:
        problems = at_least(path, 0, server_restarts=self.server_restarts)
        problems += at_least(path, 0.001, server_start_s=self.server_start_s, server_silent_s=self.server_silent_s)
        if self.server is ModelServer.command and "{port}" not in (self.server_command or ""):
            problems.append(
                f"{path}.server=command needs {path}.server_command with {{port}} in it; give one, such as "
                "'vllm serve {model} --port {port} --max-model-len 8192'."
            )
        if self.server is not ModelServer.command and self.server_command is not None:
            problems.append(f"{path}.server_command is of {path}.server=command; set that, or {path}.server_command=null.")
        if self.server is not None and self.nodes > 1:
            problems.append(
                f"{path}.nodes={self.nodes} does not go with {path}.server: a server has one node; set {path}.nodes=1."
            )
        return problems
