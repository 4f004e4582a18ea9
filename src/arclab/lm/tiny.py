"""A small language model with random weights and a tokenizer made on the spot: an ordinary local Hugging Face folder.

    python -m arclab.lm.tiny models/tiny                        # then: lm=tiny
    python -m arclab.lm.tiny models/wide --layers 4 --width 256 --heads 8 --context 4096

Architecture: Qwen3. Tokenizer: BPE on bytes, so that every text comes back as it was; every digit is its own token, so that a
cell of a grid is. Turns end with <|im_end|>, which is the end token; padding is a token of its own. The same arguments and
versions of the libraries give the same bytes. It knows nothing: it is for tests, and for training from scratch.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from arclab.config.compose import run_main
from arclab.data.sources import load_source
from arclab.files import naming

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL = (START, END, PAD)
_SMALLEST_VOCAB = 256 + len(SPECIAL)  # every byte
# A system, user or assistant turn each; enable_thinking opens the reply with <think>.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking %}{{- '<think>\n' }}{%- endif %}"
    "{%- endif %}"
)
_SOURCES = (
    "toy:color_map+dihedral+translate+lines?tasks=8&side=6&colors=8&palette=10&demos=3&tests=1&split=train&seed=0",
    "toy:crop?tasks=8&side=10&colors=10&palette=10&demos=2&tests=1&split=train&seed=0",
)
_PROGRAM = '''```python
def solve(grid: list[list[int]]) -> list[list[int]]:
    """The output grid of an input grid."""
    height, width = len(grid), len(grid[0])
    output = [[0] * width for _ in range(height)]
    for row in range(height):
        for column in range(width):
            if grid[row][column] != 0:
                output[row][width - 1 - column] = grid[row][column]
    counts = {color: sum(line.count(color) for line in grid) for color in range(10)}
    background = max(counts, key=counts.get)
    objects = [(i, j) for i, line in enumerate(grid) for j, cell in enumerate(line) if cell != background]
    top, left = min(i for i, _ in objects), min(j for _, j in objects)
    return [list(line) for line in zip(*output[::-1])]
```
import numpy as np
def solve(grid):
    grid = np.array(grid)
    return np.rot90(np.fliplr(grid)).tolist()
'''
log = logging.getLogger(__name__)


def build_tiny(
    folder: Path, *, texts: Sequence[str], seed: int, num_layers: int, width: int, num_heads: int, context: int, vocab_size: int
) -> None:  # fmt: skip
    """Write the model and its tokenizer, trained on texts, into a new folder. ValueError: sizes that do not go together, or a
    folder that holds something. vocab_size is an upper limit: few texts have few merges."""
    _check(folder, num_layers=num_layers, width=width, num_heads=num_heads, context=context, vocab_size=vocab_size)
    building = folder.parent / f".{folder.name}.{os.getpid()}"  # whoever finds the folder finds all of it
    building.mkdir(parents=True)
    try:
        with naming(folder):
            num_tokens = _save_tokenizer(building, texts, context, vocab_size)
            _save_model(building, seed, num_layers, width, num_heads, context, num_tokens)
        os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _check(folder: Path, *, num_heads: int, width: int, vocab_size: int, **at_least_one: int) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not empty; remove it, or name another folder.")
    for name, value in {"num_heads": num_heads, "width": width, **at_least_one}.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1; raise it.")
    if width % (2 * num_heads):
        raise ValueError(
            f"width={width} must be a multiple of 2 x num_heads={num_heads} (a rotary head has an even width); change one."
        )
    if vocab_size < _SMALLEST_VOCAB:
        raise ValueError(
            f"vocab_size={vocab_size} must be at least {_SMALLEST_VOCAB} (all bytes and {len(SPECIAL)} marks); raise it."
        )


def _save_tokenizer(folder: Path, texts: Sequence[str], context: int, vocab_size: int) -> int:
    """The number of its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Digits come first: no merge crosses what this splits.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, additional_special_tokens=[START], padding_side="left",
        model_max_length=context, clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    fast.save_pretrained(folder)
    return len(fast)


def _save_model(folder: Path, seed: int, num_layers: int, width: int, num_heads: int, context: int, num_tokens: int) -> None:
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    end, pad = SPECIAL.index(END), SPECIAL.index(PAD)  # special tokens have the first ids
    config = Qwen3Config(
        vocab_size=num_tokens,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=width // num_heads,
        max_position_embeddings=context,
        initializer_range=width**-0.5,  # so that what it says depends on what it was told
        tie_word_embeddings=True,
        eos_token_id=end,
        pad_token_id=pad,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    # do_sample: transformers serve decodes greedily without it, whatever temperature a request asks for.
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad, do_sample=True)
    model.save_pretrained(folder)


def default_texts() -> list[str]:
    """Toy tasks in the ways that grids are written, and lines of programs."""
    return [_PROGRAM, *(line for source in _SOURCES for line in _written(source))]


def _written(source: str) -> Iterator[str]:
    for task in load_source(source):
        for number, pair in enumerate(task.pairs, start=1):
            yield f"Example {number}\n"
            for name, grid in (("Input", pair.input), ("Output", pair.output)):
                assert grid is not None
                rows = [[str(cell) for cell in row] for row in grid.tolist()]
                yield f"{name} ({len(rows)} x {len(rows[0])}):\n"
                yield from ("\n".join(between.join(row) for row in rows) + "\n" for between in (" ", "", "|"))
                yield "[" + ", ".join("[" + ", ".join(row) + "]" for row in rows) + "]\n"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m arclab.lm.tiny", description="Make a small language model with random weights."
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    for name, default, text in (
        ("layers", 2, "decoder layers"), ("width", 64, "hidden size"), ("heads", 4, "attention heads"),
        ("context", 8192, "longest prompt and reply together, in tokens"), ("vocab", 512, "most tokens of the tokenizer"),
        ("seed", 0, "of the weights"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    chosen = parser.parse_args(argv)
    build_tiny(
        chosen.folder, texts=default_texts(), seed=chosen.seed, num_layers=chosen.layers, width=chosen.width,
        num_heads=chosen.heads, context=chosen.context, vocab_size=chosen.vocab,
    )  # fmt: skip
    log.info("%s is ready: lm=tiny lm.name=%s", chosen.folder, chosen.folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # console.py's format is for runs
    run_main(main)
