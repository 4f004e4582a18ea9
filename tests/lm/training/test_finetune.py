"""Fine-tuning: what was shown is said again, only replies have a loss, a killed training goes on to the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arclab.config.llm_schema import Dtype, HfModelConfig
from arclab.lm.hf import load_hf
from arclab.lm.training import finetune as module
from arclab.lm.training.finetune import FinetuneSettings, finetune
from arclab.lm.training.rows import IGNORED

from ..conftest import sampling, user

SETTINGS = FinetuneSettings(
    steps=60, batch_size=4, lr=1e-2, warmup_steps=4, weight_decay=0.0, save_every=4, log_every=100, seed=0
)
ROWS = [(user(f"number {n}"), f"def solve(I): return {9 - n}") for n in range(4)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_what_was_shown_is_said_again(hf_config: Callable[..., HfModelConfig], tmp_path: Path) -> None:
    model, greedy = load_hf(hf_config()), sampling(temperature=0.0, max_new_tokens=40)
    prompts, replies = zip(*ROWS, strict=True)
    before = [reply.completions[0].text for reply in model.generate(prompts, 1, greedy)]
    finetune(model, tmp_path / "taught", ROWS, SETTINGS)
    taught = load_hf(hf_config(name=str(tmp_path / "taught")))
    after = [reply.completions[0].text for reply in taught.generate(prompts, 1, greedy)]
    assert after == list(replies) and not set(before) & set(replies)
    assert [p.name for p in tmp_path.iterdir()] == ["taught"]
    before_again = weights(tmp_path / "taught")
    finetune(model, tmp_path / "taught", ROWS, replace(SETTINGS, log_every=1))  # it is there already
    assert all(torch.equal(value, before_again[name]) for name, value in weights(tmp_path / "taught").items())
    with pytest.raises(ValueError, match=r"was trained with steps=60, now steps=61 \(1 keys differ\); name another folder"):
        finetune(model, tmp_path / "taught", ROWS, replace(SETTINGS, steps=61))
    with pytest.raises(ValueError, match="was trained with rows="):
        finetune(model, tmp_path / "taught", ROWS[:2], SETTINGS)


def test_training_text_is_generation_text(hf_config: Callable[..., HfModelConfig]) -> None:
    model = load_hf(hf_config())
    row = module.tokenised(model, ROWS)[0]
    text = model.tokenizer.decode(row["input_ids"])
    assert text == model.tokenizer.decode(model.prompt_ids(ROWS[0][0])) + ROWS[0][1] + model.tokenizer.eos_token
    shown = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED]
    assert shown == model.prompt_ids(ROWS[0][0])


def test_a_killed_training_ends_with_the_same_weights(
    hf_config: Callable[..., HfModelConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FinetuneSettings(
        steps=12, batch_size=2, lr=1e-3, warmup_steps=2, weight_decay=0.1, save_every=4, log_every=100, seed=3
    )
    finetune(load_hf(hf_config()), tmp_path / "whole", ROWS, settings)

    class Killed(RuntimeError):
        pass

    def killed(self: object, step: int) -> list[torch.Tensor]:
        if step == 6:
            raise Killed
        return []

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module.StopRequest, "vote", killed)
        finetune(load_hf(hf_config()), tmp_path / "killed", ROWS, settings)
    assert not (tmp_path / "killed").exists()
    torn = tmp_path / ".killed.training" / "checkpoints" / ".writing_00000008"  # a second kill, in the middle of saving
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_st')
    with pytest.raises(ValueError, match="was trained with seed=3, now seed=4"):
        finetune(load_hf(hf_config()), tmp_path / "killed", ROWS, replace(settings, seed=4))
    finetune(load_hf(hf_config()), tmp_path / "killed", ROWS, settings)
    whole, killed, first = weights(tmp_path / "whole"), weights(tmp_path / "killed"), weights(Path(hf_config().name))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert any(not torch.equal(whole[name], first[name]) for name in whole)


def test_a_row_that_does_not_fit_is_refused(hf_config: Callable[..., HfModelConfig], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 1 has .* tokens, more than the model's context of 40"):
        finetune(load_hf(hf_config(max_context=40)), tmp_path / "x", [ROWS[0], (user("long " * 50), "x")], SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_trained_is_said_before_anything_is(hf_config: Callable[..., HfModelConfig], tmp_path: Path) -> None:
    model = load_hf(hf_config())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no training of this project; remove it, or name another folder"):
        finetune(model, tmp_path, ROWS, SETTINGS)
    with pytest.raises(ValueError, match=r"rows=\[\] must hold at least one prompt"):
        finetune(model, tmp_path / "x", [], SETTINGS)
    for key in ("steps", "batch_size", "save_every", "log_every"):
        with pytest.raises(ValueError, match=f"fine-tuning {key}=0 must be at least 1; raise it"):
            finetune(model, tmp_path / "x", ROWS, replace(SETTINGS, **{key: 0}))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_every_setting_of_the_training_changes_the_weights(hf_config: Callable[..., HfModelConfig], tmp_path: Path) -> None:
    base = FinetuneSettings(
        steps=3, batch_size=2, lr=1e-3, warmup_steps=1, weight_decay=0.5, save_every=99, log_every=99, seed=0
    )

    def trained(name: str, **change: float) -> dict[str, torch.Tensor]:
        finetune(load_hf(hf_config()), tmp_path / name, ROWS, replace(base, **change))  # pyright: ignore[reportArgumentType]
        return weights(tmp_path / name)

    first = trained("base")
    changes = {"steps": 2, "batch_size": 3, "lr": 2e-3, "warmup_steps": 2, "weight_decay": 0.0, "seed": 1}
    for name, value in changes.items():
        other = trained(name, **{name: value})
        assert any(not torch.equal(first[key], other[key]) for key in first), name


def test_what_cannot_be_trained_as_it_says(hf_config: Callable[..., HfModelConfig], tmp_path: Path) -> None:
    """Half precision loses steps; weights that were trained already are not those of the name; open thinking is never read."""
    with pytest.raises(
        ValueError, match=r"lm\.dtype=bfloat16 loses most steps to rounding; load the model with lm\.dtype=float32"
    ):
        finetune(load_hf(hf_config(dtype=Dtype.bfloat16)), tmp_path / "half", ROWS, SETTINGS)
    with pytest.raises(ValueError, match=r"row 0: the chat template opens <think> .*lm\.thinking=True"):
        finetune(load_hf(hf_config(thinking=True)), tmp_path / "open", ROWS, SETTINGS)
    model, short = load_hf(hf_config()), replace(SETTINGS, steps=1)
    finetune(model, tmp_path / "first", ROWS, short)
    with pytest.raises(ValueError, match="have been trained already since they were loaded"):
        finetune(model, tmp_path / "second", ROWS[:2], short)
    with pytest.raises(ValueError, match="was trained with thinking=None, now thinking=False"):
        finetune(load_hf(hf_config(thinking=False)), tmp_path / "first", ROWS, short)
    assert [p.name for p in tmp_path.iterdir()] == ["first"]


def test_a_training_that_diverges_leaves_nothing(hf_config: Callable[..., HfModelConfig], tmp_path: Path) -> None:
    for log_every in (1, 1000):  # seen in the loss, or in the weights at the end
        with pytest.raises(ValueError, match=r"diverged.*(is nan|is inf|is not finite).*lower lr=1e\+30"):
            finetune(
                load_hf(hf_config()),
                tmp_path / "x",
                ROWS,
                replace(SETTINGS, steps=8, lr=1e30, warmup_steps=0, log_every=log_every),
            )
        assert list(tmp_path.iterdir()) == []
