"""ARC tasks as questions for a program: the prompt of arclab.programs.prompts, and a program as reply where one is known.

    splits = arc_splits(config)          # the splits of load_tasks(config.dataset), one example a task
    tasks = arc_tasks(config)            # the tasks themselves, for whoever runs programs on them

Programs come from the rule of a generated task, and from config.programs. Whether a reply is right is for the sandbox
(arclab.programs.environment) and the scoring of attempts, not for answers.py: an example's answer, the outputs of the test
inputs as JSON, is there to be shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from arclab.config.schema import SplitName
from arclab.config.text_schema import SAMPLE_LIMITS, ArcTextConfig
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask
from arclab.files import DamagedFile, numbered_lines
from arclab.lm.language_model import FinishReason
from arclab.programs.prompts import parse_program, render_prompt
from arclab.programs.toy import solution
from arclab.text.examples import TextExample, TextSplits, separated

_TOY_ENTRY = "solve"  # what arclab.programs.toy calls its functions
_SAMPLE = "toy:dihedral_color?tasks={}&side=4&colors=4&palette=6&demos=3&split={}"


def arc_splits(config: ArcTextConfig, needs_replies: bool = True) -> TextSplits:
    """ValueError, in one sentence: as load_tasks, a programs file that does not fit, an empty split."""
    config = _sample_of(config) if config.sample else config
    tasks = load_tasks(config.dataset)
    known = {task.id for split in (tasks.train, tasks.validation, tasks.evaluation) for task in split}
    programs = {} if config.programs is None else _read_programs(Path(config.programs).expanduser(), known, config.prompt.entry)
    train, validation, test = (
        [_example(task, programs, config) for task in split] for split in (tasks.train, tasks.validation, tasks.evaluation)
    )
    return separated(config, train, validation, test, tasks.notes, needs_replies=needs_replies)


def arc_tasks(config: ArcTextConfig) -> dict[str, tuple[ArcTask, SplitName]]:
    """The tasks that the examples ask about, by id, and the split of each."""
    tasks = load_tasks((_sample_of(config) if config.sample else config).dataset)
    splits = {SplitName.train: tasks.train, SplitName.validation: tasks.validation, SplitName.evaluation: tasks.evaluation}
    return {task.id: (task, split) for split, found in splits.items() for task in found}


def _sample_of(config: ArcTextConfig) -> ArcTextConfig:
    """With generated tasks in place of its sources."""
    count = SAMPLE_LIMITS
    dataset = replace(
        config.dataset,
        train_sources=[_SAMPLE.format(count["train"], "train")],
        eval_sources=[_SAMPLE.format(count["test"], "test")],
        validation_sources=[_SAMPLE.format(count["validation"], "validation")],
        validation_ids=None, train_ids=None, max_train_tasks=None, max_eval_tasks=None,
    )  # fmt: skip
    return replace(config, dataset=dataset, programs=None)


def _read_programs(path: Path, known: set[str], entry: str) -> dict[str, str]:
    if not path.is_file():
        raise ValueError(f"dataset.programs={path} is no file; give a JSONL file with task_id and program, or null.")
    programs: dict[str, str] = {}
    for line, row in numbered_lines(path, {"task_id": str, "program": str}, is_log=False, needs_line_end=False):
        task_id, program = row["task_id"], row["program"].strip()
        if task_id not in known:
            raise DamagedFile(path, f"dataset.dataset has no task {task_id}", line=line)
        if task_id in programs:
            raise DamagedFile(path, f"task {task_id} stands twice", line=line)
        if parse_program(_fenced(program), entry=entry, finish_reason=FinishReason.stop).source is None:
            raise DamagedFile(path, f"the program of task {task_id} defines no function {entry}", line=line)
        programs[task_id] = program
    return programs


def _example(task: ArcTask, programs: Mapping[str, str], config: ArcTextConfig) -> TextExample:
    program = programs.get(task.id)
    if program is None and task.rule is not None and config.prompt.entry == _TOY_ENTRY:
        program = solution(task)
    (message,) = render_prompt(task, config.prompt)
    outputs = [test.output for test in task.tests]
    shown = [output.tolist() for output in outputs if output is not None]
    answer = json.dumps(shown) if len(shown) == len(outputs) else ""
    return TextExample(task.id, message.content, "" if program is None else _fenced(program), answer)


def _fenced(program: str) -> str:
    return f"```python\n{program.strip()}\n```"
