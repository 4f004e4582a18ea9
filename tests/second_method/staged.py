"""A method in rounds, as small as it can be: `count` writes numbers, `total` adds them to the total of the round before."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar, Optional

from arclab.config.launch_schema import LaunchConfig
from arclab.config.run import CriterionConfig, DeviceChoice
from arclab.config.stages_schema import StagedConfig
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage, run_stages
from arclab.runs.worklist import Worklist


class LineStage(Enum):
    count = "count"
    total = "total"
    round = "round"


@dataclass(kw_only=True, slots=True)
class LineStagesConfig(StagedConfig):
    STAGES: ClassVar[tuple[str, ...]] = ("count", "total")
    experiment_name: str
    name: str
    runs_dir: str
    seed: int
    stage: LineStage
    round: int
    rounds: int
    device: DeviceChoice
    num_threads: Optional[int]
    criterion: Optional[CriterionConfig]
    launch: LaunchConfig
    items: int

    def check(self, path: str) -> list[str]:
        return self.check_stages()


def count(config: LineStagesConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    before = {"total": config.folder_of("total", config.round - 1) / "total.json"} if config.round else {}

    def work(run: RunDir, progress: WorkProgress) -> Made:
        worklist = Worklist(run.path / "numbers.jsonl", {"seed": config.seed})
        done = worklist.load(lambda record, _: record["number"])
        for number in range(len(done), config.items):
            if progress.is_told:
                raise ToldToEnd(f"{number} of {config.items} are counted")
            worklist.add(str(number), {"number": number})
        return Made(outputs=[run.path / "numbers.jsonl"], counts={"numbers": config.items}, message="counted")

    return make_stage(config, ranks, signals, folder, before, config.items, work)


def total(config: LineStagesConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    numbers = config.folder_of("count", config.round) / "numbers.jsonl"

    def work(run: RunDir, progress: WorkProgress) -> Made:
        rows = Worklist(numbers, {"seed": config.seed}).load(lambda record, _: record["number"])
        (run.path / "total.json").write_text(json.dumps(sum(rows.values())))
        return Made(outputs=[run.path / "total.json"], counts={"total": sum(rows.values())}, message="added")

    return make_stage(config, ranks, signals, folder, {"numbers": numbers}, 1, work)


def improve(config: LineStagesConfig, given: RunDir | None = None) -> int:
    def conclude(config: LineStagesConfig, run: RunDir) -> str:
        totals = [json.loads(Path(config.folder_of("total", k) / "total.json").read_text()) for k in range(config.rounds)]
        return f"totals {totals}"

    return run_stages(config, given, {"count": count, "total": total}, conclude)
