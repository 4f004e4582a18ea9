"""The schema of the node scratch: the model of the first round, made by stage=start from random weights and toy tasks.

Rules as in schema.py: fields have no defaults (values live in conf/), check(path) returns broken rules as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

from arclab.config.rules import at_least, within


@dataclass(kw_only=True, slots=True)
class ScratchModelConfig:
    """source: toy tasks that it is taught; other rules than those that are scored. After steps of right programs mistake_steps
    follow in which a share, wrong_share, is wrong: of the lines (tree search), or of the programs (program edits). The rounds
    have to sort that out. Sizes: see arclab.lm.tiny."""

    source: str
    wrong_share: float
    num_layers: int
    width: int
    num_heads: int
    context: int
    vocab_size: int
    steps: int
    mistake_steps: int
    batch_size: int
    lr: float
    warmup_steps: int

    def check(self, path: str) -> list[str]:
        problems = at_least(
            path, 1, num_layers=self.num_layers, width=self.width, num_heads=self.num_heads, context=self.context,
            vocab_size=self.vocab_size, steps=self.steps, batch_size=self.batch_size,
        )  # fmt: skip
        return [
            *problems,
            *at_least(path, 0, lr=self.lr, warmup_steps=self.warmup_steps, mistake_steps=self.mistake_steps),
            *within(path, 0, 1, wrong_share=self.wrong_share),
        ]
