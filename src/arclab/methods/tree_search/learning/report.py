"""What a folder of rounds comes to: coverage round by round, scores, and how long prompts, steps and programs are.

    rows = coverage(root, 2, num_tasks=300)             # of solutions.jsonl, whatever has been made so far
    write_report(config, run, criterion)                # coverage.json and report.html in the folder of stage=round

Coverage is of training tasks, with labels from their hidden test outputs: what could be learned from, not a score.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from arclab.config.compose import flat
from arclab.config.llm_schema import HfModelConfig
from arclab.config.tree_learning_schema import TreeLearningConfig
from arclab.files import write_atomically
from arclab.lm.chat_template import conversation_ids
from arclab.lm.hf_loading import load_tokenizer
from arclab.methods.tree_search.learning.evaluate import SAMPLING, SEARCH, START
from arclab.methods.tree_search.learning.generated import STAMP
from arclab.methods.tree_search.learning.policy import TWIN, examples_of, policy_of, training_tasks
from arclab.methods.tree_search.learning.records import SOLUTIONS, Solution, read_records
from arclab.methods.tree_search.prompts import shown_prompts
from arclab.methods.tree_search.trees import load_tree
from arclab.pages.rounds import Histogram, RoundsPage, render_rounds
from arclab.results.scoring import Share
from arclab.results.writing import ResultTable
from arclab.runs.folder import RunDir
from arclab.runs.stages import read_counts


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of a round, over num_tasks training tasks: tasks with a right program in this round, in any round so far, and for the
    first time; programs that reproduce all demonstrations, and of these the right ones."""

    number: int
    num_tasks: int
    solved: int
    solved_so_far: int
    new: int
    passing: int
    right: int


def coverage(root: Path, num_rounds: int, num_tasks: int) -> list[Coverage]:
    """A row for each round that has been collected."""
    known, rows = set[str](), list[Coverage]()
    for number in range(num_rounds):
        path = root / f"round_{number}" / "collect" / SOLUTIONS
        if not path.is_file():
            continue
        found = read_records(path, Solution)
        right = [solution for solution in found if solution.right]
        solved = {solution.task for solution in right}
        new = solved - known
        known |= solved
        rows.append(Coverage(number, num_tasks, len(solved), len(known), len(new), len(found), len(right)))
    return rows


def write_report(config: TreeLearningConfig, run: RunDir, criterion: str) -> None:
    rows = coverage(run.path, config.rounds, len(training_tasks(config)))
    write_atomically(run.path / "coverage.json", json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    is_generated = config.augment.num_examples > 0
    page = RoundsPage(
        title=(config.experiment_name, config.name),
        facts={
            "dataset": config.dataset.name,
            "search": config.search.kind,
            "rounds": str(config.rounds),
            "seed": str(config.seed),
        },
        criterion=criterion,
        stamps=[STAMP] if is_generated else [],
        tables=[_coverage_table(rows), _learning_table(config)],
        histograms=histograms(config, run),
        settings=flat(config),
    )
    write_atomically(run.path / "report.html", render_rounds(page))


def _coverage_table(rows: Sequence[Coverage]) -> ResultTable:
    return ResultTable(
        "Coverage of training tasks",
        ("round", "solved", "solved so far", "for the first time", "programs right on demonstrations", "right on tests, too"),
        tuple(
            (str(row.number), str(Share(row.solved, row.num_tasks)), str(Share(row.solved_so_far, row.num_tasks)), str(row.new),
             f"{row.passing:,}", f"{row.right:,}")
            for row in rows
        ),
        "Any right program counts, labelled by hidden test outputs: what can be learned from, not a score.",
    )  # fmt: skip


def _learning_table(config: TreeLearningConfig) -> ResultTable:
    columns = (
        "round", "programs", "perplexity: tasks", "perplexity: programs", "pairs right", "unseen tasks", "start", "twin",
        "search alone", "sampling",
    )  # fmt: skip
    rows = []
    for number in range(config.rounds):
        counts = {stage: read_counts(config.folder_of(stage, number)) for stage in ("sft", "reward_model", "evaluate")}
        wanted = (
            ("sft", "lessons", "{:,.0f}"), ("sft", "task_perplexity", "{:.3f}"), ("sft", "example_perplexity", "{:.3f}"),
            ("reward_model", "accuracy", ""), ("evaluate", "ARC/solved@2", ""),
            *(("evaluate", f"learned/{name}_solved", "") for name in (START, TWIN, SEARCH, SAMPLING)),
        )  # fmt: skip
        cells = [_cell(counts[stage].get(key), form) for stage, key, form in wanted]
        rows.append((str(number), *cells))
    note = (
        "Programs that were learned; perplexity of held-out tasks and of held-out programs; held-out pairs on which the reward "
        "model is right; unseen tasks solved in two attempts. The twin learned the same prompts with programs of other tasks. "
        "The start is the policy before the first round. Search alone: without the reward model."
    )
    return ResultTable("Learning", columns, tuple(rows), note)


def _cell(value: float | None, form: str) -> str:
    """form: empty for a share."""
    if value is None:
        return "none"
    return form.format(value) if form else f"{100 * value:.1f} %"


def histograms(config: TreeLearningConfig, run: RunDir) -> list[Histogram]:
    """Of the last round's trees: tokens of the prompts of all training tasks, of steps, and of right programs."""
    number = config.rounds - 1
    trees = [load_tree(path) for path in sorted((config.folder_of("collect", number) / "trees").glob("*.jsonl"))]
    steps = [node.num_tokens for tree in trees for node in tree.drawn() if node.num_tokens is not None]
    programs = read_records(config.folder_of("collect", number) / SOLUTIONS, Solution)
    return [
        Histogram("Tokens of a task's prompt", "tokens", "tasks", prompt_lengths(config, number)),
        Histogram("Tokens of a step", "tokens", "steps", steps),
        Histogram("Tokens of a right program", "tokens", "programs", [each.num_tokens for each in programs if each.right]),
    ]


def prompt_lengths(config: TreeLearningConfig, number: int) -> list[int]:
    policy = policy_of(config, number)
    if not isinstance(policy, HfModelConfig):
        return []
    tokenizer, examples = load_tokenizer(policy), examples_of(config)
    prompts = [shown_prompts(task, config.solver, examples, None)[0].prompt for task in training_tasks(config)]
    return [len(conversation_ids(tokenizer, policy.name, prompt, thinking=policy.thinking)) for prompt in prompts]
