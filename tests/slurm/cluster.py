"""A real SLURM on this machine, in a temporary folder: munged, slurmctld and one or two slurmd, as root.

    with Cluster(folder, nodes=2) as cluster: cluster.run("squeue")

Nodes are named n1, n2 and share the machine. A job in partition urgent (n1) takes the cores of one in spare (n1), which gets SIGTERM and
a minute first; main is never preempted. There is no accounting. It needs: apt-get install slurm-wlm munge
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

INSTALL = "needs a real SLURM: apt-get install slurm-wlm munge, and run the tests as root"
_CONF = """
ClusterName=arclabtest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MinJobAge=300
OverTimeLimit=0
KillWait=5
CompleteWait=0
"""


def is_available() -> bool:
    return os.geteuid() == 0 and all(shutil.which(p) for p in ("slurmctld", "slurmd", "munged", "sbatch"))


class Cluster:
    """SLURM_CONF in `environment` is what makes commands talk to this one."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.nodes = folder, [f"n{i + 1}" for i in range(nodes)]
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        try:
            self._bring_up()
        except AssertionError:
            self._stop()
            raise
        return self

    def _bring_up(self) -> None:
        (self.folder / "state").mkdir(parents=True)
        os.chmod(self.folder, 0o755)
        self._write_conf()
        self._start_munge()
        self._start("slurmctld", "-D")
        for node in self.nodes:
            self._start("slurmd", "-D", "-N", node)
        deadline = time.monotonic() + 60
        while self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t").split() != [
            w for n in self.nodes for w in (n, "idle")
        ]:
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.2)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        subprocess.run(["scancel", "--signal=KILL", "--user=root"], env=self.environment, capture_output=True, timeout=60)
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True, timeout=60)
        deadline = time.monotonic() + 20
        while self.run("squeue", "-h").strip() and time.monotonic() < deadline:
            time.sleep(0.2)
        self._stop()

    def _stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60).stdout

    def _write_conf(self) -> None:
        host = socket.gethostname().split(".")[0]
        ports = free_ports(1 + len(self.nodes))
        lines = [_CONF.format(host=host, folder=self.folder, ctld_port=ports[0])]
        for node, port in zip(self.nodes, ports[1:], strict=True):
            lines.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 State=UNKNOWN"
            )
        lines += [f"PartitionName=main Nodes={','.join(self.nodes)} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PreemptMode=OFF",
                  f"PartitionName=spare Nodes={self.nodes[0]} State=UP PriorityTier=1 GraceTime=60",
                  f"PartitionName=urgent Nodes={self.nodes[0]} State=UP PriorityTier=2"]  # fmt: skip
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")

    def _start_munge(self) -> None:
        """A munged of our own, with its own key and socket, so that one which already runs is left alone."""
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._start("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", f"--key-file={key}",
                    f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
                    f"--seed-file={self.folder}/munged.seed")  # fmt: skip
        deadline = time.monotonic() + 20
        while not (self.folder / "munge.socket").exists():
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.05)

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("ab") as output:
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=output, stderr=output))

    def _logs(self) -> str:
        files = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-2000:]}" for file in files)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()
