"""How HfModel draws tokens and ends replies: two callbacks of transformers' generate().

Drawing turns the logits of every step into a choice; Ending sees that choice and stops the rows that are done. One number in
[0, 1) decides a token: where it falls in the cumulative distribution. The numbers of a row come from a generator of its own, on
the CPU, so they are the same on every device and in every batch.

Shapes: B sequences of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from arclab.lm.language_model import Completion, FinishReason, Sampling, Samplings, cut_after_stop, sampling_of_each


class Drawing:
    """A logits processor that leaves one token standing in each row, and keeps its log-probability: of the logits as they are,
    or, is_tempered, of those that it is drawn from before top-k, top-p and min-p. sampling: of all rows, or of each; of several
    only the temperatures may differ."""

    def __init__(self, sampling: Samplings, seeds: Sequence[int], *, is_tempered: bool = False) -> None:
        each = sampling_of_each(sampling, len(seeds))
        self._sampling, self._temperatures = each[0], [one.temperature for one in each]
        assert not is_tempered or min(self._temperatures) > 0
        self._is_tempered = is_tempered
        self._generators = [np.random.default_rng(seed) for seed in seeds]
        self.logprobs: list[torch.Tensor] = []  # (B) for each step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen_B, logprobs_B = self.choose(scores)
        self.logprobs.append(logprobs_B)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen_B[:, None], 0.0)

    def choose(self, logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of each row (B), and its log-probability (B)."""
        chosen_B, logits_BV = self._choose(logits_BV.float()), logits_BV.float()
        if self._is_tempered:
            logits_BV = logits_BV / torch.tensor(self._temperatures, device=logits_BV.device)[:, None]
        return chosen_B, logits_BV.log_softmax(-1).gather(1, chosen_B[:, None])[:, 0]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self._generators = [self._generators[row] for row in rows]
        self._temperatures = [self._temperatures[row] for row in rows]

    def _choose(self, logits_BV: torch.Tensor) -> torch.Tensor:
        if max(self._temperatures) == 0:
            return logits_BV.argmax(-1)
        draws_B = torch.tensor([generator.random() for generator in self._generators], dtype=torch.float64)
        temperatures_B = torch.tensor(self._temperatures, dtype=torch.float64, device=logits_BV.device)
        is_greedy_B = temperatures_B == 0
        drawn_B = draw(logits_BV, draws_B.to(logits_BV.device), self._sampling, temperatures_B.masked_fill(is_greedy_B, 1.0))
        return torch.where(is_greedy_B, logits_BV.argmax(-1), drawn_B) if is_greedy_B.any() else drawn_B


def draw(
    logits_BV: torch.Tensor, draws_B: torch.Tensor, sampling: Sampling, temperatures_B: torch.Tensor | None = None
) -> torch.Tensor:
    """Token (B) for each number in [0, 1). Temperature comes first, then top-k, top-p and min-p, in transformers' order.
    temperatures_B: in place of that of sampling."""
    divisor = sampling.temperature if temperatures_B is None else temperatures_B[:, None]
    probs_BV = (logits_BV.double() / divisor).softmax(-1)
    order_BV = None
    if sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0:
        probs_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
        if sampling.top_k > 0:
            probs_BV[:, sampling.top_k :] = 0
        total_B1 = probs_BV.sum(-1, keepdim=True)
        before_BV = probs_BV.cumsum(-1) - probs_BV
        # The most likely token always stays: nothing is before it, and it is not below itself.
        probs_BV = probs_BV.masked_fill(before_BV >= sampling.top_p * total_B1, 0) if sampling.top_p < 1 else probs_BV
        probs_BV = probs_BV.masked_fill(probs_BV < sampling.min_p * probs_BV[:, :1], 0)
    cumulative_BV = probs_BV.cumsum(-1)
    wanted_B1 = draws_B[:, None] * cumulative_BV[:, -1:]  # below the total, also when rounded: a draw is at most 1 - 2**-53
    place_B1 = torch.searchsorted(cumulative_BV, wanted_B1, right=True)  # a token of probability 0 is never met
    place_B1 = place_B1.clamp(max=logits_BV.shape[-1] - 1)  # where probabilities are no numbers: HfModel looks at the outcome
    return (place_B1 if order_BV is None else order_BV.gather(1, place_B1))[:, 0]


class Ending:
    """A stopping criterion that knows how every row ended: at which token, and why.

    It does not look at padding, so an end token that is also the padding token does no harm.
    """

    def __init__(self, tokenizer: Any, sampling: Sampling, ends: set[int], num_prompt: int, num_rows: int) -> None:
        self._tokenizer, self._stop, self._num_prompt = tokenizer, sampling.stop, num_prompt
        self._ends = ends
        # A token is a byte or more, but for special ones: as many tokens as bytes hold a stop string.
        self._window = max((len(stop.encode()) for stop in sampling.stop), default=0) + 8
        self._length: list[int | None] = [None] * num_rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        length = input_ids.shape[1] - self._num_prompt
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self._length[row] is None and (token in self._ends or self._stops(input_ids[row])):
                self._length[row] = length
        return torch.tensor([known is not None for known in self._length], device=input_ids.device)

    def _stops(self, ids_T: torch.Tensor) -> bool:
        if not self._stop:
            return False
        text = self._text(ids_T[max(self._num_prompt, len(ids_T) - self._window) :].tolist())
        return any(stop in text for stop in self._stop)

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def length(self, row: int) -> int | None:
        """Tokens up to its end; None: it has none."""
        return self._length[row]

    def spoken(self, row: int, tokens: list[int], *, is_ended: bool) -> str:
        """The text of a row's tokens, without its end mark."""
        is_marked = is_ended and tokens[-1] in self._ends
        return self._text(tokens[:-1] if is_marked else tokens)

    def completion(self, row: int, tokens: list[int], logprobs: list[float]) -> Completion:
        """The reply of a row from all that was generated; what came after its end is dropped."""
        known = self._length[row]
        length = len(tokens) if known is None else known
        reason = FinishReason.length if known is None else FinishReason.stop
        spoken = length - 1 if known is not None and tokens[length - 1] in self._ends else length
        text, _ = cut_after_stop(self._text(tokens[:spoken]), self._stop)
        return Completion(text, reason, length, float(sum(logprobs[:length])))
