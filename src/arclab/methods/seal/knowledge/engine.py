"""The inner loop: a model is trained on a few sequences, answers questions without the passage, and is put back.

    engine = Engine(model)
    outcome = engine.answer(Request(id, sequences, questions, ...), before_step)     # outcome.texts: one for each question
    outcome, adapter = engine.edit(request)                                          # the same, and what was learned stays
    engine.edit_again(request.adaptation, adapter)                                   # that it stays, without the training

No sequences: the model answers as it is. An outcome depends on the request and the base weights alone, whatever was asked
before, edits aside. It does not grade: who asks does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from arclab.config.seal_knowledge_schema import Style
from arclab.config.seal_schema import InnerConfig
from arclab.lm.chat_template import plain_ids
from arclab.lm.hf import HfModel
from arclab.lm.language_model import Sampling
from arclab.lm.training.inner import InnerAdapter
from arclab.lm.training.rows import Row
from arclab.methods.seal.knowledge.prompts import answer_of, question_prompt


@dataclass(frozen=True, slots=True)
class Asked:
    title: str
    question: str


@dataclass(frozen=True, slots=True)
class Request:
    """sequences: texts that are learned, whole. max_new_tokens: of an answer. seed: of the order of the sequences, and of
    the numbers that an adapter begins with. id: the same for the same request."""

    id: str
    sequences: tuple[str, ...]
    questions: tuple[Asked, ...]
    adaptation: InnerConfig
    style: Style
    max_new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """texts: answers. num_tokens: that passed through the model in training, num_padding of them padding. loss: of the last
    epoch, null without training. problem: why the model was not adapted although it was to be; "" if it was."""

    texts: tuple[str, ...]
    num_sequences: int
    num_steps: int
    num_tokens: int
    num_padding: int
    loss: float | None
    train_s: float
    problem: str


def seed_of(*parts: object) -> int:
    """A seed that belongs to these alone."""
    return int.from_bytes(hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()[:4], "little")


class Engine:
    def __init__(self, model: HfModel) -> None:
        self.model, self._inner = model, InnerAdapter(model, seed=0)  # each request has a seed of its own

    def answer(self, request: Request, before_step: Callable[[], None] = lambda: None) -> Outcome:
        """before_step: may end it by what it raises. ValueError: a sequence is too long, or the model lacks what is to be
        trained."""
        return self._answer(request, before_step, lambda: None)

    def edit(self, request: Request, before_step: Callable[[], None] = lambda: None) -> tuple[Outcome, dict[str, Tensor]]:
        """Questions are answered by the model that stays. An adapter without tensors: nothing was learned. See answer()."""
        learned: dict[str, Tensor] = {}

        def keep() -> None:
            learned.update(self._inner.learned())
            self._inner.keep()

        return self._answer(request, before_step, keep), learned

    def edit_again(self, adaptation: InnerConfig, learned: dict[str, Tensor]) -> None:
        if learned:
            self._inner.keep_learned(adaptation, learned)

    def _answer(self, request: Request, before_step: Callable[[], None], on_learned: Callable[[], None]) -> Outcome:
        rows = sequence_rows(self.model, request.sequences)
        with self._inner.fit(rows, request.adaptation, request.seed, before_step, request.seed) as fitted:
            if fitted.losses and not fitted.problem:
                on_learned()
            texts = self._texts(request)
        last = fitted.losses[-max(1, len(fitted.losses) // request.adaptation.epochs) :]
        return Outcome(
            texts, len(rows), len(fitted.losses), fitted.num_tokens, fitted.num_padding,
            sum(last) / len(last) if last else None, fitted.seconds, fitted.problem,
        )  # fmt: skip

    def _texts(self, request: Request) -> tuple[str, ...]:
        """Greedy answers: the first line that says something. A line break does not end one: many models begin with it."""
        greedy = Sampling(request.max_new_tokens, 0.0, 1.0, 0, 0.0, (), 0)
        prompts = [question_prompt(asked.title, asked.question, request.style) for asked in request.questions]
        replies = self.model.generate(prompts, 1, greedy) if prompts else []
        if problem := next((reply.problem for reply in replies if reply.problem), ""):
            raise ValueError(f"a question cannot be asked: {problem}")
        return tuple(answer_of(reply.completions[0].text) for reply in replies)


def sequence_rows(model: HfModel, sequences: Sequence[str]) -> list[Row]:
    """Every token is learned, and the end mark. ValueError: one is longer than the model's context."""
    rows: list[Row] = []
    for number, text in enumerate(sequences):
        ids = [*plain_ids(model.tokenizer, text), *model.reply_ids("")]
        if model.max_context is not None and len(ids) > model.max_context:
            raise ValueError(
                f"sequence {number} has {len(ids)} tokens, more than the context of {model.max_context} tokens of "
                f"{model.name}; give shorter passages, or query.split_lines=true, or a model with a longer context."
            )
        rows.append({"input_ids": ids, "labels": ids})
    return rows
