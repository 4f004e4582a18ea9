"""trainer.batch_size=auto: the largest batch whose training steps fit into a memory budget.

    num_rows = find_batch_size(config, model, data, ranks, budget_bytes)        # the same number on every rank

Sizes are ranks x trainer.grad_accumulation times a power of two, or one and a half of one. Steps are real ones, of a copy of
the model on the first rows of the run, without compilation. On a GPU the chosen size was run, and the next one was too large.
On a CPU, where rows are slow and memory is seldom short, a step of a few rows is measured and the rest is proportion. It draws
no random number and leaves model and data as they are, so the run is the one that the number alone would make. It does not know
what the machine has (arclab.runs.memory) nor where the number is kept (arclab.runs.folder).
"""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arclab.config.schema import CanvasRule, ExperimentConfig
from arclab.data.buckets import task_canvases
from arclab.data.sampler import TrainingData, next_cursors, start_cursors
from arclab.methods.recursive.ema import Ema
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.training.checkpoint import TrainingProgress
from arclab.methods.recursive.training.parts import batch_parts, is_large_enough
from arclab.methods.recursive.training.state import Training, build_optimizer
from arclab.methods.recursive.training.step import train_step
from arclab.methods.recursive.training.sums import StepSums
from arclab.runs.ranks import Ranks

log = logging.getLogger(__name__)
MAX_ROWS = 65536
_ROWS_ON_CPU = 8  # enough that rows with many and with few demonstrations are among them
_STEPS = 2  # the second has the optimiser's moments beside its activations
_MAX_GROWTH = 8  # rows differ, so a few of them do not foretell a thousand
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes at the peak of steps with num_rows rows; fixed_bytes of them are there with any batch."""

    num_rows: int
    peak_bytes: int
    fixed_bytes: int

    def of(self, num_rows: int) -> float:
        """The peak of another number of rows, by proportion."""
        return self.fixed_bytes + (self.peak_bytes - self.fixed_bytes) * num_rows / self.num_rows


# The cost of so many rows; None if the device had no room for them.
Measure = Callable[[int], Cost | None]


def find_batch_size(
    config: ExperimentConfig, model: RecursiveModel, data: TrainingData, ranks: Ranks, budget_bytes: int
) -> int:
    """Rows over all ranks. ValueError if not even the smallest batch fits on every rank."""
    sizes = batch_sizes(config, data, ranks.world_size)
    search = by_steps if ranks.device.type == "cuda" else by_proportion

    def measured(num_rows: int) -> Cost | None:
        cost = measure(config, model, data, ranks.device, num_rows)
        if ranks.is_main:
            found = "do not fit" if cost is None else f"need {cost.peak_bytes / _GIB:.3g} GiB"
            log.info("trainer.batch_size=auto: steps of %d rows a rank %s", num_rows, found)
        return cost

    own = search(sizes, measured, budget_bytes)
    # Ranks may have more or less room; none may wait for one that has given up.
    num_rows = min(ranks.gather_objects(own))
    memory = f"{budget_bytes / _GIB:.3g} GiB that a rank may use here"
    if num_rows == 0:
        raise ValueError(
            f"trainer.batch_size=auto: not even {sizes[0] * ranks.world_size} rows fit into the {memory}; set "
            "trainer.recompute=true, or make the model smaller (decoder.width, encoder.*)."
        )
    why = f"the next size would not fit into the {memory}"
    if num_rows == sizes[-1]:
        why = f"more than a row for each training query, or {MAX_ROWS}, are not tried"
    if ranks.is_main:
        log.info("trainer.batch_size=auto: %d rows, %d a rank (%s)", num_rows * ranks.world_size, num_rows, why)
    return num_rows * ranks.world_size


def batch_sizes(config: ExperimentConfig, data: TrainingData, world_size: int) -> list[int]:
    """Rows of one rank that may be tried, upwards: enough for every canvas and loss, at most one row for every query (or
    MAX_ROWS)."""
    unit = config.trainer.grad_accumulation
    is_bucketed = config.trainer.canvas is CanvasRule.bucketed
    least = unit * (len(np.unique(task_canvases(data))) if is_bucketed else 1)
    queries = int((data.trainable_T * data.space.num_augmentations_T).sum())
    most = min(MAX_ROWS, queries) // world_size
    sizes = sorted({unit * factor * 2**power for factor in (1, 3) for power in range(MAX_ROWS.bit_length())})
    enough = [size for size in sizes if size >= least and is_large_enough(config, data, size, unit)]
    return [size for size in enough if size <= most] or enough[:1]


def by_steps(sizes: Sequence[int], measured: Measure, budget_bytes: int) -> int:
    """The largest size that was seen to fit, with the next one seen not to; 0 if none does. Proportion only says where to
    look."""
    best: Cost | None = None
    left = list(sizes)
    while left:
        size = left[0]
        if best is not None:
            likely = [s for s in left if best.of(s) <= budget_bytes and s <= _MAX_GROWTH * best.num_rows]
            size = max(likely, default=size)
        cost = measured(size)
        if cost is None or cost.peak_bytes > budget_bytes:
            left = [s for s in left if s < size]
        else:
            best, left = cost, [s for s in left if s > size]
    return 0 if best is None else best.num_rows


def by_proportion(sizes: Sequence[int], measured: Measure, budget_bytes: int) -> int:
    """The largest size that should fit, from the cost of a small one; 0 if none does."""
    cost = measured(next((size for size in sizes if size >= _ROWS_ON_CPU), sizes[-1]))
    return max((size for size in sizes if cost is not None and cost.of(size) <= budget_bytes), default=0)


def measure(
    config: ExperimentConfig, model: RecursiveModel, data: TrainingData, device: torch.device, num_rows: int
) -> Cost | None:
    """What steps with num_rows rows on this rank alone need; None if the device runs out of memory."""
    try:
        cost = _run_steps(config.with_batch_size(num_rows), model, data, device)
    except torch.OutOfMemoryError:
        cost = None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return cost


def _run_steps(config: ExperimentConfig, model: RecursiveModel, data: TrainingData, device: torch.device) -> Cost:
    # By itself: ranks whose memory ends at different sizes must not wait for each other within a step.
    alone, trainer = Ranks(0, 1, device), config.trainer
    parts = batch_parts(config, data, alone)
    cursors = start_cursors(parts, config.seed)
    # As if after the last step: whatever is frozen for a while or weighted in slowly takes part by then.
    progress = TrainingProgress(trainer.steps, cursors, 0, 0.0, "", None, [], None, None)
    with _peak_bytes(device) as peak:
        model = copy.deepcopy(model).to(device)
        ema = Ema(model, trainer.ema_decay, warmup=trainer.ema_warmup)
        training = Training(parts, model, build_optimizer(config, model), ema, None, progress)
        sums = StepSums(device)
        for _ in range(_STEPS):
            batches = [p.data.batch(c, p.num_rows, 0, p.num_rows).to(device) for p, c in zip(parts, cursors, strict=True)]
            train_step(config, training, batches, alone, sums, [])
            cursors = next_cursors(parts, cursors)
    moments = [value for state in training.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    fixed = [*model.state_dict().values(), *ema.shadow.values(), *moments]
    return Cost(trainer.num_rows, max(peak), sum(tensor.nbytes for tensor in fixed))


@contextmanager
def _peak_bytes(device: torch.device) -> Iterator[list[int]]:
    """A list that holds, after the block, the most bytes that its tensors had on the device at a time."""
    peak = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device))
        return
    with _LiveBytes() as counter:
        yield peak
    peak.append(counter.peak)


class _LiveBytes(TorchDispatchMode):
    """Counts the storages that operations return until they are freed; the CPU's allocator keeps no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
