"""GPQA, KodCode and TriviaQA: of a folder and of the hub, what is kept apart, and sentences for what is broken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from arclab.text.examples import TextExample
from arclab.text.load import holds_its_answer, load_text, write_ids

from .conftest import TextConfig


def write(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


def question(number: int) -> dict[str, Any]:
    wrong = {f"Incorrect Answer {n}": f"wrong {n} of {number}" for n in (1, 2, 3)}
    return {"Record ID": f"rec{number}", "Question": f"Which {number}?", "Correct Answer": f"right {number}", **wrong, "Explanation": f"Because {number}.", "Writer": "x"}  # fmt: skip


def function(number: int, test: str = "") -> dict[str, Any]:
    return {
        "question_id": f"id{number}", "question": f"Add {number}.", "solution": f"def add(x):\n    return x + {number}", "style": "online",
        "test": test or f"from solution import add\n\ndef test_add():\n    assert add(1) == {number + 1}\n",
    }  # fmt: skip


def trivia(number: int) -> dict[str, Any]:
    names = {"value": f"Name {number}", "aliases": [f"N. {number}", f"Name {number}"], "type": "WikipediaEntity"}
    return {"question_id": f"q{number}", "question": f"Who is {number}?", "answer": names, "entity_pages": []}


FILES = {
    "gpqa": {"main": [question(n) for n in range(30)], "diamond": [question(n) for n in range(25, 30)]},
    "kodcode": {"train": [function(n) for n in range(20)]},
    "triviaqa": {"train": [trivia(n) for n in range(20)], "validation": [trivia(n) for n in range(50, 56)]},
}
SMALL = {
    "gpqa": ["dataset.num_validation=4"],
    "kodcode": ["dataset.num_validation=3", "dataset.num_test=5"],
    "triviaqa": ["dataset.num_validation=4", "dataset.search.server=http://127.0.0.1:1"],
}
SIZES = {"gpqa": [21, 4, 5], "kodcode": [12, 3, 5], "triviaqa": [16, 4, 6]}


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    for name, rows in FILES[request.getfixturevalue("kind")].items():
        write(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


def sizes(splits: Any) -> list[int]:
    return [len(splits.named(name)) for name in ("train", "validation", "test")]


@pytest.mark.parametrize("kind", FILES)
def test_rows_of_a_folder_are_split_by_the_seed_and_written_by_id(kind: str, folder: Path, text_config: TextConfig) -> None:
    given = [*SMALL[kind], f"dataset.folder={folder}"]
    splits = load_text(text_config(kind, *given), needs_replies=False)
    assert sizes(splits) == SIZES[kind] and not any("are not used" in note for note in splits.notes)
    write_ids(splits, folder / "splits.json")
    ids = json.loads((folder / "splits.json").read_text())
    assert [len(each) for each in ids.values()] == SIZES[kind] and len({i for each in ids.values() for i in each}) == sum(
        SIZES[kind]
    )
    again = load_text(text_config(kind, *given), needs_replies=False)
    other = load_text(text_config(kind, *given, "dataset.seed=1"), needs_replies=False)
    assert again == splits and [e.id for e in other.validation] != [e.id for e in splits.validation]


@pytest.mark.parametrize("kind", FILES)
def test_the_hub_is_read_by_name(kind: str, folder: Path, text_config: TextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the card of a data set is read as the hub's are. Offline it is one sentence."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    cards = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{file}.jsonl"}]}
        for name, file in (("gpqa_main", "main"), ("other_diamond", "diamond"))
    ]
    if kind != "gpqa":
        cards = [{"config_name": "all", "data_files": [{"split": s, "path": f"{s}.jsonl"} for s in FILES[kind]]}]
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(f'- {json.dumps(card)}{chr(10)}' for card in cards)}---\n")
    named = ["dataset.hub_diamond=other_diamond"] if kind == "gpqa" else ["dataset.hub_config=all"]
    splits = load_text(text_config(kind, *SMALL[kind], *named, f"dataset.hub_name={folder}"), needs_replies=False)
    local = load_text(text_config(kind, *SMALL[kind], f"dataset.folder={folder}"), needs_replies=False)
    assert splits == local
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"hub_name=nobody/nothing cannot be loaded \(.*\); check the name") as error:
        load_text(text_config(kind, *SMALL[kind], "dataset.hub_name=nobody/nothing"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["gpqa"])
def test_diamond_questions_are_tested_and_never_learned(kind: str, folder: Path, text_config: TextConfig) -> None:
    """By their record and by their text; the order of options is drawn for each question, whatever else there is."""
    write(folder / "main.jsonl", [*FILES["gpqa"]["main"], {**question(26), "Record ID": "another", "Question": "WHICH  26?"}])
    config = text_config(kind, *SMALL[kind], f"dataset.folder={folder}")
    splits = load_text(config)
    tested = {example.id.rpartition("_")[2] for example in splits.test}
    assert (
        tested == {f"rec{n}" for n in range(25, 30)}
        and "6 questions of main dropped: they are among the 5 of diamond" in splits.notes
    )
    learned = {example.id.rpartition("_")[2] for example in (*splits.train, *splits.validation)}
    assert learned == {f"rec{n}" for n in range(25)}
    letters = set()
    for example in (*splits.train, *splits.test):
        number = example.id.rpartition("rec")[2]
        assert f"\n{example.answer}) right {number}\n" in f"{example.question}\n"
        assert example.reply == f"Because {number}.\nThe answer is \\boxed{{{example.answer}}}"
        letters.add(example.answer)
    assert letters == set("ABCD"), "the right option is not always the same one"
    write(folder / "main.jsonl", FILES["gpqa"]["main"][::-1])
    before = {example.id: example.question for example in (*splits.train, *splits.validation)}
    again = load_text(config)
    assert all(before[example.id] == example.question for example in (*again.train, *again.validation))
    assert not any("hold their own answer" in note for note in again.notes)


@pytest.mark.parametrize("kind", ["kodcode"])
def test_functions_whose_tests_cannot_run_are_dropped_and_counted(kind: str, folder: Path, text_config: TextConfig) -> None:
    broken = ["def test_a(:", "def test_a():\n    pass", "from solution import add\nx = 1", "from solution import add\nimport requests\ndef test_a():\n    pass", "from solution import add\ndef test_a(tmp_path):\n    pass"]  # fmt: skip
    write(folder / "train.jsonl", [*FILES["kodcode"]["train"], *(function(90 + n, test) for n, test in enumerate(broken))])
    splits = load_text(text_config(kind, *SMALL[kind], f"dataset.folder={folder}"))
    assert sizes(splits) == SIZES["kodcode"] and sum("1 examples dropped: the" in note for note in splits.notes) == 5
    with pytest.raises(ValueError, match=r"num_test=20 must be below the number of usable rows \(20\)"):
        load_text(text_config(kind, *SMALL[kind], "dataset.num_test=20", f"dataset.folder={folder}"))


@pytest.mark.parametrize(("kind", "file", "row", "why"), [
    ("gpqa", "main", {"Question": "q"}, "it has no Record ID and no Correct Answer"),
    ("gpqa", "diamond", {**question(1), "Correct Answer": " "}, "its Correct Answer is empty or no text"),
    ("gpqa", "main", {**question(1), "Explanation": 3}, "its Explanation is not of the right kind"),
    ("kodcode", "train", {"question": "q"}, "it has no question_id and no solution and no test"),
    ("triviaqa", "train", {**trivia(1), "answer": "x"}, "its answer is not of the right kind"),
    ("triviaqa", "validation", {**trivia(1), "answer": {"aliases": []}}, "its answer has neither a value nor aliases"),
])  # fmt: skip
def test_a_broken_row_is_named_with_its_line(
    kind: str, file: str, row: Any, why: str, folder: Path, text_config: TextConfig
) -> None:
    write(folder / f"{file}.jsonl", [FILES[kind][file][0], row])
    with pytest.raises(ValueError, match=rf"{file}\.jsonl is damaged in line 2 \({why}") as error:
        load_text(text_config(kind, *SMALL[kind], f"dataset.folder={folder}"))
    assert "\n" not in str(error.value)


def test_what_only_reward_teaches_needs_no_replies(tmp_path: Path, text_config: TextConfig) -> None:
    for name, rows in FILES["triviaqa"].items():
        write(tmp_path / f"{name}.jsonl", rows)
    config = text_config("triviaqa", *SMALL["triviaqa"], f"dataset.folder={tmp_path}")
    with pytest.raises(ValueError, match=r"name=triviaqa has no train example \(16 training examples dropped: the data has no"):
        load_text(config)
    example = load_text(config, needs_replies=False).train[0]
    number = example.id.rpartition("q")[2]
    assert json.loads(example.answer) == [f"Name {number}", f"N. {number}"] and "<search>" in example.question


def test_questions_that_hold_their_answer_are_noted(text_config: TextConfig) -> None:
    """By chance a small number stands in a question; that is no leak unless it does in most."""
    assert not any("own answer" in note for note in load_text(text_config("arithmetic", "dataset.sample=true")).notes)
    assert holds_its_answer(TextExample("a", "It is 12, is it?", "", "12")) and not holds_its_answer(
        TextExample("a", "It is 123.", "", "12")
    )
    assert (
        holds_its_answer(TextExample("a", r"Say \boxed{x}.", "", "x"))
        and holds_its_answer(TextExample("a", "Who? Ann Lee!", "", '["Bo", "ann"]')) is False
    )
    assert holds_its_answer(TextExample("a", "Who? Bo!", "", '["Ann Lee", "Bo"]'))
