"""What a run needs, before it starts: memory and time, said in one line; and a refusal of what cannot fit.

    cost = Cost(memory_bytes=..., step_flops=..., step_traffic=..., step_kernels=..., evaluation_flops=..., ...)
    seconds = run_seconds(cost, speed, 1800, num_scored=2)
    sentence(cost.memory_bytes, seconds, "this CPU")          # "about 4 minutes and 1.2 GiB on this CPU"

A method counts its Cost from shapes (Entry.sizes of arclab.entries; arclab.methods.recursive.cost is the first). Here it
becomes seconds, by a model of three terms: operations of matrix products, bytes that elementwise operations read and write, and
a fixed time for every operation that is started. It is within a factor of two for time, and of one and a half for memory: say
"about". It imports no torch: arclab.runs.speed measures how fast a device is, arclab.launch.queue.estimates how fast this
machine is without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self

GIB = 2**30
# A run is refused only if it needs so many times what is there: the estimate is no measurement.
CLEAR_MARGIN = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one rank. memory_bytes: at its peak, on its device (the GPU, or the machine's memory). The others are of one optimiser
    step and of one evaluation (of a run that evaluates: of all of it): flops of matrix products, traffic in bytes that
    elementwise operations read and write, kernels that are started. A batch that is still to be found (auto) counts as one
    row."""

    memory_bytes: int
    step_flops: int = 0
    step_traffic: int = 0
    step_kernels: int = 0
    evaluation_flops: int = 0
    evaluation_traffic: int = 0
    evaluation_kernels: int = 0

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> Self | None:
        """From the numbers that arclab.launch.sizes keeps; None if the method counts no cost."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: counts[name] for name in names}) if names <= counts.keys() else None

    def counts(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Speed:
    """Of a device: flops of matrix products and bytes of elementwise operations a second, and seconds to start an operation."""

    flops_per_s: float
    bytes_per_s: float
    kernel_s: float

    def seconds(self, flops: int, traffic: int, kernels: int) -> float:
        return flops / self.flops_per_s + traffic / self.bytes_per_s + kernels * self.kernel_s


def run_seconds(cost: Cost, speed: Speed, num_steps: int, num_scored: int) -> float:
    """How long so many steps take, with so many evaluations."""
    step = speed.seconds(cost.step_flops, cost.step_traffic, cost.step_kernels)
    evaluation = speed.seconds(cost.evaluation_flops, cost.evaluation_traffic, cost.evaluation_kernels)
    return num_steps * step + num_scored * evaluation


def num_evaluations(num_steps: int, eval_every: int, *, from_step: int = 0) -> int:
    """How often a run is scored after from_step: every eval_every steps (0: never) and at its end."""
    if eval_every == 0 or from_step >= num_steps:
        return 0
    return num_steps // eval_every - from_step // eval_every + (num_steps % eval_every != 0)


def about(seconds: float) -> str:
    """One number with its unit, no more exact than the estimate is: 40 seconds, 4 minutes, 1.5 hours, 12 days."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * size or (unit != "day" and seconds >= size):
            count = float(f"{seconds / size:.2g}")
            return f"{count:g} {unit}{'s' * (count != 1)}"
    count = max(1, round(seconds))
    return f"{count} second{'s' * (count != 1)}"


def gib(num_bytes: float) -> str:
    return f"{float(f'{num_bytes / GIB:.2g}'):g} GiB"


def sentence(memory_bytes: int, seconds: float, where: str) -> str:
    """The line that is said before a run starts."""
    return f"about {about(seconds)} and {gib(memory_bytes)} on {where}"
