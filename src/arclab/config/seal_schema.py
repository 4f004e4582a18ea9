"""The schema of evaluate.py solver=test_time_training: what a model is trained on for a task, how, and how it answers.

Rules as in schema.py: fields have no defaults (values live in conf/), check(path) returns broken rules as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Optional

from arclab.config.adaptation_schema import ShownTask
from arclab.config.llm_schema import Dtype, EvaluateLmConfig, GridFormat, HfModelConfig
from arclab.config.rules import at_least, sized, within

TEST_TIME_TRAINING = "test_time_training"
LR_RANGE, EPOCHS_RANGE = (1e-7, 0.1), (1, 1000)


class Decode(Enum):
    """How answers are written in each view. greedy: the likeliest token each time. sample: replies are drawn. dfs: every reply
    whose probability is at least a threshold, found by depth-first search over tokens."""

    greedy = "greedy"
    sample = "sample"
    dfs = "dfs"


class Rescore(Enum):
    """How candidates are ranked. votes: by the replies that gave them. product: by the product of their probabilities under
    all views (a product of experts)."""

    votes = "votes"
    product = "product"


class AdaptKind(Enum):
    """What is trained for a task. lora: an adapter. full: all weights. none: the model answers as it is."""

    lora = "lora"
    full = "full"
    none = "none"


class LossTokens(Enum):
    """Which tokens of a pseudo-task are learned. all: every one. outputs: the outputs of demonstrations too. last_output: the
    answer alone."""

    all = "all"
    outputs = "outputs"
    last_output = "last_output"


@dataclass(kw_only=True, slots=True)
class GridTextConfig:
    """How a task is written. instructions: whether it is said what to do (a model trained on the bare grids needs none)."""

    grid_format: GridFormat
    instructions: bool


@dataclass(kw_only=True, slots=True)
class PseudoTaskConfig:
    """What a task's demonstrations are made into. leave_out: 1: each demonstration in turn is the question, all others are
    shown; 2: one of these is left out as well. basic, size, chain, repeat: sets of augmentations. permutations: copies of each
    with another order, and with permute_colors other colours. max_count: most that are trained on, drawn at random.
    min_demos: those that show fewer demonstrations are left out."""

    leave_out: list[int]
    min_demos: int
    basic: bool
    size: bool
    chain: bool
    repeat: bool
    permutations: int
    permute_colors: bool
    max_count: int

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 0, min_demos=self.min_demos) + at_least(path, 1, max_count=self.max_count)
        problems += within(path, 0, 100, permutations=self.permutations)
        if not self.leave_out or not set(self.leave_out) <= {1, 2} or len(set(self.leave_out)) < len(self.leave_out):
            problems.append(f"{path}.leave_out={self.leave_out} must be [1], [2] or [1,2]; choose one of them.")
        return problems


@dataclass(kw_only=True, slots=True)
class InnerConfig:
    """How a model is adapted in place to a few sequences: AdamW, a cosine schedule after warmup_steps. rank, alpha and
    target_modules (null: all linear layers but the output) are of kind lora. clip_norm: null does not clip."""

    kind: AdaptKind
    rank: int
    alpha: float
    target_modules: Optional[list[str]]
    lr: float
    epochs: int
    batch_size: int
    warmup_steps: int
    weight_decay: float
    clip_norm: Optional[float]

    def check(self, path: str) -> list[str]:
        problems = [*sized(path, 1, rank=self.rank, batch_size=self.batch_size), *within(path, *LR_RANGE, lr=self.lr)]
        problems += [*within(path, *EPOCHS_RANGE, epochs=self.epochs), *within(path, 1e-3, 1e4, alpha=self.alpha)]
        problems += [*at_least(path, 0, warmup_steps=self.warmup_steps), *within(path, 0, 10, weight_decay=self.weight_decay)]
        if self.clip_norm is not None and not self.clip_norm > 0:
            problems.append(f"{path}.clip_norm={self.clip_norm} must be above 0; null does not clip.")
        if self.target_modules == []:
            problems.append(f"{path}.target_modules=[] names no layer; give some, or null for all linear ones.")
        return problems


@dataclass(kw_only=True, slots=True)
class ViewsConfig:
    """count: how often a test input is asked about, the task as it is first. dihedral, colors, order: what is different in
    the other views: turned and flipped, other colours (0 stays), another order of the demonstrations."""

    count: int
    dihedral: bool
    colors: bool
    order: bool

    def check(self, path: str) -> list[str]:
        problems = within(path, 1, 1000, count=self.count)
        if self.count > 1 and not (self.dihedral or self.colors or self.order):
            problems.append(
                f"{path}.count={self.count} asks for several views, and dihedral, colors and order are all false, so that "
                f"they would be equal; set {path}.count=1, or one of these to true."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class AdaptingSolverConfig:
    """demonstrations: whose the model is trained on; other_task is a control. samples, temperature: of decode=sample, for
    each view. threshold: of decode=dfs. max_new_tokens: of a reply; null: as many as a grid of 30 x 30 takes, and what the
    context has room for. max_candidates: of a test input, that rescore=product looks at."""

    kind: str
    text: GridTextConfig
    loss: LossTokens
    pseudo_tasks: PseudoTaskConfig
    adaptation: InnerConfig
    demonstrations: ShownTask
    views: ViewsConfig
    decode: Decode
    samples: int
    temperature: float
    threshold: float
    max_new_tokens: Optional[int]
    rescore: Rescore
    max_candidates: int

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 1, samples=self.samples, max_candidates=self.max_candidates)
        problems += within(path, 0.01, 100, temperature=self.temperature) + within(path, 1e-6, 1, threshold=self.threshold)
        if self.kind != TEST_TIME_TRAINING:
            problems.append(f"{path}.kind={self.kind} is not known; choose {TEST_TIME_TRAINING}.")
        if self.max_new_tokens is not None:
            problems += at_least(path, 1, max_new_tokens=self.max_new_tokens)
        return problems


@dataclass(kw_only=True, slots=True)
class EvaluateTestTimeTrainingConfig(EvaluateLmConfig):
    """Root of evaluate.py solver=test_time_training. tasks_at_once: adapters that are trained in one batch; answers are the
    same up to rounding."""

    FREE_KEYS: ClassVar[tuple[str, ...]] = (*EvaluateLmConfig.FREE_KEYS, "tasks_at_once")

    solver: AdaptingSolverConfig
    tasks_at_once: int = 1

    @property
    def solver_kind(self) -> str:
        return self.solver.kind

    @property
    def run_name(self) -> str:
        wished = self.solver
        return self.name or "_".join(
            [self.dataset.name, self.split.value, wished.adaptation.kind.value, wished.decode.value, wished.rescore.value]
        )

    def check(self, path: str) -> list[str]:
        problems = EvaluateLmConfig.check(self, path)
        if not isinstance(self.lm, HfModelConfig):
            return [
                *problems,
                f"lm.kind={self.lm.kind} cannot be trained here, and solver={TEST_TIME_TRAINING} trains it for each task; "
                "choose a model of this process, such as lm=smollm2_135m.",
            ]
        if self.solver.adaptation.kind is AdaptKind.full and self.lm.dtype is not Dtype.float32:
            problems.append(
                f"solver.adaptation.kind=full loses most steps to rounding in lm.dtype={self.lm.dtype.value}; use "
                "lm.dtype=float32, or solver.adaptation.kind=lora."
            )
        problems += at_least(path, 1, tasks_at_once=self.tasks_at_once)
        if self.tasks_at_once > 1 and self.solver.adaptation.kind is not AdaptKind.lora:
            problems.append(
                f"tasks_at_once={self.tasks_at_once} trains adapters together, and solver.adaptation.kind="
                f"{self.solver.adaptation.kind.value} has none; use tasks_at_once=1, or solver.adaptation.kind=lora."
            )
        if self.solver.demonstrations is ShownTask.other_task and self.max_tasks == 1:
            problems.append(
                "solver.demonstrations=other_task needs another scored task, and max_tasks=1 leaves none; raise max_tasks, or "
                "use solver.demonstrations=own."
            )
        return problems
