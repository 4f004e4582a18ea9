"""stage=sample: make start programs, draw edits of them, and add what they became to the population.

    sample(config, ranks, signals, folder)          # writes edits.jsonl and programs.jsonl

Start programs are those of the round before, the identity, drafts of the model, and mutants of reference programs. The editor
is the language model of lm (from the second round on the one that the round before has trained), or the stand-in that knows
the references. Finished start programs are kept: the same command goes on after a kill. Test outputs are looked at only with
reward.use_tests=true, which is for tasks that are trained on. With launch.shards=N a shard draws for its tasks, and the whole
merges what they drew and writes the population.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from arclab.config.compose import ConfigError
from arclab.config.llm_schema import HfModelConfig, ModelConfig, SamplingConfig
from arclab.config.program_edit_schema import ProgramEditConfig, Proposer
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask
from arclab.lm.endpoint.started import as_served, drawn_by, opened_model
from arclab.lm.hf_loading import model_identity
from arclab.lm.language_model import LanguageModel, Sampling
from arclab.methods.program_edit.editing import (
    EDIT_ITEMS,
    Editor,
    EditRecord,
    kept_edits,
    metrics_of,
    model_editor,
    reference_editor,
)
from arclab.methods.program_edit.population import Origin, Population, Program
from arclab.methods.program_edit.starts import (
    Start,
    add_mutants,
    add_programs,
    drafts_of,
    identity_source,
    programs_in,
    reference_sources,
    run_starts,
)
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage
from arclab.runs.worklist import Worklist
from arclab.solvers.shards import begin_stage, made_by_shard, tasks_of_stage

EDITS, PROGRAMS, TRAINED = "edits.jsonl", "programs.jsonl", "trained.json"
_DRAFTS = "drafts.jsonl"
_AT_ONCE = 16  # start programs whose edits are kept together where no model says how many
MODEL = "model"  # the folder of a trained model, in that of stage=sft


def sample(config: ProgramEditConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    inputs = {} if config.round == 0 else {
        "programs": config.file_of("sample", config.round - 1, PROGRAMS),
    }  # fmt: skip
    inputs |= begun_with(config, config.round)
    tasks = tasks_of_stage(training_tasks(config), config)

    def work(run: RunDir, progress: WorkProgress) -> Made:
        begin_stage(config, run.path, {_DRAFTS: EDIT_ITEMS, EDITS: EDIT_ITEMS})
        with ExitStack() as stack:
            sandbox = stack.enter_context(open_sandbox(config.sandbox))
            chosen = _model_of_stage(config)
            model = stack.enter_context(opened_model(chosen, config.launch, run.path)) if chosen else None
            return _Sampling(config, run, progress, sandbox, tasks, chosen, model).made(inputs.get("programs"))

    return make_stage(config, ranks, signals, folder, inputs, len(tasks), work)


def _model_of_stage(config: ProgramEditConfig) -> ModelConfig | None:
    """None: nothing is asked of a model."""
    needs_model = config.sample.proposer is Proposer.model or config.starts.drafts > 0
    return as_served(model_config(config, config.round), config.launch) if needs_model else None


def training_tasks(config: ProgramEditConfig) -> tuple[ArcTask, ...]:
    """ConfigError: there are none."""
    tasks = load_tasks(config.dataset).named("train")[: config.max_tasks]
    if not tasks:
        raise ConfigError(f"dataset={config.dataset.name} has no training tasks to edit programs of; choose another dataset.")
    return tasks


def model_config(config: ProgramEditConfig, number: int) -> ModelConfig:
    """The model that begins round `number`: lm, or what the round before (or stage=start) has trained."""
    maker = maker_of(config, number)
    return config.lm if maker is None else made_model(config, maker)


def maker_of(config: ProgramEditConfig, number: int, *, twin: bool = False) -> tuple[str, int] | None:
    """(stage, round) that made the model which a round begins with; None: it is given. twin: the twin's."""
    if number > 0:
        return f"{'twin_' if twin else ''}{'grpo' if config.grpo.steps > 0 else 'sft'}", number - 1
    return ("start", 0) if config.scratch is not None else None


def made_model(config: ProgramEditConfig, maker: tuple[str, int]) -> HfModelConfig:
    assert isinstance(config.lm, HfModelConfig), "only such a model is trained"
    return replace(config.lm, name=str(config.file_of(*maker, MODEL)), adapter=None)


def begun_with(config: ProgramEditConfig, number: int, *, twin: bool = False) -> dict[str, Path]:
    """What a stage reads that uses the model which a round begins with."""
    maker = maker_of(config, number, twin=twin)
    return {} if maker is None else {"trained": config.file_of(*maker, TRAINED)}


def to_sampling(wished: SamplingConfig, seed: int) -> Sampling:
    return Sampling(wished.max_new_tokens, wished.temperature, wished.top_p, wished.top_k, wished.min_p, (), seed)


class _Sampling:
    """One stage at work."""

    def __init__(
        self, config: ProgramEditConfig, run: RunDir, progress: WorkProgress, sandbox: Sandbox, tasks: Sequence[ArcTask],
        chosen: ModelConfig | None, model: LanguageModel | None,
    ) -> None:  # fmt: skip
        self._config, self._run, self._progress, self._sandbox, self._tasks = config, run, progress, sandbox, tasks
        self._model_config, self._model = chosen, model
        needs_reference = config.sample.proposer is Proposer.reference or config.starts.mutants > 0
        self._references = reference_sources(tasks) if needs_reference else {}

    def made(self, programs: Path | None) -> Made:
        config = self._config
        population = Population.read(programs) if programs else Population()
        for task in self._tasks:
            add_programs(population, self._sandbox, task, [identity_source(config.prompt.entry)], Origin.identity, config)
            if task.id in self._references and config.round == 0:
                add_mutants(population, self._sandbox, task, self._references[task.id], config)
            self._require_time("start programs are being made")
        if config.starts.drafts and self._model is not None:
            self._add_drafts(population, self._model)
        starts = self._starts(population)
        if config.launch.shard is not None:
            self._edits(starts)
            return made_by_shard(config, len(self._tasks))
        if not starts:
            raise ConfigError(
                "there is no start program to edit: every program of every task is right already; give other tasks, or raise "
                "starts.mutants."
            )
        records = self._edits(starts)
        by_id = {start.task.id: start.task for start in starts}
        for record in records:
            self._add_child(population, by_id[record.task], record)
        population.write(self._run.path / PROGRAMS)
        return self._told(records, starts, population)

    def _told(self, records: Sequence[EditRecord], starts: Sequence[Start], population: Population) -> Made:
        if not records:
            raise ConfigError(
                f"none of the {len(starts)} start programs could be edited: their prompts are too long for the model; choose "
                "tasks of smaller grids (dataset.max_side), or a model with a longer context."
            )
        found = metrics_of(records, len(starts))
        counts = {name.removeprefix("edits/"): value for name, value in found.items()} | {"programs": float(len(population))}
        improved = sum(record.delta > 0 for record in records)
        return Made(
            outputs=[self._run.path / EDITS, self._run.path / PROGRAMS],
            counts=counts,
            message=f"{len(records)} edits of {len(starts)} programs, {improved} of them better",
            isolation=self._sandbox.isolation.name,
        )

    def _add_drafts(self, population: Population, model: LanguageModel) -> None:
        """Kept task by task: programs that the model writes from nothing."""
        config, worklist = self._config, Worklist(self._run.path / _DRAFTS, self._settings(), EDIT_ITEMS)
        drafts = drafts_of(
            worklist, model, self._tasks, config.starts.drafts, to_sampling(config.sample.sampling, config.seed),
            config.prompt.entry, config.prompt, self._progress,
        )  # fmt: skip
        for task in self._tasks:
            add_programs(population, self._sandbox, task, programs_in(drafts[task.id]), Origin.draft, config)

    def _starts(self, population: Population) -> list[Start]:
        config, chosen = self._config, list[tuple[ArcTask, Program]]()
        for task in self._tasks:
            rng = Random(f"{config.seed}/{config.round}/{task.id}")
            if config.sample.proposer is Proposer.reference and task.id not in self._references:
                continue
            chosen += [(task, program) for program in population.draw(task.id, config.starts.per_task, rng)]
        return run_starts(self._sandbox, chosen, config)

    def _edits(self, starts: Sequence[Start]) -> list[EditRecord]:
        config, worklist = self._config, Worklist(self._run.path / EDITS, self._settings(), EDIT_ITEMS)
        num_samples = config.sample.num_samples
        records = kept_edits(
            worklist, self._editor(), self._sandbox, starts, config, num_samples,
            at_once=_AT_ONCE if self._model is None else self._model.num_prompts(num_samples), progress=self._progress,
        )  # fmt: skip

        if config.launch.is_divided:
            self._put_in_order(records)
        return records

    def _put_in_order(self, records: Sequence[EditRecord]) -> None:
        """The file as one process writes it: who reads it next may not see that there were shards."""
        target = self._run.path / EDITS
        ordered = Worklist(target.with_name(f".{EDITS}.ordered"), self._settings(), EDIT_ITEMS)
        ordered.path.unlink(missing_ok=True)  # of a process that was killed here
        ordered.add_all({record.id: record.to_json() for record in records})
        os.replace(ordered.path, target)

    def _editor(self) -> Editor:
        config = self._config
        if config.sample.proposer is Proposer.reference:
            return reference_editor(self._references, config)
        assert self._model is not None
        return model_editor(self._model, to_sampling(config.sample.sampling, config.seed), config.think)

    def _add_child(self, population: Population, task: ArcTask, record: EditRecord) -> None:
        parent = next((each for each in population.of(task.id) if each.sha == record.parent), None)
        if record.source is None or parent is None:
            return
        population.add(
            Program(
                task.id, record.source, Origin.child, parent.generation + 1, (parent.sha,), record.r1 + record.cost,
                tuple(record.solved), record.signature,
            )
        )  # fmt: skip

    def _settings(self) -> Mapping[str, Any]:
        """What decides the edits, beyond what the stage's own settings say."""
        name = None if self._model_config is None else model_identity(self._model_config.name)
        return {
            "seed": self._config.seed, "round": self._config.round, "lm.name (content)": name, **drawn_by(self._config.launch),
        }  # fmt: skip

    def _require_time(self, told: str) -> None:
        if self._progress.is_told:
            raise ToldToEnd(told)
