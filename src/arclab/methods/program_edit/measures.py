"""What an evaluation of edits counts beside edits/*: pure functions of what was drawn.

    drawn = [drawn_edit(record) for record in records]                 # or read_drawn(folder / DRAWN)
    solved_by_tokens(drawn, num_tasks)      # [(tokens of a task, share of tasks that were right by then)]
    right_by_thinking(drawn)         # edits by the length of their thinking, and how many of them are right
    best_edits(records), pass_at_ks(records), difficulty_rows(starts, records)

A program is right if it answers every test input right, and every demonstration; where test outputs are hidden, the
demonstrations decide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from arclab.data.tasks import ArcTask
from arclab.files import read_lines, write_atomically
from arclab.methods.program_edit.editing import EditRecord, chains_of, metrics_of
from arclab.methods.program_edit.population import level_of
from arclab.methods.program_edit.starts import Start
from arclab.metrics.names import PASS_KS
from arclab.programs.rewards import POWER
from arclab.programs.voting import pass_at_k
from arclab.results.scoring import Share

DRAWN = "drawn.jsonl"
_BINS = 6
_PERCENT = "\N{NO-BREAK SPACE}%"
_KINDS = {
    "task": str, "level": int, "tokens": int | None, "thinking_tokens": int, "value": float, "delta": float | None,
    "solves_demos": bool, "solves_tests": bool | None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawn:
    """A program that was drawn for a task, or a reply without one. level: 0 is written from nothing, 1 an edit of the first
    level. delta None: no edit."""

    task: str
    level: int
    tokens: int | None
    thinking_tokens: int
    value: float
    delta: float | None
    solves_demos: bool
    solves_tests: bool | None

    @property
    def is_right(self) -> bool:
        return self.solves_demos and self.solves_tests is not False


@dataclass(frozen=True, slots=True)
class LengthBin:
    """Programs whose thinking has low to high tokens. right: how many of them are."""

    low: int
    high: int
    mean: float
    right: Share


def drawn_edit(record: EditRecord) -> Drawn:
    return Drawn(
        record.task, record.turn + 1, record.tokens, record.thinking_tokens, record.r1 + record.cost, record.delta,
        record.is_right, record.tests_solved,
    )  # fmt: skip


def write_drawn(path: Path, drawn: Sequence[Drawn]) -> None:
    write_atomically(path, "".join(json.dumps(asdict(each)) + "\n" for each in drawn))


def read_drawn(path: Path) -> list[Drawn]:
    """In the order in which they were drawn, task by task. DamagedFile: a line is not what was written."""
    return [Drawn(**{key: row[key] for key in _KINDS}) for row in read_lines(path, _KINDS)]


def by_task(drawn: Sequence[Drawn]) -> dict[str, list[Drawn]]:
    found: dict[str, list[Drawn]] = {}
    for each in drawn:
        found.setdefault(each.task, []).append(each)
    return found


def search_statistics(
    drawn: Sequence[Drawn], records: Sequence[EditRecord], tasks: Sequence[ArcTask], *, num_alike: int
) -> dict[str, float]:  # fmt: skip
    """The metrics of a search over tasks. records: those of drawn that are edits. num_alike: so many programs of each task were
    drawn alike and whatever the others did, first of all; pass@k is said of these, as a search that stops early has fewer of
    the tasks that go well."""
    tasks_drawn = by_task(drawn)
    with_right = sum(any(each.solves_demos for each in programs) for programs in tasks_drawn.values())
    num_starts = len({(record.task, record.root) for record in records})
    found = {
        "programs/count": float(len(drawn)),
        "programs/tasks_with_right": with_right / len(tasks),
        "edits/tasks": float(len(tasks)),
        **metrics_of(records, num_starts),
        **measured(records, num_starts),
    }
    tokens = [each.tokens for each in drawn if each.tokens is not None]
    if len(tokens) == len(drawn):
        found["programs/tokens"] = float(sum(tokens))
    known = [task.id for task in tasks if all(test.output is not None for test in task.tests)]
    if known:
        covered = [any(each.solves_tests for each in tasks_drawn.get(id_, ())) for id_ in known]
        found["edits/coverage"] = float(np.mean(covered))
    if known and num_alike:
        alike = [own[:num_alike] for id_ in known if (own := tasks_drawn.get(id_, []))]
        counts = [(len(own), sum(bool(each.solves_tests) for each in own)) for own in alike]
        fewest = min((n for n, _ in counts), default=0)
        for k in PASS_KS:
            if k <= fewest:
                found[f"programs/pass@{k}"] = sum(pass_at_k(n, c, k) for n, c in counts) / len(known)
    return found


def solved_by_tokens(drawn: Sequence[Drawn], num_tasks: int) -> list[tuple[int, float]]:
    """(tokens of a task, share of the tasks for which a right program was there by then), where it changes, from 0 to the most
    that any task took. Empty where tokens are not told."""
    firsts, most = list[int](), 0
    for programs in by_task(drawn).values():
        tokens = [each.tokens for each in programs]
        if any(each is None for each in tokens):
            return []
        sums = np.cumsum(np.array(tokens, np.int64)).tolist()
        most = max(most, sums[-1])
        firsts += [total for total, each in zip(sums, programs, strict=True) if each.is_right][:1]
    found = [(0, 0.0)] + [(total, number / num_tasks) for number, total in enumerate(sorted(firsts), 1)]
    return [*found, (most, len(firsts) / num_tasks)] if most else []


def right_by_thinking(drawn: Sequence[Drawn], num_bins: int = _BINS) -> list[LengthBin]:
    """Bins of about equal numbers of programs, from short thinking to long; programs of one length share a bin. One bin where
    all think as long."""
    if not drawn:
        return []
    lengths = np.array([each.thinking_tokens for each in drawn])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, num_bins + 1)[1:-1], method="lower"))
    places = np.searchsorted(edges, lengths, side="left")
    bins = []
    for place in np.unique(places):
        of_bin = lengths[places == place]
        right = sum(each.is_right for each, own in zip(drawn, places, strict=True) if own == place)
        bins.append(LengthBin(int(of_bin.min()), int(of_bin.max()), float(of_bin.mean()), Share(right, len(of_bin))))
    return bins


def best_edits(records: Sequence[EditRecord]) -> list[EditRecord]:
    """Of each start program the edit that is worth most."""
    return [max(chain, key=lambda record: record.r1) for chain in chains_of(records).values()]


def measured(records: Sequence[EditRecord], num_starts: int) -> dict[str, float]:
    """The edits/* metrics that follow from the best edit of each start program, and pass@k. Empty without edits."""
    if not records:
        return {}
    best = best_edits(records)
    shares = [float(np.mean(record.shares)) if record.shares else 0.0 for record in best]
    steep = [float(np.mean(np.array(record.shares) ** POWER)) if record.shares else 0.0 for record in best]
    found = {
        "edits/cell_share": sum(shares) / num_starts,
        "edits/steep_cell_share": sum(steep) / num_starts,
        "edits/thinking_tokens": sum(record.thinking_tokens for record in records) / len(records),
        **pass_at_ks(records),
    }
    tokens = [record.tokens for record in records if record.tokens is not None]
    if len(tokens) == len(records) and sum(tokens):
        solved = sum(any(record.is_right for record in chain) for chain in chains_of(records).values())
        found["edits/solved_per_1000_tokens"] = 1000 * solved / sum(tokens)
    return found


def pass_at_ks(records: Sequence[EditRecord]) -> dict[str, float]:
    """The chance that one of k edits of a start program is right, unbiased, over the edits of its first turn; for every k that
    all start programs have edits for."""
    groups: dict[tuple[str, str], list[EditRecord]] = {}
    for (task, root), chain in chains_of(records).items():
        first = min(record.turn for record in chain)
        groups[task, root] = [record for record in chain if record.turn == first]
    fewest = min(map(len, groups.values()), default=0)
    counts = [(len(group), sum(drawn_edit(record).is_right for record in group)) for group in groups.values()]
    return {f"edits/pass@{k}": float(np.mean([pass_at_k(n, c, k) for n, c in counts])) for k in PASS_KS if k <= fewest}


def difficulty_rows(starts: Sequence[Start], records: Sequence[EditRecord]) -> dict[str, Share]:
    """How many start programs were put right: by how many changes they are away from right, and by what they were worth."""
    right = {place for place, chain in chains_of(records).items() if any(record.is_right for record in chain)}
    groups: dict[tuple[int, str], list[bool]] = {}
    for start in starts:
        changes, level = len(start.program.changes), level_of(start.program.value)
        name = f"mutant, {changes} change{'' if changes == 1 else 's'}" if changes else start.program.origin.value
        for key in ((changes, name), (100 + level.number, f"worth {level.low:g} or more, less than {level.high:g}")):
            groups.setdefault(key, []).append(start.place[:2] in right)
    return {name: Share(sum(hits), len(hits)) for (_, name), hits in sorted(groups.items())}


def share_rows(shares: Mapping[str, Share]) -> tuple[tuple[str, ...], ...]:
    """Rows of a table: name, n/N, percent, interval."""
    rows = []
    for name, share in shares.items():
        low, high = share.interval
        rows.append(
            (
                name,
                f"{share.n:g}/{share.total}",
                f"{100 * share.value:.1f}{_PERCENT}",
                f"{100 * low:.1f} to {100 * high:.1f}{_PERCENT}",
            )
        )
    return tuple(rows)
