"""GSM8K from a folder and through the datasets library: rows, marks, held-out rows, and sentences for what is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from arclab.text.examples import TextSplits
from arclab.text.load import load_text

from .conftest import TextConfig

ROW = {"question": "Natalia sold 48 clips in April and half as many in May. How many in all?", "answer": "In May she sold 48/2 = <<48/2=24>>24.\nIn all she sold 48+24 = <<48+24=72>>72.\n#### 72"}  # fmt: skip
Load = Callable[..., TextSplits]


def rows(count: int, first: int = 0) -> list[dict[str, str]]:
    return [{"question": f"What is {n}?", "answer": f"It is {n}.\n#### {n:,}"} for n in range(first, first + count)]


def write(path: Path, found: list[dict[str, str]]) -> None:
    path.write_text("\n".join(map(json.dumps, found)))  # without a line break at the end, as other programs write it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.jsonl", rows(20, 1000))
    write(tmp_path / "test.jsonl", [ROW, *rows(3)])
    return tmp_path


@pytest.fixture
def load(folder: Path, text_config: TextConfig) -> Load:
    def build(*overrides: str) -> TextSplits:
        given = [f"dataset.folder={folder}", "dataset.num_validation=5", *(f"dataset.{o}" for o in overrides)]
        return load_text(text_config("gsm8k", *given))

    return build


def test_a_row_becomes_question_reply_and_answer(load: Load) -> None:
    first = load("instruction='Think.'").test[0]
    assert first.id == "gsm8k_test_00000" and first.question == f"{ROW['question']}\n\nThink." and first.answer == "72"
    assert first.reply == "In May she sold 48/2 = 24.\nIn all she sold 48+24 = 72.\nThe answer is \\boxed{72}"
    assert "<<48/2=24>>24" in load("calculator_marks=true").test[0].reply
    assert load("instruction=''").test[0].question == ROW["question"]
    asked = load().test[0].question
    assert "step by step" in asked and "\\boxed{}" in asked and asked.endswith(".")


def test_validation_rows_are_drawn_by_the_seed_and_named(load: Load) -> None:
    splits = load()
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [15, 5, 4]
    ids = [example.id for example in splits.validation]
    assert ids == sorted(ids) and not {*ids} & {example.id for example in splits.train}
    assert all(example.question.split("\n")[0] == f"What is {1000 + int(example.id[-5:])}?" for example in splits.validation)
    assert ids == [f"gsm8k_train_{n:05d}" for n in (1, 13, 16, 18, 19)], "the same rows on every machine"
    assert [example.id for example in load("seed=1").validation] != ids
    assert [example.id for example in load("num_train=3", "num_test=2").test] == ["gsm8k_test_00000", "gsm8k_test_00001"]
    assert load("num_train=3").validation == splits.validation and len(load("num_train=3").train) == 3


def test_a_test_question_is_not_learned(load: Load, folder: Path) -> None:
    write(folder / "train.jsonl", [{**ROW, "question": ROW["question"].upper()}, *rows(20, 1000)])
    splits = load("num_validation=1")
    assert len(splits.train) + len(splits.validation) == 20 and any("dropped" in note for note in splits.notes)


@pytest.mark.parametrize(("line", "why"), [
    ('{"question": "q"}', r"it has no answer, but question\); dataset\.kind=gsm8k needs the columns question and answer"),
    ('{"problem": "q", "solution": "a"}', "it has no question and no answer, but problem, solution"),
    ('{"question": "q", "answer": "no result"}', "its answer does not end with #### and a result on one line"),
    ('{"question": "q", "answer": "x #### "}', "its answer does not end with #### and a result on one line"),
    ('{"question": " ", "answer": "#### 1"}', "its question is empty or no text"),
    ('{"question": "q", "answer": null}', "its answer is empty or no text"),
    ('{"question": "q", "answer": "#### 1"', "no JSON"),
    ("[]", "no JSON object"),
    ("", "no JSON"),
])  # fmt: skip
def test_a_broken_row_is_named_with_its_line(line: str, why: str, load: Load, folder: Path) -> None:
    (folder / "train.jsonl").write_text(f"{json.dumps(rows(1)[0])}\n{line}\n{json.dumps(rows(1)[0])}\n")
    with pytest.raises(ValueError, match=rf"train\.jsonl is damaged in line 2 \(.*{why}") as error:
        load("num_validation=1")
    assert "\n" not in str(error.value)


def test_files_that_are_missing_empty_or_too_short(load: Load, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"num_validation=20 must be below the number of training rows \(20\)"):
        load("num_validation=20")
    write(folder / "train.jsonl", [{**row, "level": "easy"} for row in rows(3)])
    with pytest.raises(ValueError, match=r"gsm8k has no train example \(2 training examples dropped"):
        load("num_validation=1")
    write(folder / "train.jsonl", [{**row, "level": "easy"} for row in rows(3, 50)])
    unused, leak = load("num_validation=1").notes
    assert unused == f"{folder / 'train.jsonl'}: the columns level are not used"
    assert leak.startswith("2 of 2 training questions hold their own answer (for example gsm8k_train_00000)")
    (folder / "test.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"test\.jsonl is damaged \(it has no row\)"):
        load("num_validation=1")
    (folder / "test.jsonl").unlink()
    with pytest.raises(ValueError, match=r"folder=\S+ has no test\.jsonl; give a folder with train\.jsonl and test\.jsonl"):
        load()


def test_the_hub_is_read_by_the_datasets_library(
    folder: Path, text_config: TextConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A folder with the card of a data set is read as the hub's are."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    card = {"config_name": "main", "data_files": [{"split": s, "path": f"{s}.jsonl"} for s in ("train", "test")]}
    (folder / "README.md").write_text(f"---\nconfigs:\n- {json.dumps(card)}\n---\n")
    given = ["dataset.num_validation=5", f"dataset.hub_name={folder}"]
    splits = load_text(text_config("gsm8k", *given))
    local = load_text(text_config("gsm8k", "dataset.num_validation=5", f"dataset.folder={folder}"))
    assert (splits.train, splits.validation, splits.test) == (local.train, local.validation, local.test)
    with pytest.raises(ValueError, match=r"hub_name=.* cannot be loaded \(.*; check the name, hub_config and the network, or"):
        load_text(text_config("gsm8k", *given, "dataset.hub_config=other"))


def test_a_hub_that_cannot_be_reached_is_one_sentence(text_config: TextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def unreachable(*given: object, **named: object) -> None:
        asked.append((given, named))
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (ConnectTimeout).\nTry again.")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"hub_name=openai/gsm8k cannot be loaded \(Couldn't .*give a folder") as error:
        load_text(text_config("gsm8k"))
    assert "\n" not in str(error.value) and asked == [(("openai/gsm8k", "main"), {"split": "train"})]
