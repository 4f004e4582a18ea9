"""The scripts as a user runs them: one clear sentence and a non-zero exit for bad input, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arclab.runs.folder import RunDir, State

from .conftest import ROOT, TINY, refused, script_env

Run = Callable[..., subprocess.CompletedProcess[str]]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    command = [
        sys.executable,
        "pretrain_encoder.py",
        *TINY,
        "trainer.steps=2",
        "evaluation.max_tasks=3",
        f"runs_dir={root}",
        "name=t",
    ]
    subprocess.run(command, cwd=ROOT, env=script_env(), check=True, capture_output=True)
    return root / "quickstart" / "t"


def test_a_typo_is_caught_before_anything_starts(run_script: Run, tmp_path: Path) -> None:
    result = run_script("pretrain_encoder.py", "experiment=quickstart", f"runs_dir={tmp_path}", "trainer.stpes=3")
    refused(result, "unknown key trainer.stpes; did you mean trainer.steps?")
    assert not list(tmp_path.iterdir())


def test_unknown_option_lists_the_options(run_script: Run) -> None:
    refused(
        run_script("pretrain_encoder.py", "halting=papr"),
        "choose deterministic, explore05, explore07, paper, quick4, short8, single",
    )


def test_broken_data_leaves_no_run_folder(run_in_process: Run, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "abc.json").write_text('{"train": [{"input": [[11]], "output": [[1]]}], "test": [{"input": [[1]]}]}')
    result = run_in_process(
        "pretrain_encoder.py", *TINY, f"dataset.train_sources=['folder:{tmp_path}/tasks']", f"runs_dir={tmp_path}/runs"
    )
    refused(result, "abc.json", "task abc", "train pair 0", "colours must be 0 to 9, got 11")
    assert not (tmp_path / "runs").exists()


def test_run_folder_of_another_configuration(run_in_process: Run, trained: Path) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    result = run_in_process(
        "pretrain_encoder.py",
        *TINY,
        "trainer.steps=2",
        "evaluation.max_tasks=3",
        "seed=5",
        f"runs_dir={trained.parents[1]}",
        "name=t",
    )
    refused(result, "was made with seed=0, now seed=5", "choose another name=")
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_is_not_repeated(run_in_process: Run, trained: Path) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    result = run_in_process(
        "pretrain_encoder.py", *TINY, "trainer.steps=2", "evaluation.max_tasks=3", f"runs_dir={trained.parents[1]}", "name=t"
    )
    assert result.returncode == 0 and "is DONE" in result.stderr
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_missing_and_truncated_checkpoints(run_in_process: Run, trained: Path, tmp_path: Path) -> None:
    refused(run_in_process("evaluate.py", f"checkpoint={tmp_path}/none"), "none does not exist, and split is not set")
    typo = run_in_process("evaluate.py", f"checkpoint={trained.parent}/tt")
    refused(typo, f"tt does not exist; did you mean {trained}?")
    refused(run_in_process("evaluate.py", f"checkpoint={tmp_path}/none", "split=train"), "has no checkpoints/step_*")
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    os.truncate(copy / "checkpoints/step_00000002/ema.safetensors", 100)
    refused(run_in_process("evaluate.py", f"checkpoint={copy}"), "ema.safetensors is truncated (100 of")
    (copy / "checkpoints/step_00000002/state.json").write_text("{")
    refused(run_in_process("evaluate.py", f"checkpoint={copy}"), "state.json is damaged")


def test_checkpoint_of_another_architecture(run_in_process: Run, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("set_layers: 1", "set_layers: 2"))
    refused(run_in_process("evaluate.py", f"checkpoint={copy}"), "was made with encoder.set_layers=1, now encoder.set_layers=2")
    state = json.loads((copy / "checkpoints/step_00000002/state.json").read_text())
    older = {key: value for key, value in state.items() if key not in ("digest", "settings")}
    (copy / "checkpoints/step_00000002/state.json").write_text(json.dumps(older))
    refused(
        run_in_process("evaluate.py", f"checkpoint={copy}"), "is of another architecture: tensor encoder.set_stage.layers.1"
    )


def test_tasks_that_do_not_fit_are_refused(run_in_process: Run, trained: Path) -> None:
    refused(run_in_process("evaluate.py", f"checkpoint={trained}", "split=evaluation"), "dataset.canvas=6 is too small")


def test_no_cuda(run_in_process: Run, trained: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    refused(run_in_process("evaluate.py", f"checkpoint={trained}", "device=cuda"), "torch sees no CUDA device")


def test_batch_not_divisible_by_ranks(run_script: Run, tmp_path: Path) -> None:
    result = run_script("pretrain_encoder.py", *TINY, "trainer.batch_size=7", f"runs_dir={tmp_path}", launcher=TORCHRUN)
    assert result.returncode != 0
    assert "trainer.batch_size=7 must be divisible by ranks x trainer.grad_accumulation = 2 x 1" in result.stderr


@pytest.mark.slow
def test_evaluation_under_torchrun_equals_one_process(run_script: Run, trained: Path, tmp_path: Path) -> None:
    for name, launcher in (("one", ()), ("two", TORCHRUN)):
        result = run_script(
            "evaluate.py", f"checkpoint={trained}", f"output_dir={tmp_path}/{name}", "num_augmentations=1", launcher=launcher
        )
        assert result.returncode == 0, result.stderr
    one, two = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two"))
    assert one["scores"] == two["scores"]
    for name, value in one["statistics"].items():
        if not name.startswith("timing/"):
            assert two["statistics"][name] == pytest.approx(value, rel=1e-6)
    a, b = ((tmp_path / n / "predictions.jsonl").read_text() for n in ("one", "two"))
    assert [json.loads(x)["candidates"][0]["votes"] for x in a.splitlines()] == [
        json.loads(x)["candidates"][0]["votes"] for x in b.splitlines()
    ]


def test_progress_and_next_command_are_shown(run_script: Run, tmp_path: Path) -> None:
    result = run_script("pretrain_encoder.py", *TINY, "trainer.steps=2", f"runs_dir={tmp_path}")
    assert "2/2" in result.stderr and "python evaluate.py checkpoint=" in result.stderr


@pytest.mark.slow
def test_the_ranks_of_an_evaluation_end_together_and_go_on(run_script: Run, trained: Path, tmp_path: Path) -> None:
    """Told to end, both keep their votes; the end is that of one rank left alone."""
    wanted = ["evaluate.py", f"checkpoint={trained}", "num_augmentations=300", "batch_size=2", "evaluation.halting=all_steps"]
    line = [sys.executable, *wanted, f"output_dir={tmp_path}/two", "launch.cpus=2"]
    run, end = RunDir(tmp_path / "two"), time.monotonic() + 120
    with subprocess.Popen(line, cwd=ROOT, env=script_env(), stderr=subprocess.DEVNULL) as process:
        while "num_steps" not in (run.read_status() or {}):
            assert time.monotonic() < end
            time.sleep(0.05)
        process.terminate()
    assert process.returncode == 143 and run.state is State.preempted, run.read_status()
    assert len(list(run.path.glob("votes_*"))) == 2
    for output, cpus in (("two", 2), ("one", 0)):
        done = run_script(*wanted, f"output_dir={tmp_path}/{output}", f"launch.cpus={cpus}")
        assert done.returncode == 0, done.stderr
        assert ("going on" in run.console.read_text()) or output == "one"
    assert (tmp_path / "one/predictions.jsonl").read_text() == (tmp_path / "two/predictions.jsonl").read_text()
