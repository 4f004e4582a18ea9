"""Questions in, checked answers out: the part that training's evaluation and evaluate.py have in common.

    for batch in answer(model, language, rule, weaver, examples, sampling, batch_size):
        answered += batch
    metrics = measure(answered)

An answer is right if what its last \\boxed{} holds equals the example's answer (arclab.text.answers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from arclab.config.llm_schema import SamplingConfig
from arclab.config.memgen_schema import WeaverConfig
from arclab.lm.hf import draw_seed
from arclab.lm.language_model import Sampling
from arclab.methods.memgen.generation import InsertionRule, Refine, generate
from arclab.methods.memgen.model import MemGenModel
from arclab.methods.memgen.setting import Language, require_room
from arclab.results.scoring import Share
from arclab.text.answers import check_answers
from arclab.text.examples import TextExample


@dataclass(frozen=True, slots=True)
class Answered:
    """One example with its reply. answer: what was extracted; None: nothing. inserted, asked: numbers of tokens, see
    generation.Answer. inserted_chars: where in the reply memory was inserted. is_cut: at max_new_tokens. logprob: of the whole
    reply (nats). extra: rewards of latent optimisation before and after, one for each insertion."""

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


def answer(
    model: MemGenModel,
    language: Language,
    rule: InsertionRule,
    weaver: WeaverConfig,
    examples: Sequence[TextExample],
    sampling: Sampling,
    batch_size: int,
    new_refine: NewRefine | None = None,
) -> Iterator[list[Answered]]:
    """The answers of batch after batch, the longest prompts first. new_refine: makes what changes latents for a batch, and what
    tells about it (by the row's place) afterwards. ValueError: a prompt that leaves no room for max_new_tokens."""
    prompts = {example.id: language.prompt_ids(example.question) for example in examples}
    for example in examples:
        require_room(
            language, example, len(prompts[example.id]) + sampling.max_new_tokens, weaver, "lower sampling.max_new_tokens"
        )
    order = sorted(examples, key=lambda example: -len(prompts[example.id]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        ids = [prompts[example.id] for example in batch]
        refine, tell = new_refine(batch) if new_refine is not None else (None, lambda _: {})
        answers = generate(model, ids, rule, sampling, [draw_seed(sampling.seed, tokens, 0) for tokens in ids], refine)
        replies = [language.text(answer.tokens) for answer in answers]
        checked = check_answers([(reply, example.answer) for reply, example in zip(replies, batch, strict=True)])
        yield [
            Answered(
                id=example.id, question=example.question, reply=reply, answer=check.answer, gold=example.answer,
                is_right=check.is_right, num_tokens=len(answer.tokens), inserted=answer.inserted,
                inserted_chars=[len(language.text(answer.tokens[:number])) for number in answer.inserted], asked=answer.asked,
                is_cut=not answer.is_ended, logprob=float(sum(answer.logprobs)), extra=tell(place),
            )
            for place, (example, reply, check, answer) in enumerate(zip(batch, replies, checked, answers, strict=True))
        ]  # fmt: skip


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
    }
