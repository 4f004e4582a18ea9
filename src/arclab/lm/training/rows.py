"""Rows that a language model is trained on: tokens, and which of them carry loss.

    batch = collate([{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, ...], pad_id=0)

Apart from sft.py, so that who trains without trl does not import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

IGNORED = -100  # label of a token without loss
Row = dict[str, list[Any]]


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded (B, L) input_ids, attention_mask, labels and what else rows hold. Padding is masked by length, not by
    token: an end mark that is also the padding token keeps its loss. Rows with an attention_mask of their own keep it."""
    longest = max(len(row["input_ids"]) for row in rows)
    fills = {"input_ids": pad_id, "labels": IGNORED}

    def padded(values: list[list[Any]], fill: int) -> torch.Tensor:
        return torch.tensor([value + [fill] * (longest - len(value)) for value in values])

    batch = {name: padded([row[name] for row in rows], fills.get(name, 0)) for name in rows[0]}
    return {"attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0)} | batch
