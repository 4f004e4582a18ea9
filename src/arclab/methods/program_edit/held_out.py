"""Start programs of tasks that are not trained on, and how well a model edits them.

    starts = fresh_starts(config, sandbox, tasks)       # the identity and, where a right program is known, mutants of it
    scorer = HeldOut(config, model, sandbox, ranks)     # of grpo.eval_split, for the evaluations of a training
    metrics = scorer.scores()                           # edits/*

Rewards know demonstrations alone. The tasks of grpo.eval_split choose a checkpoint, so they are not those that are scored.
"""

from __future__ import annotations

from random import Random

from arclab.config.compose import ConfigError
from arclab.config.program_edit_schema import ProgramEditConfig
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask
from arclab.lm.hf import HfModel
from arclab.lm.language_model import Sampling
from arclab.methods.program_edit.editing import EditRecord, edit_all, metrics_of, model_editor
from arclab.methods.program_edit.population import Origin, Population
from arclab.methods.program_edit.starts import (
    Start,
    add_mutants,
    add_programs,
    identity_source,
    reference_sources,
    run_starts,
)
from arclab.programs.sandbox.pool import Sandbox
from arclab.runs.ranks import Ranks


def fresh_starts(config: ProgramEditConfig, sandbox: Sandbox, tasks: tuple[ArcTask, ...]) -> list[Start]:
    """ConfigError: there are none."""
    references = reference_sources(tasks) if config.starts.mutants else {}
    population, chosen = Population(), []
    for task in tasks:
        add_programs(population, sandbox, task, [identity_source(config.prompt.entry)], Origin.identity, config)
        if task.id in references:
            add_mutants(population, sandbox, task, references[task.id], config)
        drawn = population.draw(task.id, config.starts.per_task, Random(f"{config.seed}/{task.id}"))
        chosen += [(task, program) for program in drawn]
    if not chosen:
        raise ConfigError("there is no start program to edit: give other tasks, or raise starts.mutants.")
    return run_starts(sandbox, chosen, config)


class HeldOut:
    """See the module. Every rank scores its share, and all hear the same."""

    def __init__(self, config: ProgramEditConfig, model: HfModel, sandbox: Sandbox, ranks: Ranks) -> None:
        """ConfigError: the split has no tasks, or no start programs."""
        wished = config.grpo
        tasks = load_tasks(config.dataset).named(wished.eval_split.value)[: wished.eval_tasks]
        if not tasks:
            raise ConfigError(
                f"grpo.eval_split={wished.eval_split.value} has no tasks in dataset={config.dataset.name}; set "
                "dataset.validation_sources, or choose another split."
            )
        self._config, self._model, self._sandbox, self._ranks = config, model, sandbox, ranks
        self._starts = fresh_starts(config, sandbox, tasks)

    def scores(self) -> dict[str, float]:
        """The same draws at every step. Empty: no prompt leaves room for a reply."""
        config, wished, ranks = self._config, self._config.grpo, self._ranks
        sampling = Sampling(wished.max_new_tokens, wished.temperature, 1.0, 0, 0.0, (), config.seed)
        editor = model_editor(self._model, sampling, config.think)
        mine = self._starts[ranks.rank :: ranks.world_size]
        groups = edit_all(editor, self._sandbox, mine, config, wished.eval_samples, split=wished.eval_split)
        found = [record for part in ranks.gather_objects(groups) for group in part for record in group]
        return metrics_of(sorted(found, key=_by_id), len(self._starts))


def _by_id(record: EditRecord) -> str:
    return record.id
