"""What a batch of a run is made of: one part for each canvas that its tasks need, and what every micro-batch of it must have.

parts = batch_parts(config, data, ranks)        # ValueError if the batch is too small for what its rows are asked to do
"""

from __future__ import annotations

from arclab.config.encoder_schema import ContrastiveView, TaskEncoderConfig
from arclab.config.schema import CanvasRule, ExperimentConfig
from arclab.data.buckets import bucketed
from arclab.data.sampler import Part, TrainingData, whole
from arclab.runs.ranks import Ranks


def batch_parts(config: ExperimentConfig, data: TrainingData, ranks: Ranks) -> tuple[Part, ...]:
    """The parts, each with rows on every rank and in every micro-batch."""
    trainer = config.trainer
    if data.max_demos < least_demos(config):
        raise ValueError(
            "encoder.reconstruction.weight and encoder.contrastive.view=subsets divide the demonstrations of a row, but the "
            "training tasks show one alone; set the weight to 0, or contrastive.view=augmentations."
        )
    pieces = ranks.world_size * trainer.grad_accumulation
    parts = _parts(config, data, trainer.num_rows, pieces)
    fewest = min(part.num_rows for part in parts) // pieces
    if fewest < least_rows(config):
        assert isinstance(config.encoder, TaskEncoderConfig)
        raise ValueError(
            f"encoder.contrastive.weight={config.encoder.contrastive.weight} compares the rows of a micro-batch with each "
            f"other, and the smallest one here has {fewest} row (trainer.batch_size={trainer.num_rows}, {pieces} ranks x "
            f"pieces, trainer.canvas={trainer.canvas.name}); raise trainer.batch_size or lower trainer.grad_accumulation."
        )
    return parts


def _parts(config: ExperimentConfig, data: TrainingData, num_rows: int, pieces: int) -> tuple[Part, ...]:
    return whole(data, num_rows) if config.trainer.canvas is CanvasRule.full else bucketed(data, num_rows, pieces)


def least_demos(config: ExperimentConfig) -> int:
    """Demonstrations that a row needs for a loss that divides them: with one alone it would be 0 all along."""
    if not isinstance(config.encoder, TaskEncoderConfig):
        return 0
    encoder = config.encoder
    divides = encoder.contrastive.weight > 0 and encoder.contrastive.view is ContrastiveView.subsets
    return 2 if divides or encoder.reconstruction.weight > 0 else 1


def least_rows(config: ExperimentConfig) -> int:
    """Rows that every micro-batch needs: a contrastive loss compares them with each other."""
    return 2 if isinstance(config.encoder, TaskEncoderConfig) and config.encoder.contrastive.weight > 0 else 1


def is_large_enough(config: ExperimentConfig, data: TrainingData, num_rows: int, pieces: int) -> bool:
    """Does a batch of num_rows have enough rows in each of the pieces of every canvas? It has at least one in each."""
    return min(part.num_rows for part in _parts(config, data, num_rows, pieces)) // pieces >= least_rows(config)
