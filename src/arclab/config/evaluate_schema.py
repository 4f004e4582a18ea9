"""What evaluate.py takes: a checkpoint, and wishes that replace settings of its run (whose schema is schema.py).

Rules as in schema.py: fields have no defaults (values live in conf/evaluate.yaml), check(path) returns broken rules as
sentences.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Optional

from arclab.config.adaptation_schema import AdaptationConfig, NoAdaptation, WeightAdaptationConfig
from arclab.config.checkpoint_key import CheckpointWish, broken_checkpoint, checkpoint_wish
from arclab.config.dataset_schema import DatasetWishes
from arclab.config.launch_schema import LaunchConfig
from arclab.config.names import broken_name, broken_path
from arclab.config.rules import at_least, sized
from arclab.config.run import DeviceChoice, EvaluationConfig
from arclab.config.saved_file import saved_key
from arclab.config.schema import CanvasRule, EvalHalting, Ranking, SplitName, VotesRule, WeightsKind

RELEASE_FILE = "release.json"  # makes a run folder a release: see arclab.methods.recursive.release


def results_folder(run: Path, runs_dir: str) -> Path:
    """Where new results of a run go: into its folder; of a release, which stays as it was handed on, into
    <runs_dir>/released/NAME."""
    return Path(runs_dir) / "released" / run.resolve().name if (run / RELEASE_FILE).is_file() else run


@dataclass(kw_only=True, slots=True)
class EvaluationWishes:
    """Keys of a run's evaluation that evaluate.py spells as the run does (a bare halting= would name the group of that
    name). The defaults are for evaluations that were made before they were keys."""

    halting: Optional[EvalHalting]
    votes: Optional[VotesRule]
    canvas: Optional[CanvasRule]
    health_tasks: Optional[int] = None
    ranking: Optional[Ranking] = None
    samples: Optional[int] = None
    carry_noise: Optional[float] = None

    def check(self, path: str) -> list[str]:
        return [] if self.health_tasks is None else at_least(path, 0, health_tasks=self.health_tasks)


@dataclass(kw_only=True, slots=True)
class EvaluateConfig(EvaluationConfig):
    """Root of evaluate.py. null means: as the checkpoint's own run was configured; name: the folder in the run's evaluation/
    (null: named after the split, dataset and adaptation), of a release in runs_dir/released; output_dir: a folder anywhere
    else. Tasks of dataset.eval_sources are scored as the split evaluation. The default of adaptation is for evaluations that
    were made before it was a key."""

    HAS_SHARDS: ClassVar[bool] = True
    FREE_KEYS: ClassVar[tuple[str, ...]] = (
        "launch.",
        "device",
        "num_threads",
        "batch_size",
        "output_dir",
        "evaluation.health_tasks",
        "adaptation.batch_size",
    )

    checkpoint: str
    name: Optional[str]
    runs_dir: str
    output_dir: Optional[str]
    weights: WeightsKind
    split: Optional[SplitName]
    num_augmentations: Optional[int]
    batch_size: Optional[int]
    max_tasks: Optional[int]
    dataset: DatasetWishes = field(default_factory=DatasetWishes)
    evaluation: EvaluationWishes
    adaptation: AdaptationConfig = field(default_factory=NoAdaptation)
    device: DeviceChoice
    num_threads: Optional[int]
    launch: LaunchConfig

    @property
    def run_folder(self) -> Path:
        """Of the run that is scored."""
        return self.wish.run_folder

    @property
    def wish(self) -> CheckpointWish:
        return checkpoint_wish(self.checkpoint)

    @property
    def title(self) -> tuple[str, str]:
        name = f"{self.run_folder.name}-{self.whole_folder.name}{self.launch.shard_suffix}"
        return self.run_folder.parent.name, name

    @property
    def folder(self) -> Path:
        return self.launch.folder_in(self.whole_folder)

    @property
    def whole_folder(self) -> Path:
        """Also of a shard, whose own lies in it."""
        if self.output_dir:
            return Path(self.output_dir)
        return results_folder(self.run_folder, self.runs_dir) / "evaluation" / (self.name or self._results_name())

    @property
    def wanted_split(self) -> SplitName | None:
        """None: the run's own."""
        return self.split or (None if self.dataset.eval_sources is None else SplitName.evaluation)

    def _results_name(self) -> str:
        return self.label(self._split_name())

    def label(self, split: str) -> str:
        """What results are told apart by: the split, what was scored of it, at which step if one was asked for, and how the
        model was adapted."""
        label = f"{self.dataset.label(split)}{self.wish.suffix}"
        return label if isinstance(self.adaptation, NoAdaptation) else f"{label}-{self.adaptation.kind}"

    def _split_name(self) -> str:
        if self.wanted_split is not None:
            return self.wanted_split.value
        saved = self.run_folder / "config.yaml"
        if not saved.is_file():
            if near := _neighbour(self.run_folder):
                raise ValueError(f"checkpoint {self.checkpoint} does not exist; did you mean {near}?")
            what = f"has no {saved.name}" if (saved.parent / "checkpoints").is_dir() else "has no checkpoints/step_*"
            what = what if self.run_folder.exists() else "does not exist"
            raise ValueError(
                f"checkpoint {self.checkpoint} {what}, and split is not set; give a run folder or one of its checkpoints, or, "
                f"if a run is still to make it, split={' or split='.join(split.value for split in SplitName)}."
            )
        found = saved_key(saved, "evaluation.split")
        if not isinstance(found, str):
            choices = " or split=".join(split.value for split in SplitName)
            raise ValueError(f"{saved} says no evaluation.split; give split={choices}.")
        return found

    def inputs(self) -> dict[str, Path]:
        return {"checkpoint": self.wish.path} | self.launch.shard_folders(self.whole_folder)

    def check(self, path: str) -> list[str]:
        problems = sized(path, 0, num_augmentations=self.num_augmentations)
        problems += sized(path, 1, batch_size=self.batch_size, num_threads=self.num_threads)
        problems += [] if self.max_tasks is None else at_least(path, 1, max_tasks=self.max_tasks)
        problems += [] if self.name is None else broken_name("name", self.name)
        problems += broken_path("runs_dir", self.runs_dir)
        if self.dataset.eval_sources is not None and self.wanted_split is not SplitName.evaluation:
            problems.append(
                f"split={self._split_name()} are tasks of the run, and dataset.eval_sources names other ones; drop split, or "
                "score the run's own without dataset= and dataset.eval_sources."
            )
        if self.launch.shards > 1 and isinstance(self.adaptation, WeightAdaptationConfig) and self.adaptation.joint:
            problems.append(
                f"launch.shards={self.launch.shards} divides tasks between jobs, and adaptation.joint=true trains on all of "
                "them together; set launch.shards=1, or adaptation.joint=false."
            )
        problems += broken_checkpoint("checkpoint", self.checkpoint)
        if not self.checkpoint:
            problems.append("checkpoint is empty; give checkpoint=RUN_FOLDER or checkpoint=RUN_FOLDER/checkpoints/step_N.")
        return problems


def _neighbour(run: Path) -> Path | None:
    """Of a run that does not exist: the one beside it, or of an experiment spelled nearly so, whose name is nearest. None:
    there is none like it."""
    if run.exists():
        return None
    folders = [run.parent] if run.parent.is_dir() else _near(run.parent)
    found = [near for folder in folders for near in _near(folder / run.name) if (near / "config.yaml").is_file()]
    return found[0] if found else None


def _near(path: Path) -> list[Path]:
    siblings = {each.name: each for each in path.parent.iterdir() if each.is_dir()} if path.parent.is_dir() else {}
    return [siblings[name] for name in difflib.get_close_matches(path.name, list(siblings))]
