"""Programs that nobody has read, run inside a SLURM job: they end as outside, and nothing is left when the job is over."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import psutil
import pytest

from arclab.programs.sandbox.execution import Execution, Isolation, Limits
from arclab.programs.sandbox.lockdown import locked_down
from arclab.programs.sandbox.pool import Sandbox
from benchmarks.attacks import ATTACKS

from ..conftest import ROOT
from .cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

NAMES = (
    "infinite loop", "10 GB at once", "fork bomb", "thread bomb", "orphan in a session of its own", "os._exit", "kill the parent", "kill everybody",
    "write a file", "read a file", "socket", "system calls through ctypes", "environment", "recursion of a million", "array", "ragged",
)  # fmt: skip
CHOSEN = [attack for attack in ATTACKS if attack.name in NAMES]


def ends() -> dict[str, Any]:
    """How these attacks ended, the isolation that there was, and the workers' process ids."""
    with Sandbox(num_workers=2, limits=Limits(cpu_s=1, wall_s=10.0, memory_mb=256), min_isolation=Isolation.limits) as sandbox:
        results = sandbox.run([Execution(attack.source, (np.ones((2, 3), np.uint8),)) for attack in CHOSEN])
        workers = [child.pid for child in psutil.Process().children(recursive=True)]
    return {
        "isolation": sandbox.isolation.name,
        "workers": workers,
        "statuses": [result.grids[0].status.name for result in results],
    }


def test_attacks_end_in_a_job_as_they_do_outside(slurm: Cluster) -> None:
    script = "import json, os; from tests.slurm.test_sandbox_job import ends; print(json.dumps([os.environ['SLURM_JOB_ID'], ends()]))"
    path = f"PYTHONPATH={ROOT / 'src'}:{ROOT}"
    job, found = json.loads(
        slurm.run("srun", "-n1", "-c2", f"--chdir={ROOT}", f"--export=ALL,{path}", sys.executable, "-c", script)
    )
    assert job and found["isolation"] == ("seccomp" if locked_down()[0] else "limits")
    if found["isolation"] == "seccomp":
        wrong = [
            (a.name, s)
            for a, s in zip(CHOSEN, found["statuses"], strict=True)
            if s not in {status.name for status in a.expected}
        ]
        assert not wrong and len(CHOSEN) == len(NAMES)
    assert len(found["workers"]) == 2 * 2 and not any(map(psutil.pid_exists, found["workers"]))
