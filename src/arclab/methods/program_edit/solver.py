"""evaluate.py solver=program_edit: programs are written, then edited in turns, and those that fit the demonstrations vote.

    python evaluate.py solver=program_edit lm=tiny dataset=toy

A turn edits the best num_kept programs that a task has so far (by what they are worth, different answers alone), each in a
prompt of its own, so that no context grows. All programs vote, with their answers to the test inputs, as in program sampling.
Edits are kept in the folder as they come: the same command goes on after a kill. Test outputs decide nothing: whether an edit
answers them right is counted for the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from arclab.config.program_edit_schema import EvaluateEditsConfig
from arclab.data.tasks import ArcTask
from arclab.lm.language_model import LanguageModel
from arclab.methods.program_edit.editing import EDIT_ITEMS, EditRecord, kept_edits, metrics_of, model_editor
from arclab.methods.program_edit.population import Origin, Population, Program, program_of
from arclab.methods.program_edit.sample import EDITS, to_sampling
from arclab.methods.program_edit.starts import Start, add_programs, drafts_of, identity_source, run_starts, value_of
from arclab.programs.outcomes import Outcome, ProgramRun, run_jobs
from arclab.programs.sandbox.pool import Sandbox
from arclab.programs.voting import vote
from arclab.results.attempts import Attempts
from arclab.runs.folder import RunDir
from arclab.runs.lifecycle import WorkProgress
from arclab.runs.worklist import Worklist
from arclab.solvers.answers import candidates, written_programs
from arclab.solvers.evaluation import Method, Tools, drawing_settings, evaluate_with_model

_DRAFTS = "drafts.jsonl"
# What belongs to the tasks or to their number: another value of these goes on with what is there.
_FREE = ("sandbox.num_workers", "solver.turns")


def evaluate_edits(config: EvaluateEditsConfig, given: RunDir | None = None) -> int:
    """Score the solver and write its results beside edits.jsonl. given, and the exit status: see evaluate_with_model."""
    return evaluate_with_model(config, given, lambda folder: _method(config, folder))


def _method(config: EvaluateEditsConfig, folder: Path) -> Method:
    wished, settings = config.solver, drawing_settings(config, _FREE)
    edits, drafts = (Worklist(folder / name, settings, EDIT_ITEMS) for name in (EDITS, _DRAFTS))

    def check(_: tuple[ArcTask, ...]) -> None:
        edits.check()
        drafts.check()

    def solve(tasks: tuple[ArcTask, ...], tools: Tools) -> Attempts:
        return EditSearch(config, tools.model, tools.programs(), edits, drafts, tools.progress).solve(tasks)

    return Method(
        check=check,
        solve=solve,
        facts={"drafts": str(wished.drafts), "turns": str(wished.turns), "temperature": f"{wished.sampling.temperature:g}"},
        record={"drafts": wished.drafts, "turns": wished.turns, "num_kept": wished.num_kept, "num_samples": wished.num_samples},
        stamps=lambda attempts: (),
        warn=lambda attempts: None,
    )


class EditSearch:
    """See the module."""

    def __init__(
        self, config: EvaluateEditsConfig, model: LanguageModel, sandbox: Sandbox, edits: Worklist, drafts: Worklist,
        progress: WorkProgress,
    ) -> None:  # fmt: skip
        self._config, self._model, self._sandbox, self._progress = config, model, sandbox, progress
        self._edits, self._drafts, self._skipped = edits, drafts, dict[str, str]()

    def solve(self, tasks: Sequence[ArcTask]) -> Attempts:
        """ToldToEnd: the progress said so, and what was drawn is kept. ValueError: the model or the sandbox cannot be used."""
        population, wished = Population(), self._config.solver
        self._begin(population, tasks)
        records: list[EditRecord] = []
        for turn in range(wished.turns):
            if starts := self._starts(population, tasks, turn):
                found = self._edited(starts, turn)
                self._add(population, {task.id: task for task in tasks}, found)
                records += found
        return self._voted(population, tasks, records)

    def _begin(self, population: Population, tasks: Sequence[ArcTask]) -> None:
        config, wished = self._config, self._config.solver
        written: dict[str, list[str]] = {}
        if wished.drafts:
            sampling = to_sampling(wished.sampling, config.seed)
            written = drafts_of(
                self._drafts, self._model, tasks, wished.drafts, sampling, config.prompt.entry, config.prompt, self._progress
            )
        for task in tasks:
            add_programs(population, self._sandbox, task, [identity_source(config.prompt.entry)], Origin.identity, config)
            add_programs(population, self._sandbox, task, written.get(task.id, ()), Origin.draft, config)

    def _starts(self, population: Population, tasks: Sequence[ArcTask], turn: int) -> list[Start]:
        """The best programs of each task that is not solved yet."""
        wished, chosen = self._config.solver, list[tuple[ArcTask, Program]]()
        for task in tasks:
            programs = population.of(task.id)
            if self._num_right(task, programs) < wished.enough_right:
                ranked = sorted((p for p in programs if not p.is_solved), key=lambda program: -program.value)
                chosen += [(task, program) for program in ranked[: wished.num_kept]]
        return [replace(start, turn=turn) for start in run_starts(self._sandbox, chosen, self._config)]

    def _num_right(self, task: ArcTask, programs: Sequence[Program]) -> int:
        """Different answers to the test inputs of programs that reproduce every demonstration."""
        right = [program.source for program in programs if program.is_solved]
        return len({tuple(None if a.grid is None else a.grid.tobytes() for a in o.answers) for o in self._run(task, right)})

    def _edited(self, starts: Sequence[Start], turn: int) -> list[EditRecord]:
        config, wished = self._config, self._config.solver
        # A program that stays is edited again: with the seed of another turn, or the replies would be the same.
        editor = model_editor(self._model, to_sampling(wished.sampling, config.seed + turn))
        return kept_edits(
            self._edits, editor, self._sandbox, starts, config, wished.num_samples,
            at_once=self._model.num_prompts(wished.num_samples), progress=self._progress, split=config.split, turn=turn,
            turns=wished.turns, skipped=self._skipped,
        )  # fmt: skip

    def _add(self, population: Population, tasks: dict[str, ArcTask], records: Sequence[EditRecord]) -> None:
        for record in records:
            task = tasks[record.task]
            parent = next(program for program in population.of(task.id) if program.sha == record.parent)
            for outcome in self._run(task, [] if record.source is None else [record.source]):
                value = value_of(task, self._config)(outcome)
                population.add(program_of(task.id, outcome, Origin.child, value, parent=parent))

    def _run(self, task: ArcTask, sources: Sequence[str]) -> list[Outcome]:
        """What was run before is not run again: the sandbox knows it."""
        entry, seed = self._config.prompt.entry, self._config.seed
        return run_jobs(self._sandbox, [ProgramRun(task, source, entry, with_tests=True, seed=seed) for source in sources])

    def _voted(self, population: Population, tasks: Sequence[ArcTask], records: Sequence[EditRecord]) -> Attempts:
        """Every edit votes, also those that repeat another program: that many wrote it says something."""
        attempts, written = Attempts({}, skipped=dict(self._skipped)), dict[str, list[str]]()
        for record in records:
            if record.source is not None:
                written.setdefault(record.task, []).append(record.source)
        for task in tasks:
            if task.id in written:
                attempts.skipped.pop(task.id, None)  # one of its programs was edited
            own = [program.source for program in population.of(task.id) if program.origin is not Origin.child]
            groups = vote(self._run(task, [*own, *written.get(task.id, ())]), len(task.tests))
            ranked = candidates(groups, len(task.tests))
            attempts.candidates |= {(task.id, number): ranked[number] for number in range(len(task.tests))}
            attempts.programs[task.id] = written_programs(groups)
        attempts.statistics = metrics_of(records, len({(record.task, record.root) for record in records}))
        return attempts
