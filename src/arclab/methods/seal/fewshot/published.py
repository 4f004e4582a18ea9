"""Files in the forms that users of SEAL's published scripts have tools for.

    write_configs(folder, drawn, tasks, model)      # final_configs_and_indices.json: {task: {number: self-edit}}
    write_results(folder, drawn, trials)            # final_results.json: {number: which tasks it solved}
    write_submission(folder, tasks, answers)        # submission.json: two attempts for each test input

The number of a self-edit is its place among those of its task that could be tried, from 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arclab.data.tasks import ArcTask
from arclab.files import write_atomically
from arclab.lm.hf import HfModel
from arclab.lm.language_model import LanguageModel, Prompt
from arclab.methods.seal.fewshot.proposals import Proposal
from arclab.methods.seal.fewshot.trials import Key, Trial, pooled
from arclab.results.attempts import Attempts
from arclab.results.writing import submission

CONFIGS, RESULTS, SUBMISSION = "final_configs_and_indices.json", "final_results.json", "submission.json"


def write_configs(
    folder: Path, drawn: Mapping[str, Sequence[Proposal]], prompts: Mapping[str, Prompt], model: LanguageModel
) -> None:
    """prompt: the whole text that the model saw, and token_ids: of the response and its end mark, where the model runs in this
    process; elsewhere the last message, and no ids."""
    found: dict[str, dict[str, Any]] = {}
    for task_id, proposals in drawn.items():
        prompt = prompts[task_id]
        here = model if isinstance(model, HfModel) else None
        text = prompt[-1].content if here is None else here.tokenizer.decode(here.prompt_ids(prompt))
        found[task_id] = {
            str(number): {
                "config": each.config, "prompt": text, "response": each.response,
                "token_ids": [] if here is None else here.reply_ids(each.response),
            }
            for number, each in enumerate(_tried(proposals))
        }  # fmt: skip
    write_atomically(folder / CONFIGS, json.dumps(found, indent=1) + "\n")


def write_results(folder: Path, drawn: Mapping[str, Sequence[Proposal]], trials: Mapping[Key, Trial]) -> None:
    """For each number the tasks that have such a self-edit, and whether it solved them; columns of a table, row by row."""
    solved: dict[int, dict[str, bool]] = {}
    for task_id, proposals in drawn.items():
        for number, each in enumerate(_tried(proposals)):
            solved.setdefault(number, {})[task_id] = bool(trials[task_id, each.key].reward)
    found = {
        str(number): {
            "task_id": {str(row): task_id for row, task_id in enumerate(solved[number])},
            "correct": {str(row): right for row, right in enumerate(solved[number].values())},
        }
        for number in sorted(solved)
    }
    write_atomically(folder / RESULTS, json.dumps(found, indent=1) + "\n")


def answers_of(
    tasks: Sequence[ArcTask], drawn: Mapping[str, Sequence[Proposal]], trials: Mapping[Key, Trial]
) -> Attempts:  # fmt: skip
    """For each task the candidates of all its self-edits together, by their votes."""
    attempts = Attempts({})
    for task in tasks:
        own = [trials[task.id, each.key] for each in _tried(drawn[task.id])]
        ranked = pooled([trial for trial in own if not trial.record.problem], len(task.tests))
        attempts.candidates |= {(task.id, number): candidates for number, candidates in enumerate(ranked)}
    return attempts


def write_submission(folder: Path, tasks: Sequence[ArcTask], attempts: Attempts) -> None:
    write_atomically(folder / SUBMISSION, json.dumps(submission(tasks, attempts)) + "\n")


def _tried(proposals: Sequence[Proposal]) -> list[Proposal]:
    return [each for each in proposals if each.is_ok]
