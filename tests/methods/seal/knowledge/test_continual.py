"""Edits one after the other, and all at once: they are learned, what is forgotten is counted, and a kill loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.compose import ConfigError
from arclab.config.seal_knowledge_schema import SealKnowledgeConfig, Style
from arclab.files import read_object
from arclab.launch.start import start
from arclab.methods.seal.knowledge import continual as continual_module
from arclab.methods.seal.knowledge import generate as generate_module
from arclab.methods.seal.knowledge.continual_page import Matrix, continual_page, continual_record
from arclab.methods.seal.knowledge.cpt import ALONE, WITH, pooled
from arclab.methods.seal.knowledge.engine import Engine, Outcome, Request
from arclab.methods.seal.knowledge.passages import Item, passages
from arclab.methods.seal.knowledge.prompts import question_prompt

from .test_trials import config

SMALL = [
    "method=seal_knowledge", "lm=tiny", "name=a", "lm.device=cpu", "device=cpu", "num_threads=1", "data.num_train=4", "data.source=items.json",
    "query.split_lines=false", "query.max_new_tokens=4", "generate.num_completions=1",
]  # fmt: skip
HOW = {"rank": "16", "alpha": "32", "lr": "1e-2", "epochs": "60", "batch_size": "4"}
Run = Callable[..., None]


@pytest.fixture
def run(seal_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    colors = {"Oro": "red", "Ula": "blue", "Ket": "green", "Mib": "white"}
    asked = [
        {"title": name, "context": f"{name} is {color}.", "questions": [{"question": f"Colour of {name}?", "answer": color}]}
        for name, color in colors.items()
    ]
    Path("items.json").write_text(json.dumps(asked))
    return lambda *overrides: start("self_improve.py", [*SMALL, f"lm.name={seal_lm}", *overrides]) and None


def stated(item: Item) -> str:
    """What a model would write in the words in which it is asked: a random one carries nothing over to other words."""
    asked = [(question_prompt(item.title, each.text, Style.completion)[0].content, each.answer) for each in item.questions]
    return "\n---\n".join(f"{prompt} {answer}" for prompt, answer in asked)


def writes(config: SealKnowledgeConfig, model: object, items: Sequence[Item]) -> list[tuple[list[str], int]]:
    return [([stated(item)], 0) for item in items]


def how(key: str) -> list[str]:
    return [f"{key}.{name}={value}" for name, value in HOW.items()]


CONTINUAL = ["stage=continual", "continual.num_sequences=2", "continual.num_edits=2", *how("query.adaptation")]


def results(name: str) -> dict[str, Any]:
    found = read_object(Path(f"runs/seal_knowledge/{name}/round_0/continual/results.json"))
    return {key: value for key, value in found.items() if key != "edits"} | {
        "edits": [[{k: v for k, v in edit.items() if k != "train_s"} for edit in each] for each in found["edits"]]
    }


def test_edits_are_learned_one_after_the_other_and_a_kill_changes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(KeyboardInterrupt):
        pass

    made: list[str] = []

    class Watched(Engine):
        def edit(
            self, request: Request, before_step: Callable[[], None] = lambda: None
        ) -> tuple[Outcome, dict[str, torch.Tensor]]:
            made.append(request.id)
            if made == ["0/0", "0/1", "0/2"]:
                raise Killed
            return super().edit(request, before_step)

    monkeypatch.setattr(continual_module, "drawn", writes)
    run(*CONTINUAL)
    found = results("a")
    assert found["base"] == 0 and found["learned"] >= 0.5, "what was just learned is above the model as it is"
    assert [[cell is None for cell in row] for row in found["matrix"]] == [[False] * 2, [False, True], [False] * 2]
    assert len(found["sequences"]) == 2 and found["items"][0] != found["items"][1]
    folder = Path("runs/seal_knowledge/a/round_0/continual")
    assert "What is still known" in (folder / "report.html").read_text() and not list(folder.glob("sequence_*"))
    assert read_object(folder / "manifest.json")["counts"]["forgetting"] == found["forgetting"]
    monkeypatch.setattr(continual_module, "Engine", Watched)
    with pytest.raises(Killed):
        run(*CONTINUAL, "name=b")
    run(*CONTINUAL, "name=b")
    assert made[3:] == ["0/2", "1/0", "1/1", "1/2"] and results("b") == found


def test_forgetting_and_the_spread_of_sequences_are_counted() -> None:
    def cell(text: str) -> list[bool | None]:
        return [{"1": True, "0": False, "?": None}[each] for each in text]

    def matrix(*rows: str) -> Matrix:
        return [[cell(text) for text in row.split()] for row in rows]

    first = matrix("0000 1000 00", "1111", "1100 1110", "1000 1110 1?")
    found = continual_record([first])
    assert found["matrix"] == [[0, 0.25, 0], [1, None, None], [0.5, 0.75, None], [0.25, 0.75, 1]]
    assert found["base"] == pytest.approx(0.25 / 3) and found["learned"] == pytest.approx(2.75 / 3)
    assert found["final"] == pytest.approx(2 / 3) and found["forgetting"] == pytest.approx((0.75 + 0) / 2)
    second = matrix("0000 0000 00", "1111", "1111 1111", "1111 1111 11")
    both = continual_record([first, second])
    assert both["matrix"][3] == [0.625, 0.875, 1] and both["std"][3][0] == pytest.approx(0.75 / 2**0.5)
    assert both["forgetting"] == pytest.approx(0.75 / 4) and both["std"][1][1] is None
    assert continual_record([matrix("0", "1")])["forgetting"] == 0, "nothing comes after one edit"
    page = continual_page(config("stage=continual", "continual.num_edits=3"), [first], [])
    assert "11/14" not in page and "<title>1/4 = 25.0 %" in page and 'fill-opacity="0.60"' in page and "37.5 points" in page


def test_all_items_at_once_are_learned(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "drawn", writes)
    run("stage=generate")
    run("stage=cpt", *how("cpt.adaptation"), "cpt.adaptation.epochs=60", "cpt.adaptation.kind=full")
    folder = Path("runs/seal_knowledge/a/round_0/cpt")
    found = {each["name"]: each for each in read_object(folder / "results.json")["conditions"]}
    base, alone, both = (found[name] for name in ("model as it is", ALONE, WITH))
    assert base["right"] == 0 and both["graded"] == 4 and both["right"] == both["only_adapted"] >= 2 and both["macro"] >= 0.5
    assert alone["right"] < both["right"] and "Cost of a training" in (folder / "report.html").read_text()
    items = passages(2, 1, seed=0)
    lines = {item.id: ["one\n---\ntwo", "", "three"] for item in items}
    texts = pooled(WITH, config(), items, lines)
    assert len(texts) == 8 and texts[3] == f"{items[0].title}\n{items[0].context}", "each passage once, behind its lines"
    assert pooled(ALONE, config(), items, lines) == tuple(f"{item.title}\n{item.context}" for item in items)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["stage=continual", "data.num_train=5"], r"num_sequences=1 times continual\.num_edits=8 needs 8 items, and data\.num_train=5"),
        (["stage=continual", "query.adaptation.kind=full"], r"has no adapter that stage=continual could add"),
        (["stage=continual", "lm.dtype=bfloat16"], r"lm\.dtype=bfloat16 loses most steps"),
        (["stage=cpt", "cpt.adaptation.kind=full", "lm.dtype=bfloat16"], r"lm\.dtype=bfloat16 loses most steps"),
        (["stage=cpt", "cpt.adaptation.kind=none"], r"cpt\.adaptation\.kind=none trains nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_edited_is_a_sentence(overrides: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config(*overrides)
