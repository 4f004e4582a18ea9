"""stage=evaluate: what the trained model makes of start programs that it was not trained on.

    evaluate(config, ranks, signals, folder)        # writes edits.jsonl, metrics.jsonl, chains.html

Start programs are the identity and, where a right program of the task is known, mutants of it. Each is edited
evaluate.num_samples times, evaluate.turns times in a row: the best edit of a turn, if it gains something, is the program of
the next, in a prompt of its own. Chains that got better are on a page, chains.html. Rewards know demonstrations alone; whether
test inputs are answered right is counted beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from arclab.config.compose import ConfigError
from arclab.config.program_edit_schema import ProgramEditConfig
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask
from arclab.files import write_atomically
from arclab.lm.models import load_language_model
from arclab.methods.program_edit.controls import compared, scored_inputs
from arclab.methods.program_edit.editing import EDIT_ITEMS, EditRecord, chains_of, kept_edits, metrics_of, model_editor
from arclab.methods.program_edit.held_out import fresh_starts
from arclab.methods.program_edit.sample import EDITS, model_config, to_sampling
from arclab.methods.program_edit.select import shown_edit
from arclab.methods.program_edit.starts import Start, next_start
from arclab.metrics.logger import MetricLogger, read_rows
from arclab.pages.edits import Chain, render_chains
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.results.criterion import judge_criterion, write_criterion
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage
from arclab.runs.worklist import Worklist

PAGE = "chains.html"
_SHOWN_CHAINS = 100


def evaluate(config: ProgramEditConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    trained = scored_inputs(config)
    tasks = _scored_tasks(config)

    def work(run: RunDir, progress: WorkProgress) -> Made:
        with ExitStack() as stack:
            sandbox = stack.enter_context(open_sandbox(config.sandbox))
            starts = fresh_starts(config, sandbox, tasks)
            records = _edits(config, run, progress, sandbox, starts)
            controls = compared(config, run, progress, sandbox, starts, records)
            isolation = sandbox.isolation.name
        found = metrics_of(records, len(starts)) | controls
        if not found:
            raise ConfigError(f"none of the {len(starts)} start programs could be edited: their prompts are too long.")
        with MetricLogger(run.metrics, None, resume_step=-1, runtime_s=0.0) as logger:
            logger.write(config.round, found)
        result = judged(config, run, run)
        counts = {name.removeprefix("edits/"): value for name, value in found.items()} | by_changes(starts, records)
        write_atomically(run.path / PAGE, chains_page(config, records, {task.id: task for task in tasks}))
        solved = round(found["edits/solved_share"] * len(starts))
        message = f"{solved} of {len(starts)} start programs put right" + (f"; {result}" if result else "")
        return Made(outputs=[run.path / EDITS], counts=counts, message=message, isolation=isolation)

    return make_stage(config, ranks, signals, folder, trained, len(tasks), work)


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
    model = load_language_model(model_config(config, config.round + 1))
    worklist = Worklist(run.path / EDITS, {"seed": config.seed, "round": config.round}, EDIT_ITEMS)
    found: list[EditRecord] = []
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


def chains_page(config: ProgramEditConfig, records: Sequence[EditRecord], tasks: Mapping[str, ArcTask]) -> str:
    """The chains in which something got better, the longest way first, each with the edits that were taken."""
    chains = []
    for (task, root), chain in chains_of(records).items():
        taken = [best for best in _best_of_turns(chain) if best.delta > 0]
        if taken:
            gain = taken[-1].r1 - taken[0].r0
            chains.append((gain, Chain(f"{task}/{root}", [shown_edit(record, tasks[record.task]) for record in taken])))
    chains.sort(key=lambda each: -each[0])
    facts = {"chains": str(len(chains_of(records))), "with a better program": str(len(chains))}
    title = (config.experiment_name, f"{config.name}, round {config.round}")
    return render_chains(title, facts, [chain for _, chain in chains[:_SHOWN_CHAINS]])


def _best_of_turns(chain: Sequence[EditRecord]) -> list[EditRecord]:
    turns = sorted({record.turn for record in chain})
    return [max((r for r in chain if r.turn == turn), key=lambda record: record.delta) for turn in turns]
