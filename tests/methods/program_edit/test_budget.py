"""Budget forcing: Wait as often as asked for, the closing tag at the cap, and no loss on what was put in."""

from __future__ import annotations

import pytest

from arclab.config.program_edit_grpo_schema import ThinkingConfig
from arclab.lm.hf import DrawnTokens
from arclab.lm.language_model import FinishReason, Message, Prompt, Sampling
from arclab.lm.scripted import ScriptedModel
from arclab.methods.program_edit.budget import (
    CLOSE,
    OPEN,
    WAIT,
    ForcedReply,
    Piece,
    ThinkingBudget,
    labelled,
    think_in_samples,
    think_tokens,
    think_within,
    to_budget,
)

SAMPLING = Sampling(50, 1.0, 1.0, 0, 0.0, (), 7)
QUESTION: Prompt = (Message("user", "what"),)


def stub(thoughts: list[str], answer: str = "so 4", cut: tuple[str, ...] = ()) -> ScriptedModel:
    """Says one thought after the other, each closed, and then the answer; thoughts in `cut` run into their limit."""

    def reply(prompt: Prompt, sample: int) -> str:
        begun = prompt[-1].content
        if CLOSE in begun:
            return answer
        thought = thoughts[min(begun.count(WAIT), len(thoughts) - 1)]
        return thought if thought in cut else f"{thought}{CLOSE}"

    def reason(prompt: Prompt, sample: int) -> FinishReason:
        is_cut = CLOSE not in prompt[-1].content and thoughts[min(prompt[-1].content.count(WAIT), len(thoughts) - 1)] in cut
        return FinishReason.length if is_cut else FinishReason.stop

    return ScriptedModel(reply, finish_reason=reason)


def forced(model: ScriptedModel, *, low: int = 0, high: int = 100, waits: int = 2) -> ForcedReply:
    (reply,) = think_within(model, [QUESTION], SAMPLING, ThinkingBudget(min_tokens=low, max_tokens=high, num_waits=waits))
    return reply


@pytest.mark.parametrize("waits", [0, 1, 3])
def test_wait_is_put_in_as_often_as_asked_where_it_stops_early(waits: int) -> None:
    reply = forced(stub(["one", "two", "three", "four"]), low=90, waits=waits)
    thoughts = ["one", "two", "three", "four"][: waits + 1]
    assert reply.text == OPEN + WAIT.join(thoughts) + CLOSE + "so 4" and reply.num_waits == waits and not reply.is_capped
    assert [piece.is_injected for piece in reply.pieces] == [True, *[False, True] * waits, False, False]
    assert all((piece.text in (OPEN, WAIT)) is piece.is_injected for piece in reply.pieces)
    assert reply.finish_reason is FinishReason.stop and reply.num_thinking == 2 * (waits + 1)  # a word and its end each


def test_who_has_thought_long_enough_and_reconsidered_is_left_alone() -> None:
    assert forced(stub(["one. Wait, two"])).num_waits == 0
    assert forced(stub(["one, two"])).num_waits == 2  # it never looked back; Wait that was put in is not its own
    assert forced(stub(["one. Wait, two", "three"]), low=6).num_waits == 1
    assert forced(stub(["one", "Actually, two"])).num_waits == 1


def test_at_the_cap_the_tag_is_put_in() -> None:
    reply = forced(stub(["a b c d"], cut=("a b c d",)), high=5)
    assert reply.text == f"{OPEN}a b c d\n{CLOSE}so 4" and reply.is_capped and reply.num_waits == 0
    assert reply.pieces[2] == Piece(f"\n{CLOSE}", is_injected=True)
    second = forced(stub(["one", "a b c"], cut=("a b c",)), low=6, high=6)
    assert second.text == f"{OPEN}one{WAIT}a b c\n{CLOSE}so 4" and second.is_capped and second.num_thinking == 6


def test_each_piece_is_drawn_anew_within_what_is_left() -> None:
    asked: list[tuple[int, int, tuple[str, ...]]] = []

    class Noting(ScriptedModel):
        def generate(self, prompts, num_samples, sampling, on_reply=lambda number, reply: None):  # type: ignore[no-untyped-def]
            asked.extend((each.seed, each.max_new_tokens, each.stop) for each in sampling)
            return super().generate(prompts, num_samples, sampling, on_reply)

    model = Noting(stub(["one", "two three"])._replies)
    budget = ThinkingBudget(min_tokens=9, max_tokens=20, num_waits=1)
    think_within(model, [QUESTION], SAMPLING, budget)
    assert asked == [(7, 20, (CLOSE,)), (8, 18, (CLOSE,)), (7, 50, ())]


def test_what_was_put_in_has_no_loss_and_nothing_else_changes() -> None:
    reply = forced(stub(["one", "two"]), low=90, waits=1)
    ids, labels = labelled(reply, lambda text: [ord(c) for c in text], [0], ignored=-100)
    assert "".join(map(chr, ids[:-1])) == reply.text and len(ids) == len(labels) and labels[-1] == 0
    written = "".join(chr(label) for label in labels[:-1] if label != -100)
    assert written == f"onetwo{CLOSE}so 4" and all(label in (-100, id_) for id_, label in zip(ids, labels, strict=True))
    assert labels.count(-100) == len(OPEN + WAIT)


def test_prompts_go_their_own_ways_and_problems_are_told() -> None:
    asked: list[Prompt] = [(Message("user", "short"),), (Message("user", "long"),), (Message("user", "refused"),)]

    def reply(prompt: Prompt, sample: int) -> str:
        return f"{prompt[0].content} thought{CLOSE}" if CLOSE not in prompt[-1].content else prompt[0].content

    model = ScriptedModel(reply, too_long=lambda prompt: prompt[0].content == "refused")
    replies = think_within(model, asked, SAMPLING, ThinkingBudget(min_tokens=0, max_tokens=99, num_waits=1))
    assert [each.text.endswith(f"{CLOSE}{word}") for each, word in zip(replies, ("short", "long", "refused"), strict=True)] == [
        True,
        True,
        False,
    ]
    assert "more than the script allows" in replies[2].problem and not replies[0].problem
    for low, high, waits in ((5, 4, 0), (0, 0, 0), (0, 5, -1)):
        with pytest.raises(ValueError, match="must be"):
            ThinkingBudget(min_tokens=low, max_tokens=high, num_waits=waits)


class Tokens:
    """A model whose tokens are characters, and which says what it is told to, by the number of Waits before."""

    def __init__(self, thoughts: list[str]) -> None:
        self.thoughts, self.asked, self.tokenizer = thoughts, list[tuple[int, int]](), self

    def encode(self, text: str, **_: object) -> list[int]:
        return [ord(c) for c in text]

    def text_of(self, ids: list[int]) -> str:
        return "".join(chr(i) for i in ids if i)

    def draw_tokens(self, rows: list[list[int]], samplings: list[Sampling]) -> list[DrawnTokens]:
        found = []
        for row, sampling in zip(rows, samplings, strict=True):
            self.asked.append((sampling.max_new_tokens, sampling.seed))
            begun = self.text_of(row)
            said = "so 4" if CLOSE in begun else self.thoughts[min(begun.count(WAIT), len(self.thoughts) - 1)]
            ids = [*map(ord, said), *([] if CLOSE in said else [0])][: sampling.max_new_tokens]
            is_ended = ids[-1] == 0 or (said.endswith(CLOSE) and len(ids) == len(said))
            found.append(DrawnTokens(ids, [-1.0] * len(ids), self.text_of(ids), is_ended))
        return found


@pytest.mark.parametrize(
    ("thoughts", "low", "high", "text"),
    [
        ([f"one{CLOSE}", f"two{CLOSE}"], 40, 90, f"{OPEN}one{WAIT}two{CLOSE}so 4"),  # one Wait is all that it may have
        ([f"Wait, one{CLOSE}"], 3, 90, f"{OPEN}Wait, one{CLOSE}so 4"),  # long enough, and it looked back
        (["one two three"], 0, 7, f"{OPEN}one two\n{CLOSE}so 4"),  # at the cap
        (["Wait, I am"], 3, 90, f"{OPEN}Wait, I am\n{CLOSE}so 4"),  # it ended its turn within its thinking
    ],
)
def test_what_was_put_in_is_no_part_of_the_policy(thoughts: list[str], low: int, high: int, text: str) -> None:
    model = Tokens(thoughts)
    budget = ThinkingBudget(min_tokens=low, max_tokens=high, num_waits=1)
    samplings = [Sampling(9, 1.0, 1.0, 0, 0.0, (), seed) for seed in (3, 4)]
    first, second = think_tokens(model, [[65], [66]], samplings, budget)  # type: ignore[arg-type]
    assert first.text == second.text == text and model.text_of(first.ids) == text and first.is_ended
    drawn = "".join(chr(i) for i, own in zip(first.ids, first.is_drawn, strict=True) if own and i)
    put_in = "".join(chr(i) for i, own in zip(first.ids, first.is_drawn, strict=True) if not own)
    assert put_in == OPEN + WAIT * first.num_waits + (f"\n{CLOSE}" if f"\n{CLOSE}" in text else "")
    assert len(drawn) + len(put_in) == len(text)
    assert all((value == 0.0) is not own for value, own in zip(first.logprobs, first.is_drawn, strict=True))
    assert {seed for _, seed in model.asked} == {3, 4} and model.asked[-1][0] == 9 and model.asked[0][0] == high


def test_samples_of_a_prompt_differ_and_hold_the_whole_reply() -> None:
    seeds: list[int] = []

    class Noting(ScriptedModel):
        def generate(self, prompts, num_samples, sampling, on_reply=lambda number, reply: None):  # type: ignore[no-untyped-def]
            seeds.extend(each.seed for each in sampling)
            return super().generate(prompts, num_samples, sampling, on_reply)

    model = Noting(stub(["one"])._replies)
    wished = ThinkingConfig(min_tokens=9, max_tokens=20, num_waits=1)
    (reply,) = think_in_samples(model, [QUESTION], 2, SAMPLING, to_budget(wished))
    assert [each.text for each in reply.completions] == [f"{OPEN}one{WAIT}one{CLOSE}so 4"] * 2 and len(set(seeds)) == 4
    assert reply.completions[0].num_tokens == 2 * 2 + 3  # what it wrote itself: two thoughts, an answer, and their ends
