"""What the configuration of a method that improves itself in rounds has: the stages of a round, and which of them to run.

    python self_improve.py method=tree_search stage=collect round=0 name=a      # one stage: a run of its own, in its own folder
    python self_improve.py method=tree_search stage=round rounds=2 name=a       # all stages of all rounds, one after the other

A method's dataclass has StagedConfig as its base class, names its stages in order in STAGES, and has a field `stage`, an enum
with these names and `round`. arclab.runs.stages runs them.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Optional, Protocol, Self

from arclab.config.launch_schema import LaunchConfig
from arclab.config.run import CriterionConfig, DeviceChoice, UsualRunConfig

ROUND = "round"  # of stage=: the whole of it


class StagedConfig(UsualRunConfig, Protocol):
    """round: of the stage, from 0. rounds: how many stage=round makes; it may be raised later. The folder of stage=round is
    <runs_dir>/<experiment_name>/<name>, and those of its stages lie in it: round_0/<stage>. PARALLEL_STAGES: those that work
    task by task, so that launch.shards divides them. SERVED_STAGES: those whose model may be behind a server
    (launch.server)."""

    __slots__ = ()
    FREE_KEYS: ClassVar[tuple[str, ...]] = ("launch.", "rounds", "device", "num_threads")
    STAGES: ClassVar[tuple[str, ...]]
    PARALLEL_STAGES: ClassVar[tuple[str, ...]] = ()
    SERVED_STAGES: ClassVar[tuple[str, ...]] = ()
    experiment_name: str
    name: str
    seed: int
    round: int
    rounds: int
    device: DeviceChoice
    num_threads: Optional[int]
    criterion: Optional[CriterionConfig]
    launch: LaunchConfig

    if TYPE_CHECKING:  # a field of the dataclass: an attribute here would pass for its default

        @property
        def stage(self) -> Enum: ...

    @property
    def is_whole(self) -> bool:
        """Is it stage=round?"""
        return self.stage.value == ROUND

    @property
    def title(self) -> tuple[str, str]:
        part = f"-{self.round}-{self.stage.value}{self.launch.shard_suffix}"
        return self.experiment_name, self.name if self.is_whole else f"{self.name}{part}"

    @property
    def folder(self) -> Path:
        return self.launch.folder_in(self.whole_folder)

    @property
    def whole_folder(self) -> Path:
        """Also of a shard, whose own lies in it."""
        return self.root if self.is_whole else self.folder_of(self.stage.value, self.round)

    @property
    def root(self) -> Path:
        return Path(self.runs_dir) / self.experiment_name / self.name

    def folder_of(self, stage: str, number: int) -> Path:
        return self.root / f"round_{number}" / stage

    def at(self, stage: str, number: int) -> Self:
        """The same with one stage of one round to run."""
        changed: Any = {"stage": type(self.stage)(stage), "round": number}
        return replace(self, **changed)  # pyright: ignore[reportArgumentType]

    @property
    def order(self) -> list[tuple[str, int]]:
        """(stage, round) of all that stage=round does. A method with stages that some rounds leave out says so here."""
        return [(stage, number) for number in range(self.rounds) for stage in self.STAGES]

    @property
    def num_steps(self) -> int | None:
        """Stages, of stage=round; a stage that trains says its own."""
        return len(self.order) if self.is_whole else None

    @property
    def best_metric(self) -> str:
        return self.criterion.metric if self.criterion else "ARC/pass@2"

    def inputs(self) -> dict[str, Path]:
        """The stage before this one, in its round or in the one before; a method may know better. And the shards."""
        if self.is_whole:
            return {}
        before = [place for place in self.order_up_to(self.round) if place != (self.stage.value, self.round)]
        found = {"stage": self.folder_of(*before[-1])} if before else {}
        return found | self.launch.shard_folders(self.whole_folder)

    def order_up_to(self, number: int) -> list[tuple[str, int]]:
        """The stages that come before this one and it itself, whatever rounds= is."""
        places = replace(self, rounds=number + 1).order  # pyright: ignore[reportArgumentType]
        here = (self.stage.value, self.round)
        return places[: places.index(here) + 1] if here in places else places

    def check_stages(self) -> list[str]:
        """The broken rules, for the dataclass's own check."""
        found = []
        if self.round < 0:
            found.append(f"round={self.round} must be at least 0, the first one; change it.")
        if self.rounds < 1:
            found.append(f"rounds={self.rounds} must be at least 1; change it.")
        if self.is_whole and self.round != 0:
            found.append(f"round={self.round} names a round for one stage, and stage=round makes them all; drop round=.")
        if self.launch.shards > 1 and self.stage.value not in self.PARALLEL_STAGES:
            able = " or ".join(f"stage={stage}" for stage in self.PARALLEL_STAGES) or "no stage"
            found.append(
                f"launch.shards={self.launch.shards} divides tasks between jobs, which {able} can do here and "
                f"stage={self.stage.value} cannot; set launch.shards=1, or run such a stage by itself."
            )
        if self.launch.server is not None and self.SERVED_STAGES and self.stage.value not in (*self.SERVED_STAGES, ROUND):
            able = " and ".join(f"stage={stage}" for stage in (*self.SERVED_STAGES, ROUND))
            found.append(
                f"launch.server={self.launch.server.value} serves what {able} draw, and stage={self.stage.value} draws nothing "
                "from a server; set launch.server=null."
            )
        return found
