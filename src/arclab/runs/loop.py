"""The one training loop, for any method: it counts steps, logs, judges, scores, saves and stops.

    with logger, profiler:
        Loop(config.trainer, trainer, run, ranks, logger=logger, monitor=monitor, stop=stop, profiler=profiler, bar=bar).run()

What a step is belongs to the method, which hands in a Trainer. The loop runs on every rank; rank 0 alone has a logger and a
monitor. Told to end (arclab.runs.preempt), all ranks save after the same step and run() returns early. It makes nothing and
chooses nothing: model, data, logger and folder are made by whoever calls it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor
from tqdm import tqdm

from arclab.config.run import Cadence
from arclab.metrics.logger import MetricLogger
from arclab.metrics.verdicts import Level
from arclab.runs.folder import RunDir, State
from arclab.runs.lock import keeper
from arclab.runs.monitor import HealthMonitor, UnhealthyRun, is_due
from arclab.runs.preempt import StopRequest
from arclab.runs.profile import StepProfiler
from arclab.runs.ranks import Ranks


class Trainer(Protocol):
    """What a method does in a step, and what it keeps. Every rank calls every method, in the same order."""

    @property
    def step(self) -> int:
        """Steps done so far, those of earlier processes included."""
        ...

    @property
    def rows_per_step(self) -> int:
        """Rows of all ranks in a step: what train_samples_per_s counts."""
        ...

    @property
    def shown(self) -> Mapping[str, str]:
        """What the progress bar shows: {label: metric}."""
        ...

    @property
    def finite(self) -> Sequence[str]:
        """Metrics that end the run when they are not finite."""
        ...

    @property
    def divergence_remedy(self) -> str:
        """What to change then, as the end of a sentence."""
        ...

    @property
    def can_evaluate(self) -> bool: ...

    def train_step(self, votes: list[Tensor]) -> None:
        """One step. votes are summed over ranks in place, together with whatever else is."""
        ...

    def metrics(self) -> dict[str, float]:
        """Registered metrics since the last call, over all ranks."""
        ...

    def last_norms(self) -> dict[str, float]:
        """Numbers of the last step without which its weights must not be saved: see finite."""
        ...

    def evaluate(self, logger: MetricLogger | None) -> dict[str, float]:
        """Scores on the tasks of the run; remembers the best. Tables go to the logger."""
        ...

    def save(self, runtime_s: float) -> None:
        """A checkpoint of this step. runtime_s: seconds of training so far (rank 0 knows them)."""
        ...


class Loop:
    """See the module. bar: shows steps; the caller closes it."""

    def __init__(
        self,
        cadence: Cadence,
        trainer: Trainer,
        run: RunDir,
        ranks: Ranks,
        *,
        logger: MetricLogger | None,
        monitor: HealthMonitor | None,
        stop: StopRequest,
        profiler: StepProfiler,
        bar: tqdm,  # pyright: ignore[reportMissingTypeArgument]
    ) -> None:
        self._cadence, self._trainer, self._run_dir, self._ranks = cadence, trainer, run, ranks
        self._logger, self._monitor, self._stop, self._profiler, self._bar = logger, monitor, stop, profiler, bar
        self._require_held = keeper(run)
        self._logged_step, self._logged_at = trainer.step, time.monotonic()

    def run(self) -> None:
        """Train to cadence.steps, or to where the run is told to end. ValueError if a metric stops being finite; UnhealthyRun,
        with a checkpoint saved, if the run may be stopped and its health says so."""
        if self._logger is not None:
            self._run_dir.write_status(State.running, self._trainer.step)
        while self._trainer.step < self._cadence.steps:
            votes = self._stop.vote(self._trainer.step + 1)
            self._trainer.train_step(votes)
            self._profiler.step()
            self._bar.update()
            is_told = self._finish_step(votes)
            if is_told:
                break

    def _finish_step(self, votes: list[Tensor]) -> bool:
        """What is due after a step; True if the run was told to end."""
        step = self._trainer.step
        is_last, is_eval = step == self._cadence.steps, self._is_eval(step)
        row = self._measure(step) if self._is_logged(step) else {}
        if is_eval:
            row |= self._trainer.evaluate(self._logger)
            self._logged_step, self._logged_at = step, time.monotonic()
        if row:
            self._log(row, step)
        self._require_finite(row)
        unhealthy, is_told = self._stop_reason(step), self._stop.is_agreed(votes)
        if step % self._cadence.checkpoint_every == 0 or is_last or is_eval or unhealthy or is_told:
            self._save(step)
        if unhealthy:
            raise UnhealthyRun(unhealthy)
        return is_told

    def _is_logged(self, step: int) -> bool:
        cadence = self._cadence
        return step % cadence.log_every == 0 or step == cadence.steps or is_due(cadence.health_every, step)

    def _is_eval(self, step: int) -> bool:
        every = self._cadence.eval_every
        return self._trainer.can_evaluate and every > 0 and (step % every == 0 or step == self._cadence.steps)

    def _measure(self, step: int) -> dict[str, float]:
        elapsed = time.monotonic() - self._logged_at
        row = self._trainer.metrics()
        rows = (step - self._logged_step) * self._trainer.rows_per_step
        row["timing/train_samples_per_s"] = rows / max(elapsed, 1e-9)
        self._logged_step, self._logged_at = step, time.monotonic()
        shown = {label: f"{row[name]:.3f}" for label, name in self._trainer.shown.items() if name in row}
        self._bar.set_postfix(shown, refresh=False)
        return row

    def _log(self, row: dict[str, float], step: int) -> None:
        """The row with the verdict of a health check, which also goes to status.json and, if it is bad news, to W&B."""
        if self._logger is None:
            return
        self._require_held()
        verdict = self._monitor.observe(row, step) if self._monitor is not None else None
        if verdict is None or self._monitor is None:
            self._logger.write(step, row)
            return
        kind, level = verdict.kind.value, verdict.level
        self._logger.write(step, row, {"health": kind, "health_level": level.value, "health_note": str(verdict)})
        if self._monitor.is_news(verdict):
            folder = self._run_dir.path
            title = f"{folder.parent.name}/{folder.name}: {kind}"
            self._logger.alert(title, self._monitor.message, is_bad=level is Level.bad)
        self._run_dir.write_status(State.running, step, self._monitor.message)

    def _require_finite(self, metrics: Mapping[str, float]) -> None:
        bad = [name for name in self._trainer.finite if not math.isfinite(metrics.get(name, 0.0))]
        if bad:
            raise ValueError(
                f"training diverged: {bad[0]} is {metrics[bad[0]]} at step {self._trainer.step}; "
                f"{self._trainer.divergence_remedy}, and start a run with another name."
            )

    def _stop_reason(self, step: int) -> str | None:
        """Rank 0 decides and every rank stops; nobody talks unless the run may be stopped and health is due."""
        if not self._cadence.stop_when_unhealthy or not is_due(self._cadence.health_every, step):
            return None
        return self._ranks.gather_objects(self._monitor.stop if self._monitor is not None else None)[0]

    def _save(self, step: int) -> None:
        self._require_finite(self._trainer.last_norms())  # good checkpoints must outlive a bad step
        if self._logger is not None:
            if not self._run_dir.config.is_file():
                raise ValueError(
                    f"the run folder {self._run_dir.path} was moved or emptied while the run trains; put it back and give the "
                    "command again."
                )
            self._require_held()
        self._trainer.save(self._logger.runtime_s if self._logger is not None else 0.0)
        if self._logger is not None:
            self._run_dir.write_status(State.running, step, self._monitor.message if self._monitor is not None else "")
