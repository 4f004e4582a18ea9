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

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from arclab.config.encoder_schema import PREFIX_TOKENS, ContextConfig, TaskEncoderConfig
from arclab.config.schema import ColorEmbedding, ExperimentConfig, HaltingConfig, Precision
from arclab.data.codec import VOCAB_SIZE
from arclab.data.sampler import Batch
from arclab.methods.recursive.colors import draw_identities, first_shared, shown_as
from arclab.methods.recursive.decoder import Decoder, Latents
from arclab.methods.recursive.encoders import Demonstrations, Memory, TaskContext, TaskEncoder, build_encoder
from arclab.methods.recursive.halting import halts
from arclab.methods.recursive.layers import Recomputable
from arclab.runs.profile import PART

# (context, rows that it was read for, identities of their colours) -> the context that the decoder reads in its place.
ContextMove = Callable[[TaskContext, Batch, Tensor | None], TaskContext]
DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}


@dataclass(slots=True)
class Carry:
    """What rows keep between supervision steps: latents, steps done, whether they are finished, and their example.

    encoder_state: (B, X, D) of an encoder with a state of its own, else None. identities_BCC: of the row's colours where those
    share weights and are drawn (arclab.methods.recursive.colors), else None; data then shows its colours in an order drawn too.
    """

    latents: Latents
    steps_B: Tensor
    halted_B: Tensor
    data: Batch
    encoder_state: Tensor | None = None
    identities_BCC: Tensor | None = None


@dataclass(slots=True)
class Condition:
    """What the decoder reads beside its input: prefix (B, P, D) and memory; where it came from: context or puzzle rows."""

    prefix_BPD: Tensor
    memory: Memory | None = None
    context: TaskContext | None = None
    puzzle_rows_BD: Tensor | None = None


@dataclass(slots=True)
class Reading:
    """What evaluation keeps of rows whose demonstrations were read: prefix and memory for the decoder; or, for an encoder with
    a state of its own, the state and the memory that it writes from. num_demos: demonstrations behind the canvas.

    offset_BTD: fp32, added to the context tokens that such an encoder writes, at every step. facts_BF: numbers on how the rows
    were read, for statistics (see solver.reader.Reader). identities_BCC: see Carry; None in evaluation.
    """

    num_demos: int
    prefix_BPD: Tensor | None = None
    memory: Memory | None = None
    state_BXD: Tensor | None = None
    offset_BTD: Tensor | None = None
    facts_BF: Tensor | None = None
    identities_BCC: Tensor | None = None

    def rows(self, index_R: Tensor) -> Reading:
        """The rows with these numbers; one may be taken several times."""
        memory = self.memory and Memory(self.memory.tokens_BMD[index_R], self.memory.mask_BM[index_R])
        return Reading(self.num_demos, memory=memory, **{
            name: None if x is None else x[index_R] for name, x in self._optional().items()
        })  # fmt: skip

    def _optional(self) -> dict[str, Tensor | None]:
        names = ("prefix_BPD", "state_BXD", "offset_BTD", "facts_BF", "identities_BCC")
        return {name: getattr(self, name) for name in names}

    def join(self, other: Reading) -> Reading:
        """These rows, then the other ones, which must have been read by the same model with as many slots."""
        memory, others = None, other._optional()
        if self.memory is not None and other.memory is not None:
            tokens = torch.cat([self.memory.tokens_BMD, other.memory.tokens_BMD])
            memory = Memory(tokens, torch.cat([self.memory.mask_BM, other.memory.mask_BM]))
        return Reading(self.num_demos, memory=memory, **{
            name: None if x is None or (y := others[name]) is None else torch.cat([x, y])
            for name, x in self._optional().items()
        })  # fmt: skip


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
        self.gain = nn.Parameter(torch.tensor(config.start_gain(width)))

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

    @property
    def num_parameters(self) -> dict[str, float]:
        """By metric: num_params, and num_puzzle_params where there is a puzzle table."""
        found = {"num_params": float(sum(p.numel() for p in self.parameters()))}
        return found | ({} if self.puzzle_table is None else {"num_puzzle_params": float(self.puzzle_table.weight.numel())})

    def initial_carry(self, batch: Batch) -> Carry:
        """All rows halted: the first call takes every row of its batch."""
        device = batch.inputs_BS.device
        state = None if self.encoder is None else self.encoder.start_state()
        return Carry(
            latents=self.decoder.start(*self._shape(batch)),
            steps_B=torch.zeros(len(batch), dtype=torch.int64, device=device),
            halted_B=torch.ones(len(batch), dtype=torch.bool, device=device),
            data=batch.map(torch.zeros_like),
            encoder_state=None if state is None else state.detach().to(self.decoder.dtype).repeat(len(batch), 1, 1),
            identities_BCC=self._start_identities(len(batch), device),
        )

    def _start_identities(self, num_rows: int, device: torch.device) -> Tensor | None:
        """The fixed draw for every row; None where identities are never drawn."""
        kind = self.decoder.config.color_embedding
        if kind is ColorEmbedding.free or self.encoder is None:
            return None
        num_colors = VOCAB_SIZE - first_shared(kind)
        return torch.eye(num_colors, device=device).repeat(num_rows, 1, 1)

    def _shape(self, batch: Batch) -> tuple[int, int, int]:
        """Rows, canvas cells, and demonstrations whose tokens stand behind the canvas (all slots, if the encoder does that)."""
        is_kept = self.encoder is not None and self.encoder.memory_positions is not None
        return len(batch), batch.inputs_BS.shape[1], batch.demo_inputs_BKS.shape[1] if is_kept else 0

    def admit(self, carry: Carry, batch: Batch, noise: torch.Generator | None = None) -> Carry:
        """Halted rows take the new row, fresh latents, the encoder's start state, step 0 and identities of their colours (those
        of evaluation without noise); the others keep everything."""
        new = carry.halted_B
        identities = carry.identities_BCC
        if identities is not None:
            drawn = self._start_identities(len(batch), identities.device)
            assert drawn is not None
            if noise is not None:
                drawn, colors_BC = draw_identities(self.decoder.config.color_embedding, len(batch), noise)
                batch = shown_as(batch, colors_BC)
            identities = _where_rows(new, drawn, identities)
        data = Batch(**{f.name: _where_rows(new, getattr(batch, f.name), getattr(carry.data, f.name)) for f in fields(Batch)})
        state = carry.encoder_state
        if state is not None:
            start = None if self.encoder is None else self.encoder.start_state()
            assert start is not None
            state = _where_rows(new, start.to(state.dtype)[None], state)
        latents = self.decoder.reset(carry.latents, new)
        return Carry(latents, torch.where(new, 0, carry.steps_B), torch.zeros_like(new), data, state, identities)

    def condition(
        self,
        data: Batch,
        state: Tensor | None = None,
        noise: torch.Generator | None = None,
        identities_BCC: Tensor | None = None,
    ) -> Condition:
        """What every row's decoder reads; state and noise: see TaskEncoder; identities_BCC: see Carry."""
        if self.puzzle_table is not None:
            rows_BD = self.puzzle_table(data.puzzle_id_B)
            return Condition(_pad_prefix(rows_BD[:, None]), puzzle_rows_BD=rows_BD)
        assert self.encoder is not None
        demos = Demonstrations.from_batch(data, identities_BCC)
        return self._from_context(self.encoder(demos, self.decoder.dtype, state, noise))

    def _from_context(self, context: TaskContext) -> Condition:
        assert self.adapter is not None
        return Condition(self.adapter(context.tokens_BTD), context.memory, context)

    def forward(
        self,
        carry: Carry,
        batch: Batch,
        min_steps_B: Tensor,
        noise: torch.Generator | None = None,
        max_steps: int | None = None,
        move: ContextMove | None = None,
    ) -> tuple[Carry, StepOutput]:
        """One training step. min_steps_B: see halting.draw_min_steps; max_steps: halt_max_steps unless given (see
        halting.most_steps); noise: see TaskEncoder; move: None leaves an encoder's context as it is (the output has that one in
        any case). The new carry is detached."""
        carry = self.admit(carry, batch, noise)
        data, identities = carry.data, carry.identities_BCC
        with record_function(PART + "encoder forward"):
            condition = self.condition(data, carry.encoder_state, noise, identities)
        if move is not None and condition.context is not None:
            with record_function(PART + "inner steps"):
                moved = self._from_context(move(condition.context, data, identities))
            condition = replace(moved, context=condition.context)
        with record_function(PART + "decoder forward"):
            latents, logits_BSV, q_halt_B = self.decoder(
                carry.latents, data.inputs_BS, condition.prefix_BPD, condition.memory, identities
            )
        steps_B = carry.steps_B + 1
        halted_B = halts(max_steps or self.halting.halt_max_steps, steps_B, q_halt_B.detach(), min_steps_B)
        context = condition.context
        output = StepOutput(logits_BSV, q_halt_B, data.labels_BS, steps_B, halted_B, context, condition.puzzle_rows_BD)
        state = None if context is None or context.state is None else context.state.detach()
        return Carry(latents.detach(), steps_B, halted_B, data, state, identities), output

    def first_step(self, data: Batch, context: TaskContext, identities_BCC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits and halt logits of one supervision step from the start state, under a given context; with gradient."""
        condition = self._from_context(context)
        start = self.decoder.start(*self._shape(data))
        prefix_BPD, memory = condition.prefix_BPD, condition.memory
        _, logits_BSV, q_halt_B = self.decoder(start, data.inputs_BS, prefix_BPD, memory, identities_BCC)
        return logits_BSV, q_halt_B

    @torch.no_grad()
    def read(self, data: Batch) -> Reading:
        """Evaluation: what the rows' demonstrations (or puzzle rows) say, for refine(). Read once per row."""
        num_demos = self._shape(data)[2]
        if self.encoder is None:
            return Reading(num_demos, prefix_BPD=self.condition(data).prefix_BPD)
        demos = Demonstrations.from_batch(data)
        memory = self.encoder.read(demos, self.decoder.dtype)
        state = self.encoder.state_for(demos, self.decoder.dtype)
        if state is not None:
            return Reading(num_demos, memory=memory, state_BXD=state)
        condition = self._from_context(self.encoder.write(memory, None, None))
        return Reading(num_demos, prefix_BPD=condition.prefix_BPD, memory=condition.memory)

    def moved(self, tokens_BTD: Tensor, offset_BTD: Tensor) -> Tensor:
        """Tokens for the decoder, in its precision, after a move in fp32."""
        return (tokens_BTD.float() + offset_BTD).to(self.decoder.dtype)

    def start(self, inputs_BS: Tensor, reading: Reading) -> Latents:
        """Fresh latents for rows of evaluation."""
        return self.decoder.start(len(inputs_BS), inputs_BS.shape[1], reading.num_demos)

    @torch.no_grad()
    def refine(self, latents: Latents, inputs_BS: Tensor, reading: Reading) -> tuple[Latents, Reading, Tensor, Tensor]:
        """Evaluation: one more step of every row; (latents, reading) for the next one, logits (B, S, V), halt logits (B,)."""
        return self.refine_with_gradient(latents, inputs_BS, reading)

    def refine_with_gradient(
        self, latents: Latents, inputs_BS: Tensor, reading: Reading
    ) -> tuple[Latents, Reading, Tensor, Tensor]:
        """As refine.

        An encoder with a state of its own refines it too, as in training; the others wrote their context when they read.
        """
        memory, state = reading.memory, None
        if reading.state_BXD is None:
            prefix_BPD = reading.prefix_BPD
        else:
            assert self.encoder is not None and memory is not None
            context = self.encoder.write(memory, reading.state_BXD, None)
            if reading.offset_BTD is not None:
                context = replace(context, tokens_BTD=self.moved(context.tokens_BTD, reading.offset_BTD))
            condition = self._from_context(context)
            prefix_BPD, memory, state = condition.prefix_BPD, condition.memory, context.state
        assert prefix_BPD is not None
        latents, logits_BSV, q_halt_B = self.decoder(latents, inputs_BS, prefix_BPD, memory, reading.identities_BCC)
        return latents, replace(reading, state_BXD=state), logits_BSV, q_halt_B

    def predict(self, data: Batch) -> tuple[Tensor, Tensor]:
        """Evaluation: logits (B, S, V) and halt logits (B,) of all rows after halt_max_steps steps."""
        reading = self.read(data)
        latents, output = self.start(data.inputs_BS, reading), None
        for _ in range(self.halting.halt_max_steps):
            latents, reading, *output = self.refine(latents, data.inputs_BS, reading)
        assert output is not None
        return output[0], output[1]


def _where_rows(take_new_B: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(take_new_B.view(-1, *[1] * (new.dim() - 1)), new, old)


def build_model(config: ExperimentConfig, num_puzzles: int) -> RecursiveModel:
    """The model of a configuration. num_puzzles: rows of the puzzle table (PuzzleSpace.num_puzzles); unused by encoders."""
    model = _build(config, num_puzzles)
    for module in model.modules():
        if isinstance(module, Recomputable):
            module.recompute = config.trainer.recompute
    return model


def _build(config: ExperimentConfig, num_puzzles: int) -> RecursiveModel:
    width, canvas, dtype = config.decoder.width, config.dataset.canvas, DTYPES[config.trainer.precision]
    if not isinstance(config.encoder, TaskEncoderConfig):
        decoder = Decoder(config.decoder, canvas, dtype)
        return RecursiveModel(decoder, config.halting, encoder=None, adapter=None, puzzle_table=PuzzleTable(num_puzzles, width))
    encoder = build_encoder(config.encoder, width, canvas, config.decoder.color_embedding)
    decoder = Decoder(config.decoder, canvas, dtype, encoder.memory_positions)
    adapter = ContextAdapter(config.encoder.context, width)
    return RecursiveModel(decoder, config.halting, encoder=encoder, adapter=adapter, puzzle_table=None)
