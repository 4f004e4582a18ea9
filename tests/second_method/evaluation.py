"""How that line answers tasks: grids of the colour that it predicts. It makes an answer at a time, and keeps each as it comes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional

import numpy as np

from arclab.config.compose import flat
from arclab.config.launch_schema import LaunchConfig
from arclab.config.run import DeviceChoice, EvaluationConfig
from arclab.data.sources import load_source
from arclab.files import step_folders
from arclab.pages.publish import publish
from arclab.results.attempts import Attempts, Candidate
from arclab.results.writing import Evaluation, Subject
from arclab.runs.checkpoints import load_tensors, read_state
from arclab.runs.folder import RunDir, State, provenance
from arclab.runs.lifecycle import RecordFailure, RunFolder, WorkProgress, in_ranks, until_told
from arclab.runs.preempt import ToldToEnd
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.worklist import Worklist


@dataclass(kw_only=True, slots=True)
class LineEvaluationConfig(EvaluationConfig):
    FREE_KEYS: ClassVar[tuple[str, ...]] = ("launch.",)
    checkpoint: str
    name: Optional[str]
    runs_dir: str
    tasks: str
    launch: LaunchConfig

    @property
    def title(self) -> tuple[str, str]:
        return "second", f"{Path(self.checkpoint).name}-{self.folder.name}"

    @property
    def folder(self) -> Path:
        return Path(self.checkpoint) / "evaluation" / (self.name or "train")

    def inputs(self) -> dict[str, Path]:
        return {"checkpoint": Path(self.checkpoint)}


def evaluate(config: LineEvaluationConfig, given: RunDir | None = None) -> int:
    def work(ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
        return _evaluate(config, ranks, signals, folder)

    return in_ranks(work, config, given, DeviceChoice.cpu, None)


def _evaluate(config: LineEvaluationConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    run = folder.run
    with folder.building():
        tasks = load_source(config.tasks)
        checkpoint = step_folders(Path(config.checkpoint) / "checkpoints")[-1]
        state = read_state(checkpoint)
        slope, offset = load_tensors(checkpoint, "model.safetensors", state)["weights"].tolist()
        with folder.held(config, ()), RecordFailure(run):
            progress = WorkProgress(run, ranks, signals, len(tasks))

            def work() -> str:
                worklist = Worklist(run.path / "answers.jsonl", {"tasks": config.tasks, "step": state["step"]})
                answers: dict[str, Any] = worklist.load(lambda record, _: record["color"])
                for number, task in enumerate(tasks):
                    if progress.is_told:
                        raise ToldToEnd(f"{number} of {len(tasks)} answers are kept")
                    if task.id not in answers:
                        answers[task.id] = round(slope * number + offset) % 10
                        worklist.add(task.id, {"color": answers[task.id]})
                    progress.report(number + 1)
                grids = {t.id: [np.full_like(test.input, answers[t.id]) for test in t.tests] for t in tasks}
                found = Attempts({(id_, n): [Candidate(g, 1, 1.0)] for id_, of in grids.items() for n, g in enumerate(of)})
                record = {"split": "train", "step": state["step"], "solver": "line"}
                result = Evaluation(
                    Subject(config.title, {"solver": "line"}, {"folder": str(run.path)}, record, flat(config)),
                    tasks, found, (), (), provenance(),
                )  # fmt: skip
                return publish(result, run.path)

            return until_told(run, ranks, progress, work)
