"""Which start programs the groups of a training are of, by the curriculum, and what the curriculum learns from them.

    practice = Practice(config, tasks, population, sandbox, model, ranks, run.path)
    drawer = Drawer((None,), roll_out, REWARDS, settings, config.seed, told=practice.told, choose=practice.choose)
    grpo(..., kept=practice, is_enough=practice.is_enough)

A task is drawn first, then one of its programs that are not right, from every level of value in turn. Every rank has the same
curriculum: what their groups became is gathered after each drawing. curriculum.json in the run folder is always the newest; a
checkpoint has that of its step, and a continued run goes on from there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from arclab.config.compose import ConfigError
from arclab.config.program_edit_grpo_schema import CurriculumKind
from arclab.config.program_edit_schema import ProgramEditConfig
from arclab.data.tasks import ArcTask, PairStream, tasks_digest
from arclab.lm.hf import HfModel
from arclab.lm.training.rollouts import Scored
from arclab.methods.program_edit.curriculum import (
    Curriculum,
    draw,
    new_curriculum,
    observe,
    of_round,
    read_curriculum,
    with_baseline,
    with_moment,
    write_curriculum,
)
from arclab.methods.program_edit.population import Population, Program
from arclab.methods.program_edit.rollouts import EditRollouts, Shown, room_for_reply, shown
from arclab.methods.program_edit.starts import run_starts
from arclab.methods.program_edit.variants import augmented, permuted, stream_of
from arclab.programs.sandbox.pool import Sandbox
from arclab.runs.checkpoints import checked_file
from arclab.runs.ranks import Ranks

log = logging.getLogger(__name__)
CURRICULUM = "curriculum.json"
_CANDIDATES = 4  # programs of a task that are looked at for one group


class Practice:
    """See the module. start_from: a curriculum to go on from; None: a new one."""

    def __init__(
        self, config: ProgramEditConfig, tasks: Sequence[ArcTask], population: Population, sandbox: Sandbox, model: HfModel,
        ranks: Ranks, folder: Path, start_from: Path | None = None,
    ) -> None:  # fmt: skip
        """ConfigError: no task has a start program whose prompt leaves room for a reply. ValueError: the curriculum to go on
        from is of another data set."""
        self._config, self._population, self._sandbox, self._model = config, population, sandbox, model
        self._ranks, self._path = ranks, folder / CURRICULUM
        self._plain = self._usable(tasks)
        self._tasks = {task.id: task for task in tasks if task.id in self._plain}
        self._data = tasks_digest(list(self._tasks.values()))
        self._streams: dict[str, PairStream | None] = {}
        self._noted: list[tuple[str, list[bool]]] = []
        fresh = new_curriculum(list(self._tasks), self._data)
        self.curriculum = read_curriculum(start_from, self._data, self._tasks) if start_from else fresh

    def _usable(self, tasks: Sequence[ArcTask]) -> dict[str, list[Shown]]:
        chosen = [
            (task, each) for task in tasks for each in self._candidates(task.id, Random(f"{self._config.seed} {task.id}"))
        ]
        found: dict[str, list[Shown]] = {}
        for start in run_starts(self._sandbox, chosen, self._config):
            each = shown(self._model, start, self._config)
            if self._fits(each):
                found.setdefault(start.task.id, []).append(each)
        have = {task.id for task, _ in chosen}
        if not found:
            raise ConfigError(
                "no task has a start program to edit whose prompt leaves room for grpo.max_new_tokens in the context of lm; "
                "choose tasks of smaller grids (dataset.max_side), lower grpo.max_new_tokens, or sample more start programs."
            )
        if len(found) < len(tasks):
            log.warning(
                "%d of %d tasks are left out: %d have no start program that is not right yet, the prompts of %d are too long",
                len(tasks) - len(found), len(tasks), len(tasks) - len(have), len(have) - len(found),
            )  # fmt: skip
        return found

    def _candidates(self, task: str, rng: Random) -> list[Program]:
        return self._population.draw(task, _CANDIDATES, rng)

    def _fits(self, each: Shown) -> bool:
        room = room_for_reply(self._model, self._config)
        return room is None or len(each.prompt_ids) <= room

    def measure_baseline(self, roll_out: EditRollouts) -> None:
        """Of kind=rounds, before the first step: a group of edits of each task says how difficult it is."""
        if self._config.curriculum.kind is not CurriculumKind.rounds:
            return
        size, found = self._config.grpo.group_size, dict[str, float]()
        for id_ in sorted(self._plain)[self._ranks.rank :: self._ranks.world_size]:
            seeds = [self._config.seed + n for n in range(size)]
            rows = roll_out([self._plain[id_][0]] * size, seeds)
            found[id_] = sum(max(0.0, row.record.earned.program) for row in rows) / size
        self._noted.clear()  # nothing was learned from them
        everyone = {id_: value for part in self._ranks.gather_objects(found) for id_, value in part.items()}
        self.curriculum = with_baseline(self.curriculum, everyone)

    @property
    def _drawn_from(self) -> Curriculum:
        wished = self._config.curriculum
        if wished.kind is CurriculumKind.rounds:
            return of_round(self.curriculum, wished.rounds)[1]
        return self.curriculum

    def choose(self, step: int, places: Sequence[int], attempt: int) -> list[Shown]:
        """A start program for each group. It depends on these numbers, the seed and the curriculum, not on the rank."""
        wanted: list[tuple[str, list[tuple[ArcTask, Program]]]] = []
        rngs = {place: Random(f"{self._config.seed} {step} {place} {attempt}") for place in places}
        for rng in rngs.values():
            id_ = self._task(rng)
            variant = self._variant(id_, rng)
            wanted.append((id_, [(variant, each) for each in self._candidates(id_, rng)]))
        starts = iter(run_starts(self._sandbox, [pair for _, pairs in wanted for pair in pairs], self._config))
        found: list[Shown] = []
        for (id_, pairs), rng in zip(wanted, rngs.values(), strict=True):
            own = [shown(self._model, next(starts), self._config) for _ in pairs]
            usable = [each for each in own if not each.start.outcome.is_right and self._fits(each)]
            found.append(usable[0] if usable else rng.choice(self._plain[id_]))
        return found

    def _task(self, rng: Random) -> str:
        if self._config.curriculum.kind is CurriculumKind.uniform:
            return rng.choice(list(self._tasks))
        return draw(self._drawn_from, 1, rng)[0]

    def _variant(self, id_: str, rng: Random) -> ArcTask:
        wished, task = self._config.curriculum, self._tasks[id_]
        if wished.kind is CurriculumKind.rounds:
            task = permuted(task, rng)
        if wished.kind is CurriculumKind.uniform or not wished.augment:
            return task
        level = self.curriculum.tasks[id_].level
        if level and id_ not in self._streams:
            self._streams[id_] = stream_of(self._tasks[id_], self._config.dataset)
        return augmented(task, level, rng, self._streams.get(id_))

    def noted(self, task: str, successes: list[bool]) -> None:
        """A group of rollouts of this rank, with those that are drawn again later."""
        self._noted.append((task, successes))

    def told(self, step: int, _: Sequence[Scored]) -> None:
        """The drawing is over, on every rank."""
        for part in self._ranks.gather_objects(self._noted):
            for task, successes in part:
                self.curriculum = observe(self.curriculum, task, successes, step)
        self.curriculum = with_moment(self.curriculum, step)
        self._noted = []
        self.write()

    def write(self) -> None:
        if self._ranks.is_main:
            write_curriculum(self._path, self.curriculum)

    def is_enough(self) -> bool:
        """All tasks go: nothing is left to learn. Uniform sampling does not look."""
        return self._config.curriculum.kind is not CurriculumKind.uniform and self.curriculum.is_all_saturated

    def states(self) -> Mapping[str, float]:
        """How many tasks are in each state."""
        states = [task.state.value for task in self.curriculum.tasks.values()]
        return {f"tasks_{state}": float(states.count(state)) for state in sorted(set(states))}

    def save(self, folder: Path) -> None:
        write_curriculum(folder / CURRICULUM, self.curriculum)

    def load(self, checkpoint: Path, state: dict[str, Any]) -> None:
        self.curriculum = read_curriculum(checked_file(checkpoint, CURRICULUM, state), self._data, self._tasks)
        self.write()
