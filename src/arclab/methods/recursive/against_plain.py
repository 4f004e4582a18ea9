"""Did adapting help? The adapted model against the same one as it is, task by task.

    attempts, verdict = judged(solve, adaptation, tasks, step)     # solve(adaptation) answers the tasks

Of the tasks on which the two disagree (solved by one of them alone, with two attempts), adapted/wins is the share that the
adapted model solves: one half is a coin, and adapted/p_value is McNemar's exact test of that. Tasks with hidden answers are
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from arclab.config.adaptation_schema import AdaptationConfig, NoAdaptation
from arclab.config.run import CriterionConfig
from arclab.data.tasks import ArcTask
from arclab.results.attempts import Attempts
from arclab.results.criterion import CriterionResult, remove_criterion, write_criterion
from arclab.results.paired import PairedTest
from arclab.results.scoring import Share, truth_ranks
from arclab.runs.folder import RunDir

_ATTEMPTS = 2
METRIC = "adapted/wins"


def solved(tasks: Sequence[ArcTask], attempts: Attempts) -> dict[str, bool]:
    """Task id -> whether every test input is right within two attempts."""
    ranks = truth_ranks(tasks, attempts)
    return {task: all(rank is not None and rank < _ATTEMPTS for rank in places) for task, places in ranks.items()}


def judged(
    solve: Callable[[AdaptationConfig], Attempts], adaptation: AdaptationConfig, tasks: Sequence[ArcTask], step: int
) -> tuple[Attempts, CriterionResult | None]:
    """The adapted answers; with min_wins, after the plain ones, with the metrics of the comparison and its verdict."""
    if adaptation.wanted_wins is None:
        return solve(adaptation), None
    plain = solve(NoAdaptation())
    adapted = solve(adaptation)
    metrics, verdict = against_plain(tasks, plain, adapted, adaptation.wanted_wins, step)
    adapted.statistics |= metrics
    return adapted, verdict


def write_verdict(verdict: CriterionResult | None, run: RunDir) -> str:
    """criterion.json, and the end of a sentence on it. Without a verdict an earlier one does not stay beside other results."""
    if verdict is None:
        remove_criterion(run)
        return ""
    write_criterion(verdict, run)
    return f"; {verdict}"


def against_plain(
    tasks: Sequence[ArcTask], plain: Attempts, adapted: Attempts, min_wins: float, step: int
) -> tuple[dict[str, float], CriterionResult]:
    """Registered metrics, and the verdict: PASS if adapted/wins is at least min_wins. step: of the checkpoint."""
    before, after = solved(tasks, plain), solved(tasks, adapted)
    paired = PairedTest.count("tasks", [(after[task], before[task]) for task in after])
    metrics = {
        "adapted/plain_solved@2": Share(sum(before.values()), len(before)).value,
        "adapted/discordant": float(paired.discordant),
        "adapted/p_value": paired.p_value,
    }
    if paired.discordant:
        metrics[METRIC] = paired.only_first / paired.discordant
    criterion = CriterionConfig(metric=METRIC, threshold=min_wins, phase="adapted against plain")
    counted = "tasks that one of the two alone solves"
    return metrics, CriterionResult(
        criterion, step, paired.only_first, paired.discordant, counted, paired.discordant, paired.unit
    )
