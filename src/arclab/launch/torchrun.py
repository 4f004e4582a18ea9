"""The torchrun of a run on this node: its command line, its environment, and a process whose output is kept in console.log.

    process = start_torchrun(run, launch, Node.here(launch))

One torchrun per node; with several nodes they meet at the first one (c10d rendezvous). It does not judge how the run ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO

from arclab.config.compose import ConfigError
from arclab.config.launch_schema import LaunchConfig
from arclab.runs import slurm
from arclab.runs.folder import RunDir
from arclab.runs.gpus import gpus_of
from arclab.runs.tied import tie_to

_FIRST_PORT, _NUM_PORTS = 20000, 20000


@dataclass(frozen=True, slots=True)
class Node:
    """This node among those of the job: its number, and where the first one is."""

    number: int
    first_address: str
    job: str

    @classmethod
    def here(cls, launch: LaunchConfig) -> Node:
        """ConfigError if the configuration asks for several nodes and this is not a SLURM job of that size."""
        if launch.nodes == 1:
            return cls(0, "localhost", slurm.job_id() or "0")
        given = int(os.environ.get("SLURM_JOB_NUM_NODES", "0"))
        if given != launch.nodes or "SLURM_NODEID" not in os.environ:
            raise ConfigError(
                f"launch.nodes={launch.nodes} needs a SLURM job with as many nodes, and here are {given or 'none'}; send the "
                "run to SLURM (hydra/launcher=submitit_slurm with -m), or start torchrun on every node yourself with "
                "launch.nodes=1."
            )
        from submitit.slurm.slurm import SlurmJobEnvironment

        first = SlurmJobEnvironment().hostnames[0]
        return cls(int(os.environ["SLURM_NODEID"]), slurm.node_address(first), os.environ["SLURM_JOB_ID"])


def torchrun_command(run: RunDir, launch: LaunchConfig, node: Node) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={launch.ranks_per_node}"]
    if launch.nodes == 1:
        command += ["--standalone"]
    else:
        port = _FIRST_PORT + int(node.job) % _NUM_PORTS
        attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
        command += [f"--nnodes={launch.nodes}", f"--node-rank={node.number}", "--rdzv-backend=c10d",
                    f"--rdzv-endpoint={node.first_address}:{port}", f"--rdzv-id={node.job}.{attempt}"]  # fmt: skip
    return [*command, "-m", "arclab.launch.worker", str(run.path.resolve())]


def worker_environment(launch: LaunchConfig) -> dict[str, str]:
    """This process' environment with the threads of a rank, and its GPUs; ranks on CPU cores see none."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(launch.cpus_per_rank)}
    # torchrun's own end is SIGQUIT alone. SIGTERM and SIGHUP reach every process of a job: the ranks save, and torchrun must
    # wait for them instead of killing them 30 s later. (The environment's form of --signals-to-handle: versions without it do
    # not mind.)
    environment["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    if (gpus := gpus_of(launch)) is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return environment


class Torchrun:
    """A running torchrun. Its output is copied to this process' stderr and to console.log."""

    def __init__(self, run: RunDir, launch: LaunchConfig, node: Node) -> None:
        self._log = run.console.open("a", encoding="utf-8")
        self.log_start = self._log.tell()
        self.process = subprocess.Popen(
            torchrun_command(run, launch, node),
            env=worker_environment(launch),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=tie_to(os.getpid()),
        )
        assert self.process.stdout is not None
        self._copier = threading.Thread(target=self._copy, args=(self.process.stdout,), daemon=True)
        self._copier.start()

    def _copy(self, output: IO[str]) -> None:
        """Until the ranks are gone: nobody else empties the pipe, and a full one would hold them. A target that takes no more
        (a closed terminal, a full disk) is left out from then on."""
        targets: list[IO[str]] = [self._log, sys.stderr]
        for line in output:
            for target in list(targets):
                try:
                    target.write(line)
                    target.flush()
                except (OSError, ValueError):  # ValueError: closed
                    targets.remove(target)

    def wait(self, timeout_s: float) -> int | None:
        """The exit status (negative: the signal that killed it), or None while it runs."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """End what is left, and finish the copy of its output."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._copier.join(timeout=10)
        self._log.close()
