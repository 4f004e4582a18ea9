"""stage=evaluate: what the trained model makes of start programs that it was not trained on.

    evaluate(config, ranks, signals, folder)        # writes edits.jsonl, metrics.jsonl, chains.html

Start programs are the identity and, where a right program of the task is known, mutants of it. Each is edited
evaluate.num_samples times, evaluate.turns times in a row: the best edit of a turn, if it gains something, is the program of
the next, in a prompt of its own. Chains that got better are on a page, chains.html. Rewards know demonstrations alone; whether
test inputs are answered right is counted beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from arclab.config.compose import ConfigError
from arclab.config.program_edit_schema import EvaluatedModel, ProgramEditConfig
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask
from arclab.files import write_atomically
from arclab.lm.endpoint.started import drawn_by, opened_model
from arclab.methods.program_edit.controls import compared, scored_inputs
from arclab.methods.program_edit.editing import EDIT_ITEMS, EditRecord, chains_of, kept_edits, metrics_of, model_editor
from arclab.methods.program_edit.held_out import fresh_starts
from arclab.methods.program_edit.measures import difficulty_rows, drawn_edit, measured, share_rows
from arclab.methods.program_edit.results import CHAINS, chains_page, pictures_of
from arclab.methods.program_edit.sample import EDITS, model_config, to_sampling
from arclab.methods.program_edit.starts import Start, next_start
from arclab.metrics.logger import MetricLogger, read_rows
from arclab.programs.outcomes import ProgramRun, run_jobs
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.programs.voting import vote
from arclab.results.attempts import Attempts
from arclab.results.criterion import judge_criterion, write_criterion
from arclab.results.scoring import truth_ranks
from arclab.results.writing import Exhibits, ResultTable
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage
from arclab.runs.worklist import Worklist
from arclab.solvers.answers import candidates


def evaluate(config: ProgramEditConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    is_given = config.evaluate.model is EvaluatedModel.given
    trained = {} if is_given else scored_inputs(config)
    tasks = _scored_tasks(config)

    def work(run: RunDir, progress: WorkProgress) -> Made:
        with ExitStack() as stack:
            sandbox = stack.enter_context(open_sandbox(config.sandbox))
            starts = fresh_starts(config, sandbox, tasks)
            records = _edits(config, run, progress, sandbox, starts)
            controls = {} if is_given else compared(config, run, progress, sandbox, starts, records)
            isolation = sandbox.isolation.name
            found = metrics_of(records, len(starts)) | measured(records, len(starts)) | controls
            found |= two_attempts(sandbox, tasks, starts, records, config)
        if not found:
            raise ConfigError(f"none of the {len(starts)} start programs could be edited: their prompts are too long.")
        with MetricLogger(run.metrics, None, resume_step=-1, runtime_s=0.0) as logger:
            logger.write(config.round, found)
        result = judged(config, run, run)
        counts = {name.removeprefix("edits/"): value for name, value in found.items()} | by_changes(starts, records)
        write_atomically(run.path / CHAINS, _page(config, starts, records, tasks))
        solved = round(found["edits/solved_share"] * len(starts))
        message = f"{solved} of {len(starts)} start programs put right" + (f"; {result}" if result else "")
        return Made(outputs=[run.path / EDITS], counts=counts, message=message, isolation=isolation)

    return make_stage(config, ranks, signals, folder, trained, len(tasks), work)


def two_attempts(
    sandbox: Sandbox, tasks: Sequence[ArcTask], starts: Sequence[Start], records: Sequence[EditRecord],
    config: ProgramEditConfig,
) -> dict[str, float]:  # fmt: skip
    """All edits and start programs of a task vote by their answers, for two attempts; over the tasks that have start programs
    and whose answers are known. What was run before is not run again."""
    solved, sources = list[bool](), dict[str, list[str]]()
    for task_id, source in [
        *((start.task.id, start.program.source) for start in starts), *((r.task, r.source) for r in records)
    ]:  # fmt: skip
        if source is not None:
            sources.setdefault(task_id, []).append(source)
    for task in (task for task in tasks if task.id in sources):
        runs = [ProgramRun(task, each, config.prompt.entry, with_tests=True, seed=config.seed) for each in sources[task.id]]
        ranking = candidates(vote(run_jobs(sandbox, runs), len(task.tests)), len(task.tests))
        places = truth_ranks([task], Attempts({(task.id, n): ranking[n] for n in range(len(task.tests))}))
        solved += [all(place is not None and place < 2 for place in found) for found in places.values()]
    return {"edits/tasks": float(len(solved)), "edits/two_attempts": sum(solved) / len(solved)} if solved else {}


def _page(
    config: ProgramEditConfig, starts: Sequence[Start], records: Sequence[EditRecord], tasks: Sequence[ArcTask]
) -> str:  # fmt: skip
    chains = gained_chains(records)
    facts = {
        "model": Path(config.lm.name).name if config.evaluate.model is EvaluatedModel.given else "trained",
        "start programs": str(len(starts)), "edits": str(len(records)), "chains with a better program": str(len(chains)),
    }  # fmt: skip
    table = ResultTable(
        "Start programs put right", ("start program", "put right", "share", "95 % interval"),
        share_rows(difficulty_rows(starts, records)),
        "Put right: an edit, in any turn, reproduces every demonstration.",
    )  # fmt: skip
    drawn = [drawn_edit(record) for record in records]
    exhibits = Exhibits((table,), tuple(pictures_of({"": drawn}, {"": len({each.task for each in drawn})})))
    title = (config.experiment_name, f"{config.name}, round {config.round}")
    return chains_page(title, facts, chains, {task.id: task for task in tasks}, exhibits)


def judged(config: ProgramEditConfig, measured: RunDir, run: RunDir) -> str:
    """What the criterion says of an evaluation, written to criterion.json of the run; empty without one."""
    if config.criterion is None:
        return ""
    result = judge_criterion(config.criterion, read_rows(measured.metrics))
    write_criterion(result, run)
    return str(result)


def _scored_tasks(config: ProgramEditConfig) -> tuple[ArcTask, ...]:
    tasks = load_tasks(config.dataset).named(config.evaluate.split.value)[: config.evaluate.max_tasks]
    if not tasks:
        raise ConfigError(
            f"evaluate.split={config.evaluate.split.value} has no tasks in dataset={config.dataset.name}; choose another split."
        )
    return tasks


def _edits(
    config: ProgramEditConfig, run: RunDir, progress: WorkProgress, sandbox: Sandbox, starts: list[Start]
) -> list[EditRecord]:  # fmt: skip
    wished, sampling = config.evaluate, to_sampling(config.sample.sampling, config.seed)
    number = 0 if wished.model is EvaluatedModel.given else config.round + 1
    settings = {"seed": config.seed, "round": config.round, **drawn_by(config.launch)}
    worklist = Worklist(run.path / EDITS, settings, EDIT_ITEMS)
    found: list[EditRecord] = []
    with opened_model(model_config(config, number), config.launch, run.path) as model:
        for turn in range(wished.turns):
            # With the same seed a program that stays would be answered as before.
            editor = model_editor(model, replace(sampling, seed=sampling.seed + turn), config.think)
            found += kept_edits(
                worklist, editor, sandbox, starts, config, wished.num_samples, at_once=model.num_prompts(wished.num_samples),
                progress=progress, split=wished.split, turn=turn, turns=wished.turns,
            )  # fmt: skip
            starts = _next_turn(starts, found, sandbox, config)
    return found


def _next_turn(
    starts: Sequence[Start], found: Sequence[EditRecord], sandbox: Sandbox, config: ProgramEditConfig
) -> list[Start]:  # fmt: skip
    """The chains that are not right yet, each with its best edit of the last turn, or as it was."""
    groups: dict[tuple[str, str, int], list[EditRecord]] = {}
    for record in found:
        groups.setdefault((record.task, record.root, record.turn), []).append(record)
    following = []
    for start in starts:
        best = max(groups.get(start.place, ()), key=lambda record: record.delta, default=None)
        if best is not None and not any(record.is_right for record in groups[start.place]):
            following.append(next_start(start, sandbox, best.source if best.delta > 0 else None, config))
    return following


def by_changes(starts: Sequence[Start], records: Sequence[EditRecord]) -> dict[str, float]:
    """How many start programs there were, and how many were put right, by how far they were from right."""
    right = {place for place, chain in chains_of(records).items() if any(record.is_right for record in chain)}
    found: Counter[str] = Counter()
    for start in starts:
        changes = len(start.program.changes)
        name = f"{changes}_changes" if changes else "identity"
        found[f"starts_{name}"] += 1
        found[f"solved_{name}"] += start.place[:2] in right
    return {name: float(count) for name, count in sorted(found.items())}


def gained_chains(records: Sequence[EditRecord]) -> dict[str, list[EditRecord]]:
    """The chains in which something got better, each with the edits that were taken."""
    chains = {}
    for (task, root), chain in chains_of(records).items():
        if taken := [best for best in _best_of_turns(chain) if best.delta > 0]:
            chains[f"{task}/{root}"] = taken
    return chains


def _best_of_turns(chain: Sequence[EditRecord]) -> list[EditRecord]:
    turns = sorted({record.turn for record in chain})
    return [max((r for r in chain if r.turn == turn), key=lambda record: record.delta) for turn in turns]
