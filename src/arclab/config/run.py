"""What the configuration of every run has, whatever its method: what runs/ and launch/ may ask for.

A root configuration is a dataclass of its method; these protocols say which keys it owes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar, Optional, Protocol

from arclab.config.launch_schema import LaunchConfig
from arclab.config.rules import within

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
    mode: WandbMode
    project: str
    group: Optional[str]


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
    """A root configuration. The run folder is <runs_dir>/<experiment_name>/<name>. FREE_KEYS: dotted keys, or their
    beginnings, that cannot change what is trained, so that a run may go on with other values of them."""

    FREE_KEYS: ClassVar[tuple[str, ...]]
    experiment_name: str
    name: str
    runs_dir: str
    seed: int
    launch: LaunchConfig
    criterion: Optional[CriterionConfig]
    wandb: WandbConfig

    @property
    def trainer(self) -> Cadence: ...

    def settled(self, held: RunConfig) -> RunConfig:
        """The same with what it leaves open as the run of the same folder, `held`, has found it. Of one class with it."""
        ...

    def inputs(self) -> dict[str, Path]:
        """{key: path} of what must be there before the run can start, other runs' folders included."""
        ...
