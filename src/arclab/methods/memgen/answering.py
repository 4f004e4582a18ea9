"""Questions in, checked answers out: the part that training's evaluation and evaluate.py have in common.

    for batch in answer(model, language, rule, weaver, environment, examples, sampling, batch_size):
        answered += batch
    metrics = measure(answered)

What is right, and whether there are several turns, is for the environment to say (arclab.text.environments).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from arclab.config.llm_schema import SamplingConfig
from arclab.config.memgen_schema import WeaverConfig
from arclab.lm.hf import draw_seed
from arclab.lm.language_model import Sampling
from arclab.methods.memgen.generation import InsertionRule, Refine
from arclab.methods.memgen.interaction import Played, Player, require_room_to_play
from arclab.methods.memgen.model import MemGenModel
from arclab.methods.memgen.setting import Language
from arclab.methods.memgen.transcripts import said_of
from arclab.results.scoring import Share
from arclab.text.environments import Environment, Score, score_all
from arclab.text.examples import TextExample


@dataclass(frozen=True, slots=True)
class Answered:
    """One example with its reply. answer: what was extracted; None: nothing. inserted, asked: numbers of tokens, see
    generation.Answer. inserted_chars: where in the reply memory was inserted. is_cut: at max_new_tokens. logprob: of the whole
    reply (nats). extra: rewards of latent optimisation before and after, one for each insertion; of several turns, what
    was said, whether the episode was over, and the parts of its score. Numbers of tokens are those of each turn."""

    id: str
    question: str
    reply: str
    answer: str | None
    gold: str
    is_right: bool
    num_tokens: int
    inserted: list[int]
    inserted_chars: list[int]
    asked: list[int]
    is_cut: bool
    logprob: float
    extra: dict[str, Any]

    def record(self) -> dict[str, Any]:
        found = asdict(self)
        return {**{key: value for key, value in found.items() if key not in ("id", "extra")}, **self.extra}


NewRefine = Callable[[Sequence[TextExample]], tuple[Refine, Callable[[int], dict[str, Any]]]]


def to_sampling(config: SamplingConfig, seed: int) -> Sampling:
    return Sampling(
        config.max_new_tokens, config.temperature, config.top_p, config.top_k, config.min_p, stop=(), seed=seed
    )  # fmt: skip


def longest_first(language: Language, examples: Sequence[TextExample]) -> list[TextExample]:
    """In the order in which batches are made."""
    return sorted(examples, key=lambda example: -len(language.prompt_ids(example.question)))


def answer(
    model: MemGenModel,
    language: Language,
    rule: InsertionRule,
    weaver: WeaverConfig,
    environment: Environment,
    examples: Sequence[TextExample],
    sampling: Sampling,
    batch_size: int,
    new_refine: NewRefine | None = None,
) -> Iterator[list[Answered]]:
    """The answers of batch after batch, the longest prompts first. new_refine: makes what changes latents for a batch, and what
    tells about it (by the row's place) afterwards. ValueError: a prompt that leaves no room for max_new_tokens, a step of the
    environment that fails."""
    require_room_to_play(language, environment, examples, weaver, sampling.max_new_tokens, "sampling.max_new_tokens")
    player = Player(model, language, rule, environment, sampling)
    order = longest_first(language, examples)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        refine, tell = new_refine(batch) if new_refine is not None else (None, lambda _: {})
        seeds = [draw_seed(sampling.seed, language.prompt_ids(example.question), 0) for example in batch]
        played = player.play(batch, seeds, refine)
        scores = score_all(environment, [each.episode for each in played])
        yield [_answered(each, score, tell(place)) for place, (each, score) in enumerate(zip(played, scores, strict=True))]


def _answered(played: Played, score: Score, extra: dict[str, Any]) -> Answered:
    """Of several turns the reply is the whole conversation."""
    example, answers = played.episode.example, [turn.answer for turn in played.turns]
    reply, chars = "", list[int]()
    for number, (turn, text) in enumerate(zip(played.turns, played.episode.replies, strict=True)):
        chars += [len(reply) + at for at in turn.chars]
        told = played.episode.observations[number : number + 1] if number + 1 < len(played.turns) else []
        reply += text + "".join(f"\n\n{each}\n\n" for each in told)
    return Answered(
        id=example.id, question=example.question, reply=reply, answer=score.answer, gold=example.answer,
        is_right=score.is_right, num_tokens=sum(len(each.tokens) for each in answers),
        inserted=[number for each in answers for number in each.inserted], inserted_chars=chars,
        asked=[number for each in answers for number in each.asked], is_cut=any(not each.is_ended for each in answers),
        logprob=float(sum(value for each in answers for value in each.logprobs)),
        extra=extra | (_told(played, score) if played.has_turns else {}),
    )  # fmt: skip


def _told(played: Played, score: Score) -> dict[str, Any]:
    return {"turns": said_of(played), "is_over": not played.is_cut, "parts": dict(score.parts)}


def accuracy(answered: Sequence[Answered]) -> Share:
    return Share(sum(each.is_right for each in answered), len(answered))


def measure(answered: Sequence[Answered]) -> dict[str, float]:
    """Registered metrics over all answers."""
    count = len(answered)
    assert count, "nothing was answered"
    asked = sum(len(each.asked) for each in answered)
    inside = sum(number > 0 for each in answered for number in each.inserted)
    return {
        "text/accuracy": accuracy(answered).value,
        "text/count": float(count),
        "text/no_answer_share": sum(each.answer is None for each in answered) / count,
        "text/cut_share": sum(each.is_cut for each in answered) / count,
        "text/insertions": sum(len(each.inserted) for each in answered) / count,
        "text/tokens_per_reply": sum(each.num_tokens for each in answered) / count,
        **({"text/insert_share": inside / asked} if asked else {}),
        **_of_turns([each.extra for each in answered]),
    }


def _of_turns(told: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of answers in several turns."""
    if not all("turns" in each for each in told):
        return {}
    return {
        "text/turns": sum(len(each["turns"]) for each in told) / len(told),
        "text/turns_cut_share": sum(not each["is_over"] for each in told) / len(told),
    }
