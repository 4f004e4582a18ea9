"""Reward models: a value head on a language model, trained on pairs of texts of which one is better, with the life of a run.

    network = value_network(folder, pad_id=0)                    # of a model folder; every value is 0 at first
    step = prefer(network, rows, settings, where, pad_id=0, divergence_remedy="lower reward_model.lr", record={})
    values = read_values(network, ids, pad_id=0)                 # one number for each text

A row holds the tokens of the better text (chosen), of the worse one (rejected), and weight [w], whose mean over all rows is 1.
The loss is Bradley and Terry's: -log sigmoid(value of the better - value of the worse), times the weight, over the rows of a
step, so that weights do not cancel. The network is one of transformers for sequence classification with a single label: a value
is read from the last token, which sees the whole text.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from arclab.lm.training.life import LivesInRun, RunLife, TrainedWeights
from arclab.lm.training.sft import SftSettings, Where, step_arguments
from arclab.runs.checkpoints import CheckpointFolder
from arclab.runs.console import progress_bar

PairRow = dict[str, list[Any]]


def value_network(folder: str, pad_id: int, *, is_trained: bool = False) -> Any:
    """In float32, of a language model's folder with a new head, or (is_trained) of one that save_pretrained wrote."""
    network: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    network.config.pad_token_id = pad_id
    if not is_trained:
        with torch.no_grad():
            network.score.weight.zero_()
    return network


class _Preference(LivesInRun, Trainer):
    loss_is_scaled_for_ga = True

    def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        values = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits[:, 0]
        better_B, worse_B = values.chunk(2)
        losses_B = -inputs["weight"] * logsigmoid(better_B - worse_B)
        return losses_B.mean() / self.args.gradient_accumulation_steps


def prefer(
    network: Any, rows: Sequence[PairRow], settings: SftSettings, where: Where, *, pad_id: int, divergence_remedy: str,
    record: Mapping[str, Any],
) -> int:  # fmt: skip
    """Train from wherever the run's folder stands; returns the step at which it ended. ValueError: as of sft."""
    assert where.ranks.world_size == 1, "one process"
    folder = CheckpointFolder(where.run.checkpoints, where.keep_last)
    done = folder.steps()[-1] if folder.steps() else 0
    with progress_bar(total=where.cadence.steps, initial=done, desc=where.title, unit="step") as bar:
        life = RunLife(
            where.cadence, where.run, where.ranks, logger=where.logger, monitor=where.monitor, stop=where.stop, bar=bar,
            evaluate=None, rows_per_step=settings.batch_size, divergence_remedy=divergence_remedy,
        )  # fmt: skip
        arguments = step_arguments(settings, where, settings.batch_size // settings.grad_accumulation)
        trainer = _Preference(
            model=network,
            args=TrainingArguments(**arguments),
            train_dataset=Dataset.from_list(list(rows)),
            data_collator=lambda batch: collate_pairs(batch, pad_id),
        )
        return trainer.live(folder, TrainedWeights(network), where.ranks, life, record).go_on()


def collate_pairs(rows: Sequence[PairRow], pad_id: int) -> dict[str, Tensor]:
    """(2 B, L): all better texts, then all worse ones, padded on the right."""
    ids, mask = padded([row["chosen"] for row in rows] + [row["rejected"] for row in rows], pad_id)
    return {"input_ids": ids, "attention_mask": mask, "weight": torch.tensor([row["weight"][0] for row in rows])}


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


@torch.no_grad()
def read_values(network: Any, rows: Sequence[Sequence[int]], pad_id: int, *, batch_size: int = 64) -> list[float]:
    """The raw value of each text. What the texts of a batch begin with in common is read once."""
    found: list[float] = []
    for start in range(0, len(rows), batch_size):
        found += _read_batch(network, rows[start : start + batch_size], pad_id)
    return found


def _read_batch(network: Any, rows: Sequence[Sequence[int]], pad_id: int) -> list[float]:
    """The value is that of the last token, which is never part of what is shared."""
    shared = common_prefix(rows)
    device, backbone, cache = network.device, network.base_model, None
    if shared:
        head = torch.tensor([list(rows[0][:shared])], device=device)
        cache = backbone(input_ids=head, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(rows))
    kept = {} if cache is None else {_cache_name(backbone): cache}
    ids_BT, mask_BT = (each.to(device) for each in padded([row[shared:] for row in rows], pad_id))
    whole_BT = torch.cat([torch.ones(len(rows), shared, dtype=mask_BT.dtype, device=device), mask_BT], 1)
    places_BT = (whole_BT.cumsum(1) - 1).clamp(min=0)[:, shared:]
    hidden_BTW = backbone(
        input_ids=ids_BT, attention_mask=whole_BT, position_ids=places_BT, use_cache=cache is not None, **kept
    ).last_hidden_state
    last_B = mask_BT.sum(1) - 1
    return network.score(hidden_BTW[torch.arange(len(rows), device=device), last_B])[:, 0].float().tolist()


def _cache_name(backbone: Any) -> str:
    """Newer versions of transformers call it another name."""
    return "cache" if "cache" in inspect.signature(backbone.forward).parameters else "past_key_values"


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with in common; one of each is left over."""
    shortest = min(map(len, rows)) - 1
    for place in range(shortest):
        if any(row[place] != rows[0][place] for row in rows):
            return place
    return max(shortest, 0)
