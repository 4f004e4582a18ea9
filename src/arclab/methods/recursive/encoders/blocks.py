"""Stages that encoders are made of: attention blocks with options, pooling a demonstration, queries over a set, sampling.

Shapes: N packed demonstrations, L tokens, M tokens kept per demonstration, B rows, K set members, T context tokens, D width,
Z latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from arclab.config.encoder_schema import (  # fmt: skip
    NUM_COLORS,
    NormStyle,
    Pooling,
    StandardEncoderConfig,
    TransformerEncoderConfig,
)
from arclab.data.codec import FIRST_COLOR
from arclab.methods.recursive.encoders.base import Demonstrations
from arclab.methods.recursive.encoders.demo_tokens import DemoCells, DemoTokens
from arclab.methods.recursive.layers import (
    CrossAttention,
    Linear,
    Recomputable,
    SelfAttention,
    SwiGLU,
    rms_norm,
    rope_tables,
    truncated_normal,
)
from arclab.methods.recursive.varlen import Packing, is_varlen

# Near zero all queries read the same and start as one token; at 1 their own content drowns what they read. Measured:
# docs/LOG.md.
QUERY_STD = 0.3
# At a log variance of 0 the noise is three times what tasks differ by at the start, and a decoder learns to ignore the latent.
LOGVAR_START = -4.0
_LOGVAR_LIMIT = 10.0


class Residual(nn.Module):
    """x + gain * branch(norm) with the norm before or after; gain is learned per channel if layer_scale > 0."""

    def __init__(self, branch: nn.Module, width: int, norm: NormStyle, layer_scale: float) -> None:
        super().__init__()
        self.branch, self.norm = branch, norm
        self.gain = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale > 0 else None

    def forward(self, x: Tensor, *args: Tensor | Packing | None) -> Tensor:
        update = self.branch(rms_norm(x) if self.norm is NormStyle.pre else x, *args)
        if self.gain is not None:
            update = update * self.gain.to(update.dtype)
        return x + update if self.norm is NormStyle.pre else rms_norm(x + update)


class EncoderBlock(Recomputable):
    """Self-attention and SwiGLU with the options of a transformer encoder; mask: see SelfAttention."""

    def __init__(self, config: TransformerEncoderConfig, width: int) -> None:
        super().__init__()
        style = (width, config.norm, config.layer_scale)
        self.attention = Residual(SelfAttention(width, config.num_heads, qk_norm=config.qk_norm), *style)
        self.mlp = Residual(SwiGLU(width, config.expansion), *style)

    def compute(self, x: Tensor, rope: Tensor | None, mask: Tensor | Packing | None) -> Tensor:
        return self.mlp(self.attention(x, rope, mask))


class SetBlock(Recomputable):
    """Queries attend to a masked set, then a SwiGLU."""

    def __init__(self, config: TransformerEncoderConfig, width: int) -> None:
        super().__init__()
        style = (width, config.norm, config.layer_scale)
        self.attention = Residual(CrossAttention(width, config.num_heads), *style)
        self.mlp = Residual(SwiGLU(width, config.expansion), *style)

    def compute(self, x_BTD: Tensor, set_BKD: Tensor, mask_BK: Tensor) -> Tensor:
        return self.mlp(self.attention(x_BTD, set_BKD, mask_BK))


class TokenStage(nn.Module):
    """Demonstrations -> (tokens (N, L, D), used (N, L)) after num_layers blocks on rotary positions; zeros where not used.

    With cls, a learned token at the front takes part in the attention; it has no position (all rotary angles 0). The blocks see
    either groups of demonstrations on one canvas (encode) or all tokens laid end to end (flat), with the same result.
    """

    rope: Tensor

    def __init__(self, config: TransformerEncoderConfig, width: int, canvas: int, *, cls: bool = False) -> None:
        super().__init__()
        self.tokens = DemoTokens(config.demo_layout, width, canvas)
        self.layers = nn.ModuleList(EncoderBlock(config, width) for _ in range(config.num_layers))
        self.demo_attention, self.num_channels = config.demo_attention, width // config.num_heads
        rope = rope_tables(self.tokens.positions_L, self.num_channels)
        self.cls = nn.Parameter(truncated_normal((width,), QUERY_STD)) if cls else None
        self.register_buffer("rope", rope, persistent=False)
        self.is_pre_norm = config.norm is NormStyle.pre

    def forward(self, demonstrations: Demonstrations, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """All demonstrations on one canvas, for encoders that go on with their tokens (not with a CLS token)."""
        assert self.cls is None
        demos = self.tokens.cells(demonstrations)
        if self.is_varlen(demos.used_GL.device, dtype):
            x_TD, packing, _ = self.flat(demos, dtype)
            cells = x_TD.new_zeros(demos.used_GL.numel(), x_TD.shape[1]).index_copy(0, packing.cell_T, x_TD)
            return cells.unflatten(0, demos.used_GL.shape), demos.used_GL
        out_NLD = None
        for rows_G, group in self.tokens.packed(demos):
            x_GLD, _ = self.encode(group, dtype)
            if len(rows_G) == len(demos.used_GL) and x_GLD.shape[1] == demos.used_GL.shape[1]:
                return x_GLD, demos.used_GL
            if out_NLD is None:
                out_NLD = x_GLD.new_zeros(*demos.used_GL.shape, x_GLD.shape[-1])
            side, canvas = (self.tokens.side(x.used_GL.shape[1]) for x in (group, demos))
            kept_L = self.tokens.corner(side, canvas, rows_G.device)
            out_NLD = out_NLD.index_put((rows_G[:, None], kept_L[None]), x_GLD)
        assert out_NLD is not None
        return out_NLD, demos.used_GL

    def encode(self, demos: DemoCells, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(tokens (G, L, D), used (G, L)) of one group, with the CLS token at the front where there is one."""
        return self.run_layers(self.tokens(demos, dtype), demos.used_GL, demos.place_L)

    def run_layers(self, x_GLD: Tensor, used_GL: Tensor, place_L: Tensor) -> tuple[Tensor, Tensor]:
        if self.cls is not None:
            x_GLD = torch.cat([self.cls.to(x_GLD.dtype).expand(len(x_GLD), 1, -1), x_GLD], dim=1)
            used_GL = F.pad(used_GL, (1, 0), value=True)
        return self._blocks(x_GLD, self._rope(place_L), used_GL), used_GL

    def _blocks(self, x: Tensor, rope: Tensor, mask: Tensor | Packing) -> Tensor:
        for layer in self.layers:
            x = layer(x, rope, mask)
        return rms_norm(x) if self.is_pre_norm else x

    def _rope(self, place_L: Tensor) -> Tensor:
        """The rotary table of these places, with that of the CLS token before them where there is one."""
        rope = self.rope[:, place_L]
        if self.cls is None:
            return rope
        unrotated = torch.stack([torch.ones_like(rope[0, :1]), torch.zeros_like(rope[1, :1])])
        return torch.cat([unrotated, rope], dim=1)

    def is_varlen(self, device: torch.device, dtype: torch.dtype) -> bool:
        return is_varlen(self.demo_attention, device, dtype, self.num_channels)

    def flat(self, demos: DemoCells, dtype: torch.dtype, *, num_grids: int = 1) -> tuple[Tensor, Packing, Tensor]:
        """((T, D) used tokens of all demonstrations, how they lie, (T,) the first of the cells that each token sums).

        The CLS token stands at the front of each sequence where there is one. With two grids, each grid is a sequence of its
        own, on the positions of the first.
        """
        num_places = len(demos.place_L)
        length, front = num_places // num_grids, 0 if self.cls is None else 1
        packing = Packing.of(F.pad(rearrange(demos.used_GL, "g (n l) -> (g n) l", n=num_grids), (front, 0), value=True))
        sequence_T, index_T = packing.cell_T // (length + front), packing.cell_T % (length + front)
        own_T = sequence_T * length + (index_T - front).clamp(min=0)
        cells_TX = demos.cells_GLX.flatten(0, 1)[own_T]
        places = demos.place_L[own_T % num_places], own_T // num_places
        x_TD = self.tokens.flat(cells_TX, *places, demos.identities_GCC, dtype)
        if self.cls is not None:
            x_TD = torch.where(index_T[:, None] == 0, self.cls.to(dtype), x_TD)
        rope = self._rope(demos.place_L[:length])[:, index_T]
        return self._blocks(x_TD, rope, packing), packing, cells_TX[:, 0]

    def encode_flat(self, demos: DemoCells, dtype: torch.dtype, *, num_grids: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """What pooling takes: tokens (N, P, D), used (N, P) and cells (N, P), P being the most tokens of a sequence."""
        x_TD, packing, cell_T = self.flat(demos, dtype, num_grids=num_grids)
        return packing.padded(x_TD), packing.used(), packing.padded(cell_T)


class Pool(nn.Module):
    """(N, L, D) tokens with a mask -> (N, M, D) and which of them say anything (N, M).

    attention and weighted keep M > 1 tokens with a query or score for each; colors keeps one for each colour, zero where the
    demonstration does not have it.
    """

    def __init__(self, pooling: Pooling, width: int, num_heads: int, num_tokens: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.queries = nn.Parameter(truncated_normal((num_tokens, width), QUERY_STD)) if pooling is Pooling.attention else None
        self.attention = CrossAttention(width, num_heads) if pooling is Pooling.attention else None
        self.score = Linear(width, num_tokens) if pooling is Pooling.weighted else None

    def forward(self, x_NLD: Tensor, used_NL: Tensor, cell_NL: Tensor) -> tuple[Tensor, Tensor]:
        """cell_NL: the token of each place's own (or input) cell, for colors."""
        if self.pooling is Pooling.colors:
            return color_means(x_NLD, cell_NL)
        pooled = self._pool(x_NLD, used_NL)
        return pooled, used_NL.new_ones(pooled.shape[:2])

    def _pool(self, x_NLD: Tensor, used_NL: Tensor) -> Tensor:
        if self.pooling is Pooling.cls:
            return x_NLD[:, :1]
        if self.pooling is Pooling.mean:
            weight = used_NL.to(x_NLD.dtype) / used_NL.sum(1, keepdim=True)
            return reduce(x_NLD * weight[..., None], "n l d -> n 1 d", "sum")
        if self.pooling is Pooling.max:
            return reduce(x_NLD.masked_fill(~used_NL[..., None], -torch.inf), "n l d -> n 1 d", "max")
        if self.attention is not None and self.queries is not None:
            return self.attention(self.queries.to(x_NLD.dtype).expand(len(x_NLD), -1, -1), x_NLD, used_NL)
        assert self.score is not None
        weight_NLM = self.score(x_NLD).float().masked_fill(~used_NL[..., None], -torch.inf).softmax(1)
        return weight_NLM.to(x_NLD.dtype).transpose(1, 2) @ x_NLD


def color_means(x_NLD: Tensor, cell_NL: Tensor) -> tuple[Tensor, Tensor]:
    """((N, colours, D) mean over the places that show each colour, (N, colours) whether there are any)."""
    colors = torch.arange(FIRST_COLOR, FIRST_COLOR + NUM_COLORS, device=cell_NL.device)
    shows_NLC = (cell_NL[..., None] == colors).to(x_NLD.dtype)
    count_NC = shows_NLC.sum(1)
    return shows_NLC.transpose(1, 2) @ x_NLD / count_NC.clamp(min=1)[..., None], count_NC > 0


def packed(
    tokens: DemoTokens, demos: Demonstrations, encode: Callable[[DemoCells], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """What encode(group) gives for every demonstration, each on the smallest canvas that holds it: (N, M, D) and (N, M)."""
    groups, rows = [], []
    for rows_G, group in tokens.packed(tokens.cells(demos)):
        rows.append(rows_G)
        groups.append(encode(group))
    if len(groups) == 1:
        return groups[0]
    back_N = torch.cat(rows).argsort()
    return torch.cat([x for x, _ in groups])[back_N], torch.cat([present for _, present in groups])[back_N]


class DemoStage(nn.Module):
    """Demonstrations -> tokens (N, M, D) and which of them say anything (N, M): tokens, pooling, and a projection."""

    def __init__(self, config: StandardEncoderConfig, width: int, canvas: int) -> None:
        super().__init__()
        self.token_stage = TokenStage(config, width, canvas, cls=config.pooling is Pooling.cls)
        self.pool = Pool(config.pooling, width, config.num_heads, config.tokens_per_demo)
        self.to_set = Linear(width, width)

    def forward(self, demos: Demonstrations, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        stage = self.token_stage

        def encode(group: DemoCells) -> tuple[Tensor, Tensor]:
            return self.pool(*stage.encode(group, dtype), group.cells_GLX[..., 0])

        if stage.is_varlen(demos.inputs_NS.device, dtype):
            pooled, present_NM = self.pool(*stage.encode_flat(stage.tokens.cells(demos), dtype))
        else:
            pooled, present_NM = packed(stage.tokens, demos, encode)
        return self.to_set(pooled), present_NM


def color_starts(config: TransformerEncoderConfig, x_BTD: Tensor, set_BKD: Tensor, mask_BK: Tensor) -> Tensor:
    """With pooling=colors, the first T tokens plus what the demonstrations say of each colour (mean); else unchanged."""
    if not isinstance(config, StandardEncoderConfig) or config.pooling is not Pooling.colors:
        return x_BTD
    present_BK = mask_BK.to(set_BKD.dtype)
    total_BCD = reduce(set_BKD * present_BK[..., None], "b (k c) d -> b c d", "sum", c=NUM_COLORS)
    count_BC = reduce(present_BK, "b (k c) -> b c", "sum", c=NUM_COLORS)
    mean_BCD = total_BCD / count_BC.clamp(min=1)[..., None]
    return torch.cat([x_BTD[:, :NUM_COLORS] + mean_BCD, x_BTD[:, NUM_COLORS:]], dim=1)


class QueryStage(nn.Module):
    """T learned queries over a set of vectors; the order of the set does not matter. Output of unit RMS.

    With pooling=colors each of the first ten queries starts from what the demonstrations say of its colour.
    """

    def __init__(self, config: TransformerEncoderConfig, num_layers: int, num_tokens: int, width: int) -> None:
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(truncated_normal((num_tokens, width), QUERY_STD))
        self.layers = nn.ModuleList(SetBlock(config, width) for _ in range(num_layers))

    def forward(self, set_BKD: Tensor, mask_BK: Tensor) -> Tensor:
        x_BTD = self.queries.to(set_BKD.dtype).expand(len(set_BKD), -1, -1)
        x_BTD = color_starts(self.config, x_BTD, set_BKD, mask_BK)
        for layer in self.layers:
            x_BTD = layer(x_BTD, set_BKD, mask_BK)
        return rms_norm(x_BTD)


class ToDecoder(nn.Module):
    """From the encoder's width to the decoder's, unit RMS; nothing if they are equal."""

    def __init__(self, width: int, decoder_width: int) -> None:
        super().__init__()
        self.project = Linear(width, decoder_width) if width != decoder_width else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD if self.project is None else rms_norm(self.project(x_BTD))


class Gaussian(nn.Module):
    """(..., D) -> a sample of N(mu, exp(logvar)) (..., Z) and its mean and log variance in fp32.

    logvar starts at LOGVAR_START for every input and is limited to +-10, against overflow. Without a generator the sample is
    the mean.
    """

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.mu = Linear(width, latent_dim)
        self.logvar = Linear(width, latent_dim)
        nn.init.zeros_(self.logvar.weight)
        self.logvar_bias = nn.Parameter(torch.full((latent_dim,), LOGVAR_START))

    def forward(self, x: Tensor, noise: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.mu(x).float(), self.logvar(x).float() + self.logvar_bias
        logvar = logvar.clamp(-_LOGVAR_LIMIT, _LOGVAR_LIMIT)
        if noise is None:
            return mu.to(x.dtype), mu, logvar
        draw = torch.randn(mu.shape, generator=noise, device=mu.device)
        return (mu + (0.5 * logvar).exp() * draw).to(x.dtype), mu, logvar


def kl_to_unit_normal(mu: Tensor, logvar: Tensor, free_bits: float) -> Tensor:
    """(...,) KL(N(mu, exp(logvar)) || N(0, 1)) summed over the last axis, each dimension counting at least free_bits nats."""
    per_dimension = 0.5 * (mu.square() + logvar.exp() - 1 - logvar)
    return per_dimension.clamp(min=free_bits).sum(-1)


def mean_over(x_BKD: Tensor, mask_BK: Tensor) -> Tensor:
    """(B, ...) mean over the members of a masked set."""
    weight = (mask_BK / mask_BK.sum(1, keepdim=True)).to(x_BKD.dtype)
    return (x_BKD * weight.view(*weight.shape, *[1] * (x_BKD.dim() - 2))).sum(1)
