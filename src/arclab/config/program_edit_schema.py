"""The schema of self_improve.py method=program_edit and evaluate.py solver=program_edit: models that edit programs.

Rules as in schema.py: fields have no defaults (values live in conf/), check(path) returns broken rules as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar, Optional, Protocol

from arclab.config.dataset_schema import DatasetConfig
from arclab.config.launch_schema import LaunchConfig
from arclab.config.llm_schema import (
    HOW_MODELS_RUN,
    EvaluateWithProgramsConfig,
    HfModelConfig,
    ModelConfig,
    PromptConfig,
    SamplingConfig,
    SandboxConfig,
)
from arclab.config.names import broken_name, broken_path
from arclab.config.program_edit_grpo_schema import EditCurriculumConfig, EditGrpoConfig, ThinkingConfig
from arclab.config.rules import at_least, sized, within
from arclab.config.run import CriterionConfig, DeviceChoice
from arclab.config.schema import SplitName
from arclab.config.scratch_schema import ScratchModelConfig
from arclab.config.sft_schema import AdapterSftConfig, StageSftConfig
from arclab.config.stages_schema import ROUND, StagedConfig


class EditStage(Enum):
    start = "start"
    sample = "sample"
    select = "select"
    sft = "sft"
    grpo = "grpo"
    twin_sft = "twin_sft"
    twin_grpo = "twin_grpo"
    evaluate = "evaluate"
    round = "round"


TWIN_STAGES = ("twin_sft", "twin_grpo")


class EditControls(Enum):
    """What an evaluation compares the trained model with, on the same start programs. none: nothing. start: the model that the
    first round began with. twin: that, and a twin that learned edits drawn at random and then rewards dealt out at random."""

    none = "none"
    start = "start"
    twin = "twin"


class EditFormat(Enum):
    """What a reply holds. program: the whole new program. blocks: lines to find in the old one, and what to put there."""

    program = "program"
    blocks = "blocks"


class CountedCells(Enum):
    """Over which cells the share of right ones is taken. all: of the right output. changed: where the right output, or the
    program's, is not the input's colour; all of them where the shape changes."""

    all = "all"
    changed = "changed"


class Proposer(Enum):
    """Who writes edits. model: the language model. reference: variants of the task's reference program, some of them right; a
    stand-in for a model that knows, for tasks that are trained on."""

    model = "model"
    reference = "reference"


class SelectRule(Enum):
    """best: the edits that improve most. random: as many edits with a program, whatever they do; the control."""

    best = "best"
    random = "random"


class EditSearch(Enum):
    """How programs are looked for at test time. single: each is written from nothing, as long as the budget lasts; the
    baseline. chains: every turn edits the best programs of a task. tree: levels, each with a number of parents, of edits and of
    programs in a prompt of its own."""

    single = "single"
    chains = "chains"
    tree = "tree"


class Distinct(Enum):
    """Which programs may be parents beside each other. output: those that answer the demonstrations differently. code: those
    that are written differently, too, whatever they answer."""

    output = "output"
    code = "code"


class EvaluatedModel(Enum):
    """trained: what the stages before have made. given: lm as it is; no stage need be there."""

    trained = "trained"
    given = "given"


@dataclass(kw_only=True, slots=True)
class EditPromptConfig(PromptConfig):
    """How a task, a program and what it does are shown. report: whether what the program does is shown."""

    edit_format: EditFormat
    report: bool


@dataclass(kw_only=True, slots=True)
class EditRewardConfig:
    """What a program is worth: for each demonstration 0.1 if it compiles, 0.1 for the right shape and (share of right
    cells)^10, less costs. per_execution, per_thinking_token: these costs. use_tests: test pairs of training tasks count as
    demonstrations do; never in prompts, nor in an evaluation."""

    per_execution: float
    per_thinking_token: float
    cells: CountedCells
    use_tests: bool

    def check(self, path: str) -> list[str]:
        return within(path, 0.0, 0.1, per_execution=self.per_execution, per_thinking_token=self.per_thinking_token)


@dataclass(kw_only=True, slots=True)
class EditStartsConfig:
    """The programs that edits begin with. mutants: of each reference program, at most. max_changes: of a mutant, which has 1 to
    so many of them in turn. drafts: programs that the model writes for each task without one to begin with. per_task: start
    programs that a round draws for each task, by value."""

    mutants: int
    max_changes: int
    drafts: int
    per_task: int

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 0, mutants=self.mutants, drafts=self.drafts)
        return problems + at_least(path, 1, max_changes=self.max_changes, per_task=self.per_task)


@dataclass(kw_only=True, slots=True)
class EditSampleConfig:
    """num_samples: edits of each start program."""

    proposer: Proposer
    num_samples: int
    sampling: SamplingConfig

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 1, num_samples=self.num_samples)
        if self.sampling.temperature == 0 and self.num_samples > 1 and self.proposer is Proposer.model:
            problems.append(
                f"{path}.num_samples={self.num_samples} does not go with {path}.sampling.temperature=0: all edits of a program "
                f"would be equal; set {path}.num_samples=1 or a temperature above 0."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class EditSelectConfig:
    """Which edits are learned from. top_k: of each start program. epsilon: gains that differ by no more are equal; then the
    edits that solve most demonstrations together go first. max_per_task: of all start programs of a task."""

    rule: SelectRule
    top_k: int
    epsilon: float
    max_per_task: int

    def check(self, path: str) -> list[str]:
        return at_least(path, 1, top_k=self.top_k, max_per_task=self.max_per_task) + at_least(path, 0, epsilon=self.epsilon)


@dataclass(kw_only=True, slots=True)
class EditSftConfig(AdapterSftConfig):
    """Supervised fine-tuning on the selected edits. weight_beta: rows count exp(gain / weight_beta), at most max_weight and
    divided by the mean of all; null: alike."""

    weight_beta: Optional[float]
    max_weight: float

    def check(self, path: str) -> list[str]:
        problems = StageSftConfig.check(self, path) + at_least(path, 1, max_weight=self.max_weight)
        if self.weight_beta is not None and not self.weight_beta > 0:
            problems.append(f"{path}.weight_beta={self.weight_beta} must be above 0; use null for rows that count alike.")
        return problems


@dataclass(kw_only=True, slots=True)
class EditEvaluateConfig:
    """model: whose edits. num_samples: edits of a program in one turn. turns: how often a start program is edited, the best
    edit of one turn in the next. max_tasks: null: all of the split."""

    model: EvaluatedModel
    split: SplitName
    max_tasks: Optional[int]
    num_samples: int
    turns: int

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 1, num_samples=self.num_samples, turns=self.turns)
        return problems + ([] if self.max_tasks is None else at_least(path, 1, max_tasks=self.max_tasks))


class EditSettings(Protocol):
    """What decides how a program is shown, and what an edit of it is worth."""

    prompt: EditPromptConfig
    reward: EditRewardConfig
    seed: int


PROGRAM_EDIT = "program_edit"


@dataclass(kw_only=True, slots=True)
class EditSearchConfig:
    """Edits at test time. drafts: programs that the model writes for a task without one to begin with, beside the identity.

    Of chains: turns: how often programs are edited. num_kept: the programs that a turn edits, the best that there are of a
    task. num_samples: edits of each; of single: programs that are asked for at once. Of tree: levels: one after the other,
    [parents, edits of each, programs in a prompt]. distinct: which parents may stand beside each other.

    A task is left alone once enough_right different answers are of programs that reproduce every demonstration, or once its
    budget is spent: max_programs (never more), max_tokens (nothing is asked for beyond it; what was asked for before counts),
    max_s (seconds of this process, of all tasks together). null: no limit."""

    kind: str
    search: EditSearch
    drafts: int
    turns: int
    num_kept: int
    num_samples: int
    levels: list[list[int]]
    distinct: Distinct
    enough_right: int
    max_programs: Optional[int]
    max_tokens: Optional[int]
    max_s: Optional[float]
    sampling: SamplingConfig

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 0, drafts=self.drafts, turns=self.turns)
        problems += at_least(path, 1, num_kept=self.num_kept, num_samples=self.num_samples, enough_right=self.enough_right)
        limits = {"max_programs": self.max_programs, "max_tokens": self.max_tokens}
        problems += at_least(path, 1, **{key: value for key, value in limits.items() if value is not None})
        if self.max_s is not None and not self.max_s > 0:
            problems.append(f"{path}.max_s={self.max_s} must be above 0; null is no limit.")
        if self.kind != PROGRAM_EDIT:
            problems.append(f"{path}.kind={self.kind} is not known; choose {PROGRAM_EDIT}.")
        return problems + self._broken_search(path)

    def _broken_search(self, path: str) -> list[str]:
        if any(len(level) != 3 or min(level) < 1 for level in self.levels):
            return [
                f"{path}.levels={self.levels} must be lists of three numbers of at least 1: parents, edits of each, programs "
                "in a prompt."
            ]
        if self.search is EditSearch.single and self.max_programs is None and self.max_tokens is None and self.max_s is None:
            return [f"{path}.search=single needs an end; set {path}.max_programs, {path}.max_tokens or {path}.max_s."]
        if self.search is EditSearch.chains and self.drafts + self.turns == 0:
            return [f"{path}.turns=0 does not go with {path}.drafts=0: no program would be written; raise one of them."]
        if self.search is EditSearch.tree and not self.levels:
            return [f"{path}.levels is empty, which is no tree; give levels, or {path}.search=single."]
        return []


@dataclass(kw_only=True, slots=True)
class EvaluateEditsConfig(EvaluateWithProgramsConfig):
    """Root of evaluate.py solver=program_edit. think: of edits; null leaves the model to itself."""

    solver: EditSearchConfig
    prompt: EditPromptConfig
    reward: EditRewardConfig
    think: Optional[ThinkingConfig] = None

    @property
    def solver_kind(self) -> str:
        return self.solver.kind

    @property
    def run_name(self) -> str:
        """Kinds of search, and the twin without feedback, have folders of their own."""
        kind = "" if self.solver.search is EditSearch.chains else f"_{self.solver.search.value}"
        silent = "" if self.prompt.report else "_no_report"
        return self.name or f"{EvaluateWithProgramsConfig.run_name.fget(self)}{kind}{silent}"  # pyright: ignore[reportOptionalCall]

    def check(self, path: str) -> list[str]:
        problems = EvaluateWithProgramsConfig.check(self, path)
        if self.reward.use_tests:
            problems.append(
                "reward.use_tests=true is for tasks that are trained on, and this is an evaluation; set it to false."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class ProgramEditConfig(StagedConfig):
    """Root of self_improve.py method=program_edit. lm: the model of the first round, unless scratch makes one: then its name is
    not read. max_tasks: of training tasks; null: all. think: null leaves the model to itself."""

    HAS_SHARDS: ClassVar[bool] = True
    STAGES: ClassVar[tuple[str, ...]] = tuple(stage.value for stage in EditStage if stage is not EditStage.round)
    PARALLEL_STAGES: ClassVar[tuple[str, ...]] = ("sample",)
    HAS_SERVER: ClassVar[bool] = True
    SERVED_STAGES: ClassVar[tuple[str, ...]] = ("sample", "evaluate")
    FREE_KEYS: ClassVar[tuple[str, ...]] = (
        *StagedConfig.FREE_KEYS,
        "sandbox.num_workers",
        *(f"lm.{key}" for key in HOW_MODELS_RUN),
    )

    experiment_name: str
    name: str
    runs_dir: str
    seed: int
    stage: EditStage
    round: int
    rounds: int
    device: DeviceChoice
    num_threads: Optional[int]
    criterion: Optional[CriterionConfig]
    launch: LaunchConfig
    lm: ModelConfig
    dataset: DatasetConfig
    sandbox: SandboxConfig
    max_tasks: Optional[int]
    scratch: Optional[ScratchModelConfig]
    prompt: EditPromptConfig
    reward: EditRewardConfig
    starts: EditStartsConfig
    think: Optional[ThinkingConfig]
    sample: EditSampleConfig
    select: EditSelectConfig
    sft: EditSftConfig
    grpo: EditGrpoConfig
    curriculum: EditCurriculumConfig
    controls: EditControls
    evaluate: EditEvaluateConfig

    def makes(self, stage: str, number: int) -> bool:
        """Whether a round has a stage; the others are left out by the settings."""
        if stage == EditStage.start.value:
            return self.scratch is not None and number == 0
        if stage in TWIN_STAGES and self.controls is not EditControls.twin:
            return False
        return stage not in ("grpo", "twin_grpo") or self.grpo.steps > 0

    @property
    def order(self) -> list[tuple[str, int]]:
        return [(stage, number) for number in range(self.rounds) for stage in self.STAGES if self.makes(stage, number)]

    @property
    def best_metric(self) -> str:
        return self.criterion.metric if self.criterion else "edits/solved_share"

    @property
    def num_steps(self) -> int | None:
        if self.is_whole:
            return len(self.order)
        # stage=grpo may be over before its last step.
        return self.sft.steps if self.stage in (EditStage.sft, EditStage.twin_sft) else None

    @property
    def stops_when_unhealthy(self) -> bool:
        return self.grpo.stop_when_unhealthy

    def file_of(self, stage: str, number: int, name: str) -> Path:
        """A file of a stage's folder."""
        return self.folder_of(stage, number) / name

    def check(self, path: str) -> list[str]:
        problems = [*self.check_stages(), *sized(path, 1, num_threads=self.num_threads)]
        problems += [] if self.max_tasks is None else at_least(path, 1, max_tasks=self.max_tasks)
        problems += [*broken_name("name", self.name), *broken_path("runs_dir", self.runs_dir)]
        return problems + self._broken_stage()

    def _broken_stage(self) -> list[str]:
        stage, problems = self.stage.value, list[str]()
        if stage != ROUND and not self.makes(stage, self.round):
            remedy = {"start": "scratch=null", "grpo": "grpo.steps=0", "twin_sft": f"controls={self.controls.value}"}
            why = remedy.get(stage, "grpo.steps=0 or controls other than twin") + " leaves it out"
            why = "only the first round has one" if stage == "start" and self.scratch is not None else why
            problems.append(f"stage={stage} is no stage of round={self.round}: {why}; choose another stage.")
        if self.think is not None and self.grpo.vllm_url is not None:
            problems.append("grpo.vllm_url does not go with think, which is measured where tokens are drawn; set one to null.")
        is_trained = stage not in ("sample", "select", "evaluate")
        if is_trained and not isinstance(self.lm, HfModelConfig):
            problems.append(
                f"lm.kind={self.lm.kind} cannot be trained here, and stage={stage} trains it; choose a model of "
                "this process, such as lm=smollm2_135m, or another stage."
            )
        if self.launch.num_ranks > 1 and stage not in ("grpo", "twin_grpo"):
            problems.append(
                f"launch asks for {self.launch.num_ranks} ranks, and stage={stage} of method=program_edit runs in one process; "
                "set launch.gpus and launch.cpus to 0 or 1, and launch.nodes=1, or give them to stage=grpo alone."
            )
        return problems
