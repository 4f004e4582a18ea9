"""A small model with random weights that a stage begins with: made by arclab.lm.tiny if its folder is not there yet.

    base_model(config.scratch, run.path / ".base", texts, seed)         # then load_hf, and train it

texts: what its tokenizer is trained on, the first few of what it will read and write. It trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arclab.config.scratch_schema import ScratchModelConfig
from arclab.lm.tiny import build_tiny

_TOKENIZER_TEXTS = 1000


def base_model(scratch: ScratchModelConfig, folder: Path, texts: Sequence[str], seed: int) -> None:
    """ValueError: sizes that do not go together."""
    if folder.is_dir():
        return
    build_tiny(
        folder, texts=texts[:_TOKENIZER_TEXTS], seed=seed, num_layers=scratch.num_layers, width=scratch.width,
        num_heads=scratch.num_heads, context=scratch.context, vocab_size=scratch.vocab_size,
    )  # fmt: skip
