"""LTPO: move the latents of an insertion, at test time, so that the frozen reasoner is surer of what comes next.

    optimiser = LatentOptimiser(model, config, seed=0, names=[example.id for example in batch])
    answers = generate(model, prompts, rule, sampling, seeds, refine=optimiser)
    optimiser.told(0)                       # {"reward_before": [...], "reward_after": [...], "moved": [...], ...} of row 0

Gradients flow from the reward through the reasoner to the latents and nowhere else: they are the suffix, so what stands
before them is computed once, and no weight changes. Each step adds noise, ascends, and scores the latents WITHOUT noise; the
best of them are inserted, the untouched ones included. Rows do not look at each other. Source: LTPO, arXiv 2510.04182, and
its use in MemGen, whose published code runs without gradients and never moves a latent.

Without gradients (use_auto_grad=false) the ascent is REINFORCE with the reward of the clean latents as baseline. Both go
through Adam, so that a step has the size lr whatever the reward's is. lr and sigma are in units of the latents' own root mean
square.

Shapes: B rows, T columns before the latents, N latents, D width, V vocabulary, K tokens of a continuation.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arclab.config.memgen_schema import LtpoConfig, LtpoReward
from arclab.methods.memgen.generation import Moment
from arclab.methods.memgen.model import MemGenModel
from arclab.methods.memgen.trigger import entropy

_BETAS, _EPS = (0.9, 0.999), 1e-8
Reward = Callable[[Tensor], Tensor]  # latents (B, N, D) -> reward (B)


@dataclass(slots=True)
class _Told:
    """Of one row: a number for every insertion. steps: that were made before it stopped. trace: clean rewards, step by step."""

    reward_before: list[float] = field(default_factory=list)
    reward_after: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    trace: list[list[float]] = field(default_factory=list)


class LatentOptimiser:
    """A Refine of generation.py. names: of the rows, which seed their noise; the same noise in every batch."""

    def __init__(self, model: MemGenModel, config: LtpoConfig, seed: int, names: Sequence[str]) -> None:
        self._model, self._config = model, config
        self._noise = [np.random.default_rng(_seed(seed, name)) for name in names]
        self._told = [_Told() for _ in names]

    def told(self, row: int) -> dict[str, Any]:
        """What happened to a row's latents: see _Told; moved is the root mean square of the change, relative to the
        latents'."""
        told = self._told[row]
        found = {"reward_before": told.reward_before, "reward_after": told.reward_after, "moved": told.moved}
        return found | ({"ltpo_steps": told.steps, "ltpo_trace": told.trace} if self._config.verbose else {})

    def __call__(self, latents_BND: Tensor, valid_BN: Tensor, moment: Moment) -> Tensor:
        # Under inference, and with the weaver's own graph cut off: the latents are what is optimised.
        start_BND = latents_BND.detach().float()
        reward = self._reward(valid_BN, moment)
        scale_B11 = start_BND.square().mean((1, 2), keepdim=True).sqrt()
        before_B = reward(start_BND)
        best_BND, best_B, trace, steps_B = self._ascended(reward, start_BND, before_B, scale_B11, valid_BN, moment)
        moved_B = ((best_BND - start_BND).square().mean((1, 2)).sqrt() / scale_B11[:, 0, 0].clamp(min=_EPS)).tolist()
        for place, row in enumerate(moment.rows):
            if bool(valid_BN[place].any()):
                told = self._told[row]
                told.reward_before.append(float(before_B[place]))
                told.reward_after.append(float(best_B[place]))
                told.moved.append(moved_B[place])
                told.steps.append(int(steps_B[place]))
                told.trace.append([float(values_B[place]) for values_B in trace])
        return best_BND.to(latents_BND.dtype)

    def _ascended(
        self, reward: Reward, start_BND: Tensor, before_B: Tensor, scale_B11: Tensor, valid_BN: Tensor, moment: Moment
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """The best latents, their clean rewards, those of all steps, and the steps of each row."""
        config, sigma = self._config, self._config.sigma
        best_BND, best_B, now_BND = start_BND.clone(), before_B.clone(), start_BND.clone()
        mean_BND, square_BND = torch.zeros_like(start_BND), torch.zeros_like(start_BND)
        steps_B = torch.zeros(len(start_BND), dtype=torch.long)
        trace = [before_B]
        for step in range(1, config.max_steps + 1):
            goes_B = valid_BN.any(1)
            if config.reward_threshold is not None:
                goes_B = goes_B & (best_B < config.reward_threshold)
            if not bool(goes_B.any()):
                break
            noise_BND = self._drawn(start_BND.shape, valid_BN, moment.rows).to(start_BND.device) * valid_BN[..., None]
            slope_BND = self._slope(reward, now_BND, noise_BND, sigma * scale_B11, trace[-1])
            mean_BND = _BETAS[0] * mean_BND + (1 - _BETAS[0]) * slope_BND
            square_BND = _BETAS[1] * square_BND + (1 - _BETAS[1]) * slope_BND.square()
            unit_BND = (mean_BND / (1 - _BETAS[0] ** step)) / ((square_BND / (1 - _BETAS[1] ** step)).sqrt() + _EPS)
            moves_B11 = goes_B[:, None, None]
            now_BND = torch.where(moves_B11, now_BND + config.lr * scale_B11 * unit_BND * valid_BN[..., None], now_BND)
            clean_B = reward(now_BND)
            is_better_B = goes_B & (clean_B > best_B)
            best_BND = torch.where(is_better_B[:, None, None], now_BND, best_BND)
            best_B = torch.where(is_better_B, clean_B, best_B)
            trace.append(clean_B)
            steps_B += goes_B.cpu()
            sigma *= config.sigma_decay
        return best_BND, best_B, trace, steps_B

    def _slope(self, reward: Reward, now_BND: Tensor, noise_BND: Tensor, size_B11: Tensor, clean_B: Tensor) -> Tensor:
        if not self._config.use_auto_grad:
            gain_B11 = (reward(now_BND + size_B11 * noise_BND) - clean_B)[:, None, None]
            return gain_B11 * noise_BND / size_B11.clamp(min=_EPS)
        with torch.enable_grad():
            point_BND = now_BND.clone().requires_grad_(True)
            total = reward(point_BND + size_B11 * noise_BND).sum()
            (slope_BND,) = torch.autograd.grad(total, point_BND)
        return slope_BND

    def _drawn(self, shape: torch.Size, valid_BN: Tensor, rows: Sequence[int]) -> Tensor:
        """Standard normal noise (B, N, D): each row from its own generator, and as many numbers as it has latents."""
        noise_BND = torch.zeros(shape)
        for place, row in enumerate(rows):
            num = int(valid_BN[place].sum())
            if num:
                drawn = self._noise[row].standard_normal((num, shape[2]), dtype=np.float32)
                noise_BND[place, shape[1] - num :] = torch.from_numpy(drawn)
        return noise_BND

    def _reward(self, valid_BN: Tensor, moment: Moment) -> Reward:
        suffix = _Suffix(self._model, valid_BN, moment)
        kind, config = self._config.reward, self._config
        if kind is LtpoReward.entropy:
            return lambda latents_BND: -entropy(suffix.logits(latents_BND)[:, -1])
        if kind is LtpoReward.lookahead:
            return lambda latents_BND: suffix.lookahead(latents_BND, config.lookahead_tokens)
        return lambda latents_BND: _topk(suffix.logits(latents_BND), valid_BN, config.top_k)


class _Suffix:
    """Passes of the reasoner over latents (and tokens after them), with what stands before them cached."""

    def __init__(self, model: MemGenModel, valid_BN: Tensor, moment: Moment) -> None:
        self._model, self._moment, self._valid_BN = model, moment, valid_BN
        self._position_BN = (moment.next_position_B[:, None] + valid_BN.long().cumsum(1) - 1).clamp(min=0)

    def logits(self, latents_BND: Tensor) -> Tensor:
        """(B, N, V), float32."""
        return self._logits(latents_BND, self._valid_BN.long(), self._position_BN)

    def _logits(self, embeds_BND: Tensor, held_BN: Tensor, position_BN: Tensor) -> Tensor:
        mask_BT = torch.cat([self._moment.mask_BT, held_BN], dim=1)
        reasoner = self._model.reasoner
        cache = _borrowed(self._moment.cache)
        hidden_BND = self._model.backbone.reason(embeds_BND.to(reasoner.dtype), mask_BT, position_BN, cache)
        return self._model.get_output_embeddings()(hidden_BND).float()

    def lookahead(self, latents_BND: Tensor, num: int) -> Tensor:
        """Mean log-probability (B) of the greedy continuation of num tokens, which is found again for every latents."""
        with torch.no_grad():
            tokens_BK = self._greedy(latents_BND, num)
        embeds_BKD = self._model.backbone.embed(tokens_BK[:, :-1]).float()
        logits_BTV = self._extended(latents_BND, embeds_BKD)[:, -num:]
        return logits_BTV.log_softmax(-1).gather(2, tokens_BK[..., None])[..., 0].mean(1)

    def _greedy(self, latents_BND: Tensor, num: int) -> Tensor:
        tokens: list[Tensor] = []
        embeds_BKD = latents_BND[:, :0]
        for _ in range(num):
            tokens.append(self._extended(latents_BND, embeds_BKD)[:, -1].argmax(-1))
            embeds_BKD = torch.cat([embeds_BKD, self._model.backbone.embed(tokens[-1][:, None]).float()], dim=1)
        return torch.stack(tokens, dim=1)

    def _extended(self, latents_BND: Tensor, embeds_BKD: Tensor) -> Tensor:
        more = embeds_BKD.shape[1]
        held_BT = torch.cat([self._valid_BN.long(), self._valid_BN.new_ones(len(embeds_BKD), more, dtype=torch.long)], dim=1)
        after_BK = self._moment.next_position_B[:, None] + self._valid_BN.sum(1, keepdim=True)
        after_BK = after_BK + torch.arange(more, device=after_BK.device)
        return self._logits(
            torch.cat([latents_BND, embeds_BKD], dim=1), held_BT, torch.cat([self._position_BN, after_BK], dim=1)
        )


def _topk(logits_BNV: Tensor, valid_BN: Tensor, top_k: int) -> Tensor:
    """The published confidence (B): minus the mean log-probability of the top_k tokens, over the latents' positions."""
    top_BNK = logits_BNV.log_softmax(-1).topk(min(top_k, logits_BNV.shape[-1]), dim=-1).values
    value_BN = -top_BNK.clamp(min=float(np.log(1e-10))).mean(-1)
    return (value_BN * valid_BN).sum(1) / valid_BN.sum(1).clamp(min=1)


def _borrowed(cache: Any) -> Any:
    """A cache that begins with this one's columns and may grow without changing it."""
    borrowed = copy.copy(cache)
    borrowed.layers = [copy.copy(layer) for layer in cache.layers]
    return borrowed


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16], "little")
