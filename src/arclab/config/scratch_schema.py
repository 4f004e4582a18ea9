"""The schema of the node scratch: the model of the first round, made by stage=start from random weights and toy tasks.

Rules as in schema.py: fields have no defaults (values live in conf/), check(path) returns broken rules as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

from arclab.config.rules import at_least, within


@dataclass(kw_only=True, slots=True)
class ScratchConfig:
    """What every method says of it. source: toy tasks that it is taught; other rules than those that are scored. Sizes: see
    arclab.lm.tiny. steps, batch_size, lr: of its training."""

    source: str
    num_layers: int
    width: int
    num_heads: int
    context: int
    vocab_size: int
    steps: int
    batch_size: int
    lr: float

    def check(self, path: str) -> list[str]:
        problems = at_least(
            path, 1, num_layers=self.num_layers, width=self.width, num_heads=self.num_heads, context=self.context,
            vocab_size=self.vocab_size, steps=self.steps, batch_size=self.batch_size,
        )  # fmt: skip
        return problems + at_least(path, 0, lr=self.lr)


@dataclass(kw_only=True, slots=True)
class ScratchModelConfig(ScratchConfig):
    """After steps of right programs mistake_steps follow in which a share, wrong_share, is wrong: of the lines (tree search),
    or of the programs (program edits). The rounds have to sort that out."""

    wrong_share: float
    mistake_steps: int
    warmup_steps: int

    def check(self, path: str) -> list[str]:
        problems = ScratchConfig.check(self, path)
        problems += at_least(path, 0, warmup_steps=self.warmup_steps, mistake_steps=self.mistake_steps)
        return problems + within(path, 0, 1, wrong_share=self.wrong_share)


@dataclass(kw_only=True, slots=True)
class ScratchProposerConfig(ScratchConfig):
    """Of self-edits: it is taught to write the grids of the source's tasks, and self-edits drawn at random from the grid,
    whatever the task. broken_share: of the self-edits that it is taught, those that are none."""

    broken_share: float

    def check(self, path: str) -> list[str]:
        return ScratchConfig.check(self, path) + within(path, 0, 1, broken_share=self.broken_share)
