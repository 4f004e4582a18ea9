"""The schema of encoders and their parts: one dataclass for each kind; encoders.py names them.

Rules as in schema.py: fields have no defaults (values live in conf/encoder/*.yaml), check(path) returns broken rules as
sentences. An option that a kind does not have is not in its dataclass, so that setting it is an unknown key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Optional

from arclab.config.rules import at_least, sized, within

PREFIX_TOKENS = 16
NUM_COLORS = 10


class DemoLayout(Enum):
    """concat: input cells, then output cells. aligned: both cells of a position in one token. symmetry: the input cell and
    the output cell at the same position under all eight dihedral views in one token."""

    concat = "concat"
    aligned = "aligned"
    symmetry = "symmetry"


class DemoAttention(Enum):
    """How the tokens of demonstrations of different sizes are laid out. dense: groups on canvases that hold them. varlen: end
    to end, without padding. auto: varlen where its kernel runs (a GPU in bf16), else dense. All give the same to rounding."""

    auto = "auto"
    dense = "dense"
    varlen = "varlen"


class Pooling(Enum):
    """How the tokens of a demonstration become few. cls: a learned token that takes part in the attention. colors: for each
    colour, the mean over the tokens of its cells (of the input, where a token joins input and output)."""

    mean = "mean"
    max = "max"
    attention = "attention"
    weighted = "weighted"
    cls = "cls"
    colors = "colors"


class NormStyle(Enum):
    pre = "pre"
    post = "post"


class ContrastiveView(Enum):
    """subsets: two disjoint halves of a row's demonstrations. augmentations: the row
    and a random dihedral view and recolouring of it."""

    subsets = "subsets"
    augmentations = "augmentations"


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """How one parameter group is trained. freeze_steps: optimiser steps for which it stands still at the start."""

    lr: float
    weight_decay: float
    freeze_steps: int

    def check(self, path: str) -> list[str]:
        # Above 1 every optimiser here (all move each weight by at most about lr) leaves the initial scale in one step.
        return [
            *within(path, 0.0, 1.0, lr=self.lr, weight_decay=self.weight_decay),
            *at_least(path, 0, freeze_steps=self.freeze_steps),
        ]


@dataclass(kw_only=True, slots=True)
class ContextConfig:
    """How an encoder's output enters the decoder's 16 prefix tokens.

    num_tokens tokens carry the context, the rest are zeros (registers). gain is the initial RMS of a context token before
    the decoder's sqrt(width) scale and is learned; null: that of a token's embedding, 1/sqrt(width). With match_gain it is not
    read: the RMS comes from the vectors of decoder_init's puzzle table where there is one, else from the embedding.
    """

    num_tokens: int
    gain: Optional[float]
    match_gain: bool

    def check(self, path: str) -> list[str]:
        gain = {} if self.gain is None else {"gain": self.gain}
        return [*within(path, 1, PREFIX_TOKENS, num_tokens=self.num_tokens), *within(path, 1e-4, 100.0, **gain)]

    def start_gain(self, width: int) -> float:
        return 1.0 / math.sqrt(width) if self.match_gain or self.gain is None else self.gain


@dataclass(kw_only=True, slots=True)
class EncoderConfig:
    """What conditions the decoder. `kind` picks the schema and the module."""

    kind: str
    optim: OptimConfig

    def check_length(self, num_steps: int) -> list[str]:
        """Rules that need the optimiser steps of the run."""
        return []


@dataclass(kw_only=True, slots=True)
class PuzzleTableConfig(EncoderConfig):
    """TRM: one learned vector per augmented puzzle, trained by sign-SGD with encoder.optim."""

    def check(self, path: str) -> list[str]:
        return []


@dataclass(kw_only=True, slots=True)
class ContrastiveConfig:
    """Supervised-contrastive loss on pooled contexts, task ids as labels. weight 0 switches it off."""

    weight: float
    temperature: float
    view: ContrastiveView

    def check(self, path: str) -> list[str]:
        return [*within(path, 0.0, 100.0, weight=self.weight), *within(path, 0.001, 100.0, temperature=self.temperature)]


@dataclass(kw_only=True, slots=True)
class ReconstructionConfig:
    """Leave-one-out: a demonstration's output from the context of the others, in one decoder step. weight 0 switches it off."""

    weight: float

    def check(self, path: str) -> list[str]:
        return within(path, 0.0, 100.0, weight=self.weight)


@dataclass(kw_only=True, slots=True)
class KlConfig:
    """KL to a unit normal, summed over latent dimensions. Each dimension counts at least free_bits nats; the weight grows
    linearly from 0 over anneal_steps optimiser steps. allow_zero_weight says that weight 0 is meant."""

    weight: float
    free_bits: float
    anneal_steps: int
    allow_zero_weight: bool

    def check(self, path: str) -> list[str]:
        problems = [
            *within(path, 0.0, 100.0, weight=self.weight, free_bits=self.free_bits),
            *at_least(path, 0, anneal_steps=self.anneal_steps),
        ]
        if self.weight == 0 and not self.allow_zero_weight:
            problems.append(
                f"{path}.weight=0.0 leaves a variational encoder without its prior; set a weight above 0, or "
                f"{path}.allow_zero_weight=true to train it as a noisy autoencoder on purpose."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class TaskEncoderConfig(EncoderConfig):
    """What every encoder of demonstrations has.

    inner_steps: gradient steps that a row's context takes in training before its query is asked, each inner_lr long (see
    arclab.methods.recursive.search.inner_steps). Their defaults are for runs that were made before they were keys.
    """

    demo_layout: DemoLayout
    context: ContextConfig
    contrastive: ContrastiveConfig
    reconstruction: ReconstructionConfig
    inner_steps: int = 0
    inner_lr: float = 0.1

    def check(self, path: str) -> list[str]:
        return [*sized(path, 0, inner_steps=self.inner_steps), *within(path, 1e-6, 100.0, inner_lr=self.inner_lr)]

    def check_length(self, num_steps: int) -> list[str]:
        if self.inner_steps == 0 or self.optim.freeze_steps < max(1, num_steps):
            return []
        return [
            f"encoder.inner_steps={self.inner_steps} trains an encoder for contexts that are moved, and "
            f"encoder.optim.freeze_steps={self.optim.freeze_steps} of trainer.steps={num_steps} never lets it train; set "
            "encoder.inner_steps=0, or lower encoder.optim.freeze_steps."
        ]


@dataclass(kw_only=True, slots=True)
class TransformerEncoderConfig(TaskEncoderConfig):
    """A transformer over each demonstration. width null: the decoder's; layer_scale 0: off, else the initial value.

    The default of demo_attention is for runs that were made before it was a key.
    """

    width: Optional[int]
    num_layers: int
    num_heads: int
    expansion: float
    norm: NormStyle
    layer_scale: float
    qk_norm: bool
    demo_attention: DemoAttention = DemoAttention.auto

    def check(self, path: str) -> list[str]:
        problems = [
            *TaskEncoderConfig.check(self, path),
            *sized(path, 0, num_layers=self.num_layers),
            *sized(path, 1, num_heads=self.num_heads, width=self.width),
            *within(path, 0.1, 16, expansion=self.expansion),
            *within(path, 0.0, 1.0, layer_scale=self.layer_scale),
        ]
        if self.width is not None and self.num_heads > 0 and (self.width < 1 or (self.width / self.num_heads) % 2):
            problems.append(
                f"{path}.width={self.width} must be an even multiple of {path}.num_heads={self.num_heads}; change one."
            )
        return problems


_POOLINGS = tuple(pooling for pooling in Pooling if pooling is not Pooling.cls)
_ONE_TOKEN = (Pooling.mean, Pooling.max, Pooling.cls)


@dataclass(kw_only=True, slots=True)
class StandardEncoderConfig(TransformerEncoderConfig):
    """Pooled demonstrations, then learned queries over the set of them. tokens_per_demo: how many tokens each keeps."""

    pooling: Pooling
    tokens_per_demo: int
    set_layers: int

    def poolings(self) -> tuple[Pooling, ...]:
        return _POOLINGS

    def check(self, path: str) -> list[str]:
        # Named, because dataclass(slots=True) makes a new class that zero-argument super() does not know.
        problems = TransformerEncoderConfig.check(self, path)
        problems += sized(path, 1, set_layers=self.set_layers, tokens_per_demo=self.tokens_per_demo)
        if self.pooling not in self.poolings():
            problems.append(
                f"{path}.pooling={self.pooling.name} is not what encoder={self.kind} has; choose "
                f"{', '.join(p.name for p in self.poolings())}."
            )
        if self.tokens_per_demo > 1 and self.pooling in _ONE_TOKEN:
            many = [f"{path}.pooling={pooling.name}" for pooling in self.poolings() if pooling not in _ONE_TOKEN]
            remedies = " or ".join([f"{path}.tokens_per_demo=1", *many])
            problems.append(
                f"{path}.tokens_per_demo={self.tokens_per_demo} does not go with {path}.pooling={self.pooling.name}, which "
                f"gives one token; set {remedies}."
            )
        if self.pooling is Pooling.colors:
            for key, value, is_right in (
                ("tokens_per_demo", self.tokens_per_demo, self.tokens_per_demo == NUM_COLORS),
                ("context.num_tokens", self.context.num_tokens, self.context.num_tokens >= NUM_COLORS),
            ):
                if not is_right:
                    problems.append(
                        f"{path}.{key}={value} does not go with {path}.pooling=colors, which keeps a token for each of "
                        f"{NUM_COLORS} colours; set {path}.{key}={NUM_COLORS}."
                    )
        return problems


@dataclass(kw_only=True, slots=True)
class VariationalEncoderConfig(StandardEncoderConfig):
    """latent_dim: size of the sampled task vector, at most the width of what it is computed from."""

    latent_dim: int
    kl: KlConfig


@dataclass(kw_only=True, slots=True)
class HybridEncoderConfig(StandardEncoderConfig):
    def poolings(self) -> tuple[Pooling, ...]:
        return (Pooling.cls,)


@dataclass(kw_only=True, slots=True)
class HybridVariationalEncoderConfig(HybridEncoderConfig):
    latent_dim: int
    kl: KlConfig


@dataclass(kw_only=True, slots=True)
class LpnEncoderConfig(TaskEncoderConfig):
    """The encoder of the LPN paper, at its own width; null: the decoder's."""

    width: Optional[int]
    num_layers: int
    num_heads: int

    def check(self, path: str) -> list[str]:
        problems = TaskEncoderConfig.check(self, path)
        problems += sized(path, 1, width=self.width, num_layers=self.num_layers, num_heads=self.num_heads)
        if self.width is not None and self.num_heads > 0 and self.width % self.num_heads:
            problems.append(f"{path}.width={self.width} must be a multiple of {path}.num_heads={self.num_heads}; change one.")
        return problems


@dataclass(kw_only=True, slots=True)
class LpnVariationalEncoderConfig(LpnEncoderConfig):
    latent_dim: int
    kl: KlConfig


@dataclass(kw_only=True, slots=True)
class RecurrentEncoderConfig(StandardEncoderConfig):
    """ETRM squared: its own state, refined at every supervision step."""


@dataclass(kw_only=True, slots=True)
class RecurrentTrmEncoderConfig(StandardEncoderConfig):
    """Own high- and low-level states, refined like the decoder's by cycle_layers shared blocks."""

    h_cycles: int
    l_cycles: int
    cycle_layers: int

    def check(self, path: str) -> list[str]:
        return [
            *StandardEncoderConfig.check(self, path),
            *sized(path, 1, h_cycles=self.h_cycles, l_cycles=self.l_cycles, cycle_layers=self.cycle_layers),
        ]


@dataclass(kw_only=True, slots=True)
class CrossAttentionEncoderConfig(TransformerEncoderConfig):
    """num_layers within each demonstration, cross_layers over the tokens of all of them, then set_layers of queries."""

    cross_layers: int
    set_layers: int

    def check(self, path: str) -> list[str]:
        return [
            *TransformerEncoderConfig.check(self, path),
            *sized(path, 1, cross_layers=self.cross_layers, set_layers=self.set_layers),
        ]


@dataclass(kw_only=True, slots=True)
class HierarchicalEncoderConfig(StandardEncoderConfig):
    """Tokens within a grid, then grid_layers over all grids of the task, then queries."""

    grid_layers: int

    def check(self, path: str) -> list[str]:
        return [*StandardEncoderConfig.check(self, path), *sized(path, 1, grid_layers=self.grid_layers)]


@dataclass(kw_only=True, slots=True)
class SetTransformerEncoderConfig(StandardEncoderConfig):
    """induced_layers blocks with num_induced learned points over the set, then queries."""

    induced_layers: int
    num_induced: int

    def check(self, path: str) -> list[str]:
        return [
            *StandardEncoderConfig.check(self, path),
            *sized(path, 1, induced_layers=self.induced_layers, num_induced=self.num_induced),
        ]


@dataclass(kw_only=True, slots=True)
class InContextEncoderConfig(TransformerEncoderConfig):
    """No compression: demonstration tokens stand in the decoder's own sequence. num_layers 0: plain embeddings."""
