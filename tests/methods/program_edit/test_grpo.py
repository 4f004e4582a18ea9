"""stage=grpo: a run that goes on, keeps its best checkpoint, says that it is sick, and takes its tasks from a curriculum.

The model is a tiny random one, whose replies hold no program: what they are worth is said by the tests, where they must differ.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arclab.config.compose import ConfigError
from arclab.files import read_object
from arclab.launch.start import start
from arclab.lm.training.rollouts import Rollout
from arclab.methods.program_edit import grpo as grpo_module
from arclab.methods.program_edit.curriculum import TaskState, observe, read_curriculum, write_curriculum
from arclab.metrics.logger import read_rows
from arclab.runs.folder import RunDir, State
from arclab.runs.stages import MANIFEST, read_counts

from .conftest import TOY

SCRIPT = "self_improve.py"
_SCORES = grpo_module.HeldOut.scores


def is_even(rollouts: Sequence[Rollout]) -> list[float]:
    return [float(row.completion_ids[0] % 2 == 0) for row in rollouts]


def alike(rollouts: Sequence[Rollout]) -> list[float]:
    return [0.0 for _ in rollouts]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory, long_lm: Path) -> Path:
    """A run whose stages up to sft are there; the model is not trained."""
    runs = tmp_path_factory.mktemp("before")
    assert start(SCRIPT, [*base(runs), "stage=sample"]) == 0
    made = runs / "program_edit/a/round_0/sft"
    shutil.copytree(long_lm, made / "model")
    (made / "trained.json").write_text("{}")
    (made / MANIFEST).write_text("{}")
    return runs


def base(runs: Path) -> list[str]:
    sources = [f'dataset.{key}_sources=["{TOY.replace("split=train", f"split={split}")}"]' for key, split in
               (("train", "train"), ("eval", "test"), ("validation", "validation"))]  # fmt: skip
    return [
        "method=program_edit", "lm=tiny", "dataset=toy", f"runs_dir={runs}", "name=a", *sources, "sandbox.num_workers=1",
        "num_threads=1", "max_tasks=3", "device=cpu", "starts.mutants=2", "starts.per_task=1", "sample.num_samples=2",
        "sample.proposer=reference", "prompt.instructions=false", "prompt.grid_format=digits", "launch=local", "lm.batch_size=32",
        "grpo.steps=6", "grpo.prompts_per_step=2", "grpo.group_size=4", "grpo.grad_accumulation=1", "grpo.lr=1e-3", "grpo.refills=0",
        "grpo.max_new_tokens=4", "grpo.mask_truncated=false", "grpo.eval_every=3", "grpo.eval_tasks=1", "grpo.eval_samples=1",
        "grpo.checkpoint_every=2", "grpo.keep_last=9", "grpo.updates_per_rollout=2", "grpo.warmup_steps=0", "grpo.stop_when_unhealthy=false",
    ]  # fmt: skip


Stage = Callable[..., int]


@pytest.fixture
def stage(before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """stage=grpo in a copy of the run. name: of the copy; reward: of a rollout; scores: of the evaluations, in turn."""
    monkeypatch.setattr("arclab.runs.preempt._SECONDS_BETWEEN_LOOKS", 0)

    def run(*more: str, name: str = "a", reward: Any = is_even, scores: Sequence[float] = (), stage: str = "grpo") -> int:
        if not (tmp_path / name).exists():
            shutil.copytree(before, tmp_path / name)
        monkeypatch.setattr(grpo_module, "REWARDS", {"delta": (1.0, reward)})
        told = iter(scores)
        if scores:
            monkeypatch.setattr(
                grpo_module.HeldOut, "scores", lambda _: {"edits/solved_share": next(told), "edits/starts": 10.0}
            )
        else:
            monkeypatch.setattr(grpo_module.HeldOut, "scores", _SCORES)
        keys = {each.partition("=")[0] for each in more}
        line = [each for each in base(tmp_path / name) if each.partition("=")[0] not in keys]
        return start(SCRIPT, [*line, f"stage={stage}", *more])

    yield run


def folder(tmp_path: Path, name: str = "a", stage: str = "grpo") -> Path:
    return tmp_path / name / "program_edit/a/round_0" / stage


def weights(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()


def measured(run: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if not k.startswith(("_run", "_time", "timing/"))}
        for row in read_rows(run / "metrics.jsonl")
    ]


def test_a_run_that_was_told_to_end_comes_to_the_same_weights(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage() == 0
    whole = folder(tmp_path)
    rows = measured(whole)
    assert [row["_step"] for row in rows] == list(range(7)) and "edits/solved_share" in rows[0]
    assert all(row["rl/offpolicy"] < 1e-4 for row in rows if "rl/offpolicy" in row and row["_step"] % 2 == 1)
    _, first, second, third, *_ = read_rows(
        whole / "metrics.jsonl"
    )  # rollouts serve two steps, held-out tasks are scored after three
    assert 0 < first["timing/sandbox_wait_share"] < 1 and 0 < first["timing/rollout_share"] < 1
    assert "timing/rollout_share" not in second and "timing/eval_share" not in second
    assert 0 < third["timing/eval_share"] < 1 and third["timing/rollout_share"] + third["timing/eval_share"] <= 1
    assert weights(whole) != weights(folder(tmp_path, stage="sft")) or read_counts(whole)["best_step"] == 0
    run = RunDir(folder(tmp_path, "b"))
    calls: list[int] = []
    told = grpo_module.Practice.told

    def noting(practice: Any, step: int, rows: Any) -> None:
        told(practice, step, rows)
        calls.append(step)
        if len(calls) == 2:  # between the two updates on the rollouts of the second drawing
            run.preempt.touch()

    monkeypatch.setattr(grpo_module.Practice, "told", noting)
    assert stage(name="b") == 143 and run.state is State.preempted and run.step == 3
    first = read_object(run.path / "curriculum.json")
    assert stage(name="b") == 0 and calls == [0, 1, 2]  # nothing was drawn again
    assert measured(run.path) == rows and weights(run.path) == weights(whole)
    last = read_object(run.path / "curriculum.json")
    assert last == read_object(whole / "curriculum.json") != first
    assert sum(task["num_groups"] for task in last["tasks"].values()) == 6
    scored = ["evaluate.max_tasks=1", "sample.sampling.max_new_tokens=4"]
    assert stage() == 0 and stage(*scored, stage="evaluate") == 0
    made = read_object(folder(tmp_path, stage="evaluate") / MANIFEST)["inputs"]["trained"]["path"]
    assert made == str(whole / "trained.json")


LORA = "grpo.lora={rank: 4, alpha: 8, dropout: 0.1, target_modules: [q_proj]}"


def test_an_adapter_alone_learns_and_is_merged(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that comes out has other weights where the adapter is, and the checkpoints hold the adapter alone. Where nothing
    was better than the start, it is the start. Told to end, and gone on, it comes to the same."""
    assert stage(LORA, "grpo.beta=0.1", scores=[0.1, 0.2, 0.9], name="a") == 0
    run, before = folder(tmp_path), load_file(folder(tmp_path, stage="sft") / "model/model.safetensors")
    after = load_file(run / "model/model.safetensors")
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all("q_proj" in name for name in changed) and before.keys() == after.keys()
    held = load_file(run / "checkpoints/step_00000006/model.safetensors")
    assert held and all("lora_" in name for name in held)
    rows = measured(run)
    assert rows[1]["rl/kl"] == pytest.approx(0, abs=1e-6) and rows[-1]["rl/kl"] > 0  # from the model without the adapter
    assert all(row["rl/offpolicy"] < 1e-4 for row in rows if row["_step"] % 2 == 1)
    assert not [path for path in run.iterdir() if path.name.startswith(".saving")]
    again, told = RunDir(folder(tmp_path, "b")), grpo_module.Practice.told
    with monkeypatch.context() as patch:
        patch.setattr(grpo_module.Practice, "told", lambda *given: (told(*given), again.preempt.touch()))
        assert stage(LORA, "grpo.beta=0.1", scores=[0.1, 0.2], name="b") == 143
    assert stage(LORA, "grpo.beta=0.1", scores=[0.2, 0.9], name="b") == 0 and weights(again.path) == weights(run)
    assert stage(LORA, scores=[0.9, 0.2, 0.3], name="c") == 0 and weights(folder(tmp_path, "c")) == weights(
        folder(tmp_path, "c", "sft")
    )


def test_the_best_checkpoint_is_the_model(stage: Stage, tmp_path: Path) -> None:
    assert stage(scores=[0.1, 0.9, 0.3], name="a") == 0
    run = folder(tmp_path)
    best = run / "checkpoints/step_00000003/model.safetensors"
    kept, saved = load_file(best), load_file(run / "model/model.safetensors")
    assert all((kept[name] == value).all() for name, value in saved.items()) and read_counts(run)["best_step"] == 3
    assert "the model is that of step 3" in str(RunDir(run).read_status())
    assert stage(scores=[0.9, 0.1, 0.3], name="b") == 0
    assert weights(folder(tmp_path, "b")) == weights(folder(tmp_path, "b", "sft"))  # nothing was better than the start


def test_a_sick_run_says_so_stops_and_leaves_its_best_model(stage: Stage, tmp_path: Path) -> None:
    more = [
        "grpo.stop_when_unhealthy=true",
        "grpo.health_every=1",
        "grpo.steps=40",
        "grpo.eval_every=5",
        "grpo.updates_per_rollout=1",
    ]
    assert stage(*more, reward=alike, scores=[0.5, 0.2, 0.2, 0.2, 0.2]) == 0
    run = RunDir(folder(tmp_path))
    status, notes = run.read_status(), read_object(run.path / MANIFEST)["notes"]
    assert status is not None and status["state"] == "DONE" and 0 < status["step"] < 40
    assert (
        "NO_SIGNAL" in status["message"]
        and "the model is that of step 0" in status["message"]
        and "grpo.group_size" in notes[0]
    )
    assert weights(run.path) == weights(folder(tmp_path, stage="sft"))
    told = [row for row in read_rows(run.metrics) if row.get("health") == "NO_SIGNAL"]
    assert told and told[0]["_step"] < status["step"]  # a warning before it is over
    assert all(row["rl/zero_variance_share"] == 1.0 for row in read_rows(run.metrics)[1:])
    assert stage(*more, reward=alike) == 0  # it is left alone


def test_all_tasks_saturated_ends_well_and_says_so(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stage("grpo.steps=2", name="first") == 0
    file = folder(tmp_path, "first") / "curriculum.json"
    raw = read_object(file)
    given = read_curriculum(file, raw["data"], raw["tasks"].keys())
    for id_ in given.tasks:
        for step in range(12):
            given = observe(given, id_, [True] * 4, step)
    assert given.is_all_saturated and all(task.state is TaskState.saturated for task in given.tasks.values())
    known = tmp_path / "known.json"
    write_curriculum(known, given)
    more = [f"curriculum.start_from={known}"]
    assert stage(*more, name="done") == 0
    status = RunDir(folder(tmp_path, "done")).read_status()
    assert status is not None and status["state"] == "DONE" and status["step"] == 0
    assert "all tasks go, so nothing is left to learn (step 0 of 6); the model is that of step 0" in status["message"]
    with monkeypatch.context() as patch:
        patch.setattr(grpo_module.Practice, "is_enough", lambda self: any(t.num_groups for t in self.curriculum.tasks.values()))
        assert stage(name="later", scores=[0.1, 0.2]) == 0  # scored once more, at the step that has become the last one
    status = RunDir(folder(tmp_path, "later")).read_status()
    assert (
        status is not None
        and (status["state"], status["step"]) == ("DONE", 1)
        and "the model is that of step 1" in status["message"]
    )
    assert stage(*more, "curriculum.kind=uniform", "grpo.steps=2", name="uniform") == 0  # which does not look
    assert read_counts(folder(tmp_path, "uniform"))["steps"] == 2
    raw["data"] = "of others"
    known.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"known\.json is of another data set"):
        stage(*more, name="other")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["grpo.group_size=1"], r"grpo.group_size=1 must be at least 2"),
        (["grpo.temperature=0"], "rollouts must differ"),
        (["grpo.eval_split=train"], "what is trained on"),
        (["grpo.steps=0"], r"stage=grpo is no stage of round=0: grpo.steps=0 leaves it out"),
        (["stage=start"], "scratch=null leaves it out"),
        (["stage=twin_sft"], "controls=none leaves it out"),
        (["think={min_tokens:9,max_tokens:3,num_waits:1}"], r"think.min_tokens=9 is above think.max_tokens=3"),
        (["think={min_tokens:1,max_tokens:3,num_waits:1}", "grpo.vllm_url=http://x"], "grpo.vllm_url does not go with think"),
        (["curriculum.rounds=0"], "curriculum.rounds=0 must be at least 1"),
        (["grpo.grad_accumulation=3"], "must be divisible by grpo.grad_accumulation=3"),
        (["dataset.validation_sources=[]"], "grpo.eval_split=validation has no tasks"),
        (["grpo.max_new_tokens=2040"], "no task has a start program to edit whose prompt leaves room"),
        (["grpo.updates_per_rollout=0"], "updates_per_rollout=0 must be at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(stage: Stage, change: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        stage(*(each for each in change if not each.startswith("stage=")), stage=named(change))


def named(change: Sequence[str]) -> str:
    return next((each.partition("=")[2] for each in change if each.startswith("stage=")), "grpo")


def _rank(rank: int, runs: Path, port: int) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    grpo_module.REWARDS = {"delta": (1.0, is_even)}  # type: ignore[misc]
    assert start(SCRIPT, [*base(runs), "stage=grpo", "grpo.steps=2"]) == 0


@pytest.mark.slow
def test_two_ranks_draw_and_train_as_one_does(before: Path, stage: Stage, tmp_path: Path) -> None:
    shutil.copytree(before, tmp_path / "two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, args=(tmp_path / "two", port), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    two, one = (folder(tmp_path, name) for name in ("two", "one"))
    assert stage("grpo.steps=2", name="one") == 0
    assert read_object(two / "curriculum.json")["tasks"] == read_object(one / "curriculum.json")["tasks"]
    for mine, other in zip(measured(two), measured(one), strict=True):
        for name in mine.keys() & {"rl/reward", "rl/tokens", "rl/entropy", "grad/total_norm", "edits/mean_delta"}:
            assert mine[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6), name
    kept, saved = (load_file(each / "checkpoints/step_00000002/model.safetensors") for each in (two, one))
    for name, value in saved.items():
        torch.testing.assert_close(kept[name], value, atol=1e-4, rtol=1e-3, msg=name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="stage=select of method=program_edit runs in one process, but WORLD_SIZE=2"):
            stage(name="one", stage="select")
