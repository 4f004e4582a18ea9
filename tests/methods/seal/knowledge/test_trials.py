"""What trials come to: grades, gains, selection, and the numbers of a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.config.seal_knowledge_schema import GraderConfig, GraderKind, SealKnowledgeConfig, SelectConfig, SelectRule
from arclab.lm.scripted import ScriptedModel
from arclab.methods.seal.knowledge.grading import Answer, Grader, by_rule, verdict_in
from arclab.methods.seal.knowledge.passages import passages
from arclab.methods.seal.knowledge.report import metrics_of
from arclab.methods.seal.knowledge.select import remeasured, selected
from arclab.methods.seal.knowledge.trials import (
    OTHER,
    PASSAGE,
    REPEATED,
    Row,
    first_trials,
    further_trials,
    mean_gains,
    request_of,
)

from .common import SCRATCH

RULES = SelectConfig(rule=SelectRule.best, top_k=1, min_gain=0.0, drop_weight=0.0)


def config(*overrides: str) -> SealKnowledgeConfig:
    model = [] if any(each.startswith("lm=") for each in overrides) else ["lm=tiny"]
    found = compose_run("self_improve_seal_knowledge", [*model, "name=a", *overrides])
    assert isinstance(found, SealKnowledgeConfig)
    return found


def row(item: str, edit: str, repetition: int, right: str, base: str = "0000", kept: str = "", kept_base: str = "") -> Row:
    """right, base, and of other items kept, kept_base: of each question 1, 0 or ? for ungraded."""
    grades = [[{"1": True, "0": False, "?": None}[each] for each in text] for text in (right, base, kept, kept_base)]
    names = [f"q{number}" for number in range(len(right))]
    return Row(item, edit, repetition, names, names, grades[0], names, grades[1], 2, 20, 100, 10, 0.1, 1.0, "", *grades[2:])


@pytest.mark.parametrize(
    ("kind", "given", "right"),
    [
        (GraderKind.exact, "The Seine.", True),
        (GraderKind.exact, "the river Seine", False),
        (GraderKind.f1, "the river Seine", True),
        (GraderKind.f1, "Rhine", False),
        (GraderKind.contains, "It is the Seine, I think", True),
        (GraderKind.contains, "Seineville", False),
        (GraderKind.contains, "", False),
    ],
)
def test_rules_of_grading(kind: GraderKind, given: str, right: bool) -> None:
    assert by_rule(Answer("Which river?", "Seine", given), GraderConfig(kind=kind, threshold=0.5, model=None)) is right


@pytest.mark.parametrize(
    ("text", "verdict"), [("Yes.", True), ("no", False), ("no, yes", None), ("", None), ("yesterday", None), ("YES", True)]
)
def test_a_verdict_is_yes_alone_or_no_alone(text: str, verdict: bool | None) -> None:
    assert verdict_in(text) is verdict


def test_a_model_that_grades_is_asked_once_and_may_leave_an_answer_ungraded(tmp_path: Path) -> None:
    wished = GraderConfig(kind=GraderKind.model, threshold=0.5, model=None)
    model = ScriptedModel({"given a": "yes", "given b": "No.", "given c": "perhaps"})
    answers = [Answer("q", "r", given) for given in ("given a", "given b", "given c", " ", "given a")]
    assert Grader(wished, tmp_path, model).grades(answers) == [True, False, None, False, True]
    assert model.num_calls == 1 and len(model.calls[0]) == 3, "an empty answer is wrong without a call"
    assert Grader(wished, tmp_path, model).grades(answers) == [True, False, None, False, True] and model.num_calls == 1


def test_a_grader_without_a_key_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    node = "{kind: endpoint, name: a, max_context: null, thinking: null, base_url: 'http://127.0.0.1:9/v1', api_key_env: NO_SUCH_KEY, timeout_s: 1, max_retries: 0, backoff_s: 0, num_parallel: 1}"
    wished = config("query.grader.kind=model", f"query.grader.model={node}").query.grader
    with pytest.raises(ValueError, match=r"the variable that lm.api_key_env names is not set in the environment"):
        Grader(wished, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["query.adaptation.rank=0"], "query.adaptation.rank=0 must be at least 1"),
        (["query.adaptation.kind=none"], "query.adaptation.kind=none trains nothing"),
        (["query.grader.kind=model"], "query.grader.kind=model needs query.grader.model"),
        (
            ["serve.address=tcp://0.0.0.0:1"],
            "is of other hosts, and whoever reaches a server can train its model: give serve.keys=FOLDER",
        ),
        (["data.split=test"], "data.split=test has no items with data.num_test=0"),
        (["stage=start"], "stage=start makes the model of scratch in round=0 alone"),
        (["generate.sampling.temperature=0"], "all of them would be equal"),
        (["lm=endpoint", "lm.name=a", "stage=generate"], "style=completion needs a model of this process"),
        (["lm=endpoint", "lm.name=a", "style=chat"], "lm.kind=endpoint cannot be trained here"),
        (
            ["lm=endpoint", "lm.name=a", "style=chat", "stage=generate", "round=1"],
            "round=1 begins with the model that stage=sft",
        ),
        (
            ["lm=endpoint", "lm.name=a", "style=chat", "stage=generate", SCRATCH],
            "round=0 begins with the model that stage=start",
        ),
        (["lm.dtype=bfloat16"], "lm.dtype=bfloat16 loses most steps"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_a_sentence(overrides: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config(*overrides)


def test_trials_have_seeds_and_ids_of_their_own_and_empty_completions_are_left_out() -> None:
    items = passages(3, 2, seed=0)
    completions = {item.id: ["one\ntwo", "", "three"] for item in items}
    wished = config("query.repetitions=2", "query.other_item=true", "query.passage_repeated=true")
    trials = first_trials(wished, items, completions)
    assert [t.edit for t in trials if t.item == items[0]] == [
        "0",
        "0",
        "2",
        "2",
        PASSAGE,
        PASSAGE,
        REPEATED,
        REPEATED,
        OTHER,
        OTHER,
    ]
    assert trials[6].sequences == (f"{items[0].title}\n{items[0].context}",) * len(trials[0].sequences), "as many steps"
    assert trials[0].sequences[-1] == f"{items[0].title}\n{items[0].context}" and len(trials[0].sequences) == 3
    assert items[1].context in trials[8].sequences[-1], "the control has nothing of the item's own"
    requests = [request_of(wished, trial, "model") for trial in trials]
    assert len({each.id for each in requests}) == len({each.seed for each in requests}) == len(trials)
    assert request_of(wished, trials[0], "other").id != requests[0].id == request_of(wished, trials[0], "model").id


def test_the_two_best_are_tried_again_and_the_winner_is_measured_on_what_did_not_choose_it() -> None:
    items = passages(1, 2, seed=0)
    (name,) = (item.id for item in items)
    rows = [row(name, "0", 0, "0000"), row(name, "1", 0, "1110"), row(name, "2", 0, "1100"), row(name, "3", 0, "1100")]
    wished = config("query.repetitions=1", "query.more_repetitions=2")
    more = further_trials(wished, rows, items, {name: ["a", "b", "c", "d"]})
    assert [(trial.edit, trial.repetition) for trial in more] == [("1", 1), ("1", 2), ("2", 1), ("2", 2)]
    rows += [row(name, "1", 1, "0000"), row(name, "1", 2, "1100"), row(name, "2", 1, "1111"), row(name, "2", 2, "1111")]
    assert remeasured(rows, 1) == {"items": 1.0, "expected": 0.75, "remeasured": 0.25}
    assert remeasured(rows[:4], 1) == {}
    assert [each.edit for each in selected(mean_gains(rows), {name: ["a", "b", "c", "d"]}, RULES, 0)] == ["2"]


def test_selection_needs_a_gain_and_the_control_deals_gains_out_at_random() -> None:
    gains = {("a", "0"): 0.5, ("a", "1"): 0.5, ("b", "0"): 0.0, ("b", "1"): -0.5, ("c", "0"): 0.25, ("c", "1"): 1.0}
    texts = {item: ["x", "y"] for item in "abc"}
    best = selected(gains, texts, RULES, 0)
    assert [(each.item, each.edit, each.text) for each in best] == [("a", "0", "x"), ("c", "1", "y")], "ties by number"
    assert len(selected(gains, texts, replace(RULES, top_k=2), 0)) == 4
    assert selected(gains, texts, replace(RULES, min_gain=1.0), 0) == []
    dealt = [selected(gains, texts, replace(RULES, rule=SelectRule.shuffled, top_k=2, min_gain=-1), s) for s in range(9)]
    assert any({(e.item, e.edit): e.gain for e in each} != gains for each in dealt)
    assert all(sorted(e.gain for e in each) == sorted(g for g in gains.values() if g > -1) for each in dealt)


def test_a_gain_can_be_lessened_by_what_other_items_lose() -> None:
    rows = [row("a", "0", 0, "1111", kept="0000", kept_base="110?"), row("a", "1", 0, "1100", kept="1101", kept_base="1100")]
    assert [each.drop for each in rows] == [2 / 3, -0.25] and row("a", "0", 0, "1111").drop == 0
    assert mean_gains(rows, 0.0) == {("a", "0"): 1.0, ("a", "1"): 0.5}
    assert mean_gains(rows, 1.0) == {("a", "0"): pytest.approx(1 / 3), ("a", "1"): 0.75}
    items = passages(3, 2, seed=0)
    completions = {item.id: ["one"] for item in items}
    wished = config("query.num_retained=2", "query.repetitions=1", "data.num_train=3", "query.more_repetitions=1")
    first = first_trials(wished, items, completions)
    more = further_trials(wished, [row(items[2].id, "0", 0, "1111")], items, completions)
    for trial, others in ((first[0], (1, 2)), (first[-1], (0, 1)), (more[0], (0, 1))):
        assert trial.others == tuple(items[number] for number in others)
        asked = request_of(wished, trial, "model").questions
        assert [each.title for each in asked[2:]] == [items[number].title for number in others for _ in range(2)]


def test_shares_leave_out_what_is_ungraded_and_count_a_question_once() -> None:
    rows = [row("a", "0", 0, "11?0"), row("a", "0", 1, "0000"), row("a", "1", 0, "1111"), row("b", "0", 0, "10", "01")]
    found = metrics_of([*rows, row("a", PASSAGE, 0, "1000"), row("b", PASSAGE, 0, "00", "01")], 1)
    assert found["knowledge/questions"] == 5 and found["knowledge/base_accuracy"] == 1 / 6
    assert found["knowledge/first_accuracy"] == 3 / 5 and found["knowledge/accuracy"] == 7 / 13
    assert found["knowledge/wins"] == 3 / 4 and found["knowledge/discordant"] == 4
    assert found["knowledge/passage_accuracy"] == 1 / 6 and found["knowledge/ungraded_share"] == 1 / 14
    assert found["knowledge/padding_share"] == 0.1 and found["knowledge/published_padding"] == 20 * 2048 / 100
    many = [row(str(n), "0", 0, "1111") for n in range(3)]
    assert metrics_of([*many, *(row(str(n), OTHER, 0, "0000") for n in range(3))], 1)["knowledge/wins"] == 1
    assert metrics_of([*many, *(row(str(n), OTHER, 0, "1111") for n in range(3))], 1)["knowledge/wins"] == 0, "not the passage"


def test_the_published_padding_is_that_of_every_sequence_in_every_epoch() -> None:
    """9 sequences in batches of 4 are 3 steps an epoch."""
    whole = replace(row("a", "0", 0, "11", "00"), num_sequences=9, num_steps=3 * 10, num_tokens=1000)  # 10 epochs
    one = replace(row("b", "0", 0, "11", "00"), num_sequences=1, num_steps=10, num_tokens=50)
    broken = replace(
        row("c", "0", 0, "11", "00"), num_sequences=9, num_steps=6, num_tokens=200, problem="p"
    )  # in the third epoch
    found = [metrics_of(rows, 4)["knowledge/published_padding"] for rows in ([whole], [whole, one], [broken])]
    assert found == [9 * 10 * 2048 / 1000, (9 * 10 + 1 * 10) * 2048 / 1050, 9 * 2 * 2048 / 200]
    assert metrics_of([whole], 1)["knowledge/published_padding"] == 30 * 2048 / 1000, "alone in its batch: as many as steps"
