"""Which edits are learned from: pure functions of edits.jsonl.

    chosen = select_edits(records, config.select, seed=0)          # chosen.kept, chosen.rejected: {id: why}

An edit is kept if it makes its program worth more. Of each start program the top_k that gain most are kept; where gains are
within epsilon of the last one that would be kept, those go first that solve most demonstrations together (one that solves 1
and 2 with one that solves 3, rather than two that solve 1 and 2). Of all start programs of a task max_per_task are kept, by the
same rule. Where everything is equal, the earlier one stays. Two programs that are the same count once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random

from arclab.config.program_edit_schema import EditSelectConfig, SelectRule
from arclab.methods.program_edit.editing import EditRecord
from arclab.methods.program_edit.population import program_sha

NO_PROGRAM, NO_GAIN, REPEATED, NOT_TOP, OVER_LIMIT, CUT, NOT_DRAWN = (
    "no_program", "no_gain", "repeated", "not_top_k", "over_max_per_task", "cut", "not_drawn",
)  # fmt: skip
_MOST_SETS = 5000  # of edits that tie, which are all compared; beyond that one is added after the other


@dataclass(frozen=True, slots=True)
class Selection:
    """kept: in the order of the records. rejected: {id of an edit: why}."""

    kept: tuple[EditRecord, ...]
    rejected: dict[str, str]


def select_edits(records: Sequence[EditRecord], config: EditSelectConfig, seed: int) -> Selection:
    """rule=random keeps as many edits with a program as rule=best would, drawn by the seed."""
    rejected: dict[str, str] = {}
    usable = _with_program(records, rejected)
    better = []
    for record in usable:
        if record.delta > 0:
            better.append(record)
        else:
            rejected[record.id] = NO_GAIN
    different = _different(better, rejected)
    top: list[EditRecord] = []
    for group in _groups(different, by_parent=True):
        top += _keep(group, config.top_k, config.epsilon, rejected, NOT_TOP)
    chosen = {r.id for g in _groups(top) for r in _keep(g, config.max_per_task, config.epsilon, rejected, OVER_LIMIT)}
    if config.rule is SelectRule.random:
        drawn = Random(seed).sample(usable, len(chosen))
        chosen = {record.id for record in drawn}
        left_out = {record.id: NOT_DRAWN for record in usable if record.id not in chosen}
        rejected = {id_: why for id_, why in rejected.items() if why in (NO_PROGRAM, CUT)} | left_out
    return Selection(tuple(record for record in records if record.id in chosen), rejected)


def _with_program(records: Iterable[EditRecord], rejected: dict[str, str]) -> list[EditRecord]:
    found = []
    for record in records:
        if record.source is None or record.is_cut:
            rejected[record.id] = CUT if record.is_cut else NO_PROGRAM
        else:
            found.append(record)
    return found


def _different(records: Iterable[EditRecord], rejected: dict[str, str]) -> list[EditRecord]:
    """The first of those of one start program that are the same program."""
    seen, found = set[tuple[str, str, str]](), []
    for record in records:
        assert record.source is not None
        key = (record.task, record.parent, program_sha(record.source))
        if key in seen:
            rejected[record.id] = REPEATED
        else:
            seen.add(key)
            found.append(record)
    return found


def _groups(records: Iterable[EditRecord], *, by_parent: bool = False) -> list[list[EditRecord]]:
    found: dict[tuple[str, str], list[EditRecord]] = {}
    for record in records:
        found.setdefault((record.task, record.parent if by_parent else ""), []).append(record)
    return list(found.values())


def _keep(
    records: Sequence[EditRecord], count: int, epsilon: float, rejected: dict[str, str], why: str
) -> list[EditRecord]:  # fmt: skip
    kept = top_covering(records, count, epsilon)
    rejected |= {record.id: why for record in records if record not in kept}
    return kept


def top_covering(records: Sequence[EditRecord], count: int, epsilon: float) -> list[EditRecord]:
    """The `count` records of most gain; see the module for those within epsilon of the last one."""
    ranked = sorted(records, key=lambda record: -record.delta)
    if len(ranked) <= count:
        return ranked
    cut = ranked[count - 1].delta
    certain = [record for record in ranked if record.delta > cut + epsilon]
    tied = [record for record in ranked if abs(record.delta - cut) <= epsilon]
    return certain + _covering(certain, tied, count - len(certain))


def _covering(certain: Sequence[EditRecord], tied: Sequence[EditRecord], count: int) -> list[EditRecord]:
    """The `count` of the tied ones that solve most demonstrations with the certain ones, then those of most gain."""
    before = _solved(certain)
    if math.comb(len(tied), count) <= _MOST_SETS:
        best = max(combinations(tied, count), key=lambda each: (len(before | _solved(each)), sum(r.delta for r in each)))
        return list(best)
    chosen, left = list[EditRecord](), list(tied)
    for _ in range(count):
        best_one = max(left, key=lambda record: (len(before | _solved([record])), record.delta))
        chosen.append(best_one)
        left.remove(best_one)
        before |= _solved([best_one])
    return chosen


def _solved(records: Iterable[EditRecord]) -> set[int]:
    return {number for record in records for number, is_solved in enumerate(record.solved) if is_solved}
