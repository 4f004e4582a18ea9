"""evaluate.py solver=program_sampling: the method that arclab.solvers.evaluation brings to life.

    python evaluate.py solver=program_sampling lm=tiny dataset=toy

Replies are kept in the run's folder as they come (samples.jsonl): the same command goes on after a kill, or where it was told
to end. One process.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from arclab.config.llm_schema import EvaluateProgramsConfig
from arclab.data.tasks import ArcTask
from arclab.lm.language_model import Sampling
from arclab.methods.program_sampling.samples import FILE_NAME, SAMPLES, SampleStore
from arclab.methods.program_sampling.solver import ProgramSampling, few_programs, few_programs_remedy
from arclab.results.attempts import Attempts, Budget
from arclab.runs.folder import RunDir
from arclab.solvers.evaluation import Method, Tools, drawing_settings, evaluate_with_model

log = logging.getLogger(__name__)
# Programs run again whenever they are voted on, and prompts are compared by themselves.
_FREE = ("sandbox.", "solver.prompt.")


def evaluate_programs(config: EvaluateProgramsConfig, given: RunDir | None = None) -> int:
    """Score the solver and write its results beside samples.jsonl. given, and the exit status: see evaluate_with_model."""
    return evaluate_with_model(config, given, lambda folder: _method(config, folder))


def reply_settings(config: EvaluateProgramsConfig) -> dict[str, Any]:
    """Everything but the prompt that decides a reply, the bytes of a local model included."""
    return drawing_settings(config, _FREE)


def _method(config: EvaluateProgramsConfig, folder: Path) -> Method:
    solver, store = config.solver, SampleStore(folder, reply_settings(config))

    def solve(tasks: tuple[ArcTask, ...], tools: Tools) -> Attempts:
        return _solve(config, tasks, tools, store)

    def warn(attempts: Attempts) -> None:
        if few := few_programs(attempts.statistics):
            remedy = few_programs_remedy(attempts.statistics, solver.sampling.max_new_tokens)
            log.warning("%s; %s. The replies are in %s.", few, remedy, store.path)

    return Method(
        check=lambda tasks: store.check(),
        solve=solve,
        facts={"programs per task": str(solver.num_samples), "temperature": f"{solver.sampling.temperature:g}"},
        record={"num_samples": solver.num_samples},
        stamps=lambda attempts: [few] if (few := few_programs(attempts.statistics)) else [],
        warn=warn,
        stores={FILE_NAME: SAMPLES},
    )


def _solve(
    config: EvaluateProgramsConfig, tasks: tuple[ArcTask, ...], tools: Tools, store: SampleStore
) -> Attempts:  # fmt: skip
    num_known = store.load()
    if num_known:
        log.info("going on: %s holds the replies of %d tasks", store.path, num_known)
    sampling = config.solver.sampling
    solver = ProgramSampling(
        tools.model,
        tools.programs(),
        prompt=config.solver.prompt,
        store=store,
        show_progress=True,
        progress=tools.progress,
        sampling=Sampling(
            sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, (), config.seed
        ),
    )
    return solver.solve(tasks, Budget(num_samples=config.solver.num_samples))
