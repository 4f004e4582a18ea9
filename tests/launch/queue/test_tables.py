"""What the tables say: resources in words, and the matrix with the commonest value in its head."""

from __future__ import annotations

from pathlib import Path

import pytest

from arclab.config.plain_composer import PlainComposer
from arclab.launch.queue.plan import JobsPlan, ablation_columns, read_plan
from arclab.launch.queue.progress import Best, RunProgress
from arclab.launch.queue.tables import labels, resources, show_matrix, show_plan, show_progress

PREFIX = "pretrain_encoder.py experiment=quickstart"


def plan_of(tmp_path: Path, *lines: str) -> JobsPlan:
    path = tmp_path / "jobs.txt"
    path.write_text("".join(f"{PREFIX} {line} runs_dir={tmp_path}\n" for line in lines))
    return read_plan(path)


@pytest.mark.parametrize(("overrides", "text"), [
    ([], "1 process, 24 h"), (["launch=slurm_gpu", "launch.nodes=2", "launch.partition=big"], "2 nodes x 4 GPU, 24 h, big"),
    (["launch=slurm_cpu", "launch.timeout_min=90"], "2 CPU, 90 min"),
])  # fmt: skip
def test_resources(overrides: list[str], text: str) -> None:
    assert resources(PlainComposer().compose("pretrain_encoder", overrides).launch) == text


def test_the_plan_and_its_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path, "name=a", "name=b seed=4", "name=c encoder=lpn", "name=a experiment_name=other seed=9")
    show_plan(plan, [{"model": 1234}, {"model": 1234, "puzzle_table": 5678}, {}, None], ["about 4 minutes", "", "", ""])
    shown = capsys.readouterr().out
    assert "  1,234  " in shown and "  1,234 + 5,678 table  " in shown and "  ?  " in shown
    assert "  about 4 minutes  " in shown
    show_matrix(plan.runs, ablation_columns(plan.runs))
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert labels(plan.runs) == ["quickstart/a", "b", "c", "other/a"]
    assert rows["quickstart/a"] == [".", ".", "."] and rows["b"] == [".", ".", "4"]
    assert rows["c"] == [".", "lpn", "."] and rows["other/a"] == ["other", ".", "9"]
    assert rows["run"] == ["=", "quickstart", "=", "standard", "=", "0"]
    assert "encoder.pooling," in rows["with"]


def test_progress_shows_the_last_words_of_a_failed_run(capsys: pytest.CaptureFixture[str]) -> None:
    best = Best("all.exact_accuracy", 0.5, 20, 100)
    running = RunProgress("RUNNING", "12", 100, 1000, 2.0, "HEALTHY", best, "", "step 100: HEALTHY")
    failed = RunProgress("FAILED", "13", 5, 1000, 2.0, "", None, "", "Traceback\nKeyError: 'x'")
    show_progress([("a", running), ("b", failed)])
    out = capsys.readouterr().out
    assert "RUNNING  12   100/1,000     2.00  7 min 30 s  HEALTHY  all.exact_accuracy 50.0 % (10/20) at 100" in out
    assert "b: Traceback\nKeyError: 'x'" in out and "step 100" not in out
