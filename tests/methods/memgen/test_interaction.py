"""Episodes in several turns: tokens as they were drawn, memory of one turn alone, who gets another turn, and what is cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.compose import ConfigError, compose_run
from arclab.config.llm_schema import Dtype, HfModelConfig, LmAttention
from arclab.config.run import DeviceChoice
from arclab.lm.chat_template import conversation_ids, conversation_text, next_turn_ids
from arclab.lm.language_model import Message, Sampling
from arclab.lm.training.turns import turn_passes
from arclab.methods.memgen import run as memgen_run
from arclab.methods.memgen.generation import InsertionRule
from arclab.methods.memgen.insertions import InsertionLimits, delimiter_table
from arclab.methods.memgen.interaction import Player, require_room_to_play
from arclab.methods.memgen.model import MemGenModel
from arclab.methods.memgen.reinforcement import rolled_out
from arclab.methods.memgen.setting import Language, load_reasoner, training_rows
from arclab.methods.memgen.transcripts import said_of
from arclab.metrics.logger import read_rows
from arclab.pages.transcripts import write_transcript_page
from arclab.results.transcripts import TRANSCRIPTS, read_transcripts
from arclab.text.environments import Episode, Score
from arclab.text.examples import TextExample

from .conftest import Build
from .test_run import TINY as TINY_SFT
from .test_run import _evaluate

EXAMPLES = [TextExample(str(number), f"How much is {number} and {number}?", "", "1") for number in range(3)]


class Talk:
    """Says something to every reply; episode n is over after ends[n] replies (None: never)."""

    stops: tuple[str, ...] = ()
    names = ("right",)

    def __init__(self, *ends: int | None, max_turns: int = 3, said: str = "no, again", observation_tokens: int = 50) -> None:
        self.ends, self.max_turns, self.said, self.observation_tokens = ends, max_turns, said, observation_tokens

    def start(self, example: TextExample, seed: int) -> Episode:
        return Episode(example)

    def step(self, episodes: Sequence[Episode], replies: Sequence[str]) -> None:
        for episode, reply in zip(episodes, replies, strict=True):
            assert not episode.is_over, "a finished episode gets no more turns"
            episode.replies.append(reply)
            episode.is_over = len(episode.replies) == self.ends[int(episode.example.id)]
            if not episode.is_over:
                episode.observations.append(self.said)

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        return [Score({"right": float(each.is_over)}, each.is_over, None) for each in episodes]


@pytest.fixture
def language(tiny_lm: Path) -> Language:
    return load_reasoner(HfModelConfig(
        kind="hf", name=str(tiny_lm), max_context=None, thinking=None, adapter=None, dtype=Dtype.float32, attention=LmAttention.sdpa,
        device=DeviceChoice.cpu, batch_size=4,
    ))  # fmt: skip


def player(build: Build, language: Language, talk: Any, num_tokens: int = 8) -> Player:
    table_V = delimiter_table(language.tokenizer, 400, language.ends) | (torch.arange(400) % 5 == 0)
    rule = InsertionRule(table_V, InsertionLimits(2, 2), language.ends, language.pad_id)
    return Player(build(), language, rule, talk, Sampling(num_tokens, 1.0, 1.0, 0, 0.0, stop=(), seed=0), is_tempered=True)


def test_a_conversation_is_what_the_template_writes(language: Language) -> None:
    """And a special token's name in what is said stays text."""
    tokenizer, name = language.tokenizer, language.config.name
    question, reply, told = "a?", "b", "c <|im_end|> d"
    ids = [*language.prompt_ids(question), *language.reply_ids(reply)]
    ids += language.next_turn_ids(told, ids[-1])
    prompt = (Message("user", question), Message("assistant", reply), Message("user", told))
    assert ids == conversation_ids(tokenizer, name, prompt, thinking=None)
    assert tokenizer.decode(ids) == conversation_text(tokenizer, name, prompt, thinking=None, add_generation_prompt=True)
    assert ids.count(language.end) == 3, "of three turns"
    cut = next_turn_ids(tokenizer, name, told, thinking=None)
    assert cut[0] == language.end and language.next_turn_ids(told, 5) == cut, "a reply without its end gets one"


def test_a_worked_conversation_is_learned_turn_by_turn(language: Language, build: Build) -> None:
    example = TextExample("a", "?", "one. two", "1", turns=(("told", "three"),))
    rule, weaver = player(build, language, Talk()).rule, compose_run("pretrain_memgen", ["lm=tiny"]).memgen.weaver  # type: ignore[attr-defined]
    first, second = training_rows(language, [example], rule, weaver)
    assert second["input_ids"][: len(first["input_ids"])] == first["input_ids"]
    learned = [token for token in second["labels"] if token != -100]
    assert learned == language.reply_ids("three") and second["input_ids"][-len(learned) :] == learned
    assert not any(second["plan_BL"][: len(first["input_ids"])]) and any(first["plan_BL"]), "memory of the first turn is gone"
    with pytest.raises(ValueError, match="example a has no worked reply to learn from; use trainer=grpo"):
        training_rows(language, [TextExample("a", "?", "", "1")], rule, weaver)


def apart(model: MemGenModel, rollout: Any, plan: list[int]) -> float:
    """Mean absolute difference of what the sampler said of the tokens it drew, and the forward passes under a plan."""
    ids_BL = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    turn_BL = torch.tensor([[0] * len(rollout.prompt_ids) + rollout.turn_numbers])
    passes = turn_passes(ids_BL, torch.ones_like(ids_BL), turn_BL, {"plan_BL": torch.tensor([plan])})
    given = {name: value for name, value in passes.given.items() if name != "labels"}
    with torch.no_grad():
        logprobs_NLV = model(**given).logits[:, :-1].log_softmax(-1)
    value_NM = logprobs_NLV.gather(2, passes.given["input_ids"][:, 1:, None])[..., 0]
    found_C = passes.gathered(value_NM, len(rollout.completion_ids))[0]
    drawn_C = torch.tensor(rollout.turn_numbers) > 0
    return float((found_C - torch.tensor(rollout.logprobs))[drawn_C].abs().mean())


def test_tokens_stay_as_drawn_and_memory_is_of_one_turn(build: Build, language: Language) -> None:
    play = player(build, language, Talk(None, 2, 1))
    played = play.play(EXAMPLES, [1, 2, 3])
    assert [len(each.turns) for each in played] == [3, 2, 1] and [each.is_cut for each in played] == [True, False, False]
    for each in played:
        ids, at = each.completion_ids, 0
        for number, turn in enumerate(each.turns):
            assert turn.start == at and ids[at : at + len(turn.answer.tokens)] == turn.answer.tokens
            assert (0 in turn.answer.inserted) == (number < 2), "memory at the beginning of two turns, as the limits say"
            at += len(turn.answer.tokens)
            if number + 1 < len(each.turns):
                told = language.next_turn_ids("no, again", turn.answer.tokens[-1])
                assert ids[at : at + len(told)] == told
                at += len(told)
        assert at == len(ids)
        rollout = rolled_out(each)
        assert rollout.num_drawn == sum(len(turn.answer.tokens) for turn in each.turns)
        assert len(rollout.logprobs) == len(ids) == len(rollout.extra["plan_BL"]) - len(each.prompt_ids)
        assert apart(play.model, rollout, rollout.extra["plan_BL"]) < 1e-5
        assert apart(play.model, rollout, [0] * len(rollout.extra["plan_BL"])) > 1e-3
    again = play.play(EXAMPLES[:1], [1])[0]
    assert again.completion_ids == played[0].completion_ids, "whatever else is played"


def test_an_episode_that_is_never_over_is_cut_and_counted(build: Build, language: Language) -> None:
    (endless,) = player(build, language, Talk(None, max_turns=1)).play(EXAMPLES[:1], [1])
    assert len(endless.turns) == 1 and endless.is_cut and endless.completion_ids == endless.turns[0].answer.tokens
    played = player(build, language, Talk(None, 1, 2, max_turns=2)).play(EXAMPLES, [1, 2, 3])
    numbers = [rolled_out(each).numbers for each in played]
    assert [each["rl/turns"] for each in numbers] == [2, 1, 2] and [each["rl/turns_cut_share"] for each in numbers] == [1, 0, 0]
    assert [len(said_of(each)) for each in played] == [2, 1, 2]
    assert said_of(played[0])[-1]["observation"] == "", "what it would have said next was not read"


def test_a_long_observation_is_cut(build: Build, language: Language) -> None:
    talk = Talk(2, said="word " * 40, observation_tokens=6)
    (played,) = player(build, language, talk).play(EXAMPLES[:1], [1])
    (told,) = played.episode.observations
    assert told.endswith("...") and len(told) < 40 and said_of(played)[0]["observation"] == told
    play = player(build, language, talk)
    weaver = compose_run("pretrain_memgen", ["lm=tiny"]).memgen.weaver  # type: ignore[attr-defined]
    require_room_to_play(language, talk, EXAMPLES[:1], weaver, 8, "trainer.max_new_tokens")
    with pytest.raises(ValueError, match=r"lower trainer\.max_new_tokens, dataset\.max_turns or observation_tokens"):
        require_room_to_play(language, play.environment, EXAMPLES[:1], weaver, 80, "trainer.max_new_tokens")


def test_a_stop_string_ends_a_reply_with_the_token_that_completes_it(build: Build, language: Language) -> None:
    talk = Talk(2)
    talk.stops = ("e",)
    (played,) = player(build, language, talk, num_tokens=60).play(EXAMPLES[:1], [1])
    for turn, reply in zip(played.turns, played.episode.replies, strict=True):
        if "e" in reply:
            assert turn.answer.is_ended and "e" not in language.text(turn.answer.tokens[:-1])
    assert any("e" in reply for reply in played.episode.replies)


TINY = (
    *(word for word in TINY_SFT if not word.startswith(("experiment=", "trainer.", "dataset."))),
    "experiment=memgen_search_quickstart", "trainer.steps=3", "trainer.eval_every=3", "trainer.prompts_per_step=2", "trainer.group_size=4",
    "trainer.max_new_tokens=6", "trainer.mask_truncated=false", "trainer.sft_steps=1", "trainer.sft_batch_size=4", "dataset.num_train=12",
    "dataset.num_validation=4", "dataset.num_test=4", "evaluation.max_examples=3", "memgen.weaver.lora.dropout=0.5",
)  # fmt: skip


def test_a_run_in_several_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searched, scored, written down; and what an adapter's dropout drops is dropped neither in rollouts nor in the loss."""
    from arclab.text import environments

    def score(self: Any, episode: Episode) -> Score:
        """Nobody this small is right."""
        value = float(len("".join(episode.replies)) % 2)
        return Score({"right": value, "exact": value, "f1": value}, value == 1, "x")

    monkeypatch.setattr(environments.Search, "_score", score)
    memgen_run.pretrain(compose_run("pretrain_memgen", [*TINY, "name=a", f"runs_dir={tmp_path}"]))
    run = tmp_path / "memgen_search_quickstart" / "a"
    rows = read_rows(run / "metrics.jsonl")
    assert len(rows) == 4 and all(row["rl/offpolicy"] < 1e-4 for row in rows[1:])
    assert (
        any(row["grad/total_norm"] > 0 for row in rows[1:]) and rows[1]["rl/turns"] == 3 and rows[1]["rl/turns_cut_share"] == 1
    )
    assert rows[-1]["text/turns"] == 3 and rows[-1]["text/turns_cut_share"] == 1 and rows[-1]["text/count"] == 3
    transcripts = read_transcripts(run / TRANSCRIPTS)
    assert {each.source for each in transcripts} == {"training", "evaluation"} and all(
        len(each.said) == 3 for each in transcripts
    )
    page = (run / "transcripts.html").read_text()
    assert page == write_transcript_page(run).with_name("transcripts.html").read_text() and "memory was inserted here" in page
    assert json.loads((run / "splits.json").read_text())["validation"] and (run / "search_documents.jsonl").is_file()
    _evaluate(run)
    first, *_, summary = (run / "evaluation" / "test_trained" / "answer.json").read_text().splitlines()
    assert [len(turn) for turn in json.loads(first)["turns"]] == [5] * 3 and json.loads(summary)["summary"]["metrics"][
        "text/turns"
    ] == 3
    with pytest.raises(ConfigError, match=r"answers in several turns \(dataset.kind=code_words\).*; use solver=memgen"):
        _evaluate(run, "ltpo.max_steps=1")


def test_a_trigger_is_not_trained_in_several_turns() -> None:
    given = ["experiment=memgen_search_quickstart", "trainer=trigger_grpo", "memgen/trigger=head"]
    with pytest.raises(
        ConfigError, match=r"trainer=trigger_grpo learns from replies of one turn, and dataset.kind=code_words has"
    ):
        compose_run("pretrain_memgen", given)
