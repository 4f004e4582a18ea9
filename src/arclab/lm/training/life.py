"""A trainer of trl with the life of a run: steps are logged, judged, scored and saved as those of every run, and the same
command goes on.

    class Sft(LivesInRun, SFTTrainer): ...
    trainer = Sft(model=..., args=arguments(...), ..., callbacks=[RunLife(...)]).live(folder, weights)
    trainer.go_on()                                   # from the newest checkpoint of the run, or from the start

trl and transformers train; RunLife says when to log, to score and to save, and ends the training when the run is told to.
Checkpoints are those of arclab.runs.checkpoints: whole or not there, with digests, holding the weights that train, the
optimiser, the schedule, the generators and the trainer's own state. A continued run equals one that was left alone (CPU,
float32)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback

from arclab.config.run import Cadence
from arclab.lm.switched import require_same_tensors
from arclab.metrics.best import best_score
from arclab.metrics.logger import MetricLogger
from arclab.metrics.names import REGISTRY
from arclab.metrics.verdicts import Level
from arclab.runs.checkpoints import CheckpointFolder, load_tensors, read_state, save_tensors
from arclab.runs.folder import RunDir, State
from arclab.runs.lock import keeper
from arclab.runs.monitor import HealthMonitor, UnhealthyRun, is_due
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks

log = logging.getLogger(__name__)
WEIGHTS_FILE = "model.safetensors"
# transformers' and trl's names of what they log, and ours. What they log under one of our names keeps it.
SFT_NAMES: Mapping[str, str] = {
    "loss": "train/lm_loss",
    "grad_norm": "grad/total_norm",
    "learning_rate": "train/lr",
    "mean_token_accuracy": "train/token_accuracy",
    "entropy": "train/token_entropy",
}
Evaluate = Callable[[int, MetricLogger | None], dict[str, float]]


class DivergedError(ValueError):
    """The loss, its gradient or the weights are no longer finite."""


class Weights(Protocol):
    """What a run trains, as named tensors."""

    def tensors(self) -> dict[str, Tensor]: ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """ValueError, in one sentence: other names or shapes."""
        ...


class Kept(Protocol):
    """What a run keeps in its checkpoints beside weights and optimiser. Rank 0 saves; every rank loads."""

    def save(self, folder: Path) -> None: ...

    def load(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """state: of the checkpoint, to check files by. ValueError: it is damaged."""
        ...


class AllWeights:
    """Every parameter of a model, by name; tied ones once."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._model.named_parameters())

    def load(self, tensors: dict[str, Tensor]) -> None:
        require_same_tensors(self.tensors(), tensors, "the model")
        self._model.load_state_dict(tensors, strict=False)  # tied weights have one name here and two there


class TrainedWeights:
    """The parameters of a model that want a gradient: of an adapter, its own alone."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def tensors(self) -> dict[str, Tensor]:
        return {name: parameter for name, parameter in self._model.named_parameters() if parameter.requires_grad}

    def load(self, tensors: dict[str, Tensor]) -> None:
        own = self.tensors()
        require_same_tensors(own, tensors, "the model")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])


class RunLife(TrainerCallback):
    """See the module. Rank 0 has a logger and a monitor. evaluate: scores at this step (every rank calls it); None: never.
    divergence_remedy: what to change, as the end of a sentence. names: of what the trainer logs -> registered ones. is_enough:
    nothing is left to learn, so that this step is the last one; every rank hears the same."""

    def __init__(
        self,
        cadence: Cadence,
        run: RunDir,
        ranks: Ranks,
        *,
        logger: MetricLogger | None,
        monitor: HealthMonitor | None,
        stop: StopRequest,
        bar: tqdm,  # pyright: ignore[reportMissingTypeArgument]
        evaluate: Evaluate | None,
        rows_per_step: int,
        divergence_remedy: str,
        names: Mapping[str, str] = SFT_NAMES,
        is_enough: Callable[[], bool] | None = None,
    ) -> None:
        self._is_enough = is_enough
        self._cadence, self._run, self._ranks, self._stop, self._bar = cadence, run, ranks, stop, bar
        self.logger, self._monitor, self._evaluate = logger, monitor, evaluate
        self._rows_per_step, self._divergence_remedy = rows_per_step, divergence_remedy
        self._names, self._loss = {**{name: name for name in REGISTRY}, **names}, names["loss"]
        self._require_held, self._scores = keeper(run), dict[str, float]()
        self._logged: tuple[int, float] | None = None
        self._spent_s: dict[str, float] = {}  # of the time since the last log
        self.unhealthy: str | None = None

    @property
    def metrics(self) -> Path:
        return self._run.metrics

    @contextmanager
    def spending(self, share: str) -> Iterator[None]:
        """The time of the block counts in this metric: its share of the time since the last log."""
        begun = time.monotonic()
        yield
        self._spent_s[share] = self._spent_s.get(share, 0.0) + time.monotonic() - begun

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.logger is not None:
            self._run.write_status(State.running, state.global_step)
            self._logged = (state.global_step, self.logger.runtime_s)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, cadence = state.global_step, self._cadence
        self._bar.update(step - self._bar.n)
        votes = self._stop.vote(step)
        self._ranks.sum_(votes)
        is_enough = self._is_enough is not None and self._is_enough()
        is_told, is_last = self._stop.is_agreed(votes), step == cadence.steps or is_enough
        is_eval = self._evaluate is not None and cadence.eval_every > 0 and (step % cadence.eval_every == 0 or is_last)
        if is_eval and self._evaluate is not None:
            with self.spending("timing/eval_share"):
                self._scores = self._evaluate(step, self.logger)
        control.should_save = step % cadence.checkpoint_every == 0 or is_last or is_eval or is_told
        # What is saved has been looked at: a loss that is not finite ends the run before it can replace a good checkpoint.
        control.should_log = control.should_save or step % cadence.log_every == 0 or is_due(cadence.health_every, step)
        control.should_training_stop = control.should_training_stop or is_told or is_enough

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:  # the summary at the end
            return
        known = {self._names[name]: value for name, value in logs.items() if name in self._names}
        row = {name: float(value) for name, value in known.items() if value is not None} | self._scores
        self._scores = {}
        if self.logger is not None:
            self._write(row, state.global_step)
        bad = [name for name in (self._loss, "grad/total_norm") if not math.isfinite(row.get(name, 0.0))]
        if bad:
            raise DivergedError(
                f"training diverged: {bad[0]} is {row[bad[0]]} at step {state.global_step}; {self._divergence_remedy}, and "
                "start a run with another name."
            )
        if self._cadence.stop_when_unhealthy and is_due(self._cadence.health_every, state.global_step):
            self.unhealthy = self._ranks.gather_objects(self._monitor.stop if self._monitor is not None else None)[0]
            if self.unhealthy:
                control.should_save = control.should_training_stop = True

    def _write(self, row: dict[str, float], step: int) -> None:
        assert self.logger is not None and self._logged is not None
        self._require_held()
        now = self.logger.runtime_s
        elapsed_s = max(now - self._logged[1], 1e-9)
        row["timing/train_samples_per_s"] = (step - self._logged[0]) * self._rows_per_step / elapsed_s
        row |= {share: min(1.0, seconds / elapsed_s) for share, seconds in self._spent_s.items()}
        self._logged, self._spent_s = (step, now), {}
        self._bar.set_postfix({"loss": f"{row[self._loss]:.3f}"}, refresh=False)
        verdict = self._monitor.observe(row, step) if self._monitor is not None else None
        if verdict is None or self._monitor is None:
            self.logger.write(step, row)
        else:
            kind, level = verdict.kind.value, verdict.level
            self.logger.write(step, row, {"health": kind, "health_level": level.value, "health_note": str(verdict)})
            if self._monitor.is_news(verdict):
                title = f"{self._run.path.parent.name}/{self._run.path.name}: {kind}"
                self.logger.alert(title, self._monitor.message, is_bad=level is Level.bad)
        self._run.write_status(State.running, step, self._monitor.message if self._monitor is not None else "")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.unhealthy:
            raise UnhealthyRun(self.unhealthy)


class LivesInRun:
    """Mixed into a trainer of trl, before it: checkpoints of the run instead of the trainer's own. Call live() first."""

    _folder: CheckpointFolder
    _weights: Weights
    _ranks: Ranks
    _record: Mapping[str, Any]
    _life: RunLife
    _selection_metric: str | None
    _kept: Kept | None

    def live(
        self: Any, folder: CheckpointFolder, weights: Weights, ranks: Ranks, life: RunLife, record: Mapping[str, Any],
        selection_metric: str | None = None, kept: Kept | None = None,
    ) -> Any:  # fmt: skip
        """record: what state.json keeps of the run, beside the step and the seconds. selection_metric: see Where. kept: what
        else a checkpoint holds."""
        self._kept = kept
        self._folder, self._weights, self._ranks, self._life, self._record = folder, weights, ranks, life, record
        self._selection_metric = selection_metric
        self.remove_callback(PrinterCallback)
        self.add_callback(life)
        return self

    def go_on(self: Any) -> int:
        """Train from the newest checkpoint; returns the step at which it ended. ValueError: a damaged checkpoint, or weights of
        another shape; training that diverges."""
        steps = self._folder.steps()
        self.train(resume_from_checkpoint=str(self._folder.path(steps[-1])) if steps else None)
        return int(self.state.global_step)

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        state = read_state(checkpoint)
        self._weights.load(load_tensors(checkpoint, WEIGHTS_FILE, state))
        if self._kept is not None:
            self._kept.load(checkpoint, state)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        step, is_main = int(self.state.global_step), self._ranks.is_main
        path = self._ranks.gather_objects(self._folder.begin(step) if is_main else None)[0]
        self._save_optimizer_and_scheduler(str(path))
        self._save_rng_state(str(path))
        if is_main:
            save_tensors(self._weights.tensors(), path / WEIGHTS_FILE)
            self.state.save_to_json(str(path / "trainer_state.json"))
            if self._kept is not None:
                self._kept.save(path)
        self._ranks.barrier()
        if is_main:
            runtime_s = self._life.logger.runtime_s if self._life.logger is not None else 0.0
            metric, metrics = self._selection_metric, self._life.metrics
            best = None if metric is None else best_score(metrics, metric)  # what this step scored was logged before
            best_step = None if best is None else best.step
            self._folder.commit(path, {"step": step, "runtime_s": runtime_s, **self._record}, best_step=best_step)
        self._ranks.barrier()
