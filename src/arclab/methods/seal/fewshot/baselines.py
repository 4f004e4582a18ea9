"""What proposals are compared with on the same tasks, and the table of all.

    found = baselines(config, trials, scored, training)         # {name: {task id: successes}}
    rows = rows_of(found | {"trained model": ...}, config.seed)

plain: no training. default: the hand-made self-edit. random: any self-edit of the grid; all of them count, which is what a
random draw comes to on average. constant: the self-edit of the grid that solves most training tasks, the first of equals.
oracle: the best self-edit of the grid for each task, which nobody can know. A model that is no better than constant has not
shown that its proposals depend on the task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from arclab.config.seal_fewshot_schema import SealFewshotConfig
from arclab.data.tasks import ArcTask
from arclab.methods.seal.fewshot.edits import SelfEdit, grid_edits
from arclab.methods.seal.fewshot.records import Outcome
from arclab.methods.seal.fewshot.trials import PLAIN, Trials
from arclab.results.bootstrap import clustered_interval
from arclab.results.paired import mcnemar_p

# Task id -> of each trial of the task, whether it was solved.
Successes = Mapping[str, Sequence[float]]
PLAIN_ROW, DEFAULT_ROW, RANDOM_ROW, CONSTANT_ROW, ORACLE_ROW = "plain", "default", "random", "constant", "oracle"
_COLLAPSED, _SURE = 0.5, 0.05  # from such a share on, one self-edit is proposed for everything; p of a difference


@dataclass(frozen=True, slots=True)
class Baselines:
    """rows: by name. constant: the self-edit that solves most training tasks; None without a grid. training: how many it
    solves there."""

    rows: dict[str, Successes]
    constant: SelfEdit | None
    training: float


def baselines(
    config: SealFewshotConfig, trials: Trials, scored: Sequence[ArcTask], training: Sequence[ArcTask]
) -> Baselines:  # fmt: skip
    """ToldToEnd: what is tried is kept."""
    default = SelfEdit.of(config.default_edit)
    cells = [] if config.grid is None else grid_edits(config.grid.cells)
    wanted: list[tuple[ArcTask, SelfEdit | None]] = [(task, edit) for task in scored for edit in (None, default, *cells)]
    found = trials.of(wanted)
    rows: dict[str, Successes] = {
        PLAIN_ROW: {task.id: [float(found[task.id, PLAIN].is_solved)] for task in scored},
        DEFAULT_ROW: {task.id: [found[task.id, default.key].reward] for task in scored},
    }
    if not cells:
        return Baselines(rows, None, 0.0)
    known = trials.of([(task, edit) for task in training for edit in cells])
    solved = {edit: sum(known[task.id, edit.key].reward for task in training) for edit in cells}
    constant = max(cells, key=lambda edit: solved[edit])
    of_cells = {task.id: [found[task.id, edit.key].reward for edit in cells] for task in scored}
    rows[RANDOM_ROW] = of_cells
    rows[CONSTANT_ROW] = {task.id: [found[task.id, constant.key].reward] for task in scored}
    rows[ORACLE_ROW] = {task_id: [max(rewards)] for task_id, rewards in of_cells.items()}
    return Baselines(rows, constant, solved[constant])


def successes_of(outcomes: Sequence[Outcome], tasks: Sequence[ArcTask]) -> dict[str, list[float]]:
    """Every reply counts; one that could not be tried has failed."""
    return {task.id: [each.reward for each in outcomes if each.task == task.id] for task in tasks}


def share_of(successes: Successes) -> float:
    """Over all trials of all tasks."""
    trials = [value for values in successes.values() for value in values]
    return fmean(trials) if trials else 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """interval: over tasks, by bootstrap. num_any: tasks with a success."""

    name: str
    num_successes: float
    num_trials: int
    interval: tuple[float, float] | None
    num_any: int
    num_tasks: int

    @property
    def share(self) -> float:
        return self.num_successes / self.num_trials if self.num_trials else 0.0


def rows_of(found: Mapping[str, Successes], seed: int) -> list[Row]:
    rows = []
    for name, successes in found.items():
        groups = list(successes.values())
        total, count = sum(map(sum, groups)), sum(map(len, groups))
        interval = clustered_interval(groups, seed)
        rows.append(Row(name, total, count, interval, sum(any(group) for group in groups), len(groups)))
    return rows


@dataclass(frozen=True, slots=True)
class Signs:
    """Tasks for which the first has the larger share of successes, and those for which the second has."""

    more: int
    fewer: int

    @property
    def discordant(self) -> int:
        return self.more + self.fewer

    @property
    def p_value(self) -> float:
        """Of the sign test, two-sided."""
        return mcnemar_p(self.more, self.fewer)


def signs(first: Successes, second: Successes) -> Signs:
    """Tasks in which one of the two has no trials are left out."""
    gaps = [fmean(first[id_]) - fmean(second[id_]) for id_ in first if first[id_] and second[id_]]
    return Signs(sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps))


def modal_share(outcomes: Sequence[Outcome]) -> float:
    """Of the self-edits that could be tried, those that are the one most often proposed."""
    keys = Counter(each.key for each in outcomes if each.verdict == "ok")
    return max(keys.values()) / sum(keys.values()) if keys else 0.0


def constant_note(outcomes: Sequence[Outcome], constant: SelfEdit | None, against: Signs | None) -> str:
    """What must be said unless proposals succeed more often than the constant best self-edit does; "" if they do, or if there
    is no grid."""
    if constant is None or against is None or (against.more > against.fewer and against.p_value < _SURE):
        return ""
    share = modal_share(outcomes)
    equal = sum(each.key == constant.key for each in outcomes if each.verdict == "ok")
    found = "one good configuration was learned, not one for each task"
    return (
        f"proposals succeed more often than the constant best self-edit for {against.more} tasks and less often for "
        f"{against.fewer}: {found if share >= _COLLAPSED else 'nothing shows that they fit the task'} ({100 * share:.0f} % of "
        f"the self-edits are one and the same, {equal} of {len(outcomes)} proposals the constant best one)"
    )
