"""Which checkpoint of a run is taken: the newest one, the best one by its own evaluations, or one that was asked for.

    choice = choose_checkpoint(Path("runs/quickstart/a@best"), lambda run: config_of(run).selection_metric)
    choice.path, choice.rule, str(choice)            # its folder; best, last or asked; a sentence for the log

Given are a run folder, alone or with @best, @last or @STEP (arclab.config.checkpoint_key), or the folder of a checkpoint. The
best one is that of the highest score in metrics.jsonl, which CheckpointFolder keeps whatever its age. It loads no weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arclab.config.checkpoint_key import BEST, LAST, CheckpointWish, checkpoint_wish
from arclab.files import DamagedFile, step_folders
from arclab.metrics.best import Best, best_score, scores_by_step
from arclab.runs.checkpoints import STATE_FILE, newest_checkpoint, read_state

log = logging.getLogger(__name__)
Rule = Literal["best", "last", "asked"]


@dataclass(frozen=True, slots=True)
class Choice:
    """path: the folder of the checkpoint. best: the best score of the run up to its newest checkpoint, and own: that of this
    one; None where they are not known. newest: the step of the run's newest checkpoint."""

    path: Path
    step: int
    rule: Rule
    newest: int
    best: Best | None = None
    own: Best | None = None

    @property
    def is_behind(self) -> bool:
        """Is another step of the run known to be better?"""
        return self.best is not None and self.best.step != self.step and (self.own is None or self.own.value < self.best.value)

    @property
    def reason(self) -> str:
        """Why this step, in a few words."""
        if self.rule == "best" and self.best is not None:
            return f"best by {self.best.metric}"
        return "newest" if self.rule == "last" else "asked for"

    def __str__(self) -> str:
        text = f"the checkpoint is that of step {self.step} ({self.reason}"
        if self.rule != "last" and self.step != self.newest:
            text += f"; the newest is that of step {self.newest}"
        text += ")"
        if self.best is None or not self.is_behind:
            return text
        own = "" if self.own is None else f", and here {100 * self.own.value:.1f} %"
        return f"{text}; the best score of the run is {self.best}{own}: checkpoint=RUN@{BEST} takes that step"


def choose_checkpoint(given: Path, metric_of: Callable[[Path], str]) -> Choice:
    """metric_of: run folder -> the share of its evaluations that decides which one is best. ValueError, in one sentence: there
    is no such checkpoint, or no score to choose by."""
    wish = checkpoint_wish(given)
    newest = newest_checkpoint(wish.path)
    if (wish.path / STATE_FILE).is_file():
        if wish.which:
            raise ValueError(
                f"checkpoint={given}: {wish.path} is one checkpoint, and @{wish.which} chooses among those of a run; give it "
                f"without @, or {wish.run_folder}@{wish.which}."
            )
        step = read_state(wish.path)["step"]
        return Choice(wish.path, step, "asked", step)
    steps = {_step_of(path): path for path in step_folders(wish.path / "checkpoints")}
    last, metrics = _step_of(newest), wish.path / "metrics.jsonl"
    if wish.which != BEST:
        path = _asked(given, wish, steps, newest)
        rule: Rule = "last" if wish.which in ("", LAST) else "asked"
        try:
            scores, best = _scores(metrics, metric_of(wish.path), last)
        except DamagedFile as error:  # of no concern to these weights
            log.warning("note: which checkpoint of %s is the best one is not known: %s", wish.path, error)
            return Choice(path, _step_of(path), rule, last)
        return Choice(path, _step_of(path), rule, last, best, scores.get(_step_of(path)))
    metric = metric_of(wish.path)
    scores, best = _scores(metrics, metric, last)
    if best is None or best.step is None:
        raise ValueError(
            f"checkpoint={given}: {metrics} has no value of {metric}, by which the best checkpoint would be chosen; give "
            f"{wish.path}@{LAST} or one of the steps {_listed(steps)}, or train with trainer.eval_every above 0."
        )
    if best.step not in steps:
        raise ValueError(
            f"checkpoint={given}: the best score is {best}, and the checkpoint of that step is not there; there are those of "
            f"steps {_listed(steps)}: give {wish.path}@STEP with one of them, or @{LAST}."
        )
    return Choice(steps[best.step], best.step, "best", last, best, best)


def _scores(metrics: Path, metric: str, until: int) -> tuple[dict[int, Best], Best | None]:
    return scores_by_step(metrics, metric), best_score(metrics, metric, until=until)


def _asked(given: Path, wish: CheckpointWish, steps: dict[int, Path], newest: Path) -> Path:
    if wish.step is None:
        return newest
    if wish.step not in steps:
        raise ValueError(
            f"checkpoint={given}: {wish.path} has no checkpoint of step {wish.step}; there are those of steps "
            f"{_listed(steps)}: give one of them, @{BEST} or @{LAST}."
        )
    return steps[wish.step]


def _listed(steps: dict[int, Path]) -> str:
    return ", ".join(map(str, sorted(steps)))


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))
