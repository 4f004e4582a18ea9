"""How long a model thinks: it goes on where it stops early, and stops where it goes on too long.

    budget = ThinkingBudget(min_tokens=200, max_tokens=1000, num_waits=2)
    replies = think_within(model, prompts, sampling, budget)                # sampling.max_new_tokens: of the answer
    ids, labels = labelled(replies[0], tokenise, ignored=-100)              # no loss on what was put in
    drawn = think_tokens(hf_model, prompts, samplings, budget)              # for reinforcement: tokens as they were drawn

Where the model closes its thinking before min_tokens, or without having reconsidered, "Wait" takes the place of the closing tag
and it goes on, num_waits times at most. At max_tokens the closing tag is put in. Tokens that were put in are no part of a loss:
the model did not choose them. One reply for each prompt; the model must go on with a reply that was begun (see
language_model.py), and its chat template must not open the thinking itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from arclab.config.program_edit_grpo_schema import ThinkingConfig
from arclab.lm.chat_template import plain_ids
from arclab.lm.hf import DrawnTokens, HfModel
from arclab.lm.language_model import Completion, FinishReason, LanguageModel, Message, Prompt, Reply, Sampling

OPEN, CLOSE = "<think>\n", "</think>"
WAIT = "\nWait"
_APART = 1_000_003  # of the seeds of samples: further than the pieces of one reply
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


class Next(Enum):
    """What comes after a piece of thinking. capped: the closing tag, at the limit. wait: more thinking. unclosed: the tag,
    since the model ended its turn without. closed: the answer."""

    capped = "capped"
    wait = "wait"
    unclosed = "unclosed"
    closed = "closed"


def what_is_next(
    thought: str, num_thinking: int, num_waits: int, budget: ThinkingBudget, *, has_closed: bool, is_cut: bool
) -> Next:  # fmt: skip
    """thought: all that the model itself has thought so far, in num_thinking tokens. is_cut: at the limit of its tokens."""
    left = budget.max_tokens - num_thinking
    if not has_closed and (is_cut or left <= 0):
        return Next.capped
    is_early = num_thinking < budget.min_tokens or not _RECONSIDERS.search(thought)
    if is_early and num_waits < budget.num_waits and left > 0:
        return Next.wait
    return Next.closed if has_closed else Next.unclosed


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


def to_budget(wished: ThinkingConfig) -> ThinkingBudget:
    return ThinkingBudget(min_tokens=wished.min_tokens, max_tokens=wished.max_tokens, num_waits=wished.num_waits)


def think_in_samples(
    model: LanguageModel, prompts: Sequence[Prompt], num_samples: int, sampling: Sampling, budget: ThinkingBudget
) -> list[Reply]:  # fmt: skip
    """num_samples replies to each prompt, each drawn with a seed of its own. Completions hold the whole reply, what was put in
    included; their tokens are those that the model wrote. ValueError: the model cannot be used."""
    samples = [
        think_within(model, prompts, replace(sampling, seed=sampling.seed + _APART * n), budget) for n in range(num_samples)
    ]
    found = []
    for place in range(len(prompts)):
        replies = [sample[place] for sample in samples]
        problem = next((reply.problem for reply in replies if reply.problem), "")
        completions = () if problem else tuple(
            Completion(reply.text, reply.finish_reason, reply.num_thinking + reply.num_answer, None) for reply in replies
        )  # fmt: skip
        found.append(Reply(completions, None, problem))
    return found


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
    thought = "\n".join([*(piece.text for piece in reply.pieces if not piece.is_injected), text])
    following = what_is_next(
        thought, reply.num_thinking, reply.num_waits, budget, has_closed=bool(mark),
        is_cut=completion.finish_reason is FinishReason.length,
    )  # fmt: skip
    if following is Next.wait:
        reply.add(text.rstrip(), is_injected=False)
        reply.add(budget.wait, is_injected=True)
        reply.num_waits += 1
        return True
    reply.is_capped = following is Next.capped
    reply.add(text + mark, is_injected=False)
    if following is not Next.closed:
        reply.add(f"\n{CLOSE}", is_injected=True)
    return False


@dataclass(slots=True)
class ForcedTokens:
    """The same in tokens, as a policy is trained on them. is_drawn: of each token, whether the model drew it. logprobs: 0.0
    where it did not. thoughts: what it thought itself, piece by piece. is_ended: the answer has its end mark."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_drawn: list[bool] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    num_thinking: int = 0
    num_waits: int = 0
    is_capped: bool = False
    is_ended: bool = False

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def inject(self, model: HfModel, text: str) -> None:
        ids = plain_ids(model.tokenizer, text)
        self.ids += ids
        self.logprobs += [0.0] * len(ids)
        self.is_drawn += [False] * len(ids)
        self.texts.append(text)

    def draw(self, model: HfModel, drawn: DrawnTokens, count: int | None = None) -> None:
        """count: only the first so many of its tokens."""
        ids = drawn.ids[:count]
        self.ids += ids
        self.logprobs += drawn.logprobs[:count]
        self.is_drawn += [True] * len(ids)
        self.texts.append(drawn.text if count is None else model.text_of(ids))


def think_tokens(
    model: HfModel, prompts: Sequence[list[int]], samplings: Sequence[Sampling], budget: ThinkingBudget
) -> list[ForcedTokens]:  # fmt: skip
    """A reply to each prompt (tokens up to where the reply begins). samplings: of each; max_new_tokens is the answer's.
    ValueError: a prompt leaves no room."""
    replies = [ForcedTokens() for _ in prompts]
    for reply in replies:
        reply.inject(model, OPEN)
    thinking = list(range(len(prompts)))
    while thinking:
        asked = [prompts[number] + replies[number].ids for number in thinking]
        limits = [
            replace(samplings[n], max_new_tokens=budget.max_tokens - replies[n].num_thinking, stop=(CLOSE,)) for n in thinking
        ]
        drawn = model.draw_tokens(asked, limits)
        thinking = [n for n, piece in zip(thinking, drawn, strict=True) if _thinks_on(model, replies[n], piece, budget)]
    answers = model.draw_tokens([ids + reply.ids for ids, reply in zip(prompts, replies, strict=True)], samplings)
    for reply, answer in zip(replies, answers, strict=True):
        reply.draw(model, answer)
        reply.is_ended = answer.is_ended
    return replies


def _thinks_on(model: HfModel, reply: ForcedTokens, drawn: DrawnTokens, budget: ThinkingBudget) -> bool:
    """Take in a piece of thinking; whether there is to be another one."""
    reply.num_thinking += len(drawn.ids)
    text, mark, _ = drawn.text.partition(CLOSE)
    reply.thoughts.append(text)
    following = what_is_next(
        "\n".join(reply.thoughts), reply.num_thinking, reply.num_waits, budget, has_closed=bool(mark),
        is_cut=not drawn.is_ended,
    )  # fmt: skip
    if following is Next.closed:
        reply.draw(model, drawn)
        return False
    # What ends the thinking is not there: a tag, or the end mark. A token that holds part of the tag goes as a whole.
    count = len(drawn.ids)
    while count and ((drawn.is_ended and count == len(drawn.ids)) or len(model.text_of(drawn.ids[:count])) > len(text)):
        count -= 1
    reply.draw(model, drawn, count)
    reply.inject(model, budget.wait if following is Next.wait else f"\n{CLOSE}")
    reply.num_waits += following is Next.wait
    reply.is_capped = following is Next.capped
    return following is Next.wait


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
