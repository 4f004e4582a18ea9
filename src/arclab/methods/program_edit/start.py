"""stage=start: a small model of the first round, made of nothing, that edits toy programs with mistakes.

    start_stage(config, ranks, signals, folder)       # writes model/ and trained.json

It is taught to put mutants of toy programs right: the prompt of an edit, and the right program with what has to change as its
thinking. Then, for scratch.mistake_steps, a share of the programs that it is taught is wrong: the rounds have to sort that out.
The tasks are those of scratch.source; a rule among them that is scored is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from arclab.config.compose import ConfigError
from arclab.config.llm_schema import HfModelConfig
from arclab.config.program_edit_schema import ProgramEditConfig
from arclab.data.sources import load_source
from arclab.data.splits import assert_disjoint, load_tasks
from arclab.files import write_atomically
from arclab.lm.hf import load_hf
from arclab.lm.hf_loading import folder_digest
from arclab.lm.language_model import Prompt
from arclab.lm.training.finetune import FinetuneSettings, finetune
from arclab.lm.training.scratch import base_model
from arclab.methods.program_edit.editing import describe
from arclab.methods.program_edit.mutants import mutate
from arclab.methods.program_edit.sample import MODEL, TRAINED
from arclab.methods.program_edit.starts import reference_sources, with_entry
from arclab.programs.edits import render_edit_prompt, write_reply
from arclab.programs.outcomes import ProgramRun, run_jobs
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage

_BASE, _CLEAN = ".base", ".clean"
Lesson = tuple[Prompt, str]


def start_stage(config: ProgramEditConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    """ConfigError: a task that is no toy task. ValueError: a rule that is scored, or a lesson that does not fit."""
    scratch = config.scratch
    assert scratch is not None, "the schema refuses this stage without it"
    num_all = scratch.steps + scratch.mistake_steps

    def work(run: RunDir, progress: WorkProgress) -> Made:
        with open_sandbox(config.sandbox) as sandbox:
            right, wrong = lessons_of(config, sandbox)
            isolation = sandbox.isolation.name
        base_model(scratch, run.path / _BASE, [prompt[-1].content + reply for prompt, reply in right], config.seed)
        stop = StopRequest(run, ranks, signals)
        is_short = scratch.mistake_steps == 0
        _teach(config, run.path / _BASE, run.path / (MODEL if is_short else _CLEAN), right, scratch.steps, stop)
        if not is_short:
            _teach(config, run.path / _CLEAN, run.path / MODEL, wrong, scratch.mistake_steps, stop)
        for name in (_BASE, _CLEAN):
            shutil.rmtree(run.path / name, ignore_errors=True)
        write_atomically(run.path / TRAINED, json.dumps({"model": MODEL, "content": folder_digest(run.path / MODEL)}) + "\n")
        return Made(
            outputs=[run.path / TRAINED], counts={"lessons": len(right), "steps": num_all},
            message=f"made a model that edits, in {num_all} steps", isolation=isolation,
        )  # fmt: skip

    return make_stage(config, ranks, signals, folder, {}, num_all, work)


def lessons_of(config: ProgramEditConfig, sandbox: Sandbox) -> tuple[list[Lesson], list[Lesson]]:
    """Edits of mutants: with the right program, and with a wrong one in a share of them."""
    scratch = config.scratch
    assert scratch is not None
    tasks = load_source(scratch.source)
    if not all(task.rule for task in tasks):
        raise ConfigError(f"scratch.source={scratch.source} has tasks that are no toy tasks; give a toy: source.")
    known = load_tasks(config.dataset)
    assert_disjoint(tasks, [*known.evaluation, *known.validation])
    rng, references = Random(f"{config.seed} lessons"), reference_sources(tasks)
    runs, rights = list[ProgramRun](), list[str]()
    for task in tasks:
        right = with_entry(references[task.id], config)
        if (mutant := mutate(right, rng.randint(1, config.starts.max_changes), rng)) is not None:
            runs.append(ProgramRun(task, mutant.source, config.prompt.entry, with_tests=True, seed=config.seed))
            rights.append(right)
    found: tuple[list[Lesson], list[Lesson]] = ([], [])
    for run, right, outcome in zip(runs, rights, run_jobs(sandbox, runs), strict=True):
        assert run.source is not None
        prompt = render_edit_prompt(run.task, outcome, config.prompt)
        found[0].append((prompt, write_reply(describe(run.source, right), right)))
        mutant = mutate(right, 1, rng) if rng.random() < scratch.wrong_share else None
        told = right if mutant is None else mutant.source
        found[1].append((prompt, write_reply(describe(run.source, told), told)))
    return found


def _teach(
    config: ProgramEditConfig, given: Path, output: Path, lessons: Sequence[Lesson], steps: int, stop: StopRequest
) -> None:  # fmt: skip
    """ToldToEnd: stop said so."""
    scratch = config.scratch
    assert scratch is not None and isinstance(config.lm, HfModelConfig), "the schema refuses others"
    if output.is_dir():
        return
    settings = FinetuneSettings(
        steps=steps, batch_size=scratch.batch_size, lr=scratch.lr, warmup_steps=scratch.warmup_steps, weight_decay=0.0,
        save_every=config.sft.checkpoint_every, log_every=config.sft.log_every, seed=config.seed,
    )  # fmt: skip
    wished = replace(config.lm, name=str(given), adapter=None, device=config.device)
    finetune(load_hf(wished), output, lessons, settings, stop)
    assert os.path.isdir(output)
