"""The options of the group dataset: what each gives, what is kept apart, and sentences for what cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import ConfigError, group_options
from arclab.config.text_schema import TEXT_DATASET_SCHEMAS, WordProblem
from arclab.data.sources import load_source
from arclab.programs.prompts import render_prompt
from arclab.text.answers import check_answers, is_right
from arclab.text.examples import TextExample, TextSplits, same_question, separated
from arclab.text.load import load_text

from .conftest import TextConfig

SPLITS = ("train", "validation", "test")


def apart(splits: TextSplits) -> None:
    """No example stands twice, and no question is in two splits."""
    everything = [example for name in SPLITS for example in splits.named(name)]
    assert len({example.id for example in everything}) == len(everything)
    asked = [{same_question(example) for example in splits.named(name)} for name in SPLITS]
    assert sum(map(len, asked)) == len(set().union(*asked))


def test_every_option_has_a_sample(text_config: TextConfig) -> None:
    options = group_options("dataset", "pretrain_memgen.py")
    assert len(options) == len(TEXT_DATASET_SCHEMAS)
    for option in options:
        splits = load_text(text_config(option, "dataset.sample=true"))
        assert [len(splits.named(name)) for name in SPLITS] == [16, 8, 8], option
        apart(splits)
        assert splits == load_text(text_config(option, "dataset.sample=true"))
        # replies of recall are wrong in places, on purpose
        if option != "recall" and text_config(option, "dataset.sample=true").has_boxed_answers:
            assert all(each.is_right for each in check_answers([(e.reply, e.answer) for e in (*splits.train, *splits.test)]))
            assert all(e.reply.endswith(f"\\boxed{{{e.answer}}}") for e in splits.train)


def test_every_key_of_arithmetic_counts(text_config: TextConfig) -> None:
    small: Any = replace(text_config("arithmetic"), num_train=20, num_validation=4, num_test=6)
    base = load_text(small)
    assert [len(base.named(name)) for name in SPLITS] == [20, 4, 6]
    changes: list[dict[str, Any]] = [
        {"seed": 1}, {"families": [WordProblem.total]}, {"digits": 3}, {"min_steps": 3}, {"max_steps": 5}, {"instruction": "Reason."},
    ]  # fmt: skip
    for change in changes:
        assert load_text(replace(small, **change)).train != base.train, change
    assert all(e.id.startswith("total_train_") for e in load_text(replace(small, families=[WordProblem.total])).train)
    guessed = load_text(replace(small, guessed_share=0.5))
    assert guessed.validation == base.validation and guessed.test == base.test
    both = list(zip(guessed.train, base.train, strict=True))
    changed = [(mine, plain) for mine, plain in both if mine != plain]
    assert 4 < len(changed) < 16 and all(mine.answer == plain.answer for mine, plain in both)
    assert all(re.fullmatch(r"The answer is \\boxed\{\d+\}", mine.reply) for mine, _ in changed)
    assert not any(is_right(mine.reply, mine.answer) for mine, _ in changed)
    told = load_text(replace(small, instruction="Reason.")).train[0]
    assert told.question == f"{base.train[0].question}\n\nReason." and told.reply == base.train[0].reply


@pytest.mark.parametrize(("option", "change", "sentence"), [
    ("arithmetic", {"num_train": None}, r"d\.num_train=null does not say how many problems are to be generated; give a number"),
    ("arithmetic", {"num_test": 0}, r"d\.num_test=0 must be at least 1, or null for all; change it"),
    ("arithmetic", {"digits": 10}, r"d\.digits=10 must be between 1 and 9"),
    ("arithmetic", {"min_steps": 4}, r"d\.min_steps=4 must not be above d\.max_steps=3; change one"),
    ("arithmetic", {"families": []}, "must name at least one family, and each once; choose among change, compare"),
    ("arithmetic", {"families": [WordProblem.total] * 2}, "must name at least one family, and each once"),
    ("arithmetic", {"seed": -1}, r"d\.seed=-1 must be at least 0"),
    ("gsm8k", {"num_validation": None}, r"d\.num_validation=null does not say how many training examples are held out"),
    ("gsm8k", {"hub_name": ""}, r"d\.hub_name is empty; give a name such as openai/gsm8k"),
    ("arc_programs", {"name": "a/b"}, r"d\.name='a/b' becomes a folder name"),
])  # fmt: skip
def test_bad_settings_are_one_sentence(option: str, change: dict[str, Any], sentence: str, text_config: TextConfig) -> None:
    (problem,) = replace(text_config(option), **change).check("d")
    assert re.match(f".*{sentence}", problem) and "\n" not in problem


def test_kinds_and_families_that_are_none(text_config: TextConfig) -> None:
    words = r"kind=algebra is not known; choose arc, arc_refinement, arithmetic, code_words, gpqa, gsm8k, kodcode, recall, triviaqa\."
    with pytest.raises(ConfigError, match=words):
        text_config("arithmetic", "dataset.kind=algebra")
    with pytest.raises(ConfigError, match=r"families.*sums.*"):
        text_config("arithmetic", "dataset.families=[sums]")


def example(name: str, question: str, reply: str = "so") -> TextExample:
    return TextExample(name, question, reply, "1")


def test_what_is_asked_in_a_scored_split_is_not_learned(text_config: TextConfig) -> None:
    config = text_config("arithmetic", "dataset.num_train=2", "dataset.num_validation=2", "dataset.num_test=1")
    train = [example("t0", "Who  is\nit?"), example("t1", "one"), example("t2", "two", reply=""), example("t3", "v"), example("t4", "ok"), example("t5", "y"), example("t6", "z")]  # fmt: skip
    splits = separated(config, train, [example("v0", "v"), example("v1", "who is it?")], [example("s0", "Who is it?"), example("s1", "one")])  # fmt: skip
    ids: Sequence[Sequence[str]] = [[e.id for e in splits.named(name)] for name in SPLITS]
    assert ids == [["t1", "t4"], ["v0"], ["s0"]], "s1 is beyond the limit, so that its question may be learned"
    assert [note.split(":")[0] for note in splits.notes] == [
        "1 training examples dropped", "2 training examples dropped", "1 validation examples dropped",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"name=arithmetic has no train example \(1 training examples dropped: their question"):
        separated(config, [example("t", "q")], [example("v", "v")], [example("s", "q")])
    with pytest.raises(ValueError, match=r"has no test example; give it data"):
        separated(config, [example("t", "q")], [example("v", "v")], [])


def test_arc_tasks_are_questions_for_a_program(text_config: TextConfig) -> None:
    config = text_config("arc_programs", "dataset@dataset.dataset=toy", "dataset.num_train=5", "dataset.num_test=3")
    splits = load_text(config)
    assert len(splits.train) == 5 and len(splits.test) == 3 and splits.test[0].reply.startswith("```python\ndef solve(I):")
    task = load_source(config.dataset.eval_sources[0])[0]  # type: ignore[attr-defined]
    (message,) = render_prompt(task, config.prompt)  # type: ignore[attr-defined]
    assert splits.test[0].question == message.content and splits.test[0].id == task.id
    (truth,) = [test.output for test in task.tests]
    assert truth is not None and json.loads(splits.test[0].answer) == [truth.tolist()]
    assert json.dumps(truth.tolist()) not in splits.test[0].question


def real_tasks(folder: Path) -> list[str]:
    """Overrides for four tasks of one demonstration and one test that nobody generated: a and b to learn from, v, and e."""
    for at, name in enumerate("abve"):
        (folder / name[0].replace("b", "a")).mkdir(exist_ok=True)
        pair = {"input": [[1] * (at + 2)], "output": [[2] * (at + 1) + [3]]}
        task = {"train": [pair], "test": [{"input": [[4] * (at + 2)], "output": [[5] + [6] * (at + 1)]}]}
        (folder / name.replace("b", "a") / f"{name}.json").write_text(json.dumps(task))
    sources = {"train_sources": "a", "validation_sources": "v", "eval_sources": "e"}
    return [
        "dataset.dataset.validation_ids=null",
        *(f"dataset.dataset.{key}=['folder:{folder / name}']" for key, name in sources.items()),
    ]


def test_programs_of_real_tasks_come_from_a_file(text_config: TextConfig, tmp_path: Path) -> None:
    file, tasks = tmp_path / "programs.jsonl", real_tasks(tmp_path)
    config = text_config("arc_programs", *tasks, f"dataset.programs={file}")
    with pytest.raises(ValueError, match=r"programs=.*programs\.jsonl is no file; give a JSONL file with task_id and program"):
        load_text(config)
    row = {"task_id": "a", "program": "def solve(grid):\n    return grid\n"}
    file.write_text(json.dumps(row))  # as others write it: no line break at the end
    splits = load_text(config)
    assert [(e.id, e.reply) for e in splits.train] == [("a", "```python\ndef solve(grid):\n    return grid\n```")]
    assert splits.notes == ("1 training examples dropped: the data has no reply for them",)
    assert [(e.id, e.reply, e.answer) for e in (*splits.validation, *splits.test)] == [
        ("v", "", "[[[5, 6, 6, 6]]]"), ("e", "", "[[[5, 6, 6, 6, 6]]]"),
    ]  # fmt: skip
    for broken, why in (
        ({**row, "task_id": "nobody"}, r"line 2 \(dataset\.dataset has no task nobody\)"),
        (row, "line 2 .*stands twice"),
        ({**row, "task_id": "b", "program": "x = 1"}, "line 2 .*defines no function solve"),
        ({"task_id": "b"}, "line 2 .*it has no program"),
    ):
        file.write_text(f"{json.dumps(row)}\n{json.dumps(broken)}\n")
        with pytest.raises(ValueError, match=why):
            load_text(config)
    with pytest.raises(ValueError, match=r"has no train example \(2 training examples dropped: the data has no reply for them"):
        load_text(text_config("arc_programs", *tasks))
