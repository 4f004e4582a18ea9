"""evaluate.py solver=program_edit: programs are written, edited level by level, and those that fit the demonstrations vote.

    python evaluate.py solver=program_edit lm=tiny dataset=toy                           # chains
    python evaluate.py solver=program_edit solver.search=tree lm=tiny dataset=toy        # the evolution tree
    python evaluate.py solver=program_edit solver.search=single solver.max_tokens=20000 lm=tiny dataset=toy    # no edits

A level edits the best programs that a task has so far, each in a prompt of its own, alone or with others beside it; so no
context grows. What is edited, and when a task's budget is spent, is said in evolution.py: it depends on what the task's own
programs did, so that tasks are worked on together and each is answered as it would be alone. All programs vote, with their
answers to the test inputs, as in program sampling. Replies are kept in the folder as they come: the same command goes on after
a kill. Test outputs decide nothing: whether a program answers them right is counted for the report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arclab.config.program_edit_schema import Distinct, EditSearch, EditSearchConfig, EvaluateEditsConfig
from arclab.data.tasks import ArcTask
from arclab.lm.language_model import LanguageModel
from arclab.methods.program_edit.editing import EDIT_ITEMS, EditRecord, kept_edits, known_edits, model_editor
from arclab.methods.program_edit.evolution import Allowance, Level, Spent, levels_of, pooled, ranked
from arclab.methods.program_edit.measures import DRAWN, Drawn, drawn_edit, search_statistics, write_drawn
from arclab.methods.program_edit.population import Origin, Population, program_of
from arclab.methods.program_edit.results import exhibits_of, write_lineages
from arclab.methods.program_edit.sample import EDITS, to_sampling
from arclab.methods.program_edit.starts import (
    Draft,
    Start,
    add_programs,
    drafts_of,
    identity_source,
    known_drafts,
    programs_in,
    run_starts,
    value_of,
)
from arclab.programs.outcomes import Outcome, ProgramRun, run_jobs
from arclab.programs.rewards import score_tests
from arclab.programs.sandbox.pool import Sandbox
from arclab.programs.voting import vote
from arclab.results.attempts import Attempts
from arclab.runs.folder import RunDir
from arclab.runs.lifecycle import WorkProgress
from arclab.runs.worklist import Worklist
from arclab.solvers.answers import candidates, written_programs
from arclab.solvers.evaluation import Method, Tools, drawing_settings, evaluate_with_model

_DRAFTS = "drafts.jsonl"
# What belongs to the tasks, to their number, or to this process: another value of these goes on with what is there.
_FREE = ("sandbox.num_workers", "solver.turns", "solver.max_s")


def evaluate_edits(config: EvaluateEditsConfig, given: RunDir | None = None) -> int:
    """Score the solver and write its results beside edits.jsonl. given, and the exit status: see evaluate_with_model."""
    return evaluate_with_model(config, given, lambda folder: _method(config, folder))


def _method(config: EvaluateEditsConfig, folder: Path) -> Method:
    settings, drawn = drawing_settings(config, _FREE), list[Drawn]()
    edits, drafts = (Worklist(folder / name, settings, EDIT_ITEMS) for name in (EDITS, _DRAFTS))

    def check(_: tuple[ArcTask, ...]) -> None:
        edits.check()
        drafts.check()

    def solve(tasks: tuple[ArcTask, ...], tools: Tools) -> Attempts:
        search = EditSearcher(config, tools.model, tools.programs(), edits, drafts, tools.progress)
        attempts = search.solve(tasks)
        drawn.extend(search.drawn)
        write_drawn(folder / DRAWN, drawn)
        write_lineages(folder, config.title, search.records, tasks)
        return attempts

    record = _said(config.solver)
    return Method(
        check=check,
        solve=solve,
        facts={name.replace("_", " "): str(value) for name, value in record.items()}
        | {"temperature": f"{config.solver.sampling.temperature:g}"},
        record=record | {"report": config.prompt.report},
        stamps=lambda attempts: (),
        warn=lambda attempts: None,
        exhibits=lambda: exhibits_of(drawn),
        stores={EDITS: EDIT_ITEMS, _DRAFTS: EDIT_ITEMS},
    )


def _said(wished: EditSearchConfig) -> dict[str, Any]:
    """What decides the search, for the page and metrics.json: the keys of its kind, and the limits that there are."""
    names = {
        EditSearch.single: ("num_samples",),
        EditSearch.chains: ("drafts", "turns", "num_kept", "num_samples"),
        EditSearch.tree: ("drafts", "levels", "distinct"),
    }[wished.search]
    values = {name: getattr(wished, name) for name in names}
    limits = {name: getattr(wished, name) for name in ("max_programs", "max_tokens", "max_s")}
    values |= {name: limit for name, limit in limits.items() if limit is not None}
    return {"search": wished.search.value} | {k: v.value if isinstance(v, Distinct) else v for k, v in values.items()}


class EditSearcher:
    """See the module. records, drawn: what was drawn, once it has solved."""

    def __init__(
        self, config: EvaluateEditsConfig, model: LanguageModel, sandbox: Sandbox, edits: Worklist, drafts: Worklist,
        progress: WorkProgress,
    ) -> None:  # fmt: skip
        self._config, self._model, self._sandbox, self._progress = config, model, sandbox, progress
        self._edits, self._drafts, self._skipped = edits, drafts, dict[str, str]()
        self._known_edits, self._known_drafts = known_edits(edits), known_drafts(drafts)
        self._allowance = Allowance(config.solver.max_programs, config.solver.max_tokens)
        self._population = Population(by_answers=config.solver.distinct is Distinct.output)
        self._spent: dict[str, Spent] = {}
        self._written: dict[str, list[Draft]] = {}
        self._begun = time.monotonic()
        self.records: list[EditRecord] = []
        self.drawn: list[Drawn] = []

    def solve(self, tasks: Sequence[ArcTask]) -> Attempts:
        """ToldToEnd: the progress said so, and what was drawn is kept. ValueError: the model or the sandbox cannot be used, or
        does not count tokens where they are limited."""
        entry, wished = self._config.prompt.entry, self._config.solver
        self._spent, self._written = {task.id: Spent() for task in tasks}, {task.id: [] for task in tasks}
        for task in tasks:
            add_programs(self._population, self._sandbox, task, [identity_source(entry)], Origin.identity, self._config)
        if wished.search is EditSearch.single:
            self._write_singly(tasks)
        elif wished.drafts:
            self._draft(tasks, wished.drafts, 0)
        for number, level in enumerate(levels_of(wished)):
            self._edit_level(tasks, number, level)
        return self._voted(tasks)

    def _write_singly(self, tasks: Sequence[ArcTask]) -> None:
        """Programs from nothing, as long as a task's budget lasts."""
        number, still = 0, list(tasks)
        while still := self._draft(still, self._config.solver.num_samples, number):
            number += 1
            self._progress.report(self._progress.num_steps * (len(tasks) - len(still)) // len(tasks))

    def _draft(self, tasks: Sequence[ArcTask], count: int, number: int) -> list[ArcTask]:
        """Let the model write up to `count` programs for each task that has some left of its budget; the tasks that got any.
        number: of the request."""
        config, sizes = self._config, dict[int, list[ArcTask]]()
        for task in tasks:
            id_ = f"{task.id}/{number}" if number else task.id
            left = 0 if self._is_solved(task) else self._allowance.left(self._spent[task.id], count)
            if left and (len(self._known_drafts.get(id_, ())) >= left or self._has_time):
                sizes.setdefault(left, []).append(task)
        answered = []
        for size, part in sorted(sizes.items()):
            written = drafts_of(
                self._drafts, self._model, part, size, to_sampling(config.solver.sampling, config.seed + number),
                config.prompt.entry, config.prompt, self._progress, number=number, known=self._known_drafts,
                skipped=self._skipped,
            )  # fmt: skip
            for task in part:
                self._written[task.id] += written[task.id]
                for draft in written[task.id]:
                    self._spent[task.id].add(draft.tokens)
                add_programs(self._population, self._sandbox, task, programs_in(written[task.id]), Origin.draft, config)
            answered += [task for task in part if written[task.id]]
        return answered

    def _edit_level(self, tasks: Sequence[ArcTask], number: int, level: Level) -> None:
        """Where tokens or seconds are limited, the prompts of a task are asked one after the other, or nothing could be
        stopped; those of different tasks go together."""
        wished = self._config.solver
        queues = {task.id: self._starts(task, number, level) for task in tasks if not self._is_solved(task)}
        steps = level.num_parents if wished.max_tokens is not None or wished.max_s is not None else 1
        num_levels, groups = len(levels_of(wished)), dict[tuple[str, str, int], list[EditRecord]]()
        for step in range(steps):
            wave = self._wave([starts if steps == 1 else starts[step : step + 1] for starts in queues.values()], level)
            for size in sorted(set(wave.values())):
                starts = [start for id_ in queues for start in queues[id_] if wave.get(start.place) == size]
                for record in self._edited(starts, size, number, (number * steps + step, num_levels * steps)):
                    groups.setdefault((record.task, record.root, record.turn), []).append(record)
                    self._spent[record.task].add(record.tokens)
        # As they were chosen, whoever was asked together.
        found = [(t, r) for t in tasks for start in queues.get(t.id, ()) for r in groups.get(start.place, ())]
        self._add(found)
        self.records += [record for _, record in found]

    def _starts(self, task: ArcTask, number: int, level: Level) -> list[Start]:
        """The parents of a level, with what stands beside them."""
        best_first = ranked(self._population.of(task.id), self._config.solver.search)
        starts = []
        for parent in best_first[: level.num_parents]:
            others = pooled(parent, best_first, level.pool)
            (start,) = run_starts(self._sandbox, [(task, parent)], self._config)
            starts.append(replace(start, turn=number, others=tuple(self._run(task, [each.source for each in others]))))
        return starts

    def _wave(self, queues: Sequence[Sequence[Start]], level: Level) -> dict[tuple[str, str, int], int]:
        """How many edits of which start programs are asked for next; what was drawn before needs no time."""
        wave = {}
        for starts in queues:
            planned = 0
            for start in starts:
                size = self._allowance.left(self._spent[start.task.id], planned + level.num_samples) - planned
                if size > 0 and (len(self._known_edits.get(start.place, ())) >= size or self._has_time):
                    wave[start.place] = size
                    planned += size
        return wave

    def _edited(
        self, starts: Sequence[Start], size: int, number: int, place: tuple[int, int]
    ) -> list[EditRecord]:  # fmt: skip
        """place: of the wave, and how many there are at most."""
        config = self._config
        # A program that stays is edited again: with the seed of another level, or the replies would be the same.
        editor = model_editor(self._model, to_sampling(config.solver.sampling, config.seed + number), config.think)
        return kept_edits(
            self._edits, editor, self._sandbox, starts, config, size, at_once=self._model.num_prompts(size),
            progress=self._progress, split=config.split, turn=place[0], turns=place[1], skipped=self._skipped,
            known=self._known_edits,
        )  # fmt: skip

    @property
    def _has_time(self) -> bool:
        limit = self._config.solver.max_s
        return limit is None or time.monotonic() - self._begun < limit

    def _is_solved(self, task: ArcTask) -> bool:
        """Whether there are enough different answers to the test inputs of programs that reproduce every demonstration."""
        right = [program.source for program in self._population.of(task.id) if program.is_solved]
        answers = {tuple(None if a.grid is None else a.grid.tobytes() for a in o.answers) for o in self._run(task, right)}
        return len(answers) >= self._config.solver.enough_right

    def _add(self, found: Sequence[tuple[ArcTask, EditRecord]]) -> None:
        """All at once, as the sandbox does not know those that an earlier start has drawn."""
        made = [(task, record) for task, record in found if record.source is not None]
        runs = [self._job(task, record.source) for task, record in made]
        for (task, record), outcome in zip(made, run_jobs(self._sandbox, runs), strict=True):
            parent = next(program for program in self._population.of(task.id) if program.sha == record.parent)
            value = value_of(task, self._config)(outcome)
            child = program_of(task.id, outcome, Origin.child, value, parent=parent)
            self._population.add(replace(child, parents=(parent.sha, *record.others)))

    def _run(self, task: ArcTask, sources: Sequence[str]) -> list[Outcome]:
        """What was run before is not run again: the sandbox knows it."""
        return run_jobs(self._sandbox, [self._job(task, source) for source in sources])

    def _job(self, task: ArcTask, source: str | None) -> ProgramRun:
        return ProgramRun(task, source, self._config.prompt.entry, with_tests=True, seed=self._config.seed)

    def _voted(self, tasks: Sequence[ArcTask]) -> Attempts:
        """Everything that was drawn votes, also what repeats another program: that many wrote it says something."""
        attempts, edited = Attempts({}, skipped=dict(self._skipped)), dict[str, list[EditRecord]]()
        for record in self.records:
            edited.setdefault(record.task, []).append(record)
        for task in tasks:
            drafts, records = self._written[task.id], edited.get(task.id, [])
            if drafts or records:
                attempts.skipped.pop(task.id, None)  # one of its prompts was answered
            sources = [identity_source(self._config.prompt.entry), *programs_in(drafts)]
            sources += [record.source for record in records if record.source is not None]
            groups = vote(self._run(task, sources), len(task.tests))
            ranking = candidates(groups, len(task.tests))
            attempts.candidates |= {(task.id, number): ranking[number] for number in range(len(task.tests))}
            attempts.programs[task.id] = written_programs(groups)
            self.drawn += [self._drawn_draft(task, draft) for draft in drafts] + [drawn_edit(record) for record in records]
        wished = self._config.solver
        num_alike = wished.num_samples if wished.search is EditSearch.single else 0
        attempts.statistics = search_statistics(self.drawn, self.records, tasks, num_alike=num_alike)
        attempts.statistics["programs/tasks_skipped"] = float(len(attempts.skipped))
        return attempts

    def _drawn_draft(self, task: ArcTask, draft: Draft) -> Drawn:
        (outcome,) = run_jobs(self._sandbox, [self._job(task, draft.source)])
        return Drawn(
            task.id, 0, draft.tokens, draft.thinking_tokens, value_of(task, self._config)(outcome), None, outcome.is_right,
            score_tests(task, outcome),
        )  # fmt: skip
