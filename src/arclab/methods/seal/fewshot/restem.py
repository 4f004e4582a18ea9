"""stage=start and stage=restem: the model that proposes, made of nothing or of the self-edits that worked.

    start(config, ranks, signals, folder)      # writes model/: a small model that writes toy grids and random self-edits
    restem(config, ranks, signals, folder)     # writes model/, and twin/ with restem.twin; trained.json names their content

A row is the question for a self-edit of a task and a reply that let it be solved; the loss is on the reply alone. Training
begins with the model that made the proposals; each round has a folder of its own. The same command goes on after a kill.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from arclab.config.llm_schema import HfModelConfig
from arclab.config.seal_fewshot_schema import SealFewshotConfig, SealStage
from arclab.data.sources import load_source
from arclab.data.splits import assert_disjoint, load_tasks
from arclab.data.tasks import ArcTask
from arclab.files import write_atomically
from arclab.lm.hf import HfModel
from arclab.lm.hf_loading import folder_digest
from arclab.lm.language_model import Prompt
from arclab.lm.training.finetune import tokenised
from arclab.lm.training.model_folder import FolderTraining, stage_training, train_folder
from arclab.lm.training.rows import Row
from arclab.lm.training.sft import ROW_WEIGHT
from arclab.methods.seal.fewshot.edits import edit_prompt, grid_edits
from arclab.methods.seal.fewshot.models import MODEL, TRAINED, TWIN, model_inputs, proposer_of, remarks, training_tasks
from arclab.methods.seal.fewshot.select import LESSONS, Lesson, read_lessons
from arclab.methods.seal.replication import padded_rows
from arclab.methods.seal.transduction import TRAINED as TRANSDUCTION
from arclab.methods.seal.transduction import TransductionSizes, train_transduction
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage

_MAKING = ".making"
_ONE_IN = 4  # grids for each self-edit that the first model is taught: these have more tokens, and are learned sooner


def restem(config: SealFewshotConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    """ValueError: rows that do not fit, a training that diverges."""
    selected, wished = config.folder_of(SealStage.select.value, config.round), config.restem
    paths = {which: selected / LESSONS[which] for which in ([TWIN] if wished.twin else []) + [MODEL]}
    inputs = {
        **{f"lessons of {which}": path for which, path in paths.items()},
        **{key: path for key, path in model_inputs(config, config.round).items() if key == "model"},
    }

    def work(run: RunDir, progress: WorkProgress) -> Made:
        tasks = {task.id: task for task in training_tasks(config)}
        lessons = {which: read_lessons(path) for which, path in paths.items()}
        given = proposer_of(config, config.round)
        assert isinstance(given, HfModelConfig), "the schema refuses others"
        for which, taught in lessons.items():
            if not (run.path / which).is_dir():
                rows_of = partial(rows_of_lessons, lessons=taught, tasks=tasks, config=config)
                stop = StopRequest(run, ranks, signals)
                wanted = _training(config, which)
                train_folder(replace(given, device=config.device), run, which, wanted, rows_of, ranks=ranks, stop=stop)
        contents = {which: folder_digest(run.path / which) for which in lessons}
        write_atomically(run.path / TRAINED, json.dumps({"content": contents, "steps": wished.steps}) + "\n")
        counts = {"lessons": float(len(lessons[MODEL])), "steps": float(wished.steps)}
        message = f"learned {len(lessons[MODEL])} self-edits in {wished.steps} steps"
        return Made(outputs=[run.path / TRAINED], counts=counts, message=message, notes=remarks(config))

    return make_stage(config, ranks, signals, folder, inputs, wished.steps, work)


def _training(config: SealFewshotConfig, which: str) -> FolderTraining:
    wished = config.restem
    return stage_training(
        wished, config, key="restem", what=which, learned="self-edits", keeps_metrics=which == MODEL,
        grad_accumulation=wished.grad_accumulation, clip_norm=wished.clip_norm,
    )  # fmt: skip


def rows_of_lessons(
    model: HfModel, lessons: Sequence[Lesson], tasks: dict[str, ArcTask], config: SealFewshotConfig
) -> list[Row]:
    """ValueError: a row does not fit into the context."""
    texts = [(edit_prompt(tasks[lesson.task], config.solver.text), lesson.reply) for lesson in lessons]
    rows = tokenised(model, texts)
    if config.compat is not None:
        rows = padded_rows(rows, model.pad_id)
    return [row | {ROW_WEIGHT: [lesson.weight]} for row, lesson in zip(rows, lessons, strict=True)]


def start(config: SealFewshotConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    """Make the model of the first round. ValueError: rows that do not fit, or toy tasks with rules that are scored."""
    scratch = config.scratch
    assert scratch is not None, "the schema refuses this stage without it"

    def work(run: RunDir, progress: WorkProgress) -> Made:
        tasks, known = load_source(scratch.source), load_tasks(config.dataset)
        assert_disjoint(tasks, [*known.evaluation, *known.validation])
        sizes = TransductionSizes(
            num_layers=scratch.num_layers, width=scratch.width, num_heads=scratch.num_heads, context=scratch.context,
            steps=scratch.steps, batch_size=scratch.batch_size, lr=scratch.lr, vocab_size=scratch.vocab_size,
        )  # fmt: skip
        further = random_edits(config, tasks[::_ONE_IN])
        making = run.path / _MAKING
        if not (run.path / MODEL).is_dir():
            train_transduction(making, tasks, config.solver.text, config.seed, sizes, further)
            os.replace(making / TRANSDUCTION, run.path / MODEL)
        shutil.rmtree(making, ignore_errors=True)
        record = {"content": {MODEL: folder_digest(run.path / MODEL)}, "steps": scratch.steps}
        write_atomically(run.path / TRAINED, json.dumps(record) + "\n")
        counts = {"tasks": float(len(tasks)), "self_edits": float(len(further)), "steps": float(scratch.steps)}
        return Made(outputs=[run.path / TRAINED], counts=counts, message=f"made a model in {scratch.steps} steps")

    return make_stage(config, ranks, signals, folder, {}, scratch.steps, work)


def random_edits(config: SealFewshotConfig, tasks: Sequence[ArcTask]) -> list[tuple[Prompt, str]]:
    """A question for each task, and a self-edit of the grid that is drawn for it; some of them are broken."""
    assert config.grid is not None and config.scratch is not None, "the schema refuses this stage without them"
    rng, edits = random.Random(f"{config.seed} random self-edits"), grid_edits(config.grid.cells)
    found: list[tuple[Prompt, str]] = []
    for task in tasks:
        text = rng.choice(edits).text
        if rng.random() < config.scratch.broken_share:
            text = rng.choice(_broken(text))
        found.append((edit_prompt(task, config.solver.text), text))
    return found


def _broken(text: str) -> list[str]:
    """A self-edit with booleans that are text, without its end, and with epochs below 0."""
    as_text = text.replace(": true", ': "true"').replace(": false", ': "false"')
    return [as_text, text[:-1], text.replace('epochs": ', 'epochs": -')]
