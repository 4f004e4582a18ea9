"""A tiny language model that is taught to write the output grids of toy tasks, for controls of what adapts a model to tasks.

    train_transduction(folder, tasks, text, seed=0, sizes=TransductionSizes(steps=1000))      # the folder of the model

The model is made on the spot (arclab.lm.tiny) and trained on the questions that the solver asks (task_text.question), each test
pair of each task once an epoch. The same call goes on after a kill. It knows nothing but its toy tasks.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arclab.config.llm_schema import Dtype, HfModelConfig, LmAttention
from arclab.config.run import DeviceChoice
from arclab.config.seal_schema import GridTextConfig
from arclab.data.tasks import ArcTask
from arclab.lm.hf import load_hf
from arclab.lm.language_model import Prompt
from arclab.lm.tiny import build_tiny
from arclab.lm.training.finetune import FinetuneSettings, finetune
from arclab.methods.seal.task_text import output_of, question
from arclab.programs.prompts import format_grid

UNTRAINED, TRAINED = "untrained", "trained"
_TEXTS = 2000  # questions that the tokenizer is made from


@dataclass(frozen=True, slots=True)
class TransductionSizes:
    """Of the model, its training and its context in tokens."""

    num_layers: int = 3
    width: int = 64
    num_heads: int = 4
    context: int = 512
    steps: int = 1000
    batch_size: int = 32
    lr: float = 2e-3
    vocab_size: int = 320


def transduction_rows(tasks: Sequence[ArcTask], text: GridTextConfig, seed: int) -> list[tuple[Prompt, str]]:
    """Question and reply for each test pair whose output is known. A question shows one demonstration or more, as many as are
    drawn: pseudo-tasks show fewer than tasks do, and must not be strange to the model for that alone."""
    rng, found = np.random.default_rng(seed), list[tuple[Prompt, str]]()
    for task in tasks:
        demos = task.demos[: int(rng.integers(1, len(task.demos), endpoint=True))]
        for test in task.tests:
            found.append((question(demos, test.input, text), format_grid(output_of(test), text.grid_format)))
    return found


def train_transduction(
    folder: Path, tasks: Sequence[ArcTask], text: GridTextConfig, seed: int, sizes: TransductionSizes,
    further: Sequence[tuple[Prompt, str]] = (),
) -> Path:  # fmt: skip
    """The model folder, made if it is not there. further: questions and replies that it is taught beside the grids.
    ValueError: the folder holds another training, or a row is too long."""
    grids, base = transduction_rows(tasks, text, seed), folder / UNTRAINED
    rows, shown = [*grids, *further], [*grids[:_TEXTS], *further[:_TEXTS]]
    if not (base / "config.json").is_file():
        shutil.rmtree(base, ignore_errors=True)
        build_tiny(
            base, texts=[prompt[-1].content + "\n" + reply for prompt, reply in shown], seed=seed,
            num_layers=sizes.num_layers, width=sizes.width, num_heads=sizes.num_heads, context=sizes.context,
            vocab_size=sizes.vocab_size,
        )  # fmt: skip
    settings = FinetuneSettings(
        steps=sizes.steps, batch_size=sizes.batch_size, lr=sizes.lr, warmup_steps=min(50, sizes.steps // 2), weight_decay=0.01,
        save_every=500, log_every=100, seed=seed,
    )  # fmt: skip
    finetune(load_hf(tiny_config(base)), folder / TRAINED, rows, settings)
    return folder / TRAINED


def tiny_config(folder: Path) -> HfModelConfig:
    """How the model of a folder is loaded here."""
    return HfModelConfig(
        kind="hf", name=str(folder), max_context=None, thinking=None, adapter=None, dtype=Dtype.float32,
        attention=LmAttention.sdpa, device=DeviceChoice.cpu, batch_size=64,
    )  # fmt: skip
