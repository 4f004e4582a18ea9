"""A release: the averaged weights of a run in a small folder, with the record of its scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from arclab.config.compose import ConfigError, compose_evaluate
from arclab.methods.recursive import release as module
from arclab.methods.recursive.evaluation import evaluate_in_ranks
from arclab.methods.recursive.release import main, release
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.pages import analyse
from arclab.results.reading import read_runs
from arclab.runs.folder import RunDir, State
from arclab.runs.ranks import Ranks

from ...conftest import ROOT, TINY, compose

CPU = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and its control (a frozen encoder), both scored, and the release of the run."""
    root = tmp_path_factory.mktemp("root")
    for name, frozen in (("a", 0), ("control", 4)):
        overrides = [f"runs_dir={root}/runs", f"name={name}", f"encoder.optim.freeze_steps={frozen}"]
        pretrain_in_ranks(compose("pretrain_encoder", [*TINY, *overrides]), CPU)
        evaluate_in_ranks(compose_evaluate([f"checkpoint={root}/runs/quickstart/{name}"]), CPU)
    release(root / "runs/quickstart/a", root / "released/first", root / "runs/quickstart/control")
    return root


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_it_answers_as_its_run_and_stays_as_it_was(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluated and compared like any run; what that makes lies below runs/."""
    monkeypatch.chdir(runs)
    before = contents(runs / "released/first")
    evaluate_in_ranks(compose_evaluate(["checkpoint=released/first"]), CPU)
    results = [run / "evaluation/train" for run in (runs / "runs/quickstart/a", runs / "runs/released/first")]
    ours, theirs = ((folder / "predictions.jsonl").read_text() for folder in results)
    assert ours == theirs and ours == before["evaluation/train/predictions.jsonl"][0].decode()
    analyse.main(["released/first", "runs/quickstart/control", "runs/released/first/evaluation/train"])
    assert (runs / "runs/released/first/analysis/compare.html").is_file()
    (run,) = read_runs([Path("released/first")])
    assert run.state == "DONE at step 4" and run.splits[0].task_ids and run.settings["name"] == "a"
    assert contents(runs / "released/first") == before


def test_its_record(runs: Path) -> None:
    """Where it comes from, and scores beside those of the control; weights alone, in few files."""
    out, run = runs / "released/first", RunDir(runs / "runs/quickstart/a")
    record, provenance = (json.loads(path.read_text()) for path in (out / "release.json", run.provenance))
    assert (record["run"], record["step"], record["seed"], record["weights"]) == ("quickstart/a", 4, 0, "ema")
    assert all(record[key] == provenance[key] for key in ("command", "commit", "machine", "started"))
    (score,) = record["scores"]
    held = json.loads((run.path / "evaluation/train/metrics.json").read_text())["scores"]["ARC/solved@2"]
    assert (score["split"], score["n"], score["N"], score["interval95"]) == (
        "train",
        *(held[k] for k in ("n", "N", "interval95")),
    )
    assert score["control"]["run"] == "control" and score["control"]["N"] == score["N"]
    files = {path.name for path in (out / "checkpoints/step_00000004").iterdir()}
    assert files == {"ema.safetensors", "tasks.json", "state.json"}
    assert {path.name for path in out.iterdir()} == {
        "checkpoints", "config.yaml", "evaluation", "metrics.jsonl", "provenance.json", "release.json", "status.json",
    }  # fmt: skip


def test_it_is_not_trained_further(runs: Path, tmp_path: Path) -> None:
    """Put where its run would go on, also without its status: a sentence. Its decoder starts another run."""
    shutil.copytree(runs / "released/first", tmp_path / "quickstart/a")
    (tmp_path / "quickstart/a/status.json").unlink()
    config = compose("pretrain_encoder", [*TINY, f"runs_dir={tmp_path}", "name=a"])
    with pytest.raises(ValueError, match=r"step 4 is a release: weights without .*; start a run under another name"):
        pretrain_in_ranks(config, CPU)
    init = ["decoder_init=pretrained", f"decoder_init.path={runs}/released/first"]
    pretrain_in_ranks(compose("pretrain_encoder", [*TINY, f"runs_dir={tmp_path}", "name=b", *init]), CPU)
    assert RunDir(tmp_path / "quickstart/b").state is State.done
    with pytest.raises(ValueError, match=r"is a release, which has averaged weights alone; use weights=ema"):
        evaluate_in_ranks(compose_evaluate([f"checkpoint={runs}/released/first", "weights=raw", f"runs_dir={tmp_path}"]), CPU)


def test_what_cannot_be_released(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence each, and nothing is left behind."""
    run, out = runs / "runs/quickstart/a", tmp_path / "out"
    with pytest.raises(ConfigError, match=r"first exists already; give a folder that does not"):
        main([str(run), str(runs / "released/first")])
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"out would have [\d.]+ MB, more than the 0 MB of a release"):
        release(run, out)
    monkeypatch.undo()
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    shutil.rmtree(copied / "evaluation")
    with pytest.raises(ConfigError, match=r"no scores of its averaged weights at step 4; first run python evaluate.py"):
        release(copied, out)
    with pytest.raises(ConfigError, match=r"the control .*copied is not scored on the tasks of train; run python evaluate.py"):
        release(run, out, copied)
    RunDir(copied).write_status(State.preempted, 4)
    with pytest.raises(ConfigError, match=r"copied is not DONE; let it end"):
        release(copied, out)
    assert {path.name for path in tmp_path.iterdir()} == {"copied"}


def test_the_release_of_this_repository(tmp_path: Path) -> None:
    """It is small, its record is what its files say, and it still answers as recorded (of twenty tasks all but one, for machines
    that round another way)."""
    out = ROOT / "released/toy_control_standard"
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < module.MAX_BYTES
    (score,) = json.loads((out / "release.json").read_text())["scores"]
    (run,) = read_runs([out])
    assert (score["n"], score["N"]) == (run.splits[0].shares["ARC/solved@2"].n, 200) and score["n"] > score["control"]["n"]
    wishes = ["split=evaluation", "max_tasks=20", f"runs_dir={tmp_path}"]
    evaluate_in_ranks(compose_evaluate([f"checkpoint={out}", *wishes]), CPU)
    (again,) = read_runs([tmp_path / "released/toy_control_standard/evaluation/evaluation"])
    solved = again.splits[0].solved
    assert len(solved) == 20 and sum(run.splits[0].solved[task] == value for task, value in solved.items()) >= 19
