"""The schema of MemGen: pretrain_memgen.py, and evaluate.py with solver=memgen and solver=memgen_ltpo.

Rules as in schema.py: fields have no defaults (values live in conf/), check(path) returns broken rules as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar, Optional

from arclab.config.checkpoint_key import CheckpointWish, broken_checkpoint, checkpoint_wish
from arclab.config.launch_schema import LaunchConfig
from arclab.config.llm_schema import (
    TRAINED_TRIGGERS,
    HfModelConfig,
    Memory,
    SamplingConfig,
    SandboxConfig,
    TriggerConfig,
    TriggerKind,
    as_the_run,
    default_sandbox,
)
from arclab.config.memgen_trainer_schema import GrpoConfig, MemGenTrainerConfig, TriggerGrpoConfig
from arclab.config.names import broken_name, broken_path
from arclab.config.rules import at_least, sized, within
from arclab.config.run import CriterionConfig, DeviceChoice, EvaluationConfig, TrainingConfig, WandbConfig
from arclab.config.text_schema import TextDatasetConfig

UNTRAINED = "untrained"  # of memgen.weaver.start_from


class TextSplitName(Enum):
    train = "train"
    validation = "validation"
    test = "test"


class LtpoReward(Enum):
    """What the latents are moved to raise. entropy: minus the entropy of the next token. lookahead: the log-probability of a
    short greedy continuation. topk: the published one, minus the mean log-probability of the top_k tokens, which is not
    monotone in certainty."""

    entropy = "entropy"
    lookahead = "lookahead"
    topk = "topk"


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """target_modules: last parts of the names of linear layers."""

    rank: int
    alpha: float
    dropout: float
    target_modules: list[str]

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 1, rank=self.rank) + within(path, 0, 0.99, dropout=self.dropout)
        if not self.alpha > 0:
            problems.append(f"{path}.alpha={self.alpha} must be above 0; the adapter is scaled by alpha / rank.")
        if not self.target_modules:
            problems.append(f"{path}.target_modules is empty; name linear layers, for example [q_proj,v_proj].")
        return problems


@dataclass(kw_only=True, slots=True)
class WeaverConfig:
    """prompt_latents_len, inference_latents_len: latents of an insertion. max_prompt_aug_num: insertions at ends of prompts
    (0: none); max_inference_aug_num: at most so many delimiters of an answer are followed by memory. adapt_reasoner: no
    memory; the adapter is part of the reasoner, which is ordinary LoRA fine-tuning, the control. fast: the adapter reads the
    reasoner's own cache. model: another language model that weaves (a folder or a name on the hub); null: the reasoner
    itself. start_from: a run (also RUN@best), or one of its checkpoints, whose weaver this one begins as; null, or untrained: a
    new one."""

    model: Optional[str]
    start_from: Optional[str] = None
    prompt_latents_len: int
    inference_latents_len: int
    max_prompt_aug_num: int
    max_inference_aug_num: int
    fast: bool
    adapt_reasoner: bool
    lora: LoraConfig

    def check(self, path: str) -> list[str]:
        problems = at_least(
            path, 0, max_prompt_aug_num=self.max_prompt_aug_num, max_inference_aug_num=self.max_inference_aug_num
        )
        problems += at_least(
            path, 1, prompt_latents_len=self.prompt_latents_len, inference_latents_len=self.inference_latents_len
        )
        inserts = self.max_prompt_aug_num > 0 or self.max_inference_aug_num > 0
        if self.adapt_reasoner and (inserts or self.fast or self.model is not None):
            problems.append(
                f"{path}.adapt_reasoner=true has no memory; set {path}.max_prompt_aug_num=0, {path}.max_inference_aug_num=0, "
                f"{path}.fast=false and {path}.model=null, or choose memgen/weaver=lora."
            )
        if not inserts and not self.adapt_reasoner:
            problems.append(
                f"{path}.max_prompt_aug_num=0 and {path}.max_inference_aug_num=0 insert no memory, so nothing is trained; "
                "raise one of them (memory=off is the plain reasoner)."
            )
        if self.fast and self.model is not None:
            problems.append(
                f"{path}.fast=true reads the reasoner's own cache, which another model ({path}.model={self.model}) cannot; set "
                f"one of them to its default ({path}.fast=false, or {path}.model=null)."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class ScratchConfig:
    """A reasoner that the run itself makes: a small Qwen3 that is trained from random weights on the training split for
    steps, and then frozen. position_gaps: positions leap in its training rows where memory may be inserted later, by up to as
    many as there may be latents; without it a tiny model knows no token that stands further back than the text says, and every
    insertion costs accuracy."""

    position_gaps: bool
    steps: int
    width: int
    num_layers: int
    num_heads: int
    context: int
    vocab_size: int
    batch_size: int
    lr: float
    warmup_steps: int

    def check(self, path: str) -> list[str]:
        problems = sized(path, 1, width=self.width, num_layers=self.num_layers, num_heads=self.num_heads)
        problems += sized(path, 1, batch_size=self.batch_size)
        problems += at_least(path, 0, warmup_steps=self.warmup_steps, lr=self.lr)
        return problems + at_least(path, 1, steps=self.steps, context=self.context, vocab_size=self.vocab_size)


@dataclass(kw_only=True, slots=True)
class ReasonerConfig:
    """scratch: see there; null: lm.name is taken as it is."""

    scratch: Optional[ScratchConfig]


@dataclass(kw_only=True, slots=True)
class RunTriggerConfig(TriggerConfig):
    """The trigger of a run, which may be one that it trains. width: of kind head, the hidden layer of its network. lora: of
    kind lora, the adapter that reads the plain tokens. Their defaults are for runs made before they were keys."""

    width: Optional[int] = None
    lora: Optional[LoraConfig] = None

    def check(self, path: str) -> list[str]:
        if self.kind is None:
            return [f"{path}.kind=null is for evaluations; choose {', '.join(kind.value for kind in TriggerKind)}."]
        problems = TriggerConfig.check(self, path) + sized(path, 1, width=self.width)
        problems += self._check_owned(path, "width", self.width, TriggerKind.head, "NUMBER")
        if (self.lora is None) == (self.kind is TriggerKind.lora):
            problems.append(f"{path}.lora goes with {path}.kind=lora and with no other; choose memgen/trigger=lora.")
        return problems


@dataclass(kw_only=True, slots=True)
class MemGenConfig:
    """trigger: of the evaluations within the run and, unless they say otherwise, of those after it. Its default is for runs
    made before it was a key."""

    weaver: WeaverConfig
    reasoner: ReasonerConfig
    trigger: RunTriggerConfig = field(
        default_factory=lambda: RunTriggerConfig(kind=TriggerKind.always, probability=None, threshold=None)
    )


@dataclass(kw_only=True, slots=True)
class AnswersConfig:
    """How answers are drawn and how many are scored. max_examples: the first of the split; null: all. lm.batch_size of them are
    drawn at once."""

    split: TextSplitName
    max_examples: Optional[int]
    sampling: SamplingConfig

    def check(self, path: str) -> list[str]:
        return [] if self.max_examples is None else at_least(path, 1, max_examples=self.max_examples)


@dataclass(kw_only=True, slots=True)
class PretrainMemGenConfig(TrainingConfig):
    """Root of pretrain_memgen.py. lm: the reasoner. criterion: of the last evaluation, for example text/memory_gain. sandbox:
    in which replies that are programs run; its default is for runs made before it was a key."""

    FREE_KEYS: ClassVar[tuple[str, ...]] = (
        "launch.", "wandb.", "criterion", "trainer.log_every", "trainer.checkpoint_every", "trainer.keep_last",
        "trainer.num_threads", "trainer.device", "lm.device", "lm.batch_size", "sandbox.num_workers", "dataset.search.server",
    )  # fmt: skip

    experiment_name: str
    name: str
    runs_dir: str
    seed: int
    launch: LaunchConfig
    criterion: Optional[CriterionConfig]
    wandb: WandbConfig
    lm: HfModelConfig
    memgen: MemGenConfig
    dataset: TextDatasetConfig
    trainer: MemGenTrainerConfig
    evaluation: AnswersConfig
    sandbox: SandboxConfig = field(default_factory=default_sandbox)

    @property
    def scored_metric(self) -> str:
        return "text/accuracy"

    @property
    def learns_replies(self) -> bool:
        """Does it need training examples with worked replies?"""
        is_rewarded_alone = isinstance(self.trainer, GrpoConfig) and self.trainer.sft_steps == 0
        return not is_rewarded_alone or self.memgen.reasoner.scratch is not None

    def inputs(self) -> dict[str, Path]:
        """Models that another run makes."""
        given = None if self.memgen.reasoner.scratch is not None else self.lm.name
        weaver = self.memgen.weaver
        names: dict[str, Optional[str]] = {"lm.name": given, "memgen.weaver.model": weaver.model}
        if weaver.start_from not in (None, UNTRAINED):
            names["memgen.weaver.start_from"] = str(checkpoint_wish(weaver.start_from).path)
        return {key: Path(name) for key, name in names.items() if name and Path(name).is_relative_to(self.runs_dir)}

    def check(self, path: str) -> list[str]:
        problems = [*broken_name("experiment_name", self.experiment_name), *broken_name("name", self.name)]
        problems += broken_checkpoint("memgen.weaver.start_from", self.memgen.weaver.start_from or "")
        problems += self._check_trigger()
        if isinstance(self.trainer, GrpoConfig):
            problems += self._check_reinforced(self.trainer)
        return [*problems, *broken_path("runs_dir", self.runs_dir)]

    def _check_trigger(self) -> list[str]:
        """A trigger that is trained goes with the trainer that trains it, which needs a weaver to decide about."""
        kind, weaver = self.memgen.trigger.kind, self.memgen.weaver
        if not isinstance(self.trainer, TriggerGrpoConfig):
            if kind not in TRAINED_TRIGGERS:
                return []
            return [
                f"memgen.trigger.kind={kind.value} is trained by trainer=trigger_grpo, not by trainer={self.trainer.kind}; use "
                "that with memgen.weaver.start_from=RUN, or another memgen/trigger."
            ]
        problems = []
        if kind is not None and kind not in TRAINED_TRIGGERS:
            problems.append(
                f"memgen.trigger.kind={kind.value} has nothing that trainer=trigger_grpo could train; choose "
                "memgen/trigger=head or memgen/trigger=lora."
            )
        if weaver.adapt_reasoner:
            problems.append(
                "memgen.weaver.adapt_reasoner=true has no memory that a trigger could insert; choose another memgen/weaver."
            )
        if weaver.start_from == UNTRAINED and self.trainer.sft_steps == 0:
            problems.append(
                f"memgen.weaver.start_from={UNTRAINED} leaves trainer=trigger_grpo without memory worth a decision; give "
                "memgen.weaver.start_from=RUN of trainer=sft or grpo, or trainer.sft_steps above 0."
            )
        return problems

    def _check_reinforced(self, trainer: GrpoConfig) -> list[str]:
        problems = []
        if self.memgen.weaver.start_from is None and trainer.sft_steps == 0:
            untrained = f", or memgen.weaver.start_from={UNTRAINED} if that is meant"
            problems.append(
                f"memgen.weaver.start_from=null leaves trainer={trainer.kind} without a trained weaver; give "
                "memgen.weaver.start_from=RUN of trainer=sft, or trainer.sft_steps above 0"
                f"{'' if isinstance(trainer, TriggerGrpoConfig) else untrained}."
            )
        if isinstance(trainer, TriggerGrpoConfig) and self.dataset.turns is not None:
            problems.append(
                f"trainer=trigger_grpo learns from replies of one turn, and dataset.kind={self.dataset.kind} has several; use "
                "another dataset, or trainer=grpo."
            )
        if trainer.boxed_reward > 0 and not self.dataset.has_boxed_answers:
            problems.append(
                f"trainer.boxed_reward={trainer.boxed_reward} pays for a box, and replies of dataset.kind={self.dataset.kind} "
                "have none; set trainer.boxed_reward=0."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class LtpoConfig:
    """Moving latents at test time. enabled must be true for solver=memgen_ltpo. lr: of the latents, in units of their own
    size. sigma: noise of a step in the same units, times sigma_decay after each. max_steps: 0 changes nothing.
    reward_threshold: a row stops once its reward reaches it; null: never. use_auto_grad: gradients; false: REINFORCE.
    lookahead_tokens: of reward=lookahead. verbose: the reward of every step in answer_ltpo.json."""

    enabled: bool
    reward: LtpoReward
    lr: float
    sigma: float
    sigma_decay: float
    max_steps: int
    reward_threshold: Optional[float]
    top_k: int
    lookahead_tokens: int
    use_auto_grad: bool
    verbose: bool

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 0, lr=self.lr, sigma=self.sigma, max_steps=self.max_steps)
        problems += at_least(path, 1, top_k=self.top_k, lookahead_tokens=self.lookahead_tokens)
        problems += within(path, 0, 1, sigma_decay=self.sigma_decay)
        if not self.use_auto_grad and self.sigma == 0:
            problems.append(
                f"{path}.use_auto_grad=false learns from noise alone, and {path}.sigma=0 has none; raise {path}.sigma."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class EvaluateMemGenConfig(EvaluationConfig):
    """Root of evaluate.py solver=memgen. null means: as the checkpoint's own run was configured. name: the folder in the run's
    evaluation/ (null: <split>_<memory>, with the kind of a trigger of its own); output_dir: a folder anywhere else."""

    HAS_SHARDS: ClassVar[bool] = True
    FREE_KEYS: ClassVar[tuple[str, ...]] = ("launch.", "device", "num_threads", "batch_size", "output_dir")
    _SUFFIX: ClassVar[str] = ""  # of the default name

    checkpoint: str
    name: Optional[str]
    runs_dir: str
    output_dir: Optional[str]
    memory: Memory
    trigger: TriggerConfig = field(default_factory=as_the_run)
    split: TextSplitName
    max_examples: Optional[int]
    batch_size: Optional[int]
    sampling: SamplingConfig
    seed: int
    device: DeviceChoice
    num_threads: Optional[int]
    launch: LaunchConfig

    @property
    def wish(self) -> CheckpointWish:
        return checkpoint_wish(self.checkpoint)

    @property
    def run_folder(self) -> Path:
        return self.wish.run_folder

    @property
    def title(self) -> tuple[str, str]:
        name = f"{self.run_folder.name}-{self.whole_folder.name}{self.launch.shard_suffix}"
        return self.run_folder.parent.name, name

    @property
    def folder(self) -> Path:
        return self.launch.folder_in(self.whole_folder)

    @property
    def whole_folder(self) -> Path:
        """Also of a shard, whose own lies in it."""
        if self.output_dir:
            return Path(self.output_dir)
        return self.run_folder / "evaluation" / (self.name or f"{self._default_name}{self.wish.suffix}")

    @property
    def _default_name(self) -> str:
        trigger = "" if self.trigger.kind is None else f"_{self.trigger.kind.value}"
        return f"{self.split.value}_{self.memory.value}{trigger}{self._SUFFIX}"

    @property
    def best_metric(self) -> str:
        return "text/accuracy"

    def inputs(self) -> dict[str, Path]:
        return {"checkpoint": self.wish.path} | self.launch.shard_folders(self.whole_folder)

    def check(self, path: str) -> list[str]:
        problems = sized(path, 1, batch_size=self.batch_size, num_threads=self.num_threads)
        problems += [] if self.max_examples is None else at_least(path, 1, max_examples=self.max_examples)
        problems += [] if self.name is None else broken_name("name", self.name)
        problems += broken_path("runs_dir", self.runs_dir)
        problems += broken_checkpoint("checkpoint", self.checkpoint)
        if not self.checkpoint:
            problems.append("checkpoint is empty; give checkpoint=RUN_FOLDER or checkpoint=RUN_FOLDER/checkpoints/step_N.")
        return problems


@dataclass(kw_only=True, slots=True)
class EvaluateMemGenLtpoConfig(EvaluateMemGenConfig):
    """Root of evaluate.py solver=memgen_ltpo. memory=off has no latents to move."""

    ltpo: LtpoConfig

    _SUFFIX: ClassVar[str] = "_ltpo"

    def check(self, path: str) -> list[str]:
        problems = EvaluateMemGenConfig.check(self, path)
        if self.memory is Memory.off:
            problems.append(
                "memory=off has no latents, and solver=memgen_ltpo moves them; use memory=trained or memory=random."
            )
        return problems
