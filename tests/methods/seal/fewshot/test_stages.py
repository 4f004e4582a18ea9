"""self_improve.py method=seal_fewshot: known good self-edits are found, selected and learned; a kill loses nothing; what goes wrong is marked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.config.llm_schema import HfModelConfig
from arclab.config.seal_fewshot_schema import SealFewshotConfig
from arclab.files import read_lines, read_object
from arclab.lm.endpoint import started
from arclab.lm.hf import load_hf
from arclab.lm.scripted import ScriptedModel
from arclab.lm.training import inner as inner_module
from arclab.lm.training.inner import InnerAdapter
from arclab.methods.seal.fewshot import evaluate as evaluate_module
from arclab.methods.seal.fewshot.edits import edit_prompt
from arclab.methods.seal.fewshot.models import training_tasks
from arclab.methods.seal.fewshot.records import read_outcomes
from arclab.methods.seal.fewshot.run import improve
from arclab.methods.seal.fewshot.select import read_lessons
from arclab.runs.folder import RunDir, State
from arclab.runs.stages import MANIFEST, read_counts
from arclab.runs.worklist import Worklist

from .conftest import BAD, GOOD, Script, Stage, edit, folder

TOO_LONG = edit(1e-3, 10**6)


def test_good_self_edits_are_found_selected_and_learned(
    stage: Stage, script: Script, tmp_path: Path, overrides: list[str], lm_config: Callable[..., HfModelConfig]
) -> None:
    script(BAD, "no JSON", GOOD, num_parallel=2)
    assert stage("propose") == 0
    rows = [row for row in read_lines(folder(tmp_path, "propose") / "proposals.jsonl") if "settings" not in row]
    # Of three replies one cannot be tried, so another one is drawn; then one more, which makes three.
    assert [row["verdict"] for row in rows if row["task"] == "train0"] == ["ok", "bad_json", "ok", "ok"]
    assert stage("adapt") == 0
    outcomes = read_outcomes(folder(tmp_path, "adapt") / "outcomes.jsonl")
    assert {(each.response == GOOD, each.reward) for each in outcomes} == {(True, 1.0), (False, 0.0)}
    trials = [row for row in read_lines(folder(tmp_path, "adapt") / "trials.jsonl") if "settings" not in row]
    assert len(trials) == 4 and all(row["losses"] for row in trials), "two self-edits of two tasks, each tried once"
    assert all(each.loss_last is not None and each.loss_first is not None and each.loss_last < each.loss_first / 2 for each in outcomes if each.reward)  # fmt: skip
    assert stage("select") == 0
    lessons = read_lessons(folder(tmp_path, "select") / "sft.jsonl")
    assert [(lesson.task, lesson.reply, lesson.weight) for lesson in lessons] == [("train0", GOOD, 1.0), ("train1", GOOD, 1.0)]
    assert stage("restem") == 0
    counts = read_counts(folder(tmp_path, "restem"))
    assert counts["lessons"] == 2
    learned, before = load_hf(lm_config(name=str(folder(tmp_path, "restem") / "model"))), load_hf(lm_config())
    config = compose_run("self_improve_seal_fewshot", overrides)
    assert isinstance(config, SealFewshotConfig)
    asked = [edit_prompt(task, config.solver.text) for task in training_tasks(config)]

    def likely(model: Any, text: str) -> float:
        return sum(map(sum, model.logprobs(asked, [text] * len(asked))))

    assert likely(learned, GOOD) > likely(before, GOOD) and likely(learned, GOOD) - likely(learned, BAD) > likely(before, GOOD) - likely(before, BAD)  # fmt: skip
    assert stage("restem") == 0, "a finished stage is left alone"


def test_bad_proposals_are_records_and_drawing_ends(stage: Stage, script: Script, tmp_path: Path) -> None:
    model = script("{}", "no", TOO_LONG, edit(1e3, 2))
    assert stage("propose") == 0
    rows = [row for row in read_lines(folder(tmp_path, "propose") / "proposals.jsonl") if "settings" not in row]
    assert [row["verdict"] for row in rows if row["task"] == "train0"] == [
        "bad_schema",
        "bad_json",
        "over_budget",
        "bad_schema",
        "bad_json",
    ]
    assert model.num_completions == 2 * 5 and read_counts(folder(tmp_path, "propose"))["ok"] == 0
    over = next(row for row in rows if row["verdict"] == "over_budget")
    assert over["num_steps"] == 10**6 and over["config"]["training"]["num_train_epochs"] == 10**6
    assert stage("adapt") == 0
    outcomes = read_outcomes(folder(tmp_path, "adapt") / "outcomes.jsonl")
    assert len(outcomes) == 10 and all(each.reward == 0 and not each.right for each in outcomes)
    with pytest.raises(ConfigError, match="nothing to learn; draw more"):
        stage("select")


def test_a_reply_that_was_cut_is_no_self_edit(stage: Stage, script: Script, tmp_path: Path) -> None:
    from arclab.lm.language_model import FinishReason

    script(GOOD, finish_reason=FinishReason.length)
    assert stage("propose", "propose.num_edits=1", "propose.max_draws=1") == 0
    assert read_counts(folder(tmp_path, "propose")) == {"ok": 0, "bad_json": 2, "bad_schema": 0, "over_budget": 0}


def test_killed_stages_go_on_to_the_same_lines(stage: Stage, script: Script, tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    replies = (BAD, "no", GOOD, edit(1e-2, 20))
    script(*replies)

    def content(name: str, file: str) -> dict[str, dict[str, Any]]:
        """By id: a turn that was cut short is drawn again as a whole."""
        times = ("fit_s", "answer_s", "crc32", "seconds")
        rows = [row for row in read_lines(folder(tmp_path, name) / file) if "settings" not in row]
        return {row["id"]: {key: value for key, value in row.items() if key not in times} for row in rows}

    for name in ("propose", "adapt"):
        assert stage(name) == 0
    whole = {
        name: content(*name)
        for name in (("propose", "proposals.jsonl"), ("adapt", "trials.jsonl"), ("adapt", "outcomes.jsonl"))
    }
    for name, add in (("propose", "add_all"), ("adapt", "add")):
        run, original = RunDir(folder(tmp_path, name)), getattr(Worklist, add)
        for path in run.path.iterdir():
            if path.is_file():
                path.unlink()

        def noting(worklist: Worklist, *given: Any, run: RunDir = run, original: Any = original) -> None:
            original(worklist, *given)
            run.preempt.touch()

        with monkeypatch.context() as patch:
            patch.setattr(Worklist, add, noting)
            assert stage(name) == 143 and run.state is State.preempted and not (run.path / MANIFEST).exists()
        kept = next(run.path.glob("[pt]r*.jsonl"))
        lines = kept.read_text().splitlines(keepends=True)
        kept.write_text("".join(lines[:-1]) + lines[-1][:20])  # as a kill would leave it
        assert stage(name) == 0
    assert whole == {name: content(*name) for name in whole}


def test_merged_shards_are_what_one_process_tries(
    stage: Stage, script: Script, tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(BAD, GOOD, "no")
    assert stage("propose") == 0
    for number in (0, 1):
        assert stage("adapt", "launch.shards=2", f"launch.shard={number}") == 0
    whole = folder(tmp_path, "adapt")
    assert not (whole / "outcomes.jsonl").exists() and len(list(whole.glob("shards/*/trials.jsonl"))) == 2

    def tried(*given: Any) -> None:
        raise AssertionError("all has been tried")

    monkeypatch.setattr(InnerAdapter, "_train", tried)
    config = compose_run("self_improve_seal_fewshot", [*overrides, "stage=adapt", "launch.shards=2"])
    assert isinstance(config, SealFewshotConfig) and improve(config, None) == 0
    outcomes = read_outcomes(whole / "outcomes.jsonl")
    assert {(each.task, each.reward) for each in outcomes if each.response == GOOD} == {("train0", 1.0), ("train1", 1.0)}


def test_a_training_that_is_not_finite_earns_nothing(stage: Stage, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    script(GOOD)
    step = InnerAdapter._step
    seen: list[int] = []

    def broken(inner: InnerAdapter, *given: Any) -> tuple[float, float]:
        seen.append(1)
        return (float("nan"), 1.0) if len(seen) == 3 else step(inner, *given)

    monkeypatch.setattr(InnerAdapter, "_step", broken)
    keys = ("propose.num_edits=1", "propose.max_draws=1")
    assert stage("propose", *keys) == 0 and stage("adapt", *keys) == 0
    first, second = read_outcomes(folder(tmp_path, "adapt") / "outcomes.jsonl")
    assert "step 3 of 25 was not finite" in first.problem and first.reward == 0 and not second.problem and second.reward == 1
    assert read_counts(folder(tmp_path, "adapt"))["not_trained"] == 1


GRID = "grid={augmentations: [none], strategies: [train_using_output_tokens], learning_rates: [1e-6, 1e-2], num_train_epochs: [25]}"


def test_two_rounds_are_compared_with_everything_that_is_to_be_had_without_them(
    stage: Stage, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proposers are scripted: the first one does not know what works, the trained one does, the twin does not."""

    def load(config: HfModelConfig) -> ScriptedModel:
        is_trained = "restem" in config.name and not config.name.endswith("twin")
        return ScriptedModel([GOOD] if is_trained else [BAD, GOOD, BAD, "no"], num_parallel=9)

    for module in (started, evaluate_module):
        monkeypatch.setattr(module, "load_language_model", load)
    keys = [GRID, "restem.twin=true", "adapted=first", "evaluate.max_tasks=null", "evaluate.num_edits=3", "restem.steps=2"]
    judged = "criterion={metric: seal/wins, threshold: 0.75, phase: test}"
    assert stage("round", "rounds=2", judged, *keys) == 0
    found = read_counts(folder(tmp_path, "evaluate"))
    expected = {
        "successful_share": 1.0, "plain_share": 0.0, "default_share": 0.0, "random_share": 0.5, "constant_share": 1.0, "oracle_share": 1.0,
        "wins": 1.0, "discordant": 3.0, "modal_share": 1.0, "solved_share": 1.0, "constant_wins": 0.0, "constant_losses": 0.0, "ok_share": 1.0,
    }  # fmt: skip
    assert {name: found[f"seal/{name}"] for name in expected} == expected
    assert found["seal/start_share"] == found["seal/twin_share"] < 0.6
    root = tmp_path / "seal_fewshot/a"
    assert read_object(root / "criterion.json")["result"] == "PASS"
    note = read_object(folder(tmp_path, "evaluate") / MANIFEST)["notes"]
    assert "(100 % of the self-edits are one and the same, 9 of 9 proposals the constant best one)" in note[0]
    table = (folder(tmp_path, "evaluate") / "table.md").read_text()
    assert table.count("\n| ") == 8 and "best for each task (oracle) | 3/3 | 100.0 %" in table
    made = [
        (folder(tmp_path, "restem", number) / f"{which}/model.safetensors").is_file()
        for number in (0, 1)
        for which in ("model", "twin")
    ]
    assert all(made)
    assert found["seal/start_share"] == read_counts(folder(tmp_path, "evaluate", 1))["seal/start_share"]
    tried = [row["id"] for row in read_lines(folder(tmp_path, "evaluate", 1) / "first/trials.jsonl") if "settings" not in row] if (folder(tmp_path, "evaluate", 1) / "first/trials.jsonl").exists() else []  # fmt: skip
    assert tried == [], "what the first round has tried with the same model is not tried again"


def test_files_are_in_the_published_forms(stage: Stage, script: Script, tmp_path: Path) -> None:
    script(BAD, "no", GOOD)
    assert stage("propose") == 0 and stage("adapt") == 0
    configs = json.loads((folder(tmp_path, "propose") / "final_configs_and_indices.json").read_text())
    assert configs.keys() == {"train0", "train1"} and configs["train0"].keys() == {"0", "1", "2"}
    assert (
        configs["train0"]["1"].keys() == {"config", "prompt", "response", "token_ids"}
        and configs["train0"]["1"]["response"] == GOOD
    )
    results = json.loads((folder(tmp_path, "adapt") / "final_results.json").read_text())
    assert results["0"] == {"task_id": {"0": "train0", "1": "train1"}, "correct": {"0": False, "1": False}} and results["1"]["correct"] == {"0": True, "1": True}  # fmt: skip
    answers = json.loads((folder(tmp_path, "adapt") / "submission.json").read_text())
    assert answers["train0"][0].keys() == {"attempt_1", "attempt_2"} and [[1, 2]] in answers["train0"][0].values()


def test_the_model_itself_proposes(stage: Stage, tmp_path: Path) -> None:
    """A random model writes no self-edit; the file has the prompt that it saw and the tokens that it wrote."""
    keys = ("propose.num_edits=1", "propose.max_draws=2", "propose.sampling.max_new_tokens=4")
    assert stage("propose", *keys) == 0
    counts = read_counts(folder(tmp_path, "propose"))
    assert counts["bad_json"] == 4 and counts["ok"] == 0


def test_a_task_that_hides_its_answer_is_refused(stage: Stage, tmp_path: Path, overrides: list[str]) -> None:
    path = tmp_path / "test.json"
    tasks = json.loads(path.read_text())
    del tasks["t1"]["test"][0]["output"]
    path.write_text(json.dumps(tasks))
    with pytest.raises(ConfigError, match="t1 of toy / evaluation hides its answer"):
        stage("evaluate")


def test_a_stage_needs_the_one_before(stage: Stage, script: Script, tmp_path: Path) -> None:
    script(GOOD)
    with pytest.raises(ConfigError, match="run stage=propose first"):
        stage("adapt")
    with pytest.raises(ConfigError, match="is not measured here"):
        stage("round", "criterion={metric: ARC/solved@2, threshold: 0.5, phase: test}")


def test_a_replication_says_so_in_every_file_of_numbers(
    stage: Stage, script: Script, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The round runs with the published habits; without the switch nothing says so, and its trials are not taken for these."""
    script(GOOD, BAD)
    keys = ("dataset.name=arc1_seal", "propose.num_edits=2", "evaluate.num_edits=2", "restem.steps=2", "max_tasks=2")
    assert stage("propose", *keys) == 0 and stage("adapt", *keys) == 0 and "REPLICATION" not in capfd.readouterr().err
    assert read_object(folder(tmp_path, "adapt") / MANIFEST)["notes"] == []
    with pytest.raises(ConfigError, match="compat"):
        stage("adapt", *keys, "compat=seal_paper")
    keys = (*keys, "compat=seal_paper", "name=b")
    assert stage("round", *keys) == 0 and capfd.readouterr().err.count("A REPLICATION, compat=seal_paper") >= 5
    root = tmp_path / "seal_fewshot/b/round_0"
    for name in ("propose", "adapt", "restem", "evaluate"):
        assert "A REPLICATION" in read_object(root / name / MANIFEST)["notes"][0]
    assert "\nA REPLICATION" in (root / "evaluate/table.md").read_text()
    assert "A REPLICATION" in read_object(tmp_path / "seal_fewshot/b/status.json")["message"]
    assert read_outcomes(root / "adapt/outcomes.jsonl") != read_outcomes(folder(tmp_path, "adapt") / "outcomes.jsonl")


def test_merged_shards_are_what_one_process_evaluates(
    stage: Stage, script: Script, tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole draws and tries nothing; its files are, but for seconds, those of an evaluation in one piece."""
    script(BAD, GOOD, num_parallel=9)
    keys = [GRID.replace("[25]", "[9]"), "restem.steps=1", "adapted=first", "evaluate.max_tasks=3", "restem.twin=true"]
    for name in ("propose", "adapt", "select", "restem"):
        assert stage(name, *keys) == 0
    for number in (0, 1):
        assert stage("evaluate", *keys, "launch.shards=2", f"launch.shard={number}") == 0
    whole = folder(tmp_path, "evaluate")
    assert not (whole / "scores.json").exists()

    def again(*given: Any) -> None:
        raise AssertionError("all has been drawn and tried")

    config = compose_run("self_improve_seal_fewshot", [*overrides, *keys, "stage=evaluate", "launch.shards=2"])
    assert isinstance(config, SealFewshotConfig)
    with monkeypatch.context() as patch:
        patch.setattr(InnerAdapter, "fit", again)
        patch.setattr(ScriptedModel, "generate", again)
        assert improve(config, None) == 0
    merged = whole.rename(whole.with_name("merged"))
    assert stage("evaluate", *keys) == 0
    for name in ("scores.json", "table.md", "final_results.json", "final_configs_and_indices.json", "submission.json"):
        assert (merged / name).read_bytes() == (whole / name).read_bytes(), name
    outcomes = [[replace(each, seconds=0.0) for each in read_outcomes(root / "outcomes.jsonl")] for root in (merged, whole)]
    assert outcomes[0] == outcomes[1] and len({each.task for each in outcomes[0]}) == 3


def test_trials_together_are_the_trials_one_by_one(
    stage: Stage, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers, steps and rows are equal, losses up to rounding; the rows of three trials were in one batch."""
    script(BAD, GOOD, edit(3e-3, 2, ("size",)))
    sizes: list[int] = []
    split = inner_module._split

    def noting(rows: Any, owners: Any) -> Any:
        sizes.append(len(set(owners)))
        return split(rows, owners)

    monkeypatch.setattr(inner_module, "_split", noting)
    assert stage("propose") == 0 and stage("adapt") == 0 and not sizes
    alone = folder(tmp_path, "adapt").rename(tmp_path / "alone")
    assert stage("adapt", "trials_at_once=4") == 0 and max(sizes) == 4
    first, second = (read_outcomes(root / "outcomes.jsonl") for root in (alone, folder(tmp_path, "adapt")))
    plain = {"seconds": 0.0, "loss_first": None, "loss_last": None}
    assert [replace(each, **plain) for each in first] == [replace(each, **plain) for each in second]
    assert [each.loss_last for each in second] == [pytest.approx(each.loss_last, rel=1e-2, abs=1e-4) for each in first]
    with pytest.raises(ConfigError, match="use trials_at_once=1"):
        stage("adapt", "trials_at_once=2", "solver.adaptation.kind=full")
