"""How long divided evaluations would take on clusters that are not here, from what shards have measured of themselves.

    rates = read_rates(Path("runs/program_sampling/qwen/a"))       # a finished evaluation with launch.shards=N
    found = simulate(work, rates, nodes=64, seed=0)
    found.median_s, found.worst_s, found.bottleneck

A shard's time is its start, drawn from those that were measured, and its share of the work at the measured rate, times a factor
drawn from how far the measured shards were from that rate: so stragglers are those that were seen. The whole waits for the last
shard, then starts, merges and scores. With few measured shards the spread is known badly. It knows nothing of queues: jobs wait
for nobody. Work between lines of a file does not overlap.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, quantiles

from arclab.config.compose import ConfigError
from arclab.config.launch_schema import SHARDS
from arclab.files import read_object, require_kinds

COMMAND_RECORD = "command.json"  # beside the shards: written by arclab.launch.shards
_DRAWS = 200
_RECORD = "shard.json"
_KINDS = {"tasks": int, "cost": float, "programs": float, "tokens": float, "start_s": float, "solve_s": float}


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured, of one job with one model. cost_per_s: expected cost (arclab.data.shares) of tasks solved in a second, at
    programs_per_task. starts_s: of each job. factors: each shard's time by what the rate says, about 1. merge_s: of the whole,
    from its start to its results. around_s: of the command, without its jobs: submitting, and waiting until they began and were
    seen to have ended."""

    source: str
    cost_per_s: float
    programs_per_task: float
    programs_per_s: float
    tokens_per_s: float
    starts_s: tuple[float, ...]
    factors: tuple[float, ...]
    merge_s: float
    around_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """Of one evaluation. costs: of its tasks. programs_per_task: None is as measured."""

    costs: tuple[float, ...]
    programs_per_task: float | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """median_s, worst_s: of 200 draws, the latter what one in ten exceeds. job_s: of all jobs together. bottleneck: what most
    of the time of the last shard is."""

    nodes: int
    median_s: float
    worst_s: float
    job_s: float
    bottleneck: str


def read_rates(folder: Path) -> Rates:
    """ConfigError: the folder is no finished evaluation in shards, or all of them went on with earlier draws."""
    paths = sorted((folder / SHARDS).glob(f"*_of_*/{_RECORD}"))
    records = [read_object(path) for path in paths]
    for path, record in zip(paths, records, strict=True):
        require_kinds(record, _KINDS, path)
    records = [record for record in records if record["tasks"] and record["solve_s"] > 0]
    if not records:
        raise ConfigError(
            f"--rates {folder} has no {SHARDS}/*/{_RECORD}; give the folder of an evaluation with launch.shards=N."
        )
    solve_s, cost = (sum(record[key] for record in records) for key in ("solve_s", "cost"))
    starts = tuple(record["start_s"] for record in records)
    return Rates(
        source=str(folder),
        cost_per_s=cost / solve_s,
        programs_per_task=sum(record["programs"] for record in records) / sum(record["tasks"] for record in records),
        programs_per_s=sum(record["programs"] for record in records) / solve_s,
        tokens_per_s=sum(record["tokens"] for record in records) / solve_s,
        starts_s=starts,
        factors=tuple(record["solve_s"] / record["cost"] * cost / solve_s for record in records),
        merge_s=_seconds(folder / "merge.json", fmean(starts)),
        around_s=_seconds(folder / SHARDS / COMMAND_RECORD, 0.0),
    )


def seconds_around(folder: Path, began_s: float, ended_s: float) -> float | None:
    """Of a command that ran from began_s to ended_s (Unix time) and started all its shards: what it took before the first of
    its jobs began, between the last shard and the merge, and after the merge. None: a shard has no record, as one that went on
    after an interruption."""
    paths = [shard / _RECORD for shard in folder.glob(f"{SHARDS}/*_of_*")]
    records = [read_object(path) for path in paths if path.is_file()]
    if not records or len(records) < len(paths) or any("ended_s" not in record for record in records):
        return None
    first_s = min(record["ended_s"] - record["solve_s"] - record["start_s"] for record in records)
    last_s = max(record["ended_s"] for record in records)
    merge_s = _seconds(folder / "merge.json", fmean(record["start_s"] for record in records))
    return max(0.0, first_s - began_s) + max(0.0, ended_s - last_s - merge_s)


def _seconds(path: Path, default: float) -> float:
    return float(read_object(path, {"seconds": float})["seconds"]) if path.is_file() else default


def simulate(work: Work, rates: Rates, nodes: int, seed: int = 0) -> Forecast:
    """nodes: as many jobs at a time, and shards, but no more than tasks."""
    generator, count = random.Random(seed), min(nodes, len(work.costs))
    more = 1.0 if work.programs_per_task is None or not rates.programs_per_task else (
        work.programs_per_task / rates.programs_per_task)  # fmt: skip
    loads = [0.0] * count
    for cost in sorted(work.costs, reverse=True):
        loads[loads.index(min(loads))] += cost
    ends, jobs, parts = list[float](), list[float](), list[tuple[float, float, float]]()
    for _ in range(_DRAWS):
        starts = [generator.choice(rates.starts_s) for _ in loads]
        even = [load / rates.cost_per_s * more for load in loads]
        solved = [each * generator.choice(rates.factors) for each in even]
        last = max(range(count), key=lambda shard: starts[shard] + solved[shard])
        merge, around = (rates.merge_s, rates.around_s) if count > 1 else (0.0, 0.0)
        ends.append(starts[last] + solved[last] + merge + around)
        jobs.append(sum(starts) + sum(solved) + merge)
        parts.append((starts[last] + merge + around, fmean(even), solved[last] - fmean(even)))
    starting, solving, waiting = (fmean(values) for values in zip(*parts, strict=True))
    shares = {"start and merge": starting, "the work itself": solving, "the slowest shard": waiting}
    worst = max(shares, key=lambda name: shares[name])
    return Forecast(count, median(ends), quantiles(ends, n=10)[-1], median(jobs), f"{worst} ({shares[worst]:.3g} s)")


def table(work: Work, rates: Rates, nodes: int) -> list[Forecast]:
    """For 1, 2, 4, ... nodes up to as many."""
    counts = [1]
    while counts[-1] * 2 < nodes:
        counts.append(counts[-1] * 2)
    return [simulate(work, rates, count) for count in dict.fromkeys([*counts, nodes])]


def speed_up(forecasts: Sequence[Forecast]) -> list[float]:
    return [forecasts[0].median_s / each.median_s for each in forecasts]
