"""How long a model thinks: it goes on where it stops early, and stops where it goes on too long.

    budget = ThinkingBudget(min_tokens=200, max_tokens=1000, num_waits=2)
    replies = think_within(model, prompts, sampling, budget)                # sampling.max_new_tokens: of the answer
    ids, labels = labelled(replies[0], tokenise, ignored=-100)              # no loss on what was put in

Where the model closes its thinking before min_tokens, or without having reconsidered, "Wait" takes the place of the closing tag
and it goes on, num_waits times at most. At max_tokens the closing tag is put in. Tokens that were put in are no part of a loss:
the model did not choose them. One reply for each prompt; the model must go on with a reply that was begun (see
language_model.py), and its chat template must not open the thinking itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from arclab.lm.language_model import Completion, FinishReason, LanguageModel, Message, Prompt, Sampling

OPEN, CLOSE = "<think>\n", "</think>"
WAIT = "\nWait"
_RECONSIDERS = re.compile(r"\b(?:wait|actually|hold on|on second thought|let me check|no,)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingBudget:
    """Tokens of thinking, as the model counts them. wait: what is put in for the closing tag."""

    min_tokens: int
    max_tokens: int
    num_waits: int
    wait: str = WAIT

    def __post_init__(self) -> None:
        if not 0 <= self.min_tokens <= self.max_tokens or self.max_tokens < 1:
            raise ValueError(
                f"min_tokens={self.min_tokens} must be from 0 to max_tokens={self.max_tokens}, which must be at least 1; "
                "change one of them."
            )
        if self.num_waits < 0:
            raise ValueError(f"num_waits={self.num_waits} must be at least 0; raise it.")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a reply. is_injected: the model did not write it."""

    text: str
    is_injected: bool


@dataclass(slots=True)
class ForcedReply:
    """pieces: in order; together they are the reply. num_thinking: tokens of thinking that the model wrote. num_waits: how
    often it was told to go on. is_capped: it was told to stop. finish_reason: of the answer. problem: why there is none."""

    pieces: list[Piece] = field(default_factory=lambda: [Piece(OPEN, is_injected=True)])
    num_thinking: int = 0
    num_answer: int = 0
    num_waits: int = 0
    is_capped: bool = False
    finish_reason: FinishReason = FinishReason.stop
    problem: str = ""

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def add(self, text: str, *, is_injected: bool) -> None:
        if text:
            self.pieces.append(Piece(text, is_injected))


def think_within(
    model: LanguageModel, prompts: Sequence[Prompt], sampling: Sampling, budget: ThinkingBudget
) -> list[ForcedReply]:  # fmt: skip
    """A reply to each prompt. Each piece is drawn with a seed of its own, so that a model that was told to go on does not say
    the same again. ValueError: the model cannot be used."""
    replies = [ForcedReply() for _ in prompts]
    thinking = list(range(len(prompts)))
    turn = 0
    while thinking:
        asked = [_begun(prompts[number], replies[number]) for number in thinking]
        limits = [budget.max_tokens - replies[number].num_thinking for number in thinking]
        samplings = [replace(sampling, max_new_tokens=limit, stop=(CLOSE,), seed=sampling.seed + turn) for limit in limits]
        drawn = _drawn(model, asked, samplings, [replies[number] for number in thinking])
        thinking = [
            number
            for number, completion in zip(thinking, drawn, strict=True)
            if completion is not None and _goes_on(replies[number], completion, budget)
        ]
        turn += 1
    answering = [number for number, reply in enumerate(replies) if not reply.problem]
    asked = [_begun(prompts[number], replies[number]) for number in answering]
    answers = _drawn(model, asked, [sampling] * len(asked), [replies[number] for number in answering])
    for number, completion in zip(answering, answers, strict=True):
        if completion is not None:
            replies[number].add(completion.text, is_injected=False)
            replies[number].num_answer, replies[number].finish_reason = _count(completion), completion.finish_reason
    return replies


def _begun(prompt: Prompt, reply: ForcedReply) -> Prompt:
    return (*prompt, Message("assistant", reply.text))


def _drawn(
    model: LanguageModel, prompts: Sequence[Prompt], samplings: Sequence[Sampling], replies: Sequence[ForcedReply]
) -> list[Completion | None]:  # fmt: skip
    """One call for all that may have as many tokens: a model takes settings that differ in temperature and seed alone."""
    found: dict[int, Completion | None] = {}
    for limit in sorted({each.max_new_tokens for each in samplings}):
        numbers = [number for number, each in enumerate(samplings) if each.max_new_tokens == limit]
        drawn = model.generate([prompts[n] for n in numbers], 1, [samplings[n] for n in numbers])
        for number, reply in zip(numbers, drawn, strict=True):
            replies[number].problem = reply.problem
            found[number] = reply.completions[0] if reply.completions else None
    return [found[number] for number in range(len(prompts))]


def _goes_on(reply: ForcedReply, completion: Completion, budget: ThinkingBudget) -> bool:
    """Take in a piece of thinking; whether there is to be another one."""
    reply.num_thinking += _count(completion)
    text, mark, _ = completion.text.partition(CLOSE)
    left = budget.max_tokens - reply.num_thinking
    if not mark and (completion.finish_reason is FinishReason.length or left <= 0):
        reply.add(text, is_injected=False)
        reply.add(f"\n{CLOSE}", is_injected=True)
        reply.is_capped = True
        return False
    thought = "\n".join([*(piece.text for piece in reply.pieces if not piece.is_injected), text])
    is_early = reply.num_thinking < budget.min_tokens or not _RECONSIDERS.search(thought)
    if is_early and reply.num_waits < budget.num_waits and left > 0:
        reply.add(text.rstrip(), is_injected=False)
        reply.add(budget.wait, is_injected=True)
        reply.num_waits += 1
        return True
    reply.add(text + mark, is_injected=False)
    if not mark:  # it ended its turn within its thinking
        reply.add(f"\n{CLOSE}", is_injected=True)
    return False


def _count(completion: Completion) -> int:
    """Words, where a server does not tell."""
    return max(1, len(completion.text.split()) if completion.num_tokens is None else completion.num_tokens)


def labelled(
    reply: ForcedReply, tokenise: Callable[[str], list[int]], end: Sequence[int] = (), *, ignored: int
) -> tuple[list[int], list[int]]:  # fmt: skip
    """Tokens of the reply and their labels: `ignored` for every one that was put in. Pieces are tokenised one by one, as they
    were drawn. end: the end mark, if the model ended its turn."""
    ids: list[int] = []
    labels: list[int] = []
    for piece in reply.pieces:
        tokens = tokenise(piece.text)
        ids += tokens
        labels += [ignored] * len(tokens) if piece.is_injected else tokens
    return [*ids, *end], [*labels, *end]
