"""import arclab: light until it is used, and what it answers is what evaluate.py wrote."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arclab
from arclab.config.compose import ConfigError
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.probes.representations import ALL_DEMOS, task_contexts

from .conftest import ROOT, script_env

RUNS = ROOT / "tests/fixtures/runs_2026_11"


def plain(task: ArcTask) -> dict[str, Any]:
    """As an official file has it."""
    pairs = {"train": task.demos, "test": task.tests}
    return {
        k: [{"input": p.input.tolist(), "output": p.output.tolist()} for p in v if p.output is not None]
        for k, v in pairs.items()
    }


def recorded(kind: str) -> dict[tuple[str, int], list[tuple[Any, int]]]:
    """The grids and votes that evaluate.py wrote."""
    lines = (RUNS / kind / "evaluation/train/predictions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {(r["task"], r["test"]): [(c["grid"], c["votes"]) for c in r["candidates"]] for r in records}


def as_recorded(candidates: Sequence[arclab.Candidate]) -> list[tuple[Any, int]]:
    return [(None if c.grid is None else c.grid.tolist(), c.votes) for c in candidates[:10]]


@pytest.mark.parametrize("kind", ["etrm", "trm"])
def test_it_solves_as_the_recorded_evaluation_did(kind: str) -> None:
    run = arclab.load(RUNS / kind, device="cpu")
    tasks = load_tasks(run.config.dataset).named("train")[: run.config.evaluation.max_tasks]
    answers = run.solve(tasks)
    wanted = recorded(kind)
    assert {(task, n) for task, tests in answers.items() for n in range(len(tests))} == wanted.keys()
    assert all(as_recorded(answers[task][number]) == found for (task, number), found in wanted.items())
    assert run.step > 0 and isinstance(answers[tasks[0].id][0][0], arclab.Candidate)


def test_a_folder_a_file_an_object_and_a_list_are_the_same_task(tmp_path: Path) -> None:
    run = arclab.load(RUNS / "etrm", device="cpu", weights="raw")
    task = load_tasks(run.config.dataset).train[0]
    file = tmp_path / "my tasks" / "one.json"
    file.parent.mkdir()
    file.write_text(json.dumps(plain(task)))
    first, *others = [
        run.solve(given, num_augmentations=1)["one"]
        for given in (str(file.parent), file, arclab.Task.from_json(file), [arclab.Task.from_json(plain(task), "one")])
    ]
    assert sum(candidate.votes for candidate in first[0]) == 2  # the task and one augmented copy of it
    assert all([as_recorded(tests) for tests in other] == [as_recorded(tests) for tests in first] for other in others)
    for wrong, says in (
        (tmp_path / "nowhere", "nowhere does not exist; give a folder"),
        ([task, task], f"the id {task.id} is that of several tasks"),
        ([], "there is no task"),
    ):
        with pytest.raises(ValueError, match=says):
            run.solve(wrong)


def test_contexts_are_those_of_the_representations() -> None:
    run = arclab.load(RUNS / "etrm", device="cpu")
    found = task_contexts(RUNS / "etrm", max_tasks=2)
    tasks = load_tasks(run.config.dataset).train
    for number in range(2):
        (row,) = np.flatnonzero((found.task_V == number) & (found.left_out_V == ALL_DEMOS) & (found.augmentation_V == 0))
        context = run.contexts(tasks[number])
        assert context.shape == (run.config.encoder.context.num_tokens, run.config.decoder.width)  # type: ignore[attr-defined]
        np.testing.assert_allclose(context.ravel(), found.vectors[row], atol=1e-5)
    with pytest.raises(ValueError, match="reads no demonstrations; give the run of an encoder"):
        arclab.load(RUNS / "trm", device="cpu").contexts(tasks[0])


def test_what_a_run_cannot_do_is_a_sentence(tmp_path: Path) -> None:
    run = arclab.load(RUNS / "trm", device="cpu")
    task = load_tasks(run.config.dataset).train[0]
    with pytest.raises(ValueError, match=r"has a puzzle table, .* and task task is none of them; give those tasks, or the run"):
        run.solve(arclab.Task.from_json(plain(task)))
    with pytest.raises(ValueError, match=r"evaluation\.num_augmentations=999 is more than dataset\.num_augmentations"):
        run.solve(task, num_augmentations=999)
    large = arclab.Task.from_json({"train": [{"input": [[1] * 30], "output": [[1]]}], "test": [{"input": [[1]]}]})
    with pytest.raises(ValueError, match=r"dataset\.canvas=\d+ is too small for 1 of 1 given tasks"):
        arclab.load(RUNS / "etrm", device="cpu").contexts(large)
    with pytest.raises(ValueError, match=r"weights='best' is not known; choose ema, raw\."):
        arclab.load(RUNS / "etrm", weights="best")
    with pytest.raises(ValueError, match="nowhere"):
        arclab.load(tmp_path / "nowhere")
    shutil.copytree(RUNS / "etrm", tmp_path / "etrm")
    (file,) = (tmp_path / "etrm").rglob("model.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        arclab.load(tmp_path / "etrm")


def test_the_page_on_it_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small run in the place of the one that it names, and one of its tasks."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "my/tasks").mkdir(parents=True)
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    (tmp_path / "runs/quickstart/a").symlink_to(RUNS / "etrm")
    task = load_tasks(arclab.load(RUNS / "etrm", device="cpu").config.dataset).train[0]
    (tmp_path / "my/tasks/0d3d703e.json").write_text(json.dumps(plain(task)))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert (
        len(blocks) == 4 and capsys.readouterr().out.startswith("0d3d703e ") and names["answers"].keys() == {"0d3d703e", "mine"}
    )


def test_compose_is_that_of_the_script() -> None:
    config = arclab.compose(["experiment=quickstart", "encoder=lpn", "name=b"])
    assert config.encoder.kind == "lpn" and config.name == "b"
    with pytest.raises(ConfigError, match=r"did you mean trainer\.steps\?"):
        arclab.compose(["trainer.step=3"])


def test_importing_it_is_light_and_its_names_are_there() -> None:
    script = "import sys, arclab; assert set(arclab.__all__) <= set(dir(arclab)); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], env=script_env(), check=True, timeout=60)
    assert all(getattr(arclab, name) is not None for name in arclab.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        arclab.lod  # noqa: B018
