"""Starting runs without SLURM: what is asked for, what is refused, and who holds a run folder."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from submitit.slurm.slurm import SlurmExecutor

from arclab.config.compose import ConfigError, compose_evaluate, hint_for, quoted
from arclab.config.launch_schema import LaunchConfig
from arclab.config.schema import ExperimentConfig
from arclab.launch.cluster import JobTask, build_executor
from arclab.launch.job import prepare_run
from arclab.launch.torchrun import Node, torchrun_command, worker_environment
from arclab.runs.folder import RunDir, State, open_run
from arclab.runs.lock import Holder, lock_path, locked, read_holder

from ..conftest import TINY

Tiny = Callable[..., ExperimentConfig]


Run = Callable[..., subprocess.CompletedProcess[str]]


def started(launch: LaunchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that is started for a launch: the batch file, torchrun's command line, the workers' environment."""
    monkeypatch.setattr("arclab.runs.slurm.is_installed", lambda: True)
    monkeypatch.setattr("arclab.runs.slurm.max_array_size", lambda: 1000)
    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    executor = build_executor(launch, "slurm", tmp_path)
    batch: str = executor._executor._make_submission_file_text("COMMAND", "x")  # type: ignore[attr-defined]
    environment = {k: v for k, v in worker_environment(launch).items() if k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    timeouts = f"timeouts {executor._executor.max_num_timeout}"  # type: ignore[attr-defined]
    return [*batch.splitlines(), *torchrun_command(RunDir(tmp_path), launch, Node(0, "host", "7")), str(environment), timeouts]


LAUNCH_ALTERNATIVES: dict[str, Any] = {
    "gpus": 2, "cpus": 3, "nodes": 2, "cpus_per_rank": 5, "mem_gib": 7, "timeout_min": 99, "signal_delay_s": 77, "max_requeues": 9,
    "partition": "p", "account": "a", "qos": "q", "constraint": "c", "setup": ["module load x"],
}  # fmt: skip


def test_every_launch_key_changes_what_is_started(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny().launch
    before = started(base, tmp_path, monkeypatch)
    # What these do: tests/runs/test_preflight.py, tests/solvers/test_shards.py and tests/lm/test_started.py.
    elsewhere = {"check_memory", "shards", "shards_on", "steal", "shard"}
    elsewhere |= {key for key in asdict(base) if key == "server" or key.startswith("server_")}
    assert asdict(base).keys() - elsewhere == LAUNCH_ALTERNATIVES.keys()
    for key, value in LAUNCH_ALTERNATIVES.items():
        after = started(replace(base, **{key: value}), tmp_path, monkeypatch)
        changed = [line for line in after if line not in before]
        assert changed and any(str(value[0] if isinstance(value, list) else value) in line for line in changed), key


def test_a_job_is_told_to_save_before_its_limit(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = started(tiny("launch=slurm_gpu", "trainer.device=auto").launch, tmp_path, monkeypatch)
    assert {
        "#SBATCH --signal=USR2@300",
        "#SBATCH --cpus-per-task=32",
        "#SBATCH --gpus-per-node=4",
        "--nproc-per-node=4",
    } <= set(lines)
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in lines


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["launch.gpus=2", "launch.cpus=2", "trainer.device=auto"], "launch.gpus=2 does not go with launch.cpus=2"),
        (
            ["launch.timeout_min=60", "launch.signal_delay_s=661"],
            "launch.signal_delay_s=661 of launch.timeout_min=60 comes so early",
        ),
        (["launch.timeout_min=3"], "launch.timeout_min=3 is 180 s, not longer than launch.signal_delay_s=180"),
        (["launch.nodes=3"], "trainer.batch_size=8 must be divisible by ranks x trainer.grad_accumulation = 3 x 1"),
        (["launch.gpus=2"], "launch.gpus=2 does not go with trainer.device=cpu"),
        (["launch.cpus=2", "trainer.device=cuda"], "launch.cpus=2 starts ranks on CPU cores"),
        (["launch.mem_gib=0"], "launch.mem_gib=0"),
        (["launch.partion=x"], "unknown key launch.partion; did you mean launch.partition?"),
    ],
)
def test_bad_launch_settings_are_one_sentence(overrides: list[str], words: str, tiny: Tiny) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(*overrides)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_launch_may_change_between_resumes(tiny: Tiny) -> None:
    open_run(tiny()).write_status(State.preempted, 1)
    open_run(tiny("launch=slurm_cpu"))
    with pytest.raises(ConfigError, match="was made with seed=0, now seed=1"):
        open_run(tiny("seed=1"))


def test_a_folder_that_never_started_belongs_to_nobody(tiny: Tiny) -> None:
    run = prepare_run(tiny())
    prepare_run(tiny("seed=1"))
    run.write_status(State.submitted, 0)
    with pytest.raises(ConfigError, match="was made with seed=1, now seed=0"):
        prepare_run(tiny())


def test_setup_lines_reach_hydra_unchanged() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    lines = [
        "export A='x, y'",
        'echo "$B" {a: 1} [c]',
        "true",
        "source /home/jérôme/env.sh",
        r"sed s/\.//",
        "ends with \\",
        r"a \" b",
    ]
    (parsed,) = OverridesParser.create().parse_overrides([f"hydra.launcher.setup={quoted(lines)}"])
    assert [str(getattr(v, "text", v)) for v in parsed.value()] == lines  # type: ignore[union-attr]


def test_a_job_task_survives_pickling_and_a_requeue(tmp_path: Path) -> None:
    task = JobTask(tmp_path)
    assert pickle.loads(pickle.dumps(task)) == task == task.checkpoint().function


def test_second_process_is_refused_and_told_who_holds_the_folder(tiny: Tiny, run_script: Run, tmp_path: Path) -> None:
    run = open_run(tiny())
    with locked(run):
        result = run_script("pretrain_encoder.py", *TINY, f"runs_dir={tmp_path}/runs", "name=t")
        assert result.returncode == 2
        assert f"is in use by pid {os.getpid()} on " in result.stderr and "since 2" in result.stderr
        with pytest.raises(ConfigError, match="is in use by pid"):
            prepare_run(tiny())
    assert read_holder(run) is None


OLDER = {"start_ticks": None, "boot_id": "", "pid_namespace": ""}  # what a lock.json of an older version does not say


@pytest.mark.parametrize(
    ("change", "queued", "alive"),
    [
        ({}, False, True),
        ({"pid": 2**22 + 1}, True, False),  # died on this host
        ({"start_ticks": 1}, True, False),  # another process has its number now
        ({"started": 1.0}, False, True),  # the clock was set
        ({"boot_id": "before"}, True, False),  # the machine was started again
        ({**OLDER, "started": 1.0}, True, False),
        (OLDER, False, True),
        ({"host": "elsewhere", "boot_id": "there"}, False, True),  # cannot be looked up
        ({"host": "elsewhere", "boot_id": "there", "slurm_job": "7"}, True, True),
        ({"host": "elsewhere", "boot_id": "there", "slurm_job": "7"}, False, False),  # its job has left the queue
        # this very job before its requeue
        ({"host": "elsewhere", "boot_id": "there", "slurm_job": "5", "incarnation": "0"}, True, False),
        ({"host": "elsewhere", "boot_id": "there", "slurm_job": "5", "incarnation": "1"}, True, True),
        ({"pid_namespace": "pid:[1]"}, False, True),  # a container on this machine: cannot be looked up
        ({"pid_namespace": "pid:[1]", "has_lock": True}, False, False),  # but the kernel would know
    ],
)
def test_only_a_living_holder_holds(change: dict[str, Any], queued: bool, alive: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr("arclab.runs.slurm.is_queued", lambda job: queued)
    run = open_run(tiny())
    lock_path(run).write_text(json.dumps(asdict(replace(Holder.me(), **change))))
    if alive:
        with pytest.raises(ConfigError, match="is in use by"), locked(run):
            pass
    else:
        with locked(run):
            holder = read_holder(run)
            assert holder is not None and holder.is_me and holder.has_lock
        assert read_holder(run) is None


def test_the_printed_command_is_one_word_of_the_shell_and_of_hydra(tiny: Tiny) -> None:
    config, hint = tiny(), "; evaluate it with: python evaluate.py checkpoint="
    assert hint_for(config, Path("runs/a_b-c+d.1")) == f"{hint}runs/a_b-c+d.1"
    for path in ("my runs/a,b", "runs/it's=1", 'a"b/[c]{d}', "$HOME/é", "a\\", "{run}"):
        *words, word = shlex.split(hint_for(config, Path(path)))
        assert words == hint.split()[:-1]
        assert compose_evaluate([word]).checkpoint == path


def test_several_nodes_need_slurm(run_script: Run, tmp_path: Path) -> None:
    result = run_script("pretrain_encoder.py", *TINY, "launch.nodes=2", f"runs_dir={tmp_path}")
    assert result.returncode == 2 and "launch.nodes=2 needs a SLURM job with as many nodes, and here are none" in result.stderr
