"""The trained trigger: for each token, how much is said for inserting memory after it.

    model = TriggerModel(TriggerSettings(width=64, lora=None), reasoner_width=96, seed=0)
    logit_B = model(hidden_BD)                      # above 0: insert; its sigmoid is the probability

Two kinds. head: a small network on the reasoner's last state at the delimiter, which generation has computed anyway. lora: the
paper's, an adapter on the reasoner that reads the plain tokens, without latents, in a pass and a cache of its own
(TokenReader), and one output layer on its last state. The adapter itself is put into the reasoner by model.py.

Untrained, both say START_LOGIT everywhere, which is always to insert, and when decisions are drawn mostly so.

Shapes: B rows, W columns of a chunk, T columns so far, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from arclab.lm.switched import LoraSettings

START_LOGIT = 1.0  # as the published untrained trigger has it; a probability of 0.73


@dataclass(frozen=True, slots=True)
class TriggerSettings:
    """width: of the hidden layer of kind head. lora: of kind lora. One of them is None."""

    width: int | None
    lora: LoraSettings | None


class TriggerModel(nn.Module):
    """See the module. seed decides the hidden layer; nothing else is drawn."""

    def __init__(self, settings: TriggerSettings, reasoner_width: int, seed: int) -> None:
        super().__init__()
        self.reads_tokens = settings.lora is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            before = [] if settings.width is None else [nn.Linear(reasoner_width, settings.width), nn.GELU()]
            last = nn.Linear(settings.width or reasoner_width, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, START_LOGIT)
        self.layers = nn.Sequential(*before, last)

    def forward(self, hidden: Tensor) -> Tensor:
        """(...) for states (..., D), of whatever size they are."""
        hidden = hidden.float()
        return self.layers(hidden * hidden.square().mean(-1, keepdim=True).add(1e-6).rsqrt())[..., 0]


class TokenReader:
    """What a trigger of kind lora has read of a batch: every plain token once, when it is next asked. read: the pass with its
    adapter (ids, mask, positions, cache) -> states."""

    def __init__(self, read: Callable[..., Tensor], mask_BT: Tensor) -> None:
        self._read, self._cache, self._mask_BT = read, DynamicCache(), mask_BT[:, :0]
        self._unread: list[tuple[Tensor, Tensor]] = []

    def add(self, ids_BW: Tensor, held_BW: Tensor) -> None:
        self._unread.append((ids_BW, held_BW))

    def states(self) -> Tensor:
        """(B, D), at the last token of every row. Something must have been added since the last call."""
        ids_BW, held_BW = (torch.cat(parts, dim=1) for parts in zip(*self._unread, strict=True))
        self._unread, before = [], self._mask_BT.sum(1, keepdim=True)
        self._mask_BT = torch.cat([self._mask_BT, held_BW], dim=1)
        position_BW = (before + held_BW.cumsum(1) - 1).clamp(min=0)
        return self._read(ids_BW, self._mask_BT, position_BW, self._cache)[:, -1]

    def keep(self, index: Tensor) -> None:
        self._mask_BT = self._mask_BT[index]
        self._unread = [(ids[index], held[index]) for ids, held in self._unread]
        if self._cache.get_seq_length():
            self._cache.batch_select_indices(index)
