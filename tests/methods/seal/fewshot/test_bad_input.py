"""What users give that cannot be: a line or a sentence for each, and everything else goes on. (Texts of self-edits: test_edits.py;
test-time training by itself: tests/methods/seal/test_solver.py; the base bit for bit after NaN: tests/lm/training/test_inner.py.)"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from arclab.config.llm_schema import HfModelConfig
from arclab.lm.hf import load_hf
from arclab.lm.tiny import build_tiny, default_texts
from arclab.methods.seal.fewshot.edits import Verdict
from arclab.methods.seal.fewshot.records import Outcome, read_outcomes
from arclab.runs.stages import read_counts

from .conftest import GOOD, Script, Stage, edit, folder


def outcomes_of(stage: Stage, root: Path, *keys: str) -> list[Outcome]:
    assert stage("propose", *keys) == 0 and stage("adapt", *keys) == 0
    return read_outcomes(folder(root, "adapt") / "outcomes.jsonl")


def changed(root: Path, change: Callable[[dict[str, dict[str, list[dict[str, list[list[int]]]]]]], None]) -> None:
    """The training tasks, with a change."""
    path = root / "train.json"
    tasks = json.loads(path.read_text())
    change(tasks)
    path.write_text(json.dumps(tasks))


def test_self_edits_that_cannot_be_earn_nothing_and_are_not_trained(stage: Stage, script: Script, tmp_path: Path) -> None:
    """lr 1e3, a boolean as text, no epochs, a million of them; beside one that works."""
    script(edit(1e3, 2), edit(1e-3, 2).replace("false", '"false"'), edit(1e-3, 0), edit(1e-3, 10**6), GOOD)
    found = outcomes_of(stage, tmp_path, "propose.num_edits=5", "propose.max_draws=5")
    schema = Verdict.bad_schema.value
    told = [schema, schema, schema, Verdict.over_budget.value, Verdict.ok.value]
    assert [each.verdict for each in found if each.task == "train0"] == told
    assert [each.reward for each in found] == [0, 0, 0, 0, 1] * 2 and read_counts(folder(tmp_path, "adapt"))["trials"] == 2


def test_a_task_with_one_demonstration_leaves_nothing_to_train_on(stage: Stage, script: Script, tmp_path: Path) -> None:
    """Leave-two-out has no demonstration, leave-one-out shows none: the line says so, and the other task is solved."""
    script(GOOD)
    changed(tmp_path, lambda tasks: tasks["train0"].update(train=tasks["train0"]["train"][:1]))
    first, second = outcomes_of(stage, tmp_path, "propose.num_edits=1", "propose.max_draws=1")
    assert "1 demonstrations leave no pseudo-task" in first.problem and first.reward == 0 and first.num_steps == 0
    assert second.reward == 1 and read_counts(folder(tmp_path, "adapt"))["not_trained"] == 1


def test_grids_too_large_for_the_context_are_skipped_and_counted(stage: Stage, script: Script, tmp_path: Path) -> None:
    script(GOOD)
    changed(tmp_path, lambda tasks: tasks["train0"]["test"][0].update(input=[[1] * 30] * 30))
    first, second = outcomes_of(
        stage, tmp_path, "propose.num_edits=1", "propose.max_draws=1", "lm.max_context=600", "dataset.canvas=30"
    )
    assert "more than the context of 600 tokens" in first.problem and first.reward == 0 and second.reward == 1
    assert read_counts(folder(tmp_path, "adapt"))["not_trained"] == 1


def test_a_tokenizer_without_chat_template_is_a_sentence(stage: Stage, seal_lm: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(seal_lm, tmp_path / "copy"))
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="has no chat template"):
        stage("propose", f"lm.name={copy}")
    assert not (folder(tmp_path, "propose") / "proposals.jsonl").exists()


def test_an_adapter_of_another_model_is_a_sentence(
    stage: Stage, script: Script, tmp_path: Path, lm_config: Callable[..., HfModelConfig]
) -> None:
    other = tmp_path / "other"
    build_tiny(other, texts=default_texts(), seed=0, num_layers=1, width=64, num_heads=2, context=256, vocab_size=400)
    with load_hf(lm_config(name=str(other))).new_adapter(rank=2, alpha=4) as trainable:
        trainable.save_pretrained(str(tmp_path / "theirs"))
    script(GOOD)
    keys = ("propose.num_edits=1", "propose.max_draws=1", f"lm.adapter={tmp_path / 'theirs'}")
    assert stage("propose", *keys) == 0
    with pytest.raises(ValueError, match="does not fit this model"):
        stage("adapt", *keys)
    assert not (folder(tmp_path, "adapt") / "outcomes.jsonl").exists()
