"""Evaluations in shards: shares, claims, and that merged shards are what one process would have written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import ConfigError, compose_run, entry_for
from arclab.data.shares import expected_cost, share_of
from arclab.data.sources import load_source
from arclab.entries import ENTRIES, load
from arclab.launch import shards as launched
from arclab.launch.needs import require_needs
from arclab.launch.queue.plan import read_plan
from arclab.launch.shards import run_shards
from arclab.launch.sweep import sweep
from arclab.lm.endpoint import started
from arclab.lm.language_model import Prompt, Sampling
from arclab.lm.model_names import require_before_jobs
from arclab.lm.scripted import ScriptedModel
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.programs.toy import solution
from arclab.runs.folder import RunDir, State
from arclab.solvers import evaluation, shards
from arclab.solvers.shards import Claims

TOY = "toy:color_map?tasks=7&side=4&colors=3&palette=5&demos=3"
TASKS = load_source(f"{TOY}&split=test")
SOLVERS = {
    "program_sampling": ("solver.num_samples=3",),
    "tree_search": ("search=sampling", "search.num_programs=6", "search.branching=3"),
    "program_edit": ("solver.drafts=2", "solver.turns=2", "solver.num_samples=2"),
}
FILES = ("predictions.jsonl", "submission.json")


def overrides(solver: str, folder: Path, *more: str) -> list[str]:
    return [
        f"solver={solver}", "lm=tiny", "dataset=toy", f'dataset.train_sources=["{TOY}"]', f'dataset.eval_sources=["{TOY}&split=test"]',
        f'dataset.validation_sources=["{TOY}&split=validation"]',
        f"output_dir={folder}", "num_threads=1", *SOLVERS[solver], *more,
    ]  # fmt: skip


def reply(prompt: Prompt, sample: int, sampling: Sampling) -> str:
    """The task's own program, or one that is as long as the prompt and the sample say."""
    text = prompt[-1].content
    if sample % 2:
        return f"```python\ndef solve(grid):\n    return [[{len(text) % 7}]]  # {sample}\n```"
    for task in TASKS:
        if "\n".join(" ".join(map(str, row)) for row in task.demos[0].input.tolist()) in text:
            return f"```python\n{solution(task)}\n```"
    return "none"


@pytest.fixture
def run(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """run(solver, folder, *overrides): in this process, with a model that is scripted; numbers of prompts that it was asked."""
    models: list[ScriptedModel] = []

    def new_model(_: object) -> ScriptedModel:
        models.append(ScriptedModel(seeded=reply))
        return models[-1]

    monkeypatch.setattr(started, "load_language_model", new_model)
    monkeypatch.setattr(evaluation, "open_sandbox", lambda config: nullcontext(sandbox))

    def go(solver: str, folder: Path, *more: str) -> list[int]:
        given = overrides(solver, folder, *more)
        entry = entry_for("evaluate.py", given)
        assert load(ENTRIES[entry].run)(compose_run(entry, given), None) == 0
        return [sum(map(len, model.calls)) for model in models]

    return go


@pytest.fixture(scope="module")
def sandbox() -> Any:
    config = compose_run("evaluate_programs", ["solver=program_sampling", "lm=tiny", "dataset=toy", "sandbox.num_workers=1"])
    with open_sandbox(config.sandbox) as found:
        yield found


def test_shares_are_a_partition_that_is_balanced_by_cost() -> None:
    tasks = [*load_source("toy:color_map?tasks=9&side=3&colors=3"), *load_source("toy:dihedral?tasks=4&side=9")]
    for count in (1, 2, 5, len(tasks)):
        parts = [share_of(tasks, number, count) for number in range(count)]
        assert sorted(task.id for part in parts for task in part) == sorted(task.id for task in tasks)
        loads = [sum(map(expected_cost, part)) for part in parts]
        assert max(loads) - min(loads) <= max(map(expected_cost, tasks)) and min(loads) > 0
        again = [share_of(tasks[::-1], number, count) for number in range(count)]
        assert [sorted(task.id for task in part) for part in again] == [sorted(task.id for task in part) for part in parts]
    with pytest.raises(ValueError, match=r"launch.shards=14 is more than the 13 tasks; give at most 13\."):
        share_of(tasks, 0, 14)


@pytest.mark.parametrize("solver", SOLVERS)
def test_merged_shards_are_what_one_process_writes(solver: str, run: Callable[..., list[int]], tmp_path: Path) -> None:
    run(solver, tmp_path / "one")
    for number in (2, 0, 1):
        run(solver, tmp_path / "three", "launch.shards=3", f"launch.shard={number}")
        folder = tmp_path / "three/shards" / f"{number}_of_3"
        assert RunDir(folder).state is State.done and not (folder / "metrics.json").exists()
        measured = json.loads((folder / "shard.json").read_text())
        assert measured["tasks"] == len(share_of(TASKS, number, 3)) and measured["solve_s"] > 0 and measured["start_s"] > 0
    asked = run(solver, tmp_path / "three", "launch.shards=3")
    assert json.loads((tmp_path / "three/merge.json").read_text())["seconds"] > 0  # what plan reckons with
    assert asked[0] == sum(asked[1:4]) and asked[4] == 0 and min(asked[1:4]) > 0
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes(), name
    one, three = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "three"))
    assert [row for row in one["statistics"].items() if not row[0].startswith("timing/")] == [
        row for row in three["statistics"].items() if not row[0].startswith("timing/")
    ]


def test_a_shard_takes_what_others_have_not_begun(run: Callable[..., list[int]], tmp_path: Path) -> None:
    """Shard 1 had begun one task when it was killed: shard 0 leaves that one, and takes the rest."""
    folder, two = tmp_path / "two", ("launch.shards=2", "launch.steal=true")
    begun = share_of(TASKS, 1, 2)[0]
    assert Claims(folder / "shards/claims", 1).take(begun.id)
    run("program_sampling", folder, *two, "launch.shard=0")
    run("program_sampling", folder, *two, "launch.shard=1")
    asked = run("program_sampling", folder, *two)
    assert asked == [len(TASKS) - 1, 1, 0]
    alone = run("program_sampling", tmp_path / "one")
    assert alone[-1] == len(TASKS)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (folder / name).read_bytes(), name


def test_shards_begin_with_what_the_whole_has_drawn(run: Callable[..., list[int]], tmp_path: Path) -> None:
    run("program_sampling", tmp_path, "max_tasks=3")
    for number in range(2):
        run("program_sampling", tmp_path, "launch.shards=2", f"launch.shard={number}")
    known = {task.id for task in TASKS[:3]}
    new = [sum(task.id not in known for task in share_of(TASKS, number, 2)) for number in range(2)]
    assert run("program_sampling", tmp_path, "launch.shards=2") == [3, *new, 0]


def test_a_shard_that_is_not_done_or_of_another_model_is_refused(run: Callable[..., list[int]], tmp_path: Path) -> None:
    run("program_sampling", tmp_path, "launch.shards=2", "launch.shard=0")
    with pytest.raises(ConfigError, match=r"shard 1 of 2 was not started .* runs only what is missing\."):
        run("program_sampling", tmp_path, "launch.shards=2")
    run("program_sampling", tmp_path, "launch.shards=2", "launch.shard=1", "seed=1")
    with pytest.raises(ConfigError, match=r"seed"):
        run("program_sampling", tmp_path, "launch.shards=2")
    assert not (tmp_path / "metrics.json").exists()


def test_a_shard_drawn_with_other_weights_is_refused(run: Callable[..., list[int]], tmp_path: Path) -> None:
    """The model's folder has the same name, and was trained further between the shards."""
    (weights := tmp_path / "model").mkdir()
    given = (f"lm.name={weights}", "launch.shards=2")
    for number in range(2):
        (weights / "model.safetensors").write_text(f"weights {number}")
        run("program_sampling", tmp_path / "out", *given, f"launch.shard={number}")
    with pytest.raises(
        ConfigError, match=r"1_of_2/samples\.jsonl holds .* with lm\.name \(content\)=.* of the same settings only"
    ):
        run("program_sampling", tmp_path / "out", *given)
    assert not (tmp_path / "out/metrics.json").exists()


@pytest.mark.parametrize(
    ("entry", "given", "words"),
    [
        ("evaluate_programs", ["launch.shards=2", "launch.shard=2"], "launch.shard=2 is none of launch.shards=2"),
        ("evaluate_programs", ["launch.shards=0"], "launch.shards=0 must be at least 1"),
        ("evaluate_programs", ["launch.steal=true"], "launch.steal=true has nobody to take tasks from"),
        ("evaluate_ensemble", ["launch.shards=2"], "launch.shards=2 divides tasks between jobs, which evaluate.py does for"),
        ("pretrain_encoder", ["launch.shards=2"], "launch.shards=2 divides tasks between jobs, which pretrain_encoder.py does"),
    ],
)
def test_what_cannot_be_divided_is_refused(entry: str, given: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_run(entry, [*ENTRIES[entry].example, *given])
    assert words in str(caught.value)


def test_a_line_of_the_queue_is_its_shards_and_the_whole_that_waits_for_them(tmp_path: Path) -> None:
    file = tmp_path / "jobs.txt"
    line = f"evaluate.py solver=program_sampling lm=tiny dataset=toy launch.shards=3 runs_dir={tmp_path}/runs"
    file.write_text(f"## A\n## Criterion: b\n{line}\n")
    *parts, whole = read_plan(file).runs
    assert [part.config.launch.shard for part in parts] == [0, 1, 2] and whole.config.launch.shard is None
    assert whole.makers == tuple(part.folder.path for part in parts) and not any(part.makers for part in parts)
    assert [part.name for part in parts] == [f"{whole.name}-shard{number}" for number in range(3)]


def test_shards_of_another_number_are_named(tmp_path: Path) -> None:
    (tmp_path / "shards/0_of_4").mkdir(parents=True)
    given = overrides("program_sampling", tmp_path, "launch.shards=2")
    with pytest.raises(ConfigError, match=r"launch.shards=2: .*shards holds shards of 4; give launch.shards=4 to continue"):
        run_shards("evaluate.py", given, compose_run("evaluate_programs", given))


def test_a_model_that_is_not_there_is_noticed_before_anything_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("retry", "submit"):
        monkeypatch.setattr(launched, name, lambda *_, **__: pytest.fail("submitted"))
    plain = [word for word in overrides("program_sampling", tmp_path / "a") if not word.startswith("output_dir=")]
    plain.append(f"runs_dir={tmp_path / 'a'}")
    for name, reason in (("models/none", "is not a folder; make it with"), (str(tmp_path), "has no config.json")):
        given = overrides("program_sampling", tmp_path / "a", "launch.shards=2", f"lm.name={name}")
        with pytest.raises(ConfigError, match=rf"lm.name={name} {reason}"):
            run_shards("evaluate.py", given, compose_run("evaluate_programs", given))
        with pytest.raises(ConfigError, match=rf"lm.name={name} {reason}"):
            sweep("evaluate.py", [*plain, f"lm.name={name}", "name=b,c"])
        config = compose_run("evaluate_programs", given)
        if name.startswith("models"):  # an absolute path may be one of the nodes'
            with pytest.raises(ValueError, match=reason):
                require_before_jobs(config, on_slurm=True)
        else:
            require_before_jobs(config, on_slurm=True)
    assert not (tmp_path / "a").exists(), "nothing is left behind"
    (tmp_path / "a").mkdir()
    RunDir(tmp_path / "a").write_status(State.done, 0, "", 0)
    require_needs("evaluate.py", given, [config], on_slurm=False)  # a finished run does not need its model


def test_shards_that_fail_for_the_same_reason_are_named_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("retry", "submit"):
        monkeypatch.setattr(launched, name, lambda *_, **__: [])
    given = overrides("program_sampling", tmp_path / "a", "launch.shards=12", "lm.name=org/tiny")
    reasons = ["no such model."] * 6 + [f"reason {number}" for number in range(6)]
    for number, reason in enumerate(reasons):
        (shard := tmp_path / f"a/shards/{number}_of_12").mkdir(parents=True)
        RunDir(shard).write_status(State.failed, 0, f"first line\n{reason}", 2)
    with pytest.raises(ConfigError) as caught:
        run_shards("evaluate.py", given, compose_run("evaluate_programs", given))
    assert str(caught.value) == (
        "shards 0, 1, 2, 3, 4, 5 are FAILED (no such model); shard 6 is FAILED (reason 0); shard 7 is FAILED (reason 1); "
        f"shard 8 is FAILED (reason 2); 3 more are not DONE: python -m arclab.launch status {tmp_path}/a/shards/jobs.txt. The "
        "same command runs only what is missing."
    )


def test_what_a_command_took_around_its_jobs_is_kept_if_it_started_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "a"
    given = overrides("program_sampling", whole, "launch.shards=2", "lm.name=org/tiny")

    def pretend(*_: object, **__: object) -> list[Any]:
        now_s = time.time()
        for folder in (whole, *(whole / f"shards/{number}_of_2" for number in range(2))):
            folder.mkdir(parents=True, exist_ok=True)
            RunDir(folder).write_status(State.done, 0, "", 0)
            (folder / "shard.json").write_text(json.dumps({"start_s": 1.0, "solve_s": 2.0, "ended_s": now_s}))
        return []

    monkeypatch.setattr(launched, "retry", lambda *_, **__: [])
    monkeypatch.setattr(launched, "submit", pretend)
    kept = whole / "shards/command.json"
    assert run_shards("evaluate.py", given, compose_run("evaluate_programs", given)) == 0
    assert json.loads(kept.read_text())["seconds"] >= 0
    kept.unlink()
    assert run_shards("evaluate.py", given, compose_run("evaluate_programs", given)) == 0
    assert not kept.exists(), "the second command started nothing"


@pytest.mark.slow
def test_a_lost_shard_is_named_and_the_same_command_runs_it_alone(
    tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(shards.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    given = overrides("program_sampling", tmp_path / "a", f"lm.name={tiny_lm}", "lm.device=cpu", "launch.shards=2")
    given += ["solver.sampling.max_new_tokens=4", "sandbox.num_workers=1", f"runs_dir={tmp_path}"]
    # Prompts that its context of 256 tokens holds.
    given += ["solver.prompt.instructions=false", "solver.prompt.show_shapes=false", "solver.prompt.grid_format=digits"]

    def go() -> int:
        return run_shards("evaluate.py", given, compose_run("evaluate_programs", given))

    broken = tmp_path / "a/shards/1_of_2/samples.jsonl"
    broken.parent.mkdir(parents=True)
    broken.write_text('{"settings": {"seed": 7}}\n')
    with pytest.raises(ConfigError, match=r"shard 1 is FAILED \(.*holds replies drawn with .*\)\. The same command runs only"):
        go()
    first = (tmp_path / "a/shards/0_of_2/samples.jsonl").stat().st_mtime_ns
    broken.unlink()
    assert go() == 0 and (tmp_path / "a/metrics.json").is_file()
    assert (tmp_path / "a/shards/0_of_2/samples.jsonl").stat().st_mtime_ns == first
