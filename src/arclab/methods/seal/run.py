"""evaluate.py solver=test_time_training: the method that arclab.solvers.evaluation brings to life.

    python evaluate.py solver=test_time_training lm=tiny dataset=toy

Answers are kept in the run's folder task by task (tasks.jsonl): the same command goes on after a kill, or where it was told to
end. One process.
"""

from __future__ import annotations

import logging
from pathlib import Path

from arclab.config.adaptation_schema import ShownTask
from arclab.config.seal_schema import EvaluateTestTimeTrainingConfig
from arclab.data.tasks import ArcTask
from arclab.lm.hf import HfModel
from arclab.methods.seal.solver import TASK_ITEMS, TASKS, AdaptingSolver, trained_on, worklist_in
from arclab.results.attempts import Attempts
from arclab.runs.folder import RunDir
from arclab.solvers.evaluation import Method, Tools, drawing_settings, evaluate_with_model

log = logging.getLogger(__name__)
CONTROL = "a control: the model was trained on the demonstrations of another task"


def evaluate_test_time_training(config: EvaluateTestTimeTrainingConfig, given: RunDir | None = None) -> int:
    """Score the solver and write its results beside tasks.jsonl. given, and the exit status: see evaluate_with_model."""
    return evaluate_with_model(config, given, lambda folder: _method(config, folder))


def _method(config: EvaluateTestTimeTrainingConfig, folder: Path) -> Method:
    wanted, worklist = config.solver, worklist_in(folder, drawing_settings(config, free=("tasks_at_once",)))

    scored: list[ArcTask] = []

    def check(tasks: tuple[ArcTask, ...]) -> None:
        scored[:] = tasks
        trained_on(tasks[0], tasks, wanted.demonstrations)
        worklist.check()

    def solve(tasks: tuple[ArcTask, ...], tools: Tools) -> Attempts:
        assert isinstance(tools.model, HfModel), "the configuration allows no other"
        return AdaptingSolver(config, tools.model, worklist, tools.progress).solve(tasks, scored, show_progress=True)

    def warn(attempts: Attempts) -> None:
        for each in remarks(attempts.statistics):
            log.warning("%s. The answers are in %s.", each, worklist.path)

    chosen = {
        "adaptation": wanted.adaptation.kind.value,
        "decode": wanted.decode.value,
        "rescore": wanted.rescore.value,
        "views": str(wanted.views.count),
    }
    return Method(
        check=check,
        solve=solve,
        facts=chosen,
        record={**chosen, "views": wanted.views.count, "demonstrations": wanted.demonstrations.value},
        stamps=lambda attempts: [
            *([CONTROL] if wanted.demonstrations is ShownTask.other_task else []),
            *remarks(attempts.statistics),
        ],
        warn=warn,
        stores={TASKS: TASK_ITEMS},
    )


def remarks(found: dict[str, float]) -> list[str]:
    """What must stand beside the scores."""
    said = []
    if share := found.get("ttt/unadapted_share", 0.0):
        said.append(f"{100 * share:.0f} % of the tasks could not be trained on and were answered by the model as it is")
    if (share := found.get("ttt/no_grid_share", 0.0)) > 0.5:
        said.append(f"{100 * share:.0f} % of the replies are no grid, or were cut at solver.max_new_tokens")
    if (share := found.get("ttt/silent_share", 0.0)) > 0.5:
        said.append(f"in {100 * share:.0f} % of the views no reply was likely enough; lower solver.threshold")
    return said
