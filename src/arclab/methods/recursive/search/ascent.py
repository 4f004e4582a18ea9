"""Gradient steps on an offset to a latent until the latent explains its demonstrations better.

    found = search(model, problem, config, noise)         # an Offset for every puzzle, with the losses before and after

The loss of a puzzle is the cross-entropy of its questions' outputs (mean over their cells, over the first `unroll` supervision
steps and over questions). As in training every supervision step has a loss of its own, and the decoder's state is detached
between them. The best iterate of all steps and starts is kept, by its own loss. Weights get no gradient, and a puzzle's result
does not depend on the others. Shapes: P puzzles, C candidates (P times the number of starts), N questions of one start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from arclab.config.adaptation_schema import LatentSearchConfig, SearchOptimizer
from arclab.data.sampler import Batch
from arclab.methods.recursive.losses import row_losses
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.search.latent import Latent, Offset


@dataclass(slots=True)
class Problem:
    """start: of each puzzle (P rows), in whose units offsets are; asked: the latent that each question's offset is added to
    (N rows); data: the questions' queries and outputs; puzzle_N: whose they are."""

    start: Latent
    asked: Latent
    data: Batch
    puzzle_N: Tensor


@dataclass(slots=True)
class Found:
    """offset: P rows. before_P, after_P: the loss at the start and of the best iterate; step_P: after how many steps that
    was."""

    offset: Offset
    before_P: Tensor
    after_P: Tensor
    step_P: Tensor


def groups(puzzles: Batch, max_rows: int, num_starts: int = 1) -> Iterator[tuple[int, int]]:
    """(first, end) of puzzles, in their order, whose questions are searched together: as many as max_rows takes, or one."""
    first, rows = 0, 0
    for puzzle, count in enumerate(puzzles.num_demos_B.tolist()):
        wanted = count * num_starts
        if puzzle > first and rows + wanted > max_rows:
            yield first, puzzle
            first, rows = puzzle, 0
        rows += wanted
    yield first, len(puzzles)


def search(
    model: RecursiveModel, problem: Problem, config: LatentSearchConfig, noise: list[Offset],
    before_step: Callable[[], None] = lambda: None,
) -> Found:  # fmt: skip
    """noise: of the starts after the first, P rows each, of unit size. before_step: may end the search by what it raises."""
    candidates = _starts(problem.start, config, noise)
    num_starts, num_puzzles = len(noise) + 1, len(problem.start)
    puzzle_C = torch.arange(num_puzzles, device=problem.puzzle_N.device).repeat(num_starts)
    best = [part.clone() for part in candidates]
    best_C = torch.full((len(puzzle_C),), torch.inf, device=puzzle_C.device)
    step_C = torch.zeros_like(best_C)
    optimizer = _optimizer(candidates, config)
    before_P = best_C[:num_puzzles]
    for step in range(config.steps + 1):
        before_step()
        is_last = step == config.steps
        with torch.set_grad_enabled(not is_last):
            loss_C = _losses(model, problem, Offset.of(candidates), num_starts, config.unroll)
        value_C = loss_C.detach()
        before_P = value_C[:num_puzzles] if step == 0 else before_P
        better_C = value_C < best_C
        best_C, step_C = torch.where(better_C, value_C, best_C), torch.where(better_C, step, step_C)
        for kept, now in zip(best, candidates, strict=True):
            kept.copy_(torch.where(better_C[:, None, None], now.detach(), kept))
        if is_last:
            break
        for part, gradient in zip(candidates, torch.autograd.grad(loss_C.sum(), candidates), strict=True):
            part.grad = gradient
        optimizer.step()
        _limit(candidates, config.max_offset)
    winner_P = best_C.view(num_starts, num_puzzles).argmin(0) * num_puzzles + puzzle_C[:num_puzzles]
    return Found(Offset.of([part[winner_P] for part in best]), before_P, best_C[winner_P], step_C[winner_P])


def _starts(start: Latent, config: LatentSearchConfig, noise: list[Offset]) -> list[Tensor]:
    """The parts of C offsets: all puzzles without noise, then with each noise."""
    zeros = start.offset().parts
    noisy = [[config.sigma * part for part in each.parts] for each in noise]
    return [torch.cat(each).requires_grad_() for each in zip(zeros, *noisy, strict=True)]


def _optimizer(parts: list[Tensor], config: LatentSearchConfig) -> torch.optim.Optimizer:
    """Both work on each number by itself, so puzzles stay independent."""
    if config.optimizer is SearchOptimizer.adam:
        return torch.optim.Adam(parts, lr=config.lr)
    return torch.optim.SGD(parts, lr=config.lr)


@torch.no_grad()
def _limit(parts: list[Tensor], max_offset: float | None) -> None:
    """Candidates that are further away than max_offset go back to that distance (root mean square over all numbers)."""
    if max_offset is None:
        return
    squares_C = torch.stack([part.square().sum((1, 2)) for part in parts]).sum(0)
    count = sum(part[0].numel() for part in parts)
    scale_C = (max_offset / (squares_C / count).sqrt().clamp(min=1e-12)).clamp(max=1.0)
    for part in parts:
        part.mul_(scale_C[:, None, None])


def _losses(model: RecursiveModel, problem: Problem, offset: Offset, num_starts: int, unroll: int) -> Tensor:
    """(C,) loss of every candidate."""
    num_puzzles, puzzle_N = len(problem.start), problem.puzzle_N
    question_X = torch.arange(len(puzzle_N), device=puzzle_N.device).repeat(num_starts)
    start_X = torch.arange(num_starts, device=puzzle_N.device).repeat_interleave(len(puzzle_N))
    puzzle_X = puzzle_N[question_X]
    candidate_X = start_X * num_puzzles + puzzle_X
    reading = problem.asked.rows(question_X).reading(model, offset.rows(candidate_X), problem.start.rows(puzzle_X))
    inputs_XS, labels_XS = problem.data.inputs_BS[question_X], problem.data.labels_BS[question_X]
    latents = model.start(inputs_XS, reading)
    loss_X = torch.zeros(len(question_X), device=puzzle_N.device)
    for _ in range(unroll):
        latents, reading, logits_XSV, q_halt_X = model.refine_with_gradient(latents, inputs_XS, reading)
        loss_X = loss_X + row_losses(logits_XSV, q_halt_X, labels_XS).lm / unroll
        latents = latents.detach()
        if reading.state_BXD is not None:
            reading.state_BXD = reading.state_BXD.detach()
    count_P = torch.bincount(puzzle_N, minlength=num_puzzles)
    total_C = torch.zeros(num_starts * num_puzzles, device=loss_X.device).index_add(0, candidate_X, loss_X)
    return total_C / count_P.repeat(num_starts)
