"""How many weights a configuration has, by counting instead of building: no torch, no memory, microseconds.

    count = count_parameters(config)                 # count.decoder, count.encoder, count.total

Follows the modules of arclab.methods.recursive line by line, as they say in their constructors; a test builds the model of
every encoder and option and compares. A puzzle table is not counted: its size depends on the data, and its vectors are no
parameters there either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from arclab.config.encoder_schema import (  # fmt: skip
    PREFIX_TOKENS,
    CrossAttentionEncoderConfig,
    DemoLayout,
    EncoderConfig,
    HierarchicalEncoderConfig,
    HybridVariationalEncoderConfig,
    InContextEncoderConfig,
    LpnEncoderConfig,
    LpnVariationalEncoderConfig,
    Pooling,
    RecurrentEncoderConfig,
    RecurrentTrmEncoderConfig,
    SetTransformerEncoderConfig,
    StandardEncoderConfig,
    TaskEncoderConfig,
    TransformerEncoderConfig,
    VariationalEncoderConfig,
)
from arclab.config.schema import DecoderConfig, ExperimentConfig, Positions

VOCAB, SIDE, VIEWS = 12, 30, 8
_LPN_MLP = 4


@dataclass(frozen=True, slots=True)
class Parameters:
    """encoder counts everything that turns demonstrations into the decoder's prefix; 0 with a puzzle table."""

    decoder: int
    encoder: int

    @property
    def total(self) -> int:
        return self.decoder + self.encoder


def count_parameters(config: ExperimentConfig) -> Parameters:
    encoder = config.encoder
    if not isinstance(encoder, TaskEncoderConfig):
        return Parameters(_decoder(config.decoder, config.dataset.canvas), 0)
    gain = 1  # of the context adapter
    return Parameters(_decoder(config.decoder, config.dataset.canvas), _encoder(encoder, config.decoder.width) + gain)


def _swiglu(width: int, expansion: float) -> int:
    inner = -(-round(expansion * width * 2 / 3) // 256) * 256
    return 3 * width * inner


def _attention(width: int) -> int:
    """Self- and cross-attention alike: query, key, value, out."""
    return 4 * width**2


def _decoder(config: DecoderConfig, canvas: int) -> int:
    width = config.width
    mixer = _swiglu(PREFIX_TOKENS + canvas**2, config.expansion) if config.mlp_t else _attention(width)
    blocks = config.num_layers * (mixer + _swiglu(width, config.expansion))
    heads = 2 * VOCAB * width + 2 * width + 2  # tokens in and out, halting with its bias
    table = (PREFIX_TOKENS + SIDE**2) * width if config.positions is Positions.learned else 0
    return blocks + heads + table


def _block(config: TransformerEncoderConfig, width: int) -> int:
    gains = 2 * width if config.layer_scale > 0 else 0
    return _attention(width) + _swiglu(width, config.expansion) + gains


def _demo_tokens(layout: DemoLayout, width: int) -> int:
    return (1 + (VIEWS if layout is DemoLayout.symmetry else 1)) * VOCAB * width


def _token_stage(config: TransformerEncoderConfig, width: int) -> int:
    return _demo_tokens(config.demo_layout, width) + config.num_layers * _block(config, width)


def _pool(config: StandardEncoderConfig, width: int) -> int:
    tokens = config.tokens_per_demo
    sizes = {Pooling.attention: tokens * width + _attention(width), Pooling.weighted: tokens * width, Pooling.cls: width}
    return sizes.get(config.pooling, 0)


def _queries(config: Any, width: int) -> int:
    return config.context.num_tokens * width + config.set_layers * _block(config, width)


def _gaussian(width: int, latent_dim: int) -> int:
    return 2 * width * latent_dim + latent_dim


def _standard(config: StandardEncoderConfig, width: int) -> int:
    return _token_stage(config, width) + _pool(config, width) + width**2 + _queries(config, width)


def _lpn(config: LpnEncoderConfig, decoder_width: int) -> int:
    width = config.width
    places = (2 * SIDE + 2) * width
    blocks = config.num_layers * (_attention(width) + 2 * _LPN_MLP * width**2)
    is_variational = isinstance(config, LpnVariationalEncoderConfig)
    task_width = config.latent_dim if is_variational else width
    latent = _gaussian(width, config.latent_dim) if is_variational else 0
    context = task_width * config.context.num_tokens * decoder_width
    return _demo_tokens(config.demo_layout, width) + places + width + blocks + context + latent


def _variational(config: Any, width: int, decoder_width: int) -> int:
    latent = _gaussian(decoder_width, config.latent_dim) + config.latent_dim * config.context.num_tokens * decoder_width
    return _standard(config, width) + latent


def _recurrent_trm(config: RecurrentTrmEncoderConfig, width: int) -> int:
    return _standard(config, width) + config.context.num_tokens * width + config.cycle_layers * _block(config, width)


def _cross_attention(config: CrossAttentionEncoderConfig, width: int) -> int:
    return _token_stage(config, width) + config.cross_layers * _block(config, width) + _queries(config, width)


def _hierarchical(config: HierarchicalEncoderConfig, width: int) -> int:
    roles = (2 if config.demo_layout is DemoLayout.concat else 1) * width
    return _standard(config, width) + roles + config.grid_layers * _block(config, width)


def _set_transformer(config: SetTransformerEncoderConfig, width: int) -> int:
    induced = config.num_induced * width + 2 * _block(config, width)
    return _standard(config, width) + config.induced_layers * induced


# Own width -> count, for the kinds that are more than a standard encoder.
_BY_KIND: dict[type[EncoderConfig], Callable[[Any, int], int]] = {
    StandardEncoderConfig: _standard,
    RecurrentEncoderConfig: _standard,  # its start state takes the place of the queries
    RecurrentTrmEncoderConfig: _recurrent_trm,
    CrossAttentionEncoderConfig: _cross_attention,
    HierarchicalEncoderConfig: _hierarchical,
    SetTransformerEncoderConfig: _set_transformer,
    InContextEncoderConfig: _token_stage,
}


def _encoder(config: TaskEncoderConfig, decoder_width: int) -> int:
    if isinstance(config, LpnEncoderConfig):
        return _lpn(config, decoder_width)
    assert isinstance(config, TransformerEncoderConfig)
    width = config.width or decoder_width
    projection = width * decoder_width if width != decoder_width else 0
    if isinstance(config, VariationalEncoderConfig | HybridVariationalEncoderConfig):
        return _variational(config, width, decoder_width) + projection
    prefix = config.context.num_tokens * decoder_width if isinstance(config, InContextEncoderConfig) else 0
    count = _BY_KIND.get(type(config), _standard)  # hybrid: a standard encoder with pooling=cls
    return count(config, width) + projection + prefix
