"""Self-edits of which a model chooses the values alone: the JSON around them is given (propose.decoding=constrained).

    replies = chosen_edits(model, prompts, num_samples=15, sampling, slots_of(config))     # as of HfModel.generate

The values come one after the other, as they stand in the JSON. For each of them the model says how likely every value that is
allowed is behind what stands before it, and one is drawn by that, at sampling's temperature, top_k, top_p and min_p. Allowed
are both booleans, both strategies, the learning rates and epochs of the grid; without a grid, rates of one digit and a power of
ten within propose.min_lr and max_lr, and 1 to 20 epochs. So every self-edit is valid, but may be over budget. This is not how
the model writes by itself: what it would say otherwise, a cut reply included, is not seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from arclab.config.seal_fewshot_schema import AUGMENTATION_SETS, SealFewshotConfig, Strategy
from arclab.lm.drawing import draw
from arclab.lm.hf import HfModel, draw_seed
from arclab.lm.language_model import Completion, FinishReason, Message, Prompt, Reply, Sampling
from arclab.methods.seal.fewshot.edits import SelfEdit

_MOST_EPOCHS = 20
_PLACE = "\ue000"  # stands for a value; no text of a self-edit holds it


@dataclass(frozen=True, slots=True)
class Slot:
    """before: the text from the value before up to this one. values: as they are written. end: the character behind it, which
    tells 1 from 12."""

    before: str
    values: tuple[str, ...]
    end: str


def slots_of(config: SealFewshotConfig) -> list[Slot]:
    """The places of a self-edit, in the order of its text."""
    flags, strategies = ("true", "false"), tuple(json.dumps(each.value) for each in Strategy)
    values = [flags] * len(AUGMENTATION_SETS) + [strategies, _rates(config), _epochs(config)]
    pieces = _skeleton().split(_PLACE)
    return [Slot(piece, texts, after[0]) for piece, after, texts in zip(pieces, pieces[1:], values, strict=False)]


def _skeleton() -> str:
    """The text of a self-edit with _PLACE for each value."""
    edit = SelfEdit((), Strategy.all_tokens, 0.5, 7)
    written = edit.text
    for value in ("false", json.dumps(edit.strategy.value), "0.5", "7"):
        written = written.replace(f" {value}", f" {_PLACE}")
    return written


def closing() -> str:
    """What stands behind the last value."""
    return _skeleton().split(_PLACE)[-1]


def _rates(config: SealFewshotConfig) -> tuple[str, ...]:
    low, high = config.propose.min_lr, config.propose.max_lr
    given = [float(f"{digit}e{power}") for power in range(-9, 1) for digit in range(1, 10)]
    rates = given if config.grid is None else [float(rate) for rate in config.grid.learning_rates]
    return tuple(json.dumps(rate) for rate in rates if low <= rate <= high)


def _epochs(config: SealFewshotConfig) -> tuple[str, ...]:
    allowed = range(1, _MOST_EPOCHS + 1) if config.grid is None else config.grid.num_train_epochs
    return tuple(map(str, allowed))


def chosen_edits(
    model: HfModel, prompts: Sequence[Prompt], num_samples: int, sampling: Sampling, slots: Sequence[Slot]
) -> list[Reply]:
    """num_samples for each prompt. A prompt that leaves no room for a self-edit has a reply that says so."""
    longest = "".join(slot.before + max(slot.values, key=len) for slot in slots) + closing()
    problems = [_too_long(model, prompt, longest) for prompt in prompts]
    rows = [(prompt, sample) for prompt, problem in enumerate(problems) if not problem for sample in range(num_samples)]
    rngs = {
        (prompt, sample): np.random.default_rng(draw_seed(sampling.seed, model.prompt_ids(prompts[prompt]), sample))
        for prompt, sample in rows
    }
    written = dict.fromkeys(rows, "")
    for slot in slots:
        begun = {(row[0], text + slot.before) for row, text in written.items()}
        scores = _scores(model, prompts, sorted(begun), slot)
        for row, text in written.items():
            place = row[0], text + slot.before
            written[row] = place[1] + slot.values[_drawn(scores[place], float(rngs[row].random()), sampling)]
    return [
        Reply(
            tuple(
                Completion(written[prompt, sample] + closing(), FinishReason.stop, None, None)
                for sample in range(0 if problem else num_samples)
            ),
            len(model.prompt_ids(prompts[prompt])),
            problem,
        )
        for prompt, problem in enumerate(problems)
    ]


def _scores(
    model: HfModel, prompts: Sequence[Prompt], begun: Sequence[tuple[int, str]], slot: Slot
) -> dict[tuple[int, str], list[float]]:
    """Log-probability (nats) of each of the slot's values behind what was begun. The space before a value is part of it, as it
    is of most tokens."""
    wanted = [(place, value) for place in begun for value in slot.values]
    shown = {(number, text): (*prompts[number], Message("assistant", text[:-1])) for number, text in begun}
    found: dict[tuple[int, str], list[float]] = {place: [] for place in begun}
    values = model.shared_logprobs([shown[place] for place, _ in wanted], [f" {value}{slot.end}" for _, value in wanted])
    for (place, _), logprobs in zip(wanted, values, strict=True):
        found[place].append(sum(logprobs[:-1]))  # the reply goes on: the end mark is not meant
    return found


def _drawn(scores: Sequence[float], number: float, sampling: Sampling) -> int:
    """Which value the number in [0, 1) draws."""
    if sampling.temperature == 0:
        return int(np.argmax(scores))
    return int(draw(torch.tensor([scores], dtype=torch.float64), torch.tensor([number], dtype=torch.float64), sampling)[0])


def _too_long(model: HfModel, prompt: Prompt, reply: str) -> str:
    needed = len(model.prompt_ids(prompt)) + len(model.reply_ids(reply))
    if model.max_context is None or needed <= model.max_context:
        return ""
    return f"the prompt and a self-edit have {needed} tokens, more than the context of {model.max_context}; shorten the prompt."
