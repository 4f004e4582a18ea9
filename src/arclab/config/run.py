"""What the configuration of every run has, whatever its method: what runs/ and launch/ may ask for.

A root configuration is a dataclass of its method. RunConfig says what it owes; TrainingConfig gives a run that trains most of
it, in exchange for the usual keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Optional, Protocol, Self

from arclab.config.launch_schema import LaunchConfig
from arclab.config.rules import within
from arclab.entries import ENTRIES, load

MAX_TAG_LENGTH = 64  # what W&B takes
MIN_PROFILED_STEPS = 6  # trainer.profile records some steps after others: see arclab.runs.profile


class DeviceChoice(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class WandbMode(Enum):
    """auto: online where an API key is set, offline elsewhere."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class CriterionConfig:
    """What a run must reach: metric (a share of the registry) at least threshold at its end. phase: what PASS and FAIL are
    of."""

    metric: str
    threshold: float
    phase: str

    def check(self, path: str) -> list[str]:
        return within(path, 0.0, 1.0, threshold=self.threshold)


@dataclass(kw_only=True, slots=True)
class WandbConfig:
    """tags: beside those that every run gets (TrainingConfig.wandb_tags). Its default is for runs made before it was a key."""

    mode: WandbMode
    project: str
    group: Optional[str]
    tags: list[str] = field(default_factory=list)

    def check(self, path: str) -> list[str]:
        return [
            f"{path}.tags={tag!r} must have 1 to {MAX_TAG_LENGTH} characters (a rule of W&B); choose another word."
            for tag in self.tags
            if not 1 <= len(tag) <= MAX_TAG_LENGTH
        ]


class Cadence(Protocol):
    """trainer.*: how long a run is, and how often it logs, is judged, scored and saved. In steps of its trainer; 0: never."""

    steps: int
    num_threads: Optional[int]
    device: DeviceChoice
    log_every: int
    eval_every: int
    checkpoint_every: int
    health_every: int
    stop_when_unhealthy: bool


class RunConfig(Protocol):
    """A root configuration, of a run that trains or of one that evaluates. FREE_KEYS: dotted keys, or their beginnings, that
    cannot change what the run makes, so that it may go on with other values of them. HAS_SHARDS: it may be divided by tasks
    (launch.shards). CAN_STEAL: a shard may take tasks of others (launch.steal). HAS_SERVER: it may start a model server
    (launch.server)."""

    __slots__ = ()
    HAS_SHARDS: ClassVar[bool] = False
    CAN_STEAL: ClassVar[bool] = False
    HAS_SERVER: ClassVar[bool] = False
    FREE_KEYS: ClassVar[tuple[str, ...]]
    runs_dir: str
    launch: LaunchConfig

    @property
    def title(self) -> tuple[str, str]:
        """(experiment, name): what the run is called in lists."""
        ...

    @property
    def folder(self) -> Path:
        """The run folder. ValueError if it is that of another run, which has to be there first to say where."""
        ...

    @property
    def num_steps(self) -> int | None:
        """How far the run goes; None: its data decide, and status.json says it."""
        ...

    @property
    def best_metric(self) -> str:
        """The share by which lists say how good the run is."""
        ...

    @property
    def stops_when_unhealthy(self) -> bool: ...

    @property
    def is_done_again(self) -> bool:
        """Does the same command, given by hand once more, do a finished run again, also with other settings?"""
        ...

    def settled(self, held: Self) -> Self:
        """The same with what it leaves open as the run of the same folder, `held`, has found it."""
        ...

    def begins_as(self, num_steps: int) -> bool:
        """Is it longer than num_steps, and the same up to there as the run that ends there?"""
        ...

    def inputs(self) -> dict[str, Path]:
        """{key: path} of what must be there before the run can start, other runs' folders included."""
        ...


class UsualRunConfig(RunConfig, Protocol):
    """What most runs say: they need nothing, are done once, leave nothing open, and do not go on with a shorter one."""

    __slots__ = ()

    @property
    def stops_when_unhealthy(self) -> bool:
        return False

    @property
    def is_done_again(self) -> bool:
        return False

    def settled(self, held: Self) -> Self:
        return self

    def begins_as(self, num_steps: int) -> bool:
        return False

    def inputs(self) -> dict[str, Path]:
        return {}


class TrainingConfig(UsualRunConfig, Protocol):
    """A root configuration of a run that trains: a base class of the method's dataclass. The run folder is
    <runs_dir>/<experiment_name>/<name>; the finished run is left alone."""

    __slots__ = ()
    experiment_name: str
    name: str
    seed: int
    criterion: Optional[CriterionConfig]
    wandb: WandbConfig

    if TYPE_CHECKING:  # a field of the dataclass: an attribute here would pass for its default

        @property
        def trainer(self) -> Cadence: ...

    @property
    def title(self) -> tuple[str, str]:
        return self.experiment_name, self.name

    @property
    def job_type(self) -> str:
        """What W&B sorts its runs by, beside the group."""
        return "train"

    @property
    def wandb_tags(self) -> tuple[str, ...]:
        """By what W&B can find the run; wandb.tags come on top. A method may add its own words."""
        return (self.experiment_name,)

    @property
    def folder(self) -> Path:
        return Path(self.runs_dir) / self.experiment_name / self.name

    @property
    def num_steps(self) -> int | None:
        return self.trainer.steps

    @property
    def scored_metric(self) -> str:
        """The share of the tasks scored during training by which the run is known, if no criterion says another one."""
        return "all.exact_accuracy"

    @property
    def best_metric(self) -> str:
        return self.criterion.metric if self.criterion else self.scored_metric

    @property
    def selection_metric(self) -> str:
        """The share by which one checkpoint is better than another: measured on scored tasks, never on training rows."""
        return self.scored_metric if self.best_metric.startswith("train/") else self.best_metric

    @property
    def stops_when_unhealthy(self) -> bool:
        return self.trainer.stop_when_unhealthy


class EvaluationConfig(UsualRunConfig, Protocol):
    """A root configuration of a run that scores something: a base class of the method's dataclass. Given by hand, the same
    command scores again; in a job file, what is DONE is done."""

    __slots__ = ()

    @property
    def num_steps(self) -> int | None:
        return None

    @property
    def best_metric(self) -> str:
        return "ARC/pass@2"

    @property
    def is_done_again(self) -> bool:
        return True


def unsupported_launch(config: Any, script: str) -> list[str]:
    """What launch asks for and this kind of run cannot do. config: typed. script: that starts it."""
    launch, problems = getattr(config, "launch", None), list[str]()
    if launch is not None and launch.shards > 1 and not getattr(config, "HAS_SHARDS", False):
        divided = sorted(
            {row.choice or row.script for row in ENTRIES.values() if getattr(load(row.schema), "HAS_SHARDS", False)}
        )
        problems.append(
            f"launch.shards={launch.shards} divides tasks between jobs, which {script} does for {', '.join(divided)} alone; "
            "set launch.shards=1 (ranks are launch.gpus, launch.cpus and launch.nodes)."
        )
    if launch is not None and launch.steal and not getattr(config, "CAN_STEAL", False):
        problems.append(
            "launch.steal=true is for evaluations whose solver asks a language model; set launch.steal=false, and the shares "
            "stay as they are."
        )
    if launch is not None and launch.server is not None and not getattr(config, "HAS_SERVER", False):
        problems.append(f"launch.server={launch.server.value} serves what draws from a language model; set launch.server=null.")
    return problems
