"""Rounds of a few toy tasks. Who searches is a script that knows their programs and errs; what is trained is a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arclab.config.llm_schema import ModelConfig
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask
from arclab.launch.start import start
from arclab.lm.endpoint import started
from arclab.lm.language_model import Prompt, Sampling
from arclab.lm.scripted import ScriptedModel
from arclab.programs.toy import STEPS_ROOT, solution_steps

from ..common import chance

SOURCE = "toy:color_map?tasks=%d&side=3&colors=3&palette=6&demos=1&split=%s"
TRAIN, TEST = SOURCE % (4, "train"), SOURCE % (3, "test")
Run = Callable[..., int]


class Writers:
    """made: names of the policies that were loaded. error: of a step, by the end of the policy's name."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.error: dict[str, float] = {"": 0.3}
        self.known = {digits_of(task): solution_steps(task) for source in (TRAIN, TEST) for task in load_source(source)}

    def load(self, config: ModelConfig) -> ScriptedModel:
        self.made.append(config.name)
        error = next(self.error[end] for end in sorted(self.error, key=len, reverse=True) if config.name.endswith(end))

        def say(prompt: Prompt, sample: int, sampling: Sampling) -> str:
            lines = self.known["".join(filter(str.isdigit, prompt[0].content))]
            return _next(prompt[-1].content, lines, error, chance(prompt, sample, sampling))

        return ScriptedModel(seeded=say)


def digits_of(task: ArcTask) -> str:
    """All cells that its prompt shows, in their order."""
    grids = [grid for pair in task.demos for grid in (pair.input, pair.output) if grid is not None]
    return "".join(str(cell) for grid in grids for cell in grid.ravel())


def _next(written: str, lines: list[str], error: float, rng: np.random.Generator) -> str:
    number = written.removeprefix(STEPS_ROOT).count("#;")
    line = lines[number]
    if number == len(lines) - 1:
        return f"\n    {line} #."
    if rng.random() < error:
        line = f"m[{number}] = {rng.integers(6)}"
    return f"\n    {line} #;"


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> Writers:
    made = Writers()
    monkeypatch.setattr(started, "load_language_model", made.load)
    return made


@pytest.fixture
def run(tiny_lm: Path, tmp_path: Path) -> Run:
    def call(*overrides: str) -> int:
        return start("self_improve.py", [
            "experiment=search_quickstart", f"runs_dir={tmp_path}", f"lm.name={tiny_lm}", "scratch=null", "device=cpu",
            f'dataset.train_sources=["{TRAIN}"]', f'dataset.eval_sources=["{TEST}"]', "sandbox.num_workers=1", "num_threads=1",
            "sandbox.min_isolation=limits", "sft.steps=2", "sft.warmup_steps=0", "sft.batch_size=2", "search.num_draws=40",
            "criterion.threshold=0.5", *([] if any(o.startswith("name=") for o in overrides) else ["name=a"]), *overrides,
        ])  # fmt: skip

    return call
