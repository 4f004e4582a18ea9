"""The typed configuration: every key, its type and its rule. Values live in conf/*.yaml and nowhere else.

A dataclass here is the schema of one YAML node. check(path) returns one sentence for each broken rule (key, value, rule,
remedy); compose.to_typed collects the sentences of the whole tree and raises them together, before anything is built.
This module imports no torch, so that a job list can be checked in a blink.

A field without a default must be given by YAML. None is allowed only where a field says Optional, and means "no limit" or
"as the run's own configuration says", never zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import ClassVar, Optional

from arclab.config.checkpoint_key import checkpoint_wish
from arclab.config.dataset_schema import DatasetConfig, Regime
from arclab.config.encoder_schema import (
    DemoAttention,
    EncoderConfig,
    HybridVariationalEncoderConfig,
    InContextEncoderConfig,
    LpnEncoderConfig,
    LpnVariationalEncoderConfig,
    OptimConfig,
    PuzzleTableConfig,
    TransformerEncoderConfig,
    VariationalEncoderConfig,
)
from arclab.config.launch_schema import LaunchConfig
from arclab.config.names import broken_name, broken_path
from arclab.config.rules import at_least, sized, within
from arclab.config.run import MIN_PROFILED_STEPS, CriterionConfig, DeviceChoice, TrainingConfig, WandbConfig


class Positions(Enum):
    rope = "rope"
    learned = "learned"
    none = "none"


class AttentionKernel(Enum):
    """sdpa: torch's own choice. flash: the package flash-attn (CUDA, bf16), where no mask is needed."""

    sdpa = "sdpa"
    flash = "flash"


class ColorEmbedding(Enum):
    """free: a vector and an output row for each colour, as published. shared: colours share their weights but for an identity
    that is drawn for each row of the training; shared_nonzero: but colour 0 (see arclab.methods.recursive.colors)."""

    free = "free"
    shared = "shared"
    shared_nonzero = "shared_nonzero"


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"


class InitKind(Enum):
    """scratch: random. The others load decoder_init.path: pretrained trains it at once, frozen never, staged after
    freeze_steps."""

    scratch = "scratch"
    pretrained = "pretrained"
    frozen = "frozen"
    staged = "staged"


class SplitName(Enum):
    train = "train"
    validation = "validation"
    evaluation = "evaluation"


class EvalHalting(Enum):
    """When a row of an evaluation ends. all_steps: after halt_max_steps (the published rule). early: at a positive halt
    logit."""

    all_steps = "all_steps"
    early = "early"


class VotesRule(Enum):
    """How many augmentations vote. all: every one. adaptive: until the order of a task's first two candidates is settled;
    adaptive_first: until its first candidate is, whoever comes second (the test: arclab.methods.recursive.solver.stopping)."""

    all = "all"
    adaptive = "adaptive"
    adaptive_first = "adaptive_first"


class Ranking(Enum):
    """How candidates are ranked. count: by votes, as published. product: by the product of their probabilities under all views
    that voted, which are predicted twice for it (arclab.methods.recursive.solver.product)."""

    count = "count"
    product = "product"


class WeightsKind(Enum):
    ema = "ema"
    raw = "raw"


@dataclass(kw_only=True, slots=True)
class DecoderConfig:
    """The TRM network: num_layers shared blocks, run as h_cycles x (l_cycles updates of z_L, one of z_H).

    color_embedding: how it and the encoder embed colours; the default is for runs that were made before it was a key.
    """

    width: int
    num_heads: int
    num_layers: int
    expansion: float
    h_cycles: int
    l_cycles: int
    mlp_t: bool
    positions: Positions
    attention: AttentionKernel
    optim: OptimConfig
    color_embedding: ColorEmbedding = ColorEmbedding.free

    def check(self, path: str) -> list[str]:
        problems = sized(path, 1, width=self.width, num_heads=self.num_heads, num_layers=self.num_layers,
                          h_cycles=self.h_cycles, l_cycles=self.l_cycles)  # fmt: skip
        problems += within(path, 0.1, 16, expansion=self.expansion)
        if self.num_heads > 0 and (self.width % self.num_heads or (self.width // self.num_heads) % 2):
            problems.append(
                f"{path}.width={self.width} must be an even multiple of {path}.num_heads={self.num_heads} (rotary positions "
                "pair channels); change one."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class HaltingConfig:
    """Adaptive computation. Exploration: with this probability a row must run a random number of steps, 2 to the maximum.
    single_steps: optimiser steps at the start in which every row halts after one supervision step."""

    halt_max_steps: int
    halt_exploration_prob: float
    halt_loss_weight: float
    single_steps: int = 0

    def check(self, path: str) -> list[str]:
        problems = [
            *sized(path, 1, halt_max_steps=self.halt_max_steps), *at_least(path, 0, single_steps=self.single_steps),
            *within(path, 0.0, 1.0, halt_exploration_prob=self.halt_exploration_prob),
            *within(path, 0.0, 100.0, halt_loss_weight=self.halt_loss_weight),
        ]  # fmt: skip
        if self.halt_max_steps == 1 and self.halt_exploration_prob > 0:
            problems.append(
                f"{path}.halt_exploration_prob={self.halt_exploration_prob} needs {path}.halt_max_steps of at least 2 "
                "(exploration draws from 2 upwards); set it to 0."
            )
        if self.halt_max_steps == 1 and self.single_steps > 0:
            problems.append(f"{path}.single_steps={self.single_steps} needs {path}.halt_max_steps above 1; set it to 0.")
        return problems


@dataclass(kw_only=True, slots=True)
class DecoderInitConfig:
    """Where the decoder's weights start, and when they train. path: a run folder, a checkpoint, or an official state dict.

    freeze_steps: optimiser steps before a staged decoder joins the training; 0 for the other kinds.
    """

    kind: InitKind
    path: Optional[str]
    freeze_steps: int

    def frozen_until(self) -> float:
        """The last optimiser step at which the decoder stands still."""
        return {InitKind.frozen: math.inf, InitKind.staged: self.freeze_steps}.get(self.kind, 0)

    def check(self, path: str) -> list[str]:
        if self.kind is not InitKind.scratch and not self.path:
            return [
                f"{path}.path is empty but {path}.kind={self.kind.name} needs a TRM checkpoint; set "
                f"{path}.path=RUN_FOLDER_OR_FILE."
            ]
        if self.kind is InitKind.staged and self.freeze_steps < 1:
            return [f"{path}.freeze_steps={self.freeze_steps} must be at least 1 for kind=staged; raise it or use pretrained."]
        if self.kind is not InitKind.staged and self.freeze_steps != 0:
            return [
                f"{path}.freeze_steps={self.freeze_steps} is read by kind=staged only; set it to 0 or use decoder_init=staged."
            ]
        if self.kind is InitKind.scratch and self.path:
            return [
                f"{path}.path={self.path} is set but {path}.kind=scratch loads nothing; use decoder_init=pretrained, frozen "
                "or staged, or drop the path."
            ]
        return []


AUTO = "auto"  # trainer.batch_size: see TrainerConfig


class CanvasRule(Enum):
    """full: every row on dataset.canvas (the published form). bucketed: every row on the smallest canvas that holds its task
    (in evaluation: what is shown of it; answers that had no room are predicted again on a larger one)."""

    full = "full"
    bucketed = "bucketed"


class OptimizerKind(Enum):
    """What moves encoder and decoder: adam_atan2, as published, or muon for the matrices of their linear layers (see
    arclab.methods.recursive.training.optim), with the same learning rates. A puzzle table has sign-SGD either way."""

    adam_atan2 = "adam_atan2"
    muon = "muon"


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """The training loop. steps are optimiser steps; batch_size is the number of rows over all ranks; auto: the largest
    that fits, found when the run starts and written into its config.yaml as a number. canvas: see CanvasRule.

    recompute: activations of blocks are computed again in the backward pass instead of being kept. profile: see
    arclab.runs.profile. The defaults are for runs that were made before these were keys.
    Health is judged at steps 10 and 100 and every health_every steps (see arclab.methods.recursive.health).
    """

    steps: int
    batch_size: int | str
    grad_accumulation: int
    precision: Precision
    compile: bool
    clip_norm: float
    warmup_steps: int
    lr_min_ratio: float
    beta1: float
    beta2: float
    ema_decay: float
    ema_warmup: bool
    eval_every: int
    checkpoint_every: int
    keep_last: int
    save_carry: bool
    log_every: int
    health_every: int
    stop_when_unhealthy: bool
    num_workers: int
    num_threads: Optional[int]
    device: DeviceChoice
    canvas: CanvasRule = CanvasRule.full
    profile: bool = False
    recompute: bool = False
    optimizer: OptimizerKind = OptimizerKind.adam_atan2

    @property
    def num_rows(self) -> int:
        """batch_size, once it is a number: training starts only then."""
        assert isinstance(self.batch_size, int)
        return self.batch_size

    def check(self, path: str) -> list[str]:
        problems = [
            *at_least(path, 1, steps=self.steps, grad_accumulation=self.grad_accumulation,
                       checkpoint_every=self.checkpoint_every, keep_last=self.keep_last, log_every=self.log_every,
                       health_every=self.health_every),
            *at_least(path, 0, warmup_steps=self.warmup_steps, eval_every=self.eval_every),
            *sized(path, 0, num_workers=self.num_workers), *sized(path, 1, num_threads=self.num_threads),
            *within(path, 0.0, 1e6, clip_norm=self.clip_norm),
            *within(path, 0.0, 1.0, lr_min_ratio=self.lr_min_ratio),
            *within(path, 0.0, 0.999999, beta1=self.beta1, beta2=self.beta2, ema_decay=self.ema_decay),
        ]  # fmt: skip
        if isinstance(self.batch_size, int) and self.batch_size > 0:
            problems += sized(path, 1, batch_size=self.batch_size)
        if self.batch_size != AUTO and (isinstance(self.batch_size, str) or self.batch_size < 1):
            problems.append(
                f"{path}.batch_size={self.batch_size} must be at least 1 (a number of rows over all ranks), or {AUTO} for the "
                "largest that fits; change it."
            )
        elif isinstance(self.batch_size, int) and self.grad_accumulation > 0 and self.batch_size % self.grad_accumulation:
            problems.append(
                f"{path}.batch_size={self.batch_size} must be divisible by {path}.grad_accumulation={self.grad_accumulation}; "
                "change one."
            )
        if self.profile and self.steps < MIN_PROFILED_STEPS:
            problems.append(
                f"{path}.profile=true needs {path}.steps={self.steps} to be at least {MIN_PROFILED_STEPS}; raise it, or set "
                f"{path}.profile=false."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """What is scored during and after training. num_augmentations: views per task that vote, beside the original.

    batch_size: rows in flight. health_tasks: scored and training tasks on which the encoder's context is examined (encoder/*,
    train_encoder/*), no more of each than are scored; 0: none. samples: each row is predicted so often, from start latents with
    Gaussian noise of carry_noise times their root mean square, and the answer with the highest halt logit votes. The defaults
    are the published rules, for runs that were made before they were keys.
    """

    split: SplitName
    num_augmentations: int
    batch_size: int
    max_tasks: Optional[int]
    health_tasks: int
    halting: EvalHalting = EvalHalting.all_steps
    votes: VotesRule = VotesRule.all
    canvas: CanvasRule = CanvasRule.full
    ranking: Ranking = Ranking.count
    samples: int = 1
    carry_noise: float = 0.0

    def check(self, path: str) -> list[str]:
        problems = [
            *sized(path, 0, num_augmentations=self.num_augmentations),
            *within(path, 0, 100, carry_noise=self.carry_noise),
            *at_least(path, 0, health_tasks=self.health_tasks),
            *sized(path, 1, batch_size=self.batch_size, samples=self.samples),
        ]
        if self.max_tasks is not None and self.max_tasks < 1:
            problems.append(f"{path}.max_tasks={self.max_tasks} must be at least 1, or null for all tasks; change it.")
        if self.samples > 1 and self.carry_noise == 0:
            problems.append(
                f"{path}.samples={self.samples} with {path}.carry_noise=0 predicts the same {self.samples} times; set "
                f"{path}.carry_noise above 0, or {path}.samples=1."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class ExperimentConfig(TrainingConfig):
    """Root of pretrain_encoder.py. The run folder is <runs_dir>/<experiment_name>/<name>."""

    FREE_KEYS: ClassVar[tuple[str, ...]] = (
        "launch.",
        "wandb.",
        "criterion",
        "trainer.health_every",
        "trainer.stop_when_unhealthy",
        "evaluation.health_tasks",
        "evaluation.batch_size",
        "trainer.num_workers",
        "trainer.recompute",
        "trainer.log_every",
        "trainer.keep_last",
        "trainer.checkpoint_every",
    )

    experiment_name: str
    name: str
    runs_dir: str
    seed: int
    decoder: DecoderConfig
    encoder: EncoderConfig
    halting: HaltingConfig
    decoder_init: DecoderInitConfig
    dataset: DatasetConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    launch: LaunchConfig
    criterion: Optional[CriterionConfig]
    wandb: WandbConfig

    @property
    def wandb_tags(self) -> tuple[str, ...]:
        return self.experiment_name, self.encoder.kind, self.dataset.name

    def settled(self, held: ExperimentConfig) -> ExperimentConfig:
        return self.with_batch_size(held.trainer.batch_size) if self.trainer.batch_size == AUTO else self

    def begins_as(self, num_steps: int) -> bool:
        """The one thing that depends on the number of steps is the fall of the learning rate after its warm-up."""
        trainer = self.trainer
        return trainer.steps > num_steps and (trainer.lr_min_ratio == 1.0 or num_steps <= trainer.warmup_steps)

    def with_batch_size(self, batch_size: int | str) -> ExperimentConfig:
        return replace(self, trainer=replace(self.trainer, batch_size=batch_size))

    def inputs(self) -> dict[str, Path]:
        return {"decoder_init.path": checkpoint_wish(self.decoder_init.path).path} if self.decoder_init.path else {}

    def check(self, path: str) -> list[str]:
        problems = sized("", 0, seed=self.seed)
        for key, value in (("name", self.name), ("experiment_name", self.experiment_name)):
            problems += broken_name(key, value)
        problems += broken_path("runs_dir", self.runs_dir)
        is_table = isinstance(self.encoder, PuzzleTableConfig)
        if is_table != (self.dataset.regime is Regime.puzzle_id):
            problems.append(
                f"encoder.kind={self.encoder.kind} does not go with dataset.regime={self.dataset.regime.name}: a puzzle table "
                "learns a vector per puzzle (dataset.regime=puzzle_id), an encoder reads demonstrations "
                "(dataset.regime=few_shot); change one."
            )
        views, trained = self.evaluation.num_augmentations, self.dataset.num_augmentations
        if is_table and views > trained:
            problems.append(
                f"evaluation.num_augmentations={views} is more than dataset.num_augmentations={trained}: a puzzle table has "
                "vectors for the views that it is trained on and no others; lower the one or raise the other."
            )
        if self.decoder.attention is AttentionKernel.flash and self.trainer.precision is Precision.fp32:
            problems.append(
                "decoder.attention=flash does not go with trainer.precision=fp32 (the kernel is half precision only); use "
                "bf16 or sdpa."
            )
        never_trains = self.decoder.optim.freeze_steps >= max(1, self.trainer.steps)
        if never_trains and self.decoder_init.kind is InitKind.scratch:
            problems.append(
                f"decoder.optim.freeze_steps={self.decoder.optim.freeze_steps} of trainer.steps={self.trainer.steps} with "
                "decoder_init.kind=scratch freezes a random decoder, which can answer nothing; use decoder_init=frozen with "
                "a decoder_init.path, or fewer freeze_steps."
            )
        if self.halting.single_steps >= max(1, self.trainer.steps):
            problems.append(
                f"halting.single_steps={self.halting.single_steps} of trainer.steps={self.trainer.steps} never lets a row do "
                "a second step, which evaluation then does; lower it, or use halting=single."
            )
        init = self.decoder_init
        if init.kind is InitKind.staged and init.freeze_steps >= max(1, self.trainer.steps):
            problems.append(
                f"decoder_init.freeze_steps={init.freeze_steps} of trainer.steps={self.trainer.steps} never lets the decoder "
                "train; lower it, or say so with decoder_init=frozen."
            )
        decoder_waits = never_trains or init.kind is InitKind.frozen
        if decoder_waits and self.encoder.optim.freeze_steps >= self.trainer.steps > 0:
            problems.append(
                f"encoder.optim.freeze_steps={self.encoder.optim.freeze_steps} of trainer.steps={self.trainer.steps} with a "
                "decoder that never trains leaves nothing to train; lower it, or let the decoder train."
            )
        if self.decoder.mlp_t and self.evaluation.canvas is CanvasRule.bucketed:
            problems.append(
                "evaluation.canvas=bucketed does not go with decoder.mlp_t=true, whose weights belong to one length; use "
                "evaluation.canvas=full."
            )
        return [*problems, *self._check_ranks(), *self._check_encoder(), *self.encoder.check_length(self.trainer.steps)]

    def _check_ranks(self) -> list[str]:
        """Rules that need the launch and the trainer."""
        launch, trainer, problems = self.launch, self.trainer, []
        share = launch.num_ranks * trainer.grad_accumulation
        if share > 0 and isinstance(trainer.batch_size, int) and trainer.batch_size % share:
            problems.append(
                f"trainer.batch_size={trainer.batch_size} must be divisible by ranks x trainer.grad_accumulation = "
                f"{launch.num_ranks} x {trainer.grad_accumulation} (launch.*); change one of them."
            )
        if launch.gpus > 0 and trainer.device is DeviceChoice.cpu:
            problems.append(
                f"launch.gpus={launch.gpus} does not go with trainer.device=cpu: the GPUs would be idle; use launch.cpus or "
                "trainer.device=auto."
            )
        if launch.cpus > 0 and trainer.device is DeviceChoice.cuda:
            problems.append(
                f"launch.cpus={launch.cpus} starts ranks on CPU cores, but trainer.device=cuda; use launch.gpus or "
                "trainer.device=auto."
            )
        return problems

    def _check_encoder(self) -> list[str]:
        """Rules that need the encoder and the decoder."""
        encoder, problems = self.encoder, []
        heads = encoder.num_heads if isinstance(encoder, TransformerEncoderConfig) and encoder.width is None else 0
        if heads > 0 and (self.decoder.width / heads) % 2:
            problems.append(
                f"encoder.num_heads={heads} must divide decoder.width={self.decoder.width} into even parts; change one."
            )
        if (
            isinstance(encoder, TransformerEncoderConfig) and encoder.demo_attention is DemoAttention.varlen
            and self.trainer.precision is Precision.fp32 and self.trainer.device is DeviceChoice.cuda
        ):  # fmt: skip
            problems.append(
                "encoder.demo_attention=varlen does not go with trainer.precision=fp32 on a GPU (the kernel is half "
                "precision only); use trainer.precision=bf16, or encoder.demo_attention=auto or dense."
            )
        heads = encoder.num_heads if isinstance(encoder, LpnEncoderConfig) and encoder.width is None else 0
        if heads > 0 and self.decoder.width % heads:
            problems.append(f"encoder.num_heads={heads} must divide decoder.width={self.decoder.width}; change one.")
        if isinstance(encoder, VariationalEncoderConfig | HybridVariationalEncoderConfig | LpnVariationalEncoderConfig):
            width = encoder.width or self.decoder.width
            if not 1 <= encoder.latent_dim <= width:
                problems.append(
                    f"encoder.latent_dim={encoder.latent_dim} must be between 1 and the encoder's width {width}; choose a "
                    "value in that range."
                )
        if self.decoder.mlp_t and self.trainer.canvas is CanvasRule.bucketed:
            problems.append(
                "trainer.canvas=bucketed does not go with decoder.mlp_t=true, whose weights are made for one canvas; set "
                "trainer.canvas=full or decoder.mlp_t=false."
            )
        if isinstance(encoder, InContextEncoderConfig) and (self.decoder.mlp_t or self.decoder.positions is not Positions.rope):
            problems.append(
                f"encoder.kind=in_context needs attention with rotary positions, but decoder.mlp_t={self.decoder.mlp_t} and "
                f"decoder.positions={self.decoder.positions.name}; set decoder.mlp_t=false decoder.positions=rope or use "
                "another encoder."
            )
        return problems
