"""Self-edits: how a model is to be trained on a task, as the JSON that a model writes.

    verdict, edit = parse_edit(reply, config.propose)         # edit: None unless the verdict is ok
    wanted = edit.applied(config.solver)                      # the settings to train and answer with

The format is fixed: data_generation with four booleans, training with strategy, learning_rate and num_train_epochs, and nothing
else, before or behind it either. What is not that is never repaired. That a self-edit asks for too much (over_budget) depends
on the task: see steps_of.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Self

from arclab.config.seal_fewshot_schema import AUGMENTATION_SETS, HandMadeEditConfig, ProposeConfig, Strategy, sets_of
from arclab.config.seal_schema import AdaptingSolverConfig, GridTextConfig, LossTokens
from arclab.data.tasks import ArcTask
from arclab.lm.language_model import Message, Prompt
from arclab.methods.seal.pseudo_tasks import pseudo_tasks
from arclab.methods.seal.task_text import pair_texts

_DATA, _TRAINING = "data_generation", "training"
_STRATEGY, _RATE, _EPOCHS = "strategy", "learning_rate", "num_train_epochs"
_LOSSES = {Strategy.all_tokens: LossTokens.all, Strategy.output_tokens: LossTokens.last_output}
_ASKED = "\n?"  # where nothing is said in words: how a question for a self-edit ends
_INSTRUCTIONS = (
    "Each pair of grids above shows one hidden rule: the grid below the line with > is made from the one above it. A language "
    "model will be trained on variants of these pairs, and then has to apply the rule to a new grid. Decide how it is trained. "
    "Which augmentations make the variants: use_basic_augmentations (turned, flipped, moved, mirrored beside themselves), "
    "use_size_augmentations (enlarged), use_chain_augmentations (turned or flipped, then enlarged), use_repeat_augmentations "
    "(tiled); each true or false. The loss: train_using_all_tokens, or train_using_output_tokens. The learning_rate, a number "
    "such as 0.0001, and num_train_epochs, a whole number of at least 1. Answer with one JSON object and nothing else, in this "
    "form:\n"
)


class Verdict(Enum):
    """What a reply is. ok: a self-edit. bad_json: no JSON object, or a reply that was cut. bad_schema: other keys, or values
    that none of them takes. over_budget: a self-edit that asks for more steps than are allowed."""

    ok = "ok"
    bad_json = "bad_json"
    bad_schema = "bad_schema"
    over_budget = "over_budget"


@dataclass(frozen=True, slots=True)
class SelfEdit:
    """sets: of augmentations, in the order of AUGMENTATION_SETS."""

    sets: tuple[str, ...]
    strategy: Strategy
    learning_rate: float
    num_train_epochs: int

    @classmethod
    def of(cls, config: HandMadeEditConfig) -> Self:
        named = sets_of(config.augmentations)
        assert named is not None, "the schema has checked it"
        sets = tuple(name for name in AUGMENTATION_SETS if name in named)
        return cls(sets, config.strategy, float(config.learning_rate), config.num_train_epochs)

    def as_json(self) -> dict[str, Any]:
        chosen = {_flag(name): name in self.sets for name in AUGMENTATION_SETS}
        how = {
            _STRATEGY: self.strategy.value,
            _RATE: self.learning_rate,
            _EPOCHS: self.num_train_epochs,
        }
        return {_DATA: chosen, _TRAINING: how}

    @property
    def text(self) -> str:
        """As a model writes it; equal for equal self-edits."""
        return json.dumps(self.as_json())

    @property
    def key(self) -> str:
        """What tells self-edits apart in files."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def applied(self, solver: AdaptingSolverConfig) -> AdaptingSolverConfig:
        """The settings with what it says in their places. Without augmentations colours are not permuted either."""
        sets = {name: name in self.sets for name in AUGMENTATION_SETS}
        pseudo = replace(solver.pseudo_tasks, **sets, permute_colors=solver.pseudo_tasks.permute_colors and bool(self.sets))
        inner = replace(solver.adaptation, lr=self.learning_rate, epochs=self.num_train_epochs)
        return replace(solver, pseudo_tasks=pseudo, adaptation=inner, loss=_LOSSES[self.strategy])


def _flag(name: str) -> str:
    return f"use_{name}_augmentations"


def parse_edit(text: str, limits: ProposeConfig) -> tuple[Verdict, SelfEdit | None]:
    """Never raises, whatever the text is; ok, bad_json or bad_schema."""
    try:
        value = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
        return Verdict.bad_json, None
    if not isinstance(value, _Pairs):
        return Verdict.bad_json, None
    edit = _edit_of(value, limits)
    return (Verdict.bad_schema, None) if edit is None else (Verdict.ok, edit)


class _Pairs(list[tuple[str, Any]]):
    """An object, with keys that may be there twice."""

    def values_of(self, *keys: str) -> list[Any] | None:
        """Of these keys, each once, and no others."""
        found = dict(self)
        return [found[key] for key in keys] if len(self) == len(keys) and found.keys() == set(keys) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _edit_of(value: _Pairs, limits: ProposeConfig) -> SelfEdit | None:
    parts = value.values_of(_DATA, _TRAINING)
    if parts is None or not all(isinstance(part, _Pairs) for part in parts):
        return None
    flags = parts[0].values_of(*map(_flag, AUGMENTATION_SETS))
    how = parts[1].values_of(_STRATEGY, _RATE, _EPOCHS)
    if flags is None or how is None or not all(type(flag) is bool for flag in flags):
        return None
    strategy, rate, epochs = how
    known = {each.value: each for each in Strategy}
    if not isinstance(strategy, str) or strategy not in known or type(epochs) is not int or epochs < 1:
        return None
    if type(rate) not in (int, float) or not limits.min_lr <= rate <= limits.max_lr:
        return None
    sets = tuple(name for name, flag in zip(AUGMENTATION_SETS, flags, strict=True) if flag)
    return SelfEdit(sets, known[strategy], float(rate), epochs)


class StepCounter:
    """Steps of training that self-edits ask for; pseudo-tasks are made once for each task and choice of augmentations. Those
    that turn out too long for the context count."""

    def __init__(self, solver: AdaptingSolverConfig, seed: int) -> None:
        self._solver, self._seed = solver, seed
        self._made: dict[tuple[str, tuple[str, ...]], int] = {}

    def steps_of(self, edit: SelfEdit, task: ArcTask) -> int:
        wanted, place = edit.applied(self._solver), (task.id, edit.sets)
        if place not in self._made:
            self._made[place] = len(pseudo_tasks(task, wanted.pseudo_tasks, self._seed))
        rows = min(self._made[place], wanted.pseudo_tasks.max_count)
        return math.ceil(rows / wanted.adaptation.batch_size) * edit.num_train_epochs


def edit_prompt(task: ArcTask, config: GridTextConfig) -> Prompt:
    """One message of the user: the demonstrations, and what is asked for. Test inputs are not shown."""
    shown = "".join(text for text, _ in pair_texts(task.demos, config))
    return (Message("user", shown + (_INSTRUCTIONS + _form() if config.instructions else _ASKED)),)


def _form() -> str:
    """The JSON without values."""
    flags = ", ".join(f'"{_flag(name)}": ...' for name in AUGMENTATION_SETS)
    how = ", ".join(f'"{key}": ...' for key in (_STRATEGY, _RATE, _EPOCHS))
    return f'{{"{_DATA}": {{{flags}}}, "{_TRAINING}": {{{how}}}}}'


def grid_edits(cells: Sequence[HandMadeEditConfig]) -> list[SelfEdit]:
    """Each once, in their order."""
    return list(dict.fromkeys(SelfEdit.of(cell) for cell in cells))
