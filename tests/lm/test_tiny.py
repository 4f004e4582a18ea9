"""The tiny model: loads like any other, digits stand alone, every text comes back, the same arguments give the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from arclab.lm.tiny import build_tiny, default_texts, main

from ..conftest import TINY_LM_SIZES as SIZES

TEXTS = (
    "0 1 22\n3|4|567\n[[8, 9]]",
    "def solve(grid):\n\treturn grid[::-1]  # ☃ é 漢 \U0001f642",
    " leading, trailing  \n\n",
    "\x00\x7f\r\n",
    "",
)


@pytest.fixture(scope="module")
def tokenizer(tiny_lm: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_lm)


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back_and_every_digit_is_a_token(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert [token for token in tokens if any(c.isdigit() for c in token)] == [c for c in text if c.isdigit()]


def test_texts_are_merged(tokenizer: Any) -> None:
    """It was trained: what is common in programs is one token, and never a digit with what stands beside it."""
    assert len(tokenizer.encode("def solve(grid)")) < 8
    assert len(tokenizer) == SIZES["vocab_size"]
    assert not [token for token in tokenizer.get_vocab() if len(token) > 1 and any(c.isdigit() for c in token)]


def test_chat_template_and_special_tokens(tokenizer: Any) -> None:
    turns = [{"role": role, "content": role.upper()} for role in ("system", "user", "assistant", "user")]
    written = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert (
        written
        == "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
    )
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer.encode("<|im_start|><|im_end|><|pad|>")) == 3


def test_same_arguments_same_bytes_another_seed_other_weights(tiny_lm: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        build_tiny(tmp_path / name, texts=default_texts(), seed=seed, **SIZES)
    files = sorted(file.name for file in tiny_lm.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]  # nothing half made beside them
    assert files == sorted(file.name for file in (tmp_path / "again").iterdir())
    assert all((tiny_lm / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
    differ = [file for file in files if (tiny_lm / file).read_bytes() != (tmp_path / "other" / file).read_bytes()]
    assert differ == ["model.safetensors"]


def test_sizes_are_what_was_asked_for(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    main([str(tmp_path / "m"), "--layers", "1", "--width", "16", "--heads", "2", "--context", "99", "--vocab", "300"])
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (1, 16, 2)
    assert (config.max_position_embeddings, config.vocab_size) == (99, 300)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ValueError, match="not empty; remove it"):
        main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"width": 30, "num_heads": 4}, "multiple"), ({"vocab_size": 100}, "at least 259"), ({"num_layers": 0}, "at least 1")],
)
def test_sizes_that_do_not_go_together(tmp_path: Path, change: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_tiny(tmp_path / "m", texts=["a"], seed=0, **{**SIZES, **change})
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_if_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries' own errors for a full disk are no OSErrors, and name no file."""

    def fail(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("arclab.lm.tiny._save_model", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        build_tiny(tmp_path / "m", texts=["a"], seed=0, **SIZES)
    assert caught.value.filename == str(tmp_path / "m") and not list(tmp_path.iterdir())
