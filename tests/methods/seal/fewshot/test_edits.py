"""Self-edits: the format is strict, whatever a model writes, and what they say is what is trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arclab.config.compose import compose_run
from arclab.config.seal_fewshot_schema import Decoding, ProposeConfig, SealFewshotConfig
from arclab.config.seal_schema import LossTokens
from arclab.data.sources import load_source
from arclab.methods.seal.fewshot.edits import SelfEdit, StepCounter, Verdict, edit_prompt, grid_edits, parse_edit
from arclab.methods.seal.pseudo_tasks import pseudo_tasks

from .conftest import edit

TOY = "toy:color_map?tasks=2&side=3&colors=3&palette=6&demos=3"
GRID = "grid={augmentations: [none, basic+size], strategies: [train_using_all_tokens, train_using_output_tokens], learning_rates: [1e-3], num_train_epochs: [2, 3]}"


@pytest.fixture(scope="module")
def config() -> SealFewshotConfig:
    found = compose_run("self_improve_seal_fewshot", ["method=seal_fewshot", "lm=tiny", "dataset=toy", "name=a", GRID])
    assert isinstance(found, SealFewshotConfig)
    return found


FLAGS = '"data_generation": {"use_basic_augmentations": true, "use_size_augmentations": false, "use_chain_augmentations": false, "use_repeat_augmentations": true}'
HOW = '"training": {"strategy": "train_using_all_tokens", "learning_rate": 0.001, "num_train_epochs": 2}'


def test_a_self_edit_is_read_and_written_in_one_form(config: SealFewshotConfig) -> None:
    verdict, found = parse_edit(f" {{{HOW}, {FLAGS}}}\n", config.propose)
    assert verdict is Verdict.ok and found is not None
    assert (found.sets, found.learning_rate, found.num_train_epochs) == (("basic", "repeat"), 0.001, 2)
    again = parse_edit(found.text, config.propose)[1]
    assert again == found and again.key == found.key != replace(found, num_train_epochs=3).key
    assert parse_edit(edit(1e-3, 2, ("basic", "repeat"), "train_using_all_tokens"), config.propose)[1] == found
    wanted, solver = found.applied(config.solver), config.solver
    assert (wanted.pseudo_tasks.basic, wanted.pseudo_tasks.size, wanted.pseudo_tasks.chain, wanted.pseudo_tasks.repeat) == (
        True,
        False,
        False,
        True,
    )
    assert (wanted.adaptation.lr, wanted.adaptation.epochs, wanted.loss) == (
        0.001,
        2,
        LossTokens.all,
    ) and wanted.pseudo_tasks.permute_colors
    plain = parse_edit(edit(1e-3, 2), config.propose)[1]
    assert plain is not None and plain.applied(solver).loss is LossTokens.last_output
    assert not plain.applied(solver).pseudo_tasks.permute_colors and wanted.adaptation.rank == solver.adaptation.rank


NO_JSON = ["", "no", edit(1e-3, 2)[:-1], f"```json\n{edit(1e-3, 2)}\n```", edit(1e-3, 2) + " done", "[1]", "3", "null", edit(float("nan"), 2), edit(float("inf"), 2), "[" * 100_000, "9" * 5000, "{'a': 1}"]  # fmt: skip
NO_EDIT = [
    "{}", f"{{{FLAGS}}}", f"{{{HOW}}}", f'{{{FLAGS}, {HOW}, "why": "x"}}', f"{{{FLAGS}, {FLAGS}, {HOW}}}", edit(1e3, 2), edit(-1e-3, 2), edit(0, 2), edit("0.001", 2),
    edit(True, 2), edit(None, 2), edit(1e-3, 0), edit(1e-3, -1), edit(1e-3, 2.0), edit(1e-3, "2"), edit(1e-3, True), edit(1e-3, 2, strategy="all"),
    edit(1e-3, 2, more=1), edit(1e-3, 2).replace("false", '"false"'), edit(1e-3, 2).replace("false", "0"), edit(1e-3, 2).replace("use_size", "use_other"),
    f'{{"data_generation": [], {HOW}}}', f'{{{FLAGS}, "training": null}}', edit(1e-3, 2).replace('"train_using_output_tokens"', "[]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "verdict"), [(NO_JSON, Verdict.bad_json), (NO_EDIT, Verdict.bad_schema)], ids=["json", "schema"]
)
def test_anything_else_is_refused_and_never_repaired(texts: list[str], verdict: Verdict, config: SealFewshotConfig) -> None:
    assert {text[:200]: parse_edit(text, config.propose) for text in texts} == {text[:200]: (verdict, None) for text in texts}


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
    st.sampled_from(["data_generation", "training", "strategy", "learning_rate", "num_train_epochs", "use_basic_augmentations"]) | st.text(max_size=3), inner, max_size=4))  # fmt: skip
LIMITS = ProposeConfig(decoding=Decoding.free, num_edits=1, max_draws=1, min_lr=1e-6, max_lr=1e-2, max_steps=9, sampling=None)  # pyright: ignore[reportArgumentType]


@given(text=st.text() | VALUES.map(json.dumps) | st.integers(0, 300).map(lambda at: edit(1e-3, 2)[:at]))
def test_every_text_has_a_verdict(text: str) -> None:
    verdict, found = parse_edit(text, LIMITS)
    assert (verdict is Verdict.ok) == (found is not None)


def test_steps_are_those_that_training_takes(config: SealFewshotConfig) -> None:
    task = load_source(TOY)[0]
    counter = StepCounter(config.solver, config.seed)
    for sets in ((), ("basic",), ("basic", "size", "chain", "repeat")):
        found = parse_edit(edit(1e-3, 3, sets), config.propose)[1]
        assert found is not None
        wanted = found.applied(config.solver)
        made = min(len(pseudo_tasks(task, wanted.pseudo_tasks, config.seed)), wanted.pseudo_tasks.max_count)
        assert counter.steps_of(found, task) == 3 * -(-made // wanted.adaptation.batch_size)


def test_the_question_shows_demonstrations_alone(config: SealFewshotConfig) -> None:
    task = load_source(TOY)[0]
    (asked,) = edit_prompt(task, config.solver.text)
    hidden = "\n".join(" ".join(map(str, row)) for row in task.tests[0].input.tolist())
    assert (
        hidden not in asked.content
        and "train_using_output_tokens" in asked.content
        and '"num_train_epochs": ...' in asked.content
    )
    bare = edit_prompt(task, replace(config.solver.text, instructions=False))[0].content
    assert bare.endswith("?") and "train" not in bare and asked.content.startswith(bare[:-2])


def test_the_grid_is_every_combination(config: SealFewshotConfig) -> None:
    assert config.grid is not None
    cells = grid_edits(config.grid.cells)
    assert len(cells) == 2 * 2 * 1 * 2 == len({cell.key for cell in cells}) and all(
        parse_edit(cell.text, config.propose) == (Verdict.ok, cell) for cell in cells
    )
    assert {cell.sets for cell in cells} == {(), ("basic", "size")} and isinstance(cells[0], SelfEdit)


def test_the_published_tasks_are_a_dataset() -> None:
    from arclab.data.splits import load_tasks

    found = compose_run(
        "self_improve_seal_fewshot",
        ["method=seal_fewshot", "lm=tiny", "dataset=arc1_seal", "name=a", "evaluate.split=validation"],
    )
    assert isinstance(found, SealFewshotConfig)
    split = load_tasks(found.dataset)
    assert [(len(tasks), sum(len(task.tests) for task in tasks)) for tasks in (split.train, split.validation)] == [
        (12, 13),
        (10, 11),
    ]


BROKEN = {
    "grid.augmentations=[basic+other]": "names no sets of augmentations", "grid.augmentations=[]": "must have values",
    "grid.strategies=[all]": "is not known", "grid.learning_rates=[1e3]": "must be between", "grid.num_train_epochs=[2,2]": "each of them once",
    "propose.max_draws=1": "leaves no room", "propose.min_lr=1e-2 propose.max_lr=1e-3": "is above", "propose.sampling.temperature=0": "the same reply every time",
    "evaluate.split=train": "what is learned from", "solver.adaptation.kind=none": "no self-edit changes anything", "stage=start": "scratch=null leaves it out",
    "default_edit.augmentations=all": "names no sets", "restem.lora=null lm.dtype=bfloat16": "loses most steps", "launch.cpus=2": "one process",
}  # fmt: skip


@pytest.mark.parametrize("given_", BROKEN)
def test_what_cannot_be_is_said_in_a_sentence(given_: str, tmp_path: Path) -> None:
    from arclab.config.compose import ConfigError

    with pytest.raises(ConfigError, match=BROKEN[given_]):
        compose_run(
            "self_improve_seal_fewshot", ["method=seal_fewshot", "lm=tiny", "dataset=toy", "name=a", GRID, *given_.split()]
        )
