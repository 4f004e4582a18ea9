"""stage=start and stage=sft: the policy, made of nothing or of what the round has curated.

    start(config, ranks, signals, folder)        # writes model/: a small model that knows some toy rules, with mistakes
    sft_stage(config, ranks, signals, folder)    # writes model/, and twin/ with sft.twin; trained.json names their content

Training is that of arclab.lm.training.sft, in a hidden folder with checkpoints of its own; the same command goes on after a
kill, and a model folder is whole or not there. Held-out lessons, of whole tasks and of single programs, only measure.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from arclab.config.compose import ConfigError
from arclab.config.llm_schema import HfModelConfig
from arclab.config.tree_learning_schema import PolicySftConfig, TreeLearningConfig
from arclab.data.sources import load_source
from arclab.data.splits import assert_disjoint, load_tasks
from arclab.files import write_atomically
from arclab.lm.hf import HfModel, load_hf
from arclab.lm.hf_loading import folder_digest
from arclab.lm.language_model import begun_reply
from arclab.lm.training.life import Evaluate
from arclab.lm.training.model_folder import FolderTraining, stage_training, train_folder
from arclab.lm.training.rows import Row
from arclab.lm.training.scratch import base_model
from arclab.methods.tree_search.learning.curate import learned_file
from arclab.methods.tree_search.learning.policy import MODEL, TRAINED, TWIN, policy_inputs, policy_of, training_tasks
from arclab.methods.tree_search.learning.records import Curated, read_records
from arclab.methods.tree_search.learning.teaching import Lesson, Split, lessons_of, shuffled, split_of, taught_rows
from arclab.methods.tree_search.prompts import continued, shown_prompts
from arclab.methods.tree_search.steps import Steps
from arclab.metrics.logger import MetricLogger
from arclab.programs.toy import STEPS_ROOT, solution_steps
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage

_BASE, _CLEAN = ".base", ".clean"


def sft_stage(config: TreeLearningConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    """ConfigError: nothing to learn. ValueError: programs that do not fit, training that diverges."""
    learned = learned_file(config, config.round)
    inputs = {"learned": learned, **policy_inputs(config, config.round)}
    wished, steps = config.sft, Steps.of(config.solver.steps)

    def work(run: RunDir, progress: WorkProgress) -> Made:
        tasks = {task.id: task for task in training_tasks(config)}
        lessons = lessons_of(config, read_records(learned, Curated), tasks)
        split = split_of(lessons, wished.task_share, wished.example_share, config.seed)
        twins = {TWIN: shuffled(split.taught, config.seed)} if wished.twin else {}
        for which, taught in (twins | {MODEL: split.taught}).items():
            if not (run.path / which).is_dir():
                given = policy_of(config, config.round, which)
                assert isinstance(given, HfModelConfig), "the schema refuses others"
                stop = StopRequest(run, ranks, signals)
                teacher = _Teacher(config, wished, run, which, ranks, stop)
                teacher.teach(given, partial(taught_rows, lessons=taught, steps=steps), split)
        measured = _measured(config, run.path / MODEL, split, steps)
        record = {"content": folder_digest(run.path / MODEL), "lessons": len(split.taught), "steps": wished.steps}
        write_atomically(run.path / TRAINED, json.dumps(record) + "\n")
        counts = {
            "lessons": float(len(split.taught)), "tasks": float(len({lesson.origin for lesson in split.taught})),
            "held_out_tasks": float(len(split.tasks)), "held_out_examples": float(len(split.examples)),
            "steps": float(wished.steps), **measured,
        }  # fmt: skip
        message = f"learned {len(split.taught)} programs of {counts['tasks']:.0f} tasks in {wished.steps} steps"
        return Made(outputs=[run.path / TRAINED], counts=counts, message=message)

    return make_stage(config, ranks, signals, folder, inputs, wished.steps, work)


class _Teacher:
    """One training inside of a stage's run, in a hidden folder that becomes the model folder WHICH."""

    def __init__(
        self, config: TreeLearningConfig, wished: PolicySftConfig, run: RunDir, which: str, ranks: Ranks, stop: StopRequest
    ) -> None:
        self._config, self._wished, self._run, self._which = config, wished, run, which
        self._ranks, self._stop = ranks, stop

    def teach(self, given: HfModelConfig, rows_of: Callable[[HfModel], list[Row]], split: Split | None) -> None:
        """ToldToEnd: it is saved as far as it came."""
        config, is_measured = self._config, split is not None and bool(split.tasks or split.examples)
        train_folder(
            given, self._run, self._which, self._training(is_measured), rows_of, ranks=self._ranks, stop=self._stop,
            prepare=self._add_marks, evaluate=partial(_evaluation, split=split, config=config) if is_measured else None,
        )  # fmt: skip

    def _training(self, is_measured: bool) -> FolderTraining:
        wished = self._wished
        return stage_training(
            wished, self._config, key="sft", what=self._which, learned="programs", keeps_metrics=self._which == MODEL,
            grad_accumulation=wished.grad_accumulation, clip_norm=wished.clip_norm,
            eval_every=wished.eval_every if is_measured else 0,
        )  # fmt: skip

    def _add_marks(self, model: HfModel) -> None:
        if self._wished.mark_tokens:
            steps = self._config.solver.steps
            model.add_tokens([steps.step_end, steps.program_end])


def _evaluation(model: HfModel, split: Split | None, config: TreeLearningConfig) -> Evaluate:
    assert split is not None

    def evaluate(step: int, logger: MetricLogger | None) -> dict[str, float]:
        return {f"learned/{name}": value for name, value in perplexities(model, split, Steps.of(config.solver.steps)).items()}

    return evaluate


def _measured(config: TreeLearningConfig, folder: Path, split: Split, steps: Steps) -> dict[str, float]:
    if not (split.tasks or split.examples):
        return {}
    assert isinstance(config.lm, HfModelConfig)
    return perplexities(load_hf(replace(config.lm, name=str(folder), adapter=None)), split, steps)


def perplexities(model: HfModel, split: Split, steps: Steps) -> dict[str, float]:
    """Of the programs of held-out tasks and of held-out programs: exp of the mean loss of a token."""
    found: dict[str, float] = {}
    for name, lessons in (("task_perplexity", split.tasks), ("example_perplexity", split.examples)):
        if lessons:
            texts = [lesson.written.removeprefix(steps.opening) for lesson in lessons]
            values = model.logprobs([continued(lesson.prompt, steps.opening) for lesson in lessons], texts)
            tokens = [value for each in values for value in each]
            found[name] = math.exp(min(700.0, -sum(tokens) / len(tokens)))
    return found


def start(config: TreeLearningConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    """Make the policy of the first round. ConfigError: solver.steps.root is not what toy programs begin with."""
    scratch = config.scratch
    assert scratch is not None, "the schema refuses this stage without it"
    num_all = scratch.steps + scratch.mistake_steps

    def work(run: RunDir, progress: WorkProgress) -> Made:
        phases = [(_CLEAN, _toy_lessons(config, 0.0), scratch.steps)]
        phases += [(MODEL, _toy_lessons(config, scratch.wrong_share), scratch.mistake_steps)] if scratch.mistake_steps else []
        given, lessons = _base(config, run, phases[0][1]), phases[0][1]
        for which, lessons, num_steps in phases:
            if not (run.path / which).is_dir():
                wished = replace(
                    config.sft, steps=num_steps, batch_size=scratch.batch_size, lr=scratch.lr, grad_accumulation=1, lora=None,
                    warmup_steps=scratch.warmup_steps,
                )  # fmt: skip
                teacher = _Teacher(config, wished, run, which, ranks, StopRequest(run, ranks, signals))
                teacher.teach(given, partial(taught_rows, lessons=lessons, steps=Steps.of(config.solver.steps)), None)
            given = replace(given, name=str(run.path / which))
        if not scratch.mistake_steps:
            os.replace(run.path / _CLEAN, run.path / MODEL)
        for folder in (_BASE, _CLEAN):
            shutil.rmtree(run.path / folder, ignore_errors=True)
        record = {"content": folder_digest(run.path / MODEL), "lessons": len(lessons), "steps": num_all}
        write_atomically(run.path / TRAINED, json.dumps(record) + "\n")
        counts = {"lessons": float(len(lessons)), "steps": float(num_all)}
        return Made(outputs=[run.path / TRAINED], counts=counts, message=f"made a policy in {num_all} steps")

    return make_stage(config, ranks, signals, folder, {}, num_all, work)


def _base(config: TreeLearningConfig, run: RunDir, lessons: Sequence[Lesson]) -> HfModelConfig:
    """A model with random weights, made if it is not there."""
    scratch = config.scratch
    assert scratch is not None and isinstance(config.lm, HfModelConfig), "the schema refuses others"
    texts = [begun_reply(lesson.prompt)[0][-1].content + lesson.written for lesson in lessons]
    base_model(scratch, run.path / _BASE, texts, config.seed)
    return replace(config.lm, name=str(run.path / _BASE), adapter=None)


def _toy_lessons(config: TreeLearningConfig, wrong_share: float) -> list[Lesson]:
    """Programs of toy tasks, some of whose steps belong to another task. ValueError: they begin with something else than
    solver.steps.root, or a rule of theirs is to be scored."""
    scratch, steps = config.scratch, Steps.of(config.solver.steps)
    assert scratch is not None
    if steps.root != STEPS_ROOT:
        raise ConfigError(f"solver.steps.root={steps.root!r} must be {STEPS_ROOT!r}, which toy programs begin with; set it.")
    tasks, rng = load_source(scratch.source), random.Random(f"{config.seed} mistakes")
    known = load_tasks(config.dataset)
    assert_disjoint(tasks, [*known.evaluation, *known.validation])
    programs = [solution_steps(task) for task in tasks]
    found: list[Lesson] = []
    for task, own in zip(tasks, programs, strict=True):
        other = rng.choice(programs)
        lines = [
            other[place] if place < len(other) - 1 and rng.random() < wrong_share else line
            for place, line in enumerate(own[:-1])
        ]
        text = "".join(f"\n    {line} {steps.step_end}" for line in lines) + f"\n    {own[-1]} {steps.program_end}"
        prompt = shown_prompts(task, config.solver, [], None)[0].prompt
        found.append(Lesson(task.id, task.id, prompt, steps.opening + text, 1.0))
    return found
