"""The schema of self_improve.py method=tree_search: trees are searched, learned from, and searched again with what was learned.

Rules as in schema.py: fields have no defaults (values live in conf/), check(path) returns broken rules as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Optional

from arclab.config.dataset_schema import DatasetConfig
from arclab.config.launch_schema import LaunchConfig
from arclab.config.llm_schema import HOW_MODELS_RUN, HfModelConfig, ModelConfig, SandboxConfig
from arclab.config.names import broken_name, broken_path
from arclab.config.rules import at_least, sized, within
from arclab.config.run import CriterionConfig, DeviceChoice
from arclab.config.schema import SplitName
from arclab.config.scratch_schema import ScratchModelConfig
from arclab.config.sft_schema import AdapterSftConfig, StageSftConfig
from arclab.config.stages_schema import ROUND, StagedConfig
from arclab.config.tree_search_schema import BeamConfig, BootstrapConfig, SearchConfig, TreeSearchConfig


class TreeStage(Enum):
    start = "start"
    collect = "collect"
    curate = "curate"
    augment = "augment"
    sft = "sft"
    reward_model = "reward_model"
    evaluate = "evaluate"
    round = "round"


@dataclass(kw_only=True, slots=True)
class CollectConfig:
    """What is taken out of the trees. split: train, since hidden test outputs label the programs. max_tasks: null: all.
    min_margin: by how much Q of two steps must differ to be a pair. min_outcomes: finished programs below each of them (a
    finished program is its own outcome). max_pairs: of a task."""

    split: SplitName
    max_tasks: Optional[int]
    min_margin: float
    min_outcomes: int
    max_pairs: int

    def check(self, path: str) -> list[str]:
        problems = within(path, 0, 2, min_margin=self.min_margin) + at_least(
            path, 1, min_outcomes=self.min_outcomes, max_pairs=self.max_pairs
        )
        if self.split is not SplitName.train:
            problems.append(
                f"{path}.split={self.split.value} would take labels from hidden test outputs of tasks that are not for "
                f"training; set {path}.split=train (stage=evaluate scores other splits)."
            )
        return problems + ([] if self.max_tasks is None else at_least(path, 1, max_tasks=self.max_tasks))


@dataclass(kw_only=True, slots=True)
class CurateConfig:
    """Which programs of a task are learned from. max_length_ratio: longer ones than so many times the shortest are dropped.
    Then the best num_best by mean Q, of these the shortest num_short, of these num_kept that differ most. generated_inputs:
    further inputs of a task (RE-ARC), where there are any, on which a step must change an output to stay."""

    max_length_ratio: float
    num_best: int
    num_short: int
    num_kept: int
    generated_inputs: int

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 1, max_length_ratio=self.max_length_ratio, num_kept=self.num_kept)
        problems += at_least(path, 0, generated_inputs=self.generated_inputs)
        if not self.num_best >= self.num_short >= self.num_kept:
            problems.append(
                f"{path}.num_best={self.num_best}, {path}.num_short={self.num_short} and {path}.num_kept={self.num_kept} must "
                "not rise; for example 64, 32 and 8."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """Further tasks of the same rules. source: rearc: or rearc:FOLDER. num_examples: generated examples of a task that are
    tried; 0 leaves the stage out. difficulties and timeout_s are those of dataset.rearc."""

    source: str
    num_examples: int

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 0, num_examples=self.num_examples)
        if not self.source.startswith("rearc:"):
            problems.append(f"{path}.source={self.source} must be rearc: or rearc:FOLDER; write one of them.")
        return problems


@dataclass(kw_only=True, slots=True)
class PolicySftConfig(AdapterSftConfig):
    """Supervised fine-tuning of the policy on the curated programs; each task counts alike. mark_tokens: the marks of steps
    become tokens of their own. task_share: of the tasks, held out whole; example_share: of the programs of the others,
    held out; both only measure. twin: a second policy is taught beside it with programs of other tasks, the control."""

    grad_accumulation: int
    clip_norm: Optional[float]
    eval_every: int
    mark_tokens: bool
    task_share: float
    example_share: float
    twin: bool

    def check(self, path: str) -> list[str]:
        problems = StageSftConfig.check(self, path)
        problems += at_least(path, 1, grad_accumulation=self.grad_accumulation, eval_every=self.eval_every)
        problems += within(path, 0, 0.9, task_share=self.task_share, example_share=self.example_share)
        if self.mark_tokens and self.lora is not None:
            problems.append(
                f"{path}.mark_tokens=true needs embeddings that are trained, and {path}.lora trains none; set "
                f"{path}.lora=null, or {path}.mark_tokens=false."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class ValueModelConfig:
    """The reward model: a value head on the policy of the round, trained on preference pairs. steps 0 leaves the stage out.
    held_out: share of the pairs' tasks that calibrate it and measure its accuracy. is_used: the search of the next round, and
    the evaluation of this one, ask it. shuffle_labels: the control, in which better and worse are drawn."""

    steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    held_out: float
    is_used: bool
    shuffle_labels: bool

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 0, steps=self.steps, lr=self.lr, warmup_steps=self.warmup_steps)
        problems += within(path, 0.05, 0.9, held_out=self.held_out)
        return problems + at_least(path, 2, batch_size=self.batch_size)


@dataclass(kw_only=True, slots=True)
class ScoreConfig:
    """What stage=evaluate scores with the search of the run. num_programs: of a task; null: as many as search.num_programs.
    baselines: the trained policy is also scored by the search without its reward model, and by plain sampling, and that of the
    start with the reward model, and by plain sampling; all with as many programs, and without a limit of draws."""

    split: SplitName
    max_tasks: Optional[int]
    num_programs: Optional[int]
    baselines: bool

    def check(self, path: str) -> list[str]:
        sizes = {"max_tasks": self.max_tasks, "num_programs": self.num_programs}
        problems = at_least(path, 1, **{key: value for key, value in sizes.items() if value is not None})
        if self.split is SplitName.train:
            problems.append(f"{path}.split=train is what is learned from; choose {path}.split=evaluation or validation.")
        return problems


@dataclass(kw_only=True, slots=True)
class TreeLearningConfig(StagedConfig):
    """Root of self_improve.py method=tree_search. lm: the policy of the first round, unless scratch makes one: then its name is
    not read, and what it is taught are steps."""

    HAS_SHARDS: ClassVar[bool] = True
    STAGES: ClassVar[tuple[str, ...]] = tuple(stage.value for stage in TreeStage if stage is not TreeStage.round)
    PARALLEL_STAGES: ClassVar[tuple[str, ...]] = (TreeStage.collect.value,)
    HAS_SERVER: ClassVar[bool] = True
    SERVED_STAGES: ClassVar[tuple[str, ...]] = (TreeStage.collect.value, TreeStage.evaluate.value)
    FREE_KEYS: ClassVar[tuple[str, ...]] = (
        *StagedConfig.FREE_KEYS,
        "sandbox.num_workers",
        "solver.trees_at_once",
        *(f"lm.{key}" for key in HOW_MODELS_RUN),
    )

    experiment_name: str
    name: str
    runs_dir: str
    seed: int
    stage: TreeStage
    round: int
    rounds: int
    device: DeviceChoice
    num_threads: Optional[int]
    criterion: Optional[CriterionConfig]
    launch: LaunchConfig
    lm: ModelConfig
    dataset: DatasetConfig
    sandbox: SandboxConfig
    solver: TreeSearchConfig
    search: SearchConfig
    scratch: Optional[ScratchModelConfig]
    collect: CollectConfig
    curate: CurateConfig
    augment: AugmentConfig
    sft: PolicySftConfig
    reward_model: ValueModelConfig
    evaluate: ScoreConfig

    def makes(self, stage: str, number: int) -> bool:
        """Whether a round has a stage; the others are left out by the settings."""
        if stage == TreeStage.start.value:
            return self.scratch is not None and number == 0
        if stage == TreeStage.augment.value:
            return self.augment.num_examples > 0
        return stage != TreeStage.reward_model.value or self.reward_model.steps > 0

    @property
    def order(self) -> list[tuple[str, int]]:
        return [(stage, number) for number in range(self.rounds) for stage in self.STAGES if self.makes(stage, number)]

    def check(self, path: str) -> list[str]:
        problems = [*self.check_stages(), *sized(path, 1, num_threads=self.num_threads)]
        problems += [*broken_name("name", self.name), *broken_path("runs_dir", self.runs_dir)]
        stage = self.stage.value
        if stage != ROUND and not self.makes(stage, self.round):
            key = {"start": "scratch=null", "augment": "augment.num_examples=0"}.get(stage, "reward_model.steps=0")
            remedy = "only the first round has one" if stage == "start" and self.scratch is not None else f"{key} leaves it out"
            problems.append(f"stage={stage} is no stage of round={self.round}: {remedy}; choose another stage.")
        if not isinstance(self.lm, HfModelConfig) and self.stage not in (TreeStage.collect, TreeStage.curate):
            problems.append(
                f"lm.kind={self.lm.kind} cannot be trained here, and stage={stage} needs that; choose a model of this process, "
                "such as lm=smollm2_135m, or stage=collect or curate."
            )
        if isinstance(self.search, BeamConfig) and self.reward_model.is_used and self.reward_model.steps == 0:
            problems.append("reward_model.is_used=true has no reward model with reward_model.steps=0; raise it, or set false.")
        if isinstance(self.search, BootstrapConfig) and self.scratch is not None:
            problems.append("search=bootstrap needs descriptions, and toy tasks of scratch have none; choose another search.")
        if self.launch.num_ranks > 1:
            problems.append(
                f"launch asks for {self.launch.num_ranks} ranks, and method=tree_search runs in one process; set launch.gpus "
                "and launch.cpus to 0 or 1, and launch.nodes=1."
            )
        return problems
