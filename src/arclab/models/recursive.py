"""RecursiveModel: the TRM decoder and what conditions it, a puzzle table (TRM) or a task encoder (ETRM).

    model = build_model(config, num_puzzles=...)
    carry = model.initial_carry(batch)
    carry, output = model(carry, batch, min_steps_B)      # one supervision step = one optimiser step

A carry row keeps its example until it halts; a halted row takes the next row of the incoming batch. Labels travel with
their example: losses use output.labels_BS, never those of the incoming batch. Demonstrations are encoded again at every
training step (with gradient, for every row) and once per query in evaluation.
Shapes: B rows, S canvas cells, P prefix tokens, T context tokens, D width, V tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from arclab.config.schema import PREFIX_TOKENS, ContextConfig, ExperimentConfig, HaltingConfig, Precision, StandardEncoderConfig
from arclab.data.sampler import Batch
from arclab.models.decoder import Decoder, Latents
from arclab.models.encoders import Demonstrations, TaskContext, TaskEncoder, build_encoder
from arclab.models.halting import halts

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}


@dataclass(slots=True)
class Carry:
    """What rows keep between supervision steps: latents, steps done, whether they are finished, and their example."""

    latents: Latents
    steps_B: Tensor
    halted_B: Tensor
    data: Batch


@dataclass(slots=True)
class StepOutput:
    """Result of one supervision step for the rows of the carry.

    logits_BSV and q_halt_B carry gradient; labels_BS, steps_B and halted_B belong to the same rows. context is None for a
    puzzle table; puzzle_rows_BD is its looked-up rows, a leaf whose gradient the sign-SGD of the table takes.
    """

    logits_BSV: Tensor
    q_halt_B: Tensor
    labels_BS: Tensor
    steps_B: Tensor
    halted_B: Tensor
    context: TaskContext | None
    puzzle_rows_BD: Tensor | None


class ContextAdapter(nn.Module):
    """Context tokens -> the decoder's prefix: a learned gain, and zeros in the prefix tokens that carry no context."""

    def __init__(self, config: ContextConfig, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0 / math.sqrt(width) if config.match_gain else config.gain))

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        return _pad_prefix(tokens_BTD * self.gain.to(tokens_BTD.dtype))


def _pad_prefix(tokens_BTD: Tensor) -> Tensor:
    return nn.functional.pad(tokens_BTD, (0, 0, 0, PREFIX_TOKENS - tokens_BTD.shape[1]))


class PuzzleTable(nn.Module):
    """One D-vector per augmented puzzle, zero at the start. Not a parameter: only the rows of a batch get gradients."""

    weight: Tensor

    def __init__(self, num_puzzles: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_puzzles, width))

    def forward(self, puzzle_id_B: Tensor) -> Tensor:
        rows = self.weight[puzzle_id_B]
        return rows.requires_grad_() if torch.is_grad_enabled() else rows


class RecursiveModel(nn.Module):
    def __init__(
        self, decoder: Decoder, halting: HaltingConfig, *, encoder: TaskEncoder | None, adapter: ContextAdapter | None,
        puzzle_table: PuzzleTable | None,
    ) -> None:  # fmt: skip
        super().__init__()
        assert (encoder is None) != (puzzle_table is None) and (encoder is None) == (adapter is None)
        self.halting = halting
        self.decoder, self.encoder, self.adapter, self.puzzle_table = decoder, encoder, adapter, puzzle_table

    def initial_carry(self, batch: Batch) -> Carry:
        """All rows halted: the first call takes every row of its batch."""
        device = batch.inputs_BS.device
        return Carry(
            latents=self.decoder.start(len(batch)),
            steps_B=torch.zeros(len(batch), dtype=torch.int64, device=device),
            halted_B=torch.ones(len(batch), dtype=torch.bool, device=device),
            data=batch.map(torch.zeros_like),
        )

    def admit(self, carry: Carry, batch: Batch) -> Carry:
        """Halted rows take the new row, fresh latents and step 0; the others keep everything."""
        new = carry.halted_B
        data = Batch(**{f.name: _where_rows(new, getattr(batch, f.name), getattr(carry.data, f.name)) for f in fields(Batch)})
        return Carry(self.decoder.reset(carry.latents, new), torch.where(new, 0, carry.steps_B), torch.zeros_like(new), data)

    def condition(self, data: Batch) -> tuple[Tensor, TaskContext | None, Tensor | None]:
        """(prefix (B, P, D), context or None, puzzle rows or None) for every row."""
        if self.puzzle_table is not None:
            rows_BD = self.puzzle_table(data.puzzle_id_B)
            return _pad_prefix(rows_BD[:, None]), None, rows_BD
        assert self.encoder is not None and self.adapter is not None
        context = self.encoder(Demonstrations.from_batch(data), self.decoder.dtype)
        return self.adapter(context.tokens_BTD), context, None

    def forward(self, carry: Carry, batch: Batch, min_steps_B: Tensor) -> tuple[Carry, StepOutput]:
        """One training step. min_steps_B: see halting.draw_min_steps. The new carry is detached."""
        carry = self.admit(carry, batch)
        prefix_BPD, context, puzzle_rows_BD = self.condition(carry.data)
        latents, logits_BSV, q_halt_B = self.decoder(carry.latents, carry.data.inputs_BS, prefix_BPD)
        steps_B = carry.steps_B + 1
        halted_B = halts(self.halting, steps_B, q_halt_B.detach(), min_steps_B)
        output = StepOutput(logits_BSV, q_halt_B, carry.data.labels_BS, steps_B, halted_B, context, puzzle_rows_BD)
        return Carry(latents.detach(), steps_B, halted_B, carry.data), output

    @torch.no_grad()
    def predict(self, data: Batch) -> tuple[Tensor, Tensor]:
        """Evaluation: logits (B, S, V) and halt logits (B,) after halt_max_steps steps; demonstrations are encoded once."""
        prefix_BPD, _, _ = self.condition(data)
        latents = self.decoder.start(len(data))
        logits_BSV, q_halt_B = prefix_BPD, prefix_BPD  # replaced in the first pass; halt_max_steps >= 1
        for _ in range(self.halting.halt_max_steps):
            latents, logits_BSV, q_halt_B = self.decoder(latents, data.inputs_BS, prefix_BPD)
        return logits_BSV, q_halt_B


def _where_rows(take_new_B: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(take_new_B.view(-1, *[1] * (new.dim() - 1)), new, old)


def build_model(config: ExperimentConfig, num_puzzles: int) -> RecursiveModel:
    """The model of a configuration. num_puzzles: rows of the puzzle table (PuzzleSpace.num_puzzles); unused by encoders."""
    decoder = Decoder(config.decoder, config.dataset.canvas, DTYPES[config.trainer.precision])
    width = config.decoder.width
    if not isinstance(config.encoder, StandardEncoderConfig):
        table = PuzzleTable(num_puzzles, width)
        return RecursiveModel(decoder, config.halting, encoder=None, adapter=None, puzzle_table=table)
    return RecursiveModel(
        decoder, config.halting,
        encoder=build_encoder(config.encoder, width, config.dataset.canvas),
        adapter=ContextAdapter(config.encoder.context, width), puzzle_table=None,
    )  # fmt: skip
