"""Inner steps of training (encoder.inner_steps): a row's context is moved towards its demonstrations before its query is asked.

    move = InnerSteps(config.encoder, model)
    carry, output = model(carry, batch, min_steps_B, move=move)      # the decoder reads the moved context
    move.losses                                                      # name -> (B,): the inner loss before and after

After the gradient ascent during training of Latent Program Networks (arXiv 2411.08706): encoder and decoder are trained for the
context that a search will start from. It is the search of adaptation=latent with its defaults (leave-one-out questions of the
row's demonstrations, Adam, one supervision step, the best iterate; a row with one demonstration has the shared loss), run anew
at every optimiser step from a fresh decoder state.

The outer gradient is first order: what the inner steps found is a constant that is added to the context. It flows into the
encoder as if the context had not been moved, never through the inner steps, and into the decoder as it reads the moved one.
Auxiliary losses and the figures of the encoder are of the context as it was written. A variational encoder is searched behind
the mean of its vector, and the move is added to the context of the drawn one. Shapes: B rows.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from arclab.config.adaptation_schema import LatentSearchConfig, LatentStart, SearchLoss, SearchOptimizer
from arclab.config.encoder_schema import EncoderConfig, TaskEncoderConfig
from arclab.data.sampler import Batch
from arclab.methods.recursive.encoders import TaskContext
from arclab.methods.recursive.leave_one_out import leave_one_out
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.search.ascent import Found, Problem, groups, search
from arclab.methods.recursive.search.latent import Latent, Offset, encoder_latent, moved_by, whole_latent

INNER_LOSSES = ("inner_before", "inner_after")


class InnerSteps:
    """A ContextMove. losses: of the rows that were moved last, per cell of an output, by the INNER_LOSSES."""

    def __init__(self, config: TaskEncoderConfig, model: RecursiveModel) -> None:
        self._model = model
        self._config = LatentSearchConfig(
            kind="latent", steps=config.inner_steps, start=LatentStart.encoder, loss=SearchLoss.leave_one_out,
            optimizer=SearchOptimizer.adam, lr=config.inner_lr, max_offset=None, num_starts=1, sigma=0.0, unroll=1,
            batch_size=1, min_wins=None,
        )  # fmt: skip
        self.losses: dict[str, Tensor] = {}

    def __call__(self, context: TaskContext, data: Batch, identities_BCC: Tensor | None) -> TaskContext:
        start = whole_latent(self._model, data, identities_BCC)
        # As many questions at once as the batch has rows: searching needs no more memory than the step itself.
        found = [self._search(start, data, first, end) for first, end in groups(data, len(data))]
        offset = Offset.of([torch.cat(parts) for parts in zip(*(each.offset.parts for each in found), strict=True)])
        values = (torch.cat([each.before_P for each in found]), torch.cat([each.after_P for each in found]))
        self.losses = dict(zip(INNER_LOSSES, values, strict=True))
        tokens_BTD, memory = moved_by(self._model, context.tokens_BTD, context.memory, offset, start)
        return replace(context, tokens_BTD=tokens_BTD, memory=memory)

    def _search(self, start: Latent, data: Batch, first: int, end: int) -> Found:
        rows = start.rows(torch.arange(first, end, device=data.num_demos_B.device))
        questions = leave_one_out(data.rows(first, end))
        identities = None if rows.identities_BCC is None else rows.identities_BCC[questions.puzzle_N]
        asked = encoder_latent(self._model, questions.data, questions.shown_NK, identities)
        return search(self._model, Problem(rows, asked, questions.data, questions.puzzle_N), self._config, [])


def inner_steps_of(config: EncoderConfig, model: RecursiveModel) -> InnerSteps | None:
    """None where there are none to take."""
    if isinstance(config, TaskEncoderConfig) and config.inner_steps > 0:
        return InnerSteps(config, model)
    return None
