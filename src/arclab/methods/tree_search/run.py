"""evaluate.py solver=tree_search: the method that arclab.solvers.evaluation brings to life.

    python evaluate.py solver=tree_search search=pwmcts lm=tiny dataset=toy

Trees are kept in the run's folder as they grow (trees/TASK.jsonl): the same command goes on after a kill, or where it was told
to end; tasks that are done are not searched again. One process.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from arclab.config.tree_search_schema import BootstrapConfig, EvaluateTreeSearchConfig
from arclab.data.tasks import ArcTask
from arclab.methods.tree_search.archive import Setting
from arclab.methods.tree_search.policies import picks_at_random
from arclab.methods.tree_search.prompts import load_examples, load_hints
from arclab.methods.tree_search.search import TreeFile
from arclab.methods.tree_search.solver import TreeSearch
from arclab.methods.tree_search.steps import Steps
from arclab.methods.tree_search.trees import TREE_KIND
from arclab.results.attempts import Attempts, Budget
from arclab.runs.checkpoints import file_digest
from arclab.runs.folder import RunDir
from arclab.solvers.evaluation import Method, Tools, drawing_settings, evaluate_with_model

log = logging.getLogger(__name__)
_FREE = ("sandbox.num_workers", "sandbox.min_isolation", "solver.trees_at_once")
AT_RANDOM = "beam search has no reward model: which nodes it keeps is drawn at random"


def evaluate(config: EvaluateTreeSearchConfig, given: RunDir | None = None) -> int:
    """Search the tasks and write the results beside their trees. given, and the exit status: see evaluate_with_model."""
    return evaluate_with_model(config, given, lambda folder: _method(config, folder))


def tree_settings(config: EvaluateTreeSearchConfig) -> dict[str, Any]:
    """Everything that decides a tree: also the bytes of the model, of the examples and of the hints."""
    settings = drawing_settings(config, _FREE)
    for key in ("solver.examples.file", "search.hints"):
        if (path := settings.get(key)) and Path(path).is_file():
            settings[f"{key} (content)"] = file_digest(Path(path))
    return settings


def _method(config: EvaluateTreeSearchConfig, folder: Path) -> Method:
    settings, search, steps = tree_settings(config), config.search, Steps.of(config.solver.steps)
    examples = load_examples(config.solver.examples, steps)
    setting = Setting(config.solver, search, config.seed)
    is_random = picks_at_random(search, setting.has_values)

    def hints_of(tasks: tuple[ArcTask, ...]) -> dict[str, str] | None:
        return load_hints(Path(search.hints), [task.id for task in tasks]) if isinstance(search, BootstrapConfig) else None

    def check(tasks: tuple[ArcTask, ...]) -> None:
        hints_of(tasks)
        for task in tasks:
            TreeFile(folder, task, steps, settings).check()
        if is_random:
            log.warning("%s.", AT_RANDOM)

    def solve(tasks: tuple[ArcTask, ...], tools: Tools) -> Attempts:
        solver = TreeSearch(
            tools.model, tools.programs(), setting, folder=folder, settings=settings, examples=examples, hints=hints_of(tasks),
            show_progress=True, progress=tools.progress,
        )  # fmt: skip
        return solver.solve(tasks, Budget())

    def warn(attempts: Attempts) -> None:
        if few := few_finished(attempts.statistics):
            log.warning("%s. The trees are in %s.", few, folder / "trees")

    return Method(
        check=check,
        solve=solve,
        facts={"search": search.kind, "programs per task": f"at most {search.num_programs}"},
        record={"search": search.kind, "num_programs": search.num_programs},
        stamps=lambda attempts: [
            *([AT_RANDOM] if is_random else []),
            *([few] if (few := few_finished(attempts.statistics)) else []),
        ],
        warn=warn,
        stores={"trees/*.jsonl": TREE_KIND},
    )


def few_finished(found: dict[str, float]) -> str:
    """What most draws lack, if most of them are no programs that run; else empty."""
    remedies = {
        "cut": "steps that had no end within search.max_step_tokens (or programs within search.max_program_tokens): raise it, "
        "or check that the model writes solver.steps.step_end",
        "empty": "steps of nothing: check solver.steps and the model's chat template",
        "context": "prompts without room in the context: raise lm.max_context, or shorten the prompt",
        "invalid": "steps that do not run: use a model that writes Python",
    }
    for kind, text in remedies.items():
        if (share := found.get(f"tree/ended_{kind}", 0.0)) > 0.5:
            return f"{100 * share:.0f} % of {found['tree/draws']:.0f} draws are {text}"
    return ""
