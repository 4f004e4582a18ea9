"""experiments/toy_programs.py: its evaluations are valid lines of a jobs file, and one that fails is named."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from arclab.config.llm_schema import EvaluateProgramsConfig
from arclab.entries import ENTRIES
from experiments import toy_programs
from experiments.queued import Ended, JobsFile, plan_lines

SCORE = {"n": 3, "N": 4, "interval95": [0.3, 0.95]}
METRICS = {
    "scores": dict.fromkeys(toy_programs.SCORES, SCORE),
    "statistics": dict.fromkeys(toy_programs.STATISTICS, 0.5),
    "isolation": "namespaces",
}


def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_of: Mapping[str, str]) -> tuple[int, JobsFile]:
    """(exit status, the jobs file) of two twins and two families. fault_of: evaluations that do not end well."""
    files: list[JobsFile] = []

    def train(arguments: object, twin: str) -> tuple[Path, float]:
        (tmp_path / twin).mkdir(exist_ok=True)
        return tmp_path / twin, 1.0

    def run_lines(file: JobsFile, lines: Mapping[str, Sequence[str]], cluster: str, *, places: int) -> Iterator[Ended]:
        files.append(file)
        runs, refused = plan_lines(file, lines)
        assert not refused and (cluster, places) == ("slurm", 3)
        for name, run in reversed(runs.items()):  # runs end in any order
            run.folder.path.mkdir(exist_ok=True)
            (run.folder.path / "metrics.json").write_text(json.dumps(METRICS))
            yield Ended(name, run.folder.path, fault_of.get(name, ""))

    monkeypatch.setattr(toy_programs, "train_twin", train)
    monkeypatch.setattr(toy_programs, "run_lines", run_lines)
    monkeypatch.setattr(toy_programs.torch, "set_num_threads", lambda _: None)
    asked = ["--families", "color_map", "dihedral", "--twins", "trained", "untrained", "--cluster", "slurm", "--jobs", "3"]
    return toy_programs.main([*asked, "--folder", str(tmp_path)]), files[0]


def test_evaluations_are_runs_of_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, file = run_here(tmp_path, monkeypatch, {})
    assert status == 0 and file.path.parent == tmp_path
    rows = [line.split(" | ")[:3] for line in capsys.readouterr().out.splitlines() if "| 3/4 |" in line]
    assert rows == [[f"| {twin}", family, "3/4"] for twin in ("trained", "untrained") for family in ("color_map", "dihedral")]


def test_an_evaluation_that_fails_is_named_and_the_table_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = run_here(tmp_path, monkeypatch, {"trained/dihedral": "FAILED: no sandbox"})
    output = capsys.readouterr().out
    assert status == 1 and "trained/dihedral FAILED: FAILED: no sandbox" in output
    assert "| trained | color_map | 3/4 |" in output and "| trained | dihedral |" not in output


def test_an_evaluation_scores_its_own_twin_on_unseen_tasks(tmp_path: Path) -> None:
    arguments = toy_programs.parse(["--seed", "3", "--samples", "5", "--threads", "1", "--folder", str(tmp_path)])
    lines = {"a": toy_programs.evaluation(arguments, tmp_path / "shuffled", "dihedral")}
    (tmp_path / "shuffled").mkdir()
    file = JobsFile(tmp_path / "jobs.txt", "T", "none", ENTRIES["evaluate_programs"].script)
    config = plan_lines(file, lines)[0]["a"].config
    assert isinstance(config, EvaluateProgramsConfig)
    assert config.folder == tmp_path / "shuffled/evaluation_dihedral" and config.lm.name == str(tmp_path / "shuffled")
    assert (config.seed, config.solver.num_samples, config.num_threads) == (3, 5, 1)
    assert "split=test" in config.dataset.eval_sources[0] and "toy:dihedral?" in config.dataset.eval_sources[0]
