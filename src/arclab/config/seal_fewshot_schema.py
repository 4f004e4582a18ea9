"""The schema of self_improve.py method=seal_fewshot: a model proposes how it is trained on a task, and learns what worked.

Rules as in schema.py: fields have no defaults (values live in conf/), check(path) returns broken rules as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import ClassVar, Optional

from arclab.config.dataset_schema import DatasetConfig
from arclab.config.launch_schema import LaunchConfig
from arclab.config.llm_schema import HOW_MODELS_RUN, Dtype, HfModelConfig, ModelConfig, SamplingConfig
from arclab.config.names import broken_name, broken_path
from arclab.config.rules import at_least, sized, within
from arclab.config.run import CriterionConfig, DeviceChoice
from arclab.config.schema import SplitName
from arclab.config.scratch_schema import ScratchProposerConfig
from arclab.config.seal_schema import EPOCHS_RANGE, LR_RANGE, AdaptingSolverConfig, AdaptKind
from arclab.config.sft_schema import AdapterSftConfig, StageSftConfig
from arclab.config.stages_schema import ROUND, StagedConfig

AUGMENTATION_SETS = ("basic", "size", "chain", "repeat")
NO_SETS = "none"
PUBLISHED_TASKS = "arc1_seal"


class SealStage(Enum):
    start = "start"
    propose = "propose"
    adapt = "adapt"
    select = "select"
    restem = "restem"
    evaluate = "evaluate"
    round = "round"


class AdaptedModel(Enum):
    """Which model is trained on tasks. proposer: the one that proposes, so that it changes from round to round (as published).
    first: the one that the first round began with, so that edits of all rounds are measured alike."""

    proposer = "proposer"
    first = "first"


class Compat(Enum):
    """Whose habits are repeated. seal_paper: those of the published code that change its numbers
    (arclab.methods.seal.replication lists them)."""

    seal_paper = "seal_paper"


class Decoding(Enum):
    """How a self-edit is written. free: as the model writes. constrained: the JSON is given and the model chooses the
    values, by its own probabilities, so that it is always valid."""

    free = "free"
    constrained = "constrained"


class Strategy(Enum):
    """What a self-edit says of the loss; the words are part of its format."""

    all_tokens = "train_using_all_tokens"
    output_tokens = "train_using_output_tokens"


def sets_of(text: str) -> tuple[str, ...] | None:
    """The sets of augmentations in "basic+size"; none in "none". None: it is no such text."""
    names = () if text == NO_SETS else tuple(text.split("+"))
    return names if set(names) <= set(AUGMENTATION_SETS) and len(set(names)) == len(names) else None


def _check_sets(path: str, texts: list[str]) -> list[str]:
    return [
        f"{path}={text} names no sets of augmentations; write {NO_SETS}, or some of {', '.join(AUGMENTATION_SETS)} joined by +."
        for text in texts
        if sets_of(text) is None
    ]


def _check_training(path: str, rates: list[float], epochs: list[int]) -> list[str]:
    problems = [problem for rate in rates for problem in within(path, *LR_RANGE, learning_rate=rate)]
    return problems + [problem for count in epochs for problem in within(path, *EPOCHS_RANGE, num_train_epochs=count)]


@dataclass(kw_only=True, slots=True)
class HandMadeEditConfig:
    """A self-edit in the words of the configuration. augmentations: sets joined by +, or none."""

    augmentations: str
    strategy: Strategy
    learning_rate: float
    num_train_epochs: int

    def check(self, path: str) -> list[str]:
        problems = _check_sets(f"{path}.augmentations", [self.augmentations])
        return problems + _check_training(path, [self.learning_rate], [self.num_train_epochs])


@dataclass(kw_only=True, slots=True)
class EditGridConfig:
    """All self-edits with one value of each list: what the baselines choose from (a random one, the one that is best on the
    training tasks, the best one for each task), and what a model made by stage=start knows how to write. Every cell is tried
    on every task."""

    augmentations: list[str]
    strategies: list[str]
    learning_rates: list[float]
    num_train_epochs: list[int]

    @property
    def cells(self) -> list[HandMadeEditConfig]:
        values = product(self.augmentations, self.strategies, self.learning_rates, self.num_train_epochs)
        return [
            HandMadeEditConfig(augmentations=sets, strategy=Strategy(how), learning_rate=rate, num_train_epochs=epochs)
            for sets, how, rate, epochs in values
        ]

    def check(self, path: str) -> list[str]:
        known = [each.value for each in Strategy]
        problems = _check_sets(f"{path}.augmentations", self.augmentations)
        problems += [
            f"{path}.strategies={how} is not known; choose {' or '.join(known)}." for how in self.strategies if how not in known
        ]
        for name in ("augmentations", "strategies", "learning_rates", "num_train_epochs"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                problems.append(f"{path}.{name}={values} must have values, each of them once; change it.")
        return problems + _check_training(path, self.learning_rates, self.num_train_epochs)


@dataclass(kw_only=True, slots=True)
class ProposeConfig:
    """decoding: see Decoding. num_edits: self-edits that can be tried, of each task. max_draws: replies of a task, at most;
    those that are no self-edit count. min_lr, max_lr: what may be asked for. max_steps: steps of training that a self-edit may
    ask for; above, it is over budget."""

    decoding: Decoding
    num_edits: int
    max_draws: int
    min_lr: float
    max_lr: float
    max_steps: int
    sampling: SamplingConfig

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 1, num_edits=self.num_edits, max_steps=self.max_steps)
        problems += within(path, *LR_RANGE, min_lr=self.min_lr, max_lr=self.max_lr)
        if self.min_lr > self.max_lr:
            problems.append(f"{path}.min_lr={self.min_lr} is above {path}.max_lr={self.max_lr}; lower it.")
        if self.max_draws < self.num_edits:
            problems.append(
                f"{path}.max_draws={self.max_draws} leaves no room for {path}.num_edits={self.num_edits}; raise it."
            )
        if self.sampling.temperature == 0 and self.max_draws > 1:
            problems.append(
                f"{path}.sampling.temperature=0 draws the same reply every time; raise it, or set {path}.num_edits and "
                f"{path}.max_draws to 1."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class SelectSealConfig:
    """Which self-edits are learned: all that let their task be solved, each once. max_per_task: of these, at most.
    even_tasks: every task counts alike, however many of its self-edits are learned; false: every self-edit does."""

    max_per_task: int
    even_tasks: bool

    def check(self, path: str) -> list[str]:
        return at_least(path, 1, max_per_task=self.max_per_task)


@dataclass(kw_only=True, slots=True)
class RestemConfig(AdapterSftConfig):
    """Supervised fine-tuning on the selected self-edits. twin: a second model learns from the same self-edits with their
    rewards shuffled, the control."""

    grad_accumulation: int
    clip_norm: Optional[float]
    twin: bool

    def check(self, path: str) -> list[str]:
        return StageSftConfig.check(self, path) + at_least(path, 1, grad_accumulation=self.grad_accumulation)


@dataclass(kw_only=True, slots=True)
class ScoreSealConfig:
    """What stage=evaluate proposes for. num_edits: of each task. max_tasks: null: all of the split."""

    split: SplitName
    max_tasks: Optional[int]
    num_edits: int

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 1, num_edits=self.num_edits)
        problems += [] if self.max_tasks is None else at_least(path, 1, max_tasks=self.max_tasks)
        if self.split is SplitName.train:
            problems.append(f"{path}.split=train is what is learned from; choose {path}.split=evaluation or validation.")
        return problems


@dataclass(kw_only=True, slots=True)
class SealFewshotConfig(StagedConfig):
    """Root of self_improve.py method=seal_fewshot. lm: the model of the first round, unless scratch makes one (then its name is
    not read). max_tasks: of training tasks; null: all. compat: for replication only. trials_at_once:
    adapters that are trained in one batch; answers are the same up to rounding. solver: how a task is written, trained on
    and answered; what a self-edit says takes the place of its augmentations, its loss, its lr and its epochs. default_edit: a
    baseline. grid: null: no baselines that choose from it."""

    STAGES: ClassVar[tuple[str, ...]] = tuple(stage.value for stage in SealStage if stage is not SealStage.round)
    HAS_SHARDS: ClassVar[bool] = True
    HAS_SERVER: ClassVar[bool] = True
    SERVED_STAGES: ClassVar[tuple[str, ...]] = (SealStage.propose.value,)
    PARALLEL_STAGES: ClassVar[tuple[str, ...]] = (SealStage.adapt.value, SealStage.evaluate.value)
    FREE_KEYS: ClassVar[tuple[str, ...]] = (*StagedConfig.FREE_KEYS, "trials_at_once", *(f"lm.{key}" for key in HOW_MODELS_RUN))

    experiment_name: str
    name: str
    runs_dir: str
    seed: int
    stage: SealStage
    round: int
    rounds: int
    device: DeviceChoice
    num_threads: Optional[int]
    criterion: Optional[CriterionConfig]
    launch: LaunchConfig
    lm: ModelConfig
    dataset: DatasetConfig
    max_tasks: Optional[int]
    compat: Optional[Compat]
    trials_at_once: int
    solver: AdaptingSolverConfig
    adapted: AdaptedModel
    scratch: Optional[ScratchProposerConfig]
    propose: ProposeConfig
    default_edit: HandMadeEditConfig
    grid: Optional[EditGridConfig]
    select: SelectSealConfig
    restem: RestemConfig
    evaluate: ScoreSealConfig

    def makes(self, stage: str, number: int) -> bool:
        """Whether a round has a stage."""
        return stage != SealStage.start.value or (self.scratch is not None and number == 0)

    @property
    def order(self) -> list[tuple[str, int]]:
        return [(stage, number) for number in range(self.rounds) for stage in self.STAGES if self.makes(stage, number)]

    @property
    def best_metric(self) -> str:
        return self.criterion.metric if self.criterion else "seal/successful_share"

    def check(self, path: str) -> list[str]:
        problems = [*self.check_stages(), *sized(path, 1, num_threads=self.num_threads)]
        problems += [] if self.max_tasks is None else at_least(path, 1, max_tasks=self.max_tasks)
        problems += [*broken_name("name", self.name), *broken_path("runs_dir", self.runs_dir), *self._check_models()]
        problems += at_least(path, 1, trials_at_once=self.trials_at_once)
        if self.trials_at_once > 1 and self.solver.adaptation.kind is not AdaptKind.lora:
            problems.append(
                f"trials_at_once={self.trials_at_once} trains adapters together, and solver.adaptation.kind="
                f"{self.solver.adaptation.kind.value} has none; use trials_at_once=1, or solver.adaptation.kind=lora."
            )
        stage = self.stage.value
        if stage != ROUND and not self.makes(stage, self.round):
            remedy = "only the first round has one" if self.scratch is not None else "scratch=null leaves it out"
            problems.append(f"stage={stage} is no stage of round={self.round}: {remedy}; choose another stage.")
        if self.scratch is not None and self.grid is None:
            problems.append("scratch teaches self-edits of the grid, and grid=null has none; give one, or set scratch=null.")
        if self.launch.num_ranks > 1:
            problems.append(
                f"launch asks for {self.launch.num_ranks} ranks, and method=seal_fewshot runs in one process; set launch.gpus "
                "and launch.cpus to 0 or 1, and launch.nodes=1."
            )
        if self.propose.decoding is Decoding.constrained:
            problems += self._check_constrained()
        return problems + ([] if self.compat is None else self._check_compat(self.compat))

    def _check_constrained(self) -> list[str]:
        key, low, high = "propose.decoding=constrained", self.propose.min_lr, self.propose.max_lr
        problems = []
        if not isinstance(self.lm, HfModelConfig):
            problems.append(
                f"{key} asks the model how likely given texts are, and lm.kind={self.lm.kind} does not say it; use "
                "propose.decoding=free, or a model of this process."
            )
        if self.launch.server is not None:
            problems.append(
                f"{key} asks the model how likely given texts are, and launch.server={self.launch.server.value} does not say "
                "it; use propose.decoding=free, or set launch.server=null."
            )
        if self.grid is not None and not any(low <= rate <= high for rate in self.grid.learning_rates):
            problems.append(
                f"{key} chooses among grid.learning_rates, of which {self.grid.learning_rates} none is between propose.min_lr="
                f"{low:g} and propose.max_lr={high:g}; add one."
            )
        return problems

    def _check_compat(self, compat: Compat) -> list[str]:
        """A replication is of the published tasks, with a given model and LoRA."""
        key, problems = f"compat={compat.value}", list[str]()
        if self.dataset.name != PUBLISHED_TASKS:
            problems.append(
                f"{key} drops the tasks that the published commands drop, and dataset={self.dataset.name} has others; use "
                f"dataset={PUBLISHED_TASKS}, or compat=null."
            )
        if self.scratch is not None:
            problems.append(f"{key} begins with a given model, and scratch makes one; set scratch=null, or compat=null.")
        if self.solver.adaptation.kind is not AdaptKind.lora:
            problems.append(f"{key} trains adapters; use solver.adaptation.kind=lora, or compat=null.")
        return problems

    def _check_models(self) -> list[str]:
        stage, kind = self.stage.value, self.solver.adaptation.kind
        if not isinstance(self.lm, HfModelConfig):
            if self.stage in (SealStage.propose, SealStage.select):
                return []
            return [
                f"lm.kind={self.lm.kind} cannot be trained here, and stage={stage} needs that; choose a model of this process, "
                "such as lm=smollm2_135m, or stage=propose."
            ]
        problems = []
        if kind is AdaptKind.none:
            problems.append("solver.adaptation.kind=none trains on no task, so that no self-edit changes anything; use lora.")
        for key, trains_all in (
            ("solver.adaptation.kind=full", kind is AdaptKind.full), ("restem.lora=null", self.restem.lora is None)
        ):  # fmt: skip
            if trains_all and self.lm.dtype is not Dtype.float32:
                problems.append(
                    f"{key} loses most steps to rounding in lm.dtype={self.lm.dtype.value}; use float32, or an adapter."
                )
        return problems
