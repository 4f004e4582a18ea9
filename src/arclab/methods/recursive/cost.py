"""What a run of the recursive model needs, counted from its shapes: memory, and the work of a step and of an evaluation.

    cost = training_cost(config, ModelSize.of(model), data, scored, Placement("cpu", num_ranks=1))

Nothing is run but a few rows of real data, which say how large demonstrations are. The constants are counts of what the blocks
of arclab.methods.recursive.layers keep and move, fitted to arclab.methods.recursive.training.batch_size.measure and to
benchmarks/results/train_step*.json. Parts that are small beside blocks (queries over the set, losses, heads) are left out.
Shapes: D width, I inner width of a SwiGLU, L tokens of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from arclab.config.adaptation_schema import AdaptationConfig, LatentSearchConfig
from arclab.config.dataset_schema import CANVASES
from arclab.config.encoder_schema import (
    PREFIX_TOKENS,
    CrossAttentionEncoderConfig,
    DemoAttention,
    DemoLayout,
    EncoderConfig,
    InContextEncoderConfig,
    LpnEncoderConfig,
    TaskEncoderConfig,
    TransformerEncoderConfig,
)
from arclab.config.schema import AUTO, CanvasRule, ExperimentConfig, Precision, Ranking
from arclab.data.codec import PAD
from arclab.data.sampler import Batch, Part, TrainingData, start_cursors, whole
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.layers import mlp_width
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.training.parts import batch_parts
from arclab.runs.cost import Cost
from arclab.runs.ranks import Ranks

_SAMPLE_ROWS = 32
# Python, torch, numba, tasks: what a process has before it has a model.
_PROCESS_BYTES = 450 * 2**20
_COPIES = 5  # of every parameter, fp32: weight, gradient, two moments, average
_UPDATE_COPIES = 2  # while the optimiser moves them, when the activations are gone
_KERNELS_OF_BLOCK, _KERNELS_OF_STEP = 35, 400
_TRAFFIC_OF_UPDATE = 120  # bytes for each parameter: clipping, optimiser, averages
_LOSS_BYTES = 12 * 4 * 6  # for each cell
_LPN_INNER = 8 / 3  # of a SwiGLU with as many weights as its MLP


@dataclass(frozen=True, slots=True)
class Placement:
    """device_type: cpu or cuda. num_ranks: that share a batch."""

    device_type: str
    num_ranks: int


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Numbers of a model: its parameters, and the entries of its puzzle table (no parameters for torch)."""

    parameters: int
    table: int

    @classmethod
    def of(cls, model: RecursiveModel) -> ModelSize:
        table = 0 if model.puzzle_table is None else model.puzzle_table.weight.numel()
        return cls(sum(p.numel() for p in model.parameters()), table)


@dataclass(frozen=True, slots=True)
class _Shape:
    """A kind of block. kept, moved: bytes for each token that the backward pass needs, and that elementwise operations move."""

    width: int
    inner: float
    kept: float
    moved: float

    @classmethod
    def of(cls, width: int, inner: float, config: ExperimentConfig, device_type: str) -> _Shape:
        if config.trainer.precision is Precision.fp32:
            kept, moved = 43 * width + 16 * inner, 160 * width + 32 * inner
        else:  # norms and rotations are in fp32; on a CPU attention too
            kept, moved = (36 if device_type == "cpu" else 24) * width + 8 * inner, 190 * width + 16 * inner
        return cls(width, inner, kept, 0.28 * moved if config.trainer.compile else moved)

    def flops(self, length: float) -> float:
        """Of the forward pass of one block over a sequence."""
        return 2 * length * (4 * self.width**2 + 3 * self.width * self.inner) + 4 * length**2 * self.width


@dataclass(slots=True)
class _Work:
    """flops, bytes moved and kernels started. kept: bytes until the backward pass; passing: more of them while it goes
    through one block."""

    flops: float = 0.0
    traffic: float = 0.0
    kernels: float = 0.0
    kept: float = 0.0
    passing: float = 0.0

    def add(self, other: _Work, times: float, *, kernels: float) -> None:
        """The work of so many rows, whose kernels are started together, so often."""
        self.flops += times * other.flops
        self.traffic += times * other.traffic
        self.kept += times * other.kept
        self.passing = max(self.passing, times * other.passing)
        self.kernels += kernels * other.kernels


def _blocks(config: ExperimentConfig, shape: _Shape, lengths: Sequence[float], forward: float, graded: float) -> _Work:
    """So many blocks over each of the sequences. forward: all of them; graded: those with a backward pass, which costs twice
    the forward pass (and once more with trainer.recompute)."""
    recompute, tokens = config.trainer.recompute, sum(lengths)
    times = forward + (3 if recompute else 2) * graded
    of_block = shape.width * _bytes_of_number(config) if recompute else shape.kept  # its input alone, or all that it computed
    passing = (1.5 if recompute else 0.35) * shape.kept if graded else 0.0
    flops, kernels = sum(map(shape.flops, lengths)), _KERNELS_OF_BLOCK
    return _Work(times * flops, times * shape.moved * tokens, times * kernels, tokens * graded * of_block, tokens * passing)


def _bytes_of_number(config: ExperimentConfig) -> int:
    return 4 if config.trainer.precision is Precision.fp32 else 2


def training_cost(
    config: ExperimentConfig, size: ModelSize, data: TrainingData, scored: Sequence[ArcTask], place: Placement
) -> Cost:
    """Of pretrain_encoder.py, on one rank. With trainer.batch_size=auto of one row in each part."""
    trainer, pieces = config.trainer, place.num_ranks * config.trainer.grad_accumulation
    if trainer.batch_size == AUTO:
        config = config.with_batch_size(pieces * (len(CANVASES) if trainer.canvas is CanvasRule.bucketed else 1))
    parts = batch_parts(config, data, Ranks(0, place.num_ranks, torch.device("cpu")))
    step, piece_bytes, carry = _Work(kernels=_KERNELS_OF_STEP, traffic=_TRAFFIC_OF_UPDATE * size.parameters), 0.0, 0.0
    for part, rows in _samples(config, parts):
        num_rows, work = part.num_rows / place.num_ranks, _row_work(config, part, rows, place)
        step.add(work, num_rows, kernels=trainer.grad_accumulation)
        piece_bytes = max(piece_bytes, num_rows / trainer.grad_accumulation * (work.kept + work.passing))
        carry += num_rows * _carry_bytes(config, part.data)
    evaluation, evaluation_bytes = _evaluation(config, data, scored, place)
    update = 4 * _UPDATE_COPIES * size.parameters
    fixed = 4 * (_COPIES * size.parameters + size.table) + carry
    return Cost(
        memory_bytes=int(_process_bytes(place) + fixed + max(piece_bytes, update, evaluation_bytes)),
        step_flops=int(step.flops), step_traffic=int(step.traffic), step_kernels=int(step.kernels),
        **_evaluation_counts(evaluation),
    )  # fmt: skip


def evaluation_cost(
    config: ExperimentConfig, size: ModelSize, data: TrainingData, scored: Sequence[ArcTask], place: Placement,
    adaptation: AdaptationConfig | None = None,
) -> Cost:  # fmt: skip
    """Of evaluate.py, on one rank: one evaluation, with the search of its contexts if there is one."""
    evaluation, in_flight = _evaluation(config, data, scored, place)
    if isinstance(adaptation, LatentSearchConfig):
        in_flight = max(in_flight, _add_search(evaluation, config, data, scored, place, adaptation))
    memory = _process_bytes(place) + 4 * (size.parameters + size.table) + in_flight
    return Cost(memory_bytes=int(memory), **_evaluation_counts(evaluation))


def _add_search(
    evaluation: _Work, config: ExperimentConfig, data: TrainingData, scored: Sequence[ArcTask], place: Placement,
    search: LatentSearchConfig,
) -> float:  # fmt: skip
    """Adds the steps of all searches of a rank, and returns the bytes of one. A search predicts every demonstration that an
    augmented copy shows."""
    shown = sum(min(len(task.demos), config.dataset.max_demos) for task in scored) / len(scored)
    copies = len(scored) * (1 + config.evaluation.num_augmentations) / place.num_ranks
    num_rows, rows_at_once = copies * shown * search.num_starts, max(search.batch_size, shown * search.num_starts)
    blocks, graded = (count * search.unroll for count in _decoder_blocks(config))
    row = _blocks(config, _decoder_shape(config, place), [_decoder_length(config, data)], blocks, graded)
    groups = math.ceil(num_rows / rows_at_once)
    evaluation.add(row, num_rows * (search.steps + 1), kernels=groups * (search.steps + 1))
    return min(rows_at_once, num_rows) * (row.kept + row.passing + _LOSS_BYTES * data.canvas**2)


def _evaluation_counts(work: _Work) -> dict[str, int]:
    return {f"evaluation_{name}": int(getattr(work, name)) for name in ("flops", "traffic", "kernels")}


def _process_bytes(place: Placement) -> int:
    return _PROCESS_BYTES if place.device_type == "cpu" else 0


def _samples(config: ExperimentConfig, parts: Sequence[Part]) -> Iterator[tuple[Part, Batch]]:
    """The first rows of each part, as the first step of the run has them."""
    for part, cursor in zip(parts, start_cursors(parts, config.seed), strict=True):
        yield part, part.data.batch(cursor, part.num_rows, 0, min(part.num_rows, _SAMPLE_ROWS))


def _row_work(config: ExperimentConfig, part: Part, rows: Batch, place: Placement) -> _Work:
    """Of a training step, for the mean row of a part."""
    encoder = config.encoder
    inner_steps = encoder.inner_steps if isinstance(encoder, TaskEncoderConfig) else 0
    is_reconstructing = isinstance(encoder, TaskEncoderConfig) and encoder.reconstruction.weight > 0
    is_contrasting = isinstance(encoder, TaskEncoderConfig) and encoder.contrastive.weight > 0
    blocks, graded = (count * (1 + is_reconstructing) for count in _decoder_blocks(config))
    work = _blocks(config, _decoder_shape(config, place), [_decoder_length(config, part.data)], blocks, graded)
    if isinstance(encoder, TaskEncoderConfig):
        encoders = 1 + is_contrasting + is_reconstructing
        for shape, lengths, layers in _encoder_blocks(config, encoder, rows, place):
            reading = _blocks(config, shape, lengths, encoders * layers, encoders * layers)
            work.add(reading, 1 / len(rows), kernels=_num_groups(lengths))
    if inner_steps:
        _add_inner_steps(work, config, part, rows, place, inner_steps)
    return work


def _add_inner_steps(
    work: _Work, config: ExperimentConfig, part: Part, rows: Batch, place: Placement, num_steps: int
) -> None:  # fmt: skip
    """Adds those of the mean row: it reads all its demonstrations once more, and all but one for each question, and predicts
    the questions once before every step and after the last. They need no more memory at once than a step."""
    assert isinstance(config.encoder, TaskEncoderConfig)
    shown = float(rows.num_demos_B.float().mean())
    predicting = _blocks(config, _decoder_shape(config, place), [_decoder_length(config, part.data)], *_decoder_blocks(config))
    parts = [(predicting, shown * (num_steps + 1), num_steps + 1)]
    for shape, lengths, layers in _encoder_blocks(config, config.encoder, rows, place):
        parts.append((_blocks(config, shape, lengths, layers, 0), max(shown, 2.0) / len(rows), 2 * _num_groups(lengths)))
    for each, count, kernels in parts:
        kept, passing = work.kept, work.passing
        work.add(each, count, kernels=kernels)
        work.kept, work.passing = kept, passing


def _num_groups(lengths: Sequence[float]) -> int:
    """Demonstrations of one canvas go through a block together; end to end, all do, and have more lengths than canvases."""
    num_lengths = len(set(lengths))
    return num_lengths if num_lengths <= len(CANVASES) else 1


def _decoder_shape(config: ExperimentConfig, place: Placement) -> _Shape:
    decoder = config.decoder
    return _Shape.of(decoder.width, mlp_width(decoder.width, decoder.expansion), config, place.device_type)


def _decoder_blocks(config: ExperimentConfig) -> tuple[int, int]:
    """Blocks of a supervision step: all, and those of the last cycle, which has gradient."""
    last = (config.decoder.l_cycles + 1) * config.decoder.num_layers
    return config.decoder.h_cycles * last, last


def _decoder_length(config: ExperimentConfig, data: TrainingData) -> int:
    memory = 0
    if isinstance(config.encoder, InContextEncoderConfig):
        memory = data.max_demos * _num_grids(config.encoder) * data.canvas**2
    return PREFIX_TOKENS + data.canvas**2 + memory


def _num_grids(encoder: TaskEncoderConfig) -> int:
    return 2 if encoder.demo_layout is DemoLayout.concat else 1


def _encoder_blocks(
    config: ExperimentConfig, encoder: TaskEncoderConfig, rows: Batch, place: Placement
) -> Iterator[tuple[_Shape, list[float], int]]:
    """(block, lengths of the sequences that it is run over for these rows, how many such blocks)."""
    width, inner = _encoder_widths(config, encoder)
    shape = _Shape.of(width, inner, config, place.device_type)
    num_layers = encoder.num_layers if isinstance(encoder, TransformerEncoderConfig | LpnEncoderConfig) else 1
    yield shape, demo_lengths(config, encoder, rows, place), num_layers
    if isinstance(encoder, CrossAttentionEncoderConfig):  # over all slots on the whole canvas
        num_slots, cells = rows.demo_inputs_BKS.shape[1:]
        yield shape, [float(num_slots * cells * _num_grids(encoder))] * len(rows), encoder.cross_layers


def _encoder_widths(config: ExperimentConfig, encoder: EncoderConfig) -> tuple[int, float]:
    assert isinstance(encoder, LpnEncoderConfig | TransformerEncoderConfig)
    width = encoder.width or config.decoder.width
    if isinstance(encoder, LpnEncoderConfig):
        return width, _LPN_INNER * width
    return width, mlp_width(width, encoder.expansion)


def demo_lengths(config: ExperimentConfig, encoder: TaskEncoderConfig, rows: Batch, place: Placement) -> list[float]:
    """Tokens of every demonstration of the rows: of the smallest canvas that holds it, or (end to end) of its cells alone."""
    num_grids, num_cells = _num_grids(encoder), rows.inputs_BS.shape[1]
    canvas = round(num_cells**0.5)
    slots_K = torch.arange(rows.demo_inputs_BKS.shape[1])
    is_real_BK = slots_K[None] < rows.num_demos_B[:, None]
    used_NGS = torch.stack([rows.demo_inputs_BKS[is_real_BK], rows.demo_outputs_BKS[is_real_BK]], dim=1) != PAD
    if place.device_type == "cuda" and isinstance(encoder, TransformerEncoderConfig):
        is_half = config.trainer.precision is Precision.bf16
        if encoder.demo_attention is not DemoAttention.dense and is_half:
            together = used_NGS.sum((1, 2)) if num_grids == 2 else used_NGS.any(1).sum(1)
            return together.double().tolist()
    used_NYX = used_NGS.any(1).view(-1, canvas, canvas)
    along = torch.arange(1, canvas + 1)
    side_N = torch.maximum((used_NYX.any(2) * along).amax(1), (used_NYX.any(1) * along).amax(1))
    sides = [*(c for c in CANVASES if c < canvas), canvas]
    return [float(num_grids * next(c for c in sides if c >= side) ** 2) for side in side_N.tolist()]


def _carry_bytes(config: ExperimentConfig, data: TrainingData) -> float:
    """Of a row between steps, twice (old and new): two states and the example; and its logits with their loss, in fp32."""
    states = 2 * _decoder_length(config, data) * config.decoder.width * _bytes_of_number(config)
    example = data.canvas**2 * (2 + 2 * data.max_demos)
    return 2 * (states + example) + _LOSS_BYTES * data.canvas**2


def _evaluation(
    config: ExperimentConfig, data: TrainingData, scored: Sequence[ArcTask], place: Placement
) -> tuple[_Work, float]:
    """One evaluation on one rank, and the bytes that its rows in flight need. It has no gradient, and demonstrations are read
    once for all supervision steps."""
    evaluation, encoder = config.evaluation, config.encoder
    per_view = evaluation.samples * (2 if evaluation.ranking is Ranking.product else 1)
    num_predicted = sum(len(task.tests) for task in scored) * (1 + evaluation.num_augmentations) * per_view
    num_rows = max(1.0, num_predicted / place.num_ranks)
    in_flight = min(evaluation.batch_size, num_rows)
    shape, length = _decoder_shape(config, place), _decoder_length(config, data)
    num_blocks, _ = _decoder_blocks(config)
    work = _Work()
    rounds = math.ceil(num_rows / in_flight)
    work.add(_blocks(config, shape, [length], config.halting.halt_max_steps * num_blocks, 0), num_rows, kernels=rounds)
    if isinstance(encoder, TaskEncoderConfig):
        part = whole(data, min(_SAMPLE_ROWS, evaluation.batch_size))[0]
        rows = part.data.batch(start_cursors((part,), config.seed)[0], part.num_rows, 0, part.num_rows)
        for block, lengths, layers in _encoder_blocks(config, encoder, rows, place):
            work.add(_blocks(config, block, lengths, layers, 0), num_rows / len(rows), kernels=rounds * _num_groups(lengths))
    # Without a graph: the tensors of one block at a time, beside two states and the injected input.
    in_block = max(10 * shape.width, 4 * shape.inner) + 4 * shape.width
    return work, in_flight * length * in_block * _bytes_of_number(config)
