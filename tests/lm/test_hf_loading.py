"""What a language model is loaded from: folders, weights and names that are wrong, dtype, attention, devices, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.llm_schema import Dtype, LmAttention
from arclab.config.run import DeviceChoice
from arclab.lm.hf import HfModel, load_hf

from .conftest import PROMPTS, Config, edit, sampling, texts


@pytest.fixture(scope="module")
def trained(model: HfModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[float]]]:
    """An adapter that a few steps have been taken with, and what logprobs() were with it in place."""
    folder = tmp_path_factory.mktemp("adapter")
    before = {name: value.clone() for name, value in model._model.state_dict().items()}
    plain = model.logprobs(PROMPTS, ["0 1 2"] * 3)
    ids = torch.tensor([model.prompt_ids(PROMPTS[0]) + model.reply_ids("0 1 2")])
    with model.new_adapter(rank=2, alpha=8) as trainable:
        assert model.logprobs(PROMPTS, ["0 1 2"] * 3) == plain  # it begins as nothing
        assert trainable.training
        weights = {name: p for name, p in trainable.named_parameters() if p.requires_grad}
        assert weights and all("lora_" in name for name in weights)
        optimizer = torch.optim.Adam(weights.values(), lr=0.05)
        for _ in range(4):
            optimizer.zero_grad()
            trainable(input_ids=ids, labels=ids).loss.backward()
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in weights.values())
            assert all(p.grad is None for name, p in trainable.named_parameters() if name not in weights)
            optimizer.step()
        adapted = model.logprobs(PROMPTS, ["0 1 2"] * 3)
        trainable.save_pretrained(str(folder))
    assert sum(adapted[0]) > sum(plain[0]) + 1
    after = model._model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in model._model.parameters()) and not model._model.training
    return folder, adapted


def test_an_adapter_acts_in_its_block_only(model: HfModel, trained: tuple[Path, list[list[float]]]) -> None:
    folder, adapted = trained
    scores, replies = model.logprobs(PROMPTS, ["0 1 2"] * 3), model.generate(PROMPTS, 2, sampling())
    with model.adapter(folder):
        assert model.logprobs(PROMPTS, ["0 1 2"] * 3) == adapted != scores
        assert texts(model.generate(PROMPTS, 2, sampling())) != texts(replies)
    assert model.logprobs(PROMPTS, ["0 1 2"] * 3) == scores and model.generate(PROMPTS, 2, sampling()) == replies
    with pytest.raises(RuntimeError, match="inside"), model.adapter(folder):
        raise RuntimeError("inside")
    assert model.logprobs(PROMPTS, ["0 1 2"] * 3) == scores
    with pytest.raises(RuntimeError, match="inside"), model.new_adapter(rank=1, alpha=1, dropout=0.9) as trainable:
        torch.nn.init.ones_(next(p for name, p in trainable.named_parameters() if "lora_B" in name))
        assert model.logprobs(PROMPTS, ["0 1 2"] * 3) == model.logprobs(PROMPTS, ["0 1 2"] * 3) != scores  # no dropout
        assert trainable.training
        raise RuntimeError("inside")
    assert model.logprobs(PROMPTS, ["0 1 2"] * 3) == scores


def test_an_adapter_for_good(hf_config: Config, trained: tuple[Path, list[list[float]]]) -> None:
    folder, adapted = trained
    model = load_hf(hf_config(adapter=str(folder)))
    scores = model.logprobs(PROMPTS, ["0 1 2"] * 3)
    assert scores == [pytest.approx(score, abs=1e-3) for score in adapted]
    with model.adapter(folder):  # on top of it
        assert model.logprobs(PROMPTS, ["0 1 2"] * 3) != scores
    assert model.logprobs(PROMPTS, ["0 1 2"] * 3) == scores


def test_fresh_adapters_follow_their_seed_and_leave_the_global_one_alone(model: HfModel) -> None:
    def drawn(seed: int) -> torch.Tensor:
        with model.new_adapter(rank=2, alpha=2, target_modules=["q_proj"], seed=seed) as trainable:
            names = [name for name, p in trainable.named_parameters() if p.requires_grad]
            assert len(names) == 4 and all("q_proj" in name for name in names)  # A and B of two layers
            return next(p.detach().clone() for name, p in trainable.named_parameters() if "lora_A" in name)

    state = torch.get_rng_state()
    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_adapters_that_do_not_fit(model: HfModel, trained: tuple[Path, list[list[float]]], tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    scores = model.logprobs(PROMPTS, ["0 1 2"] * 3)
    weights = load_file(trained[0] / "adapter_model.safetensors")
    first = sorted(weights)[0]
    cases: dict[str, tuple[dict[str, torch.Tensor], dict[str, object], str]] = {
        "rank": (weights, {"r": 3}, "does not fit"),
        "missing": ({k: v for k, v in weights.items() if k != first}, {}, "does not fit"),
        "kind": (weights, {"peft_type": "IA3"}, "peft_type=IA3"),
        "bias": (weights, {"bias": "all"}, "bias=all"),
        "modules": (weights, {"target_modules": ["nothing_like_it"]}, "does not fit"),
    }
    for name, (kept, changes, words) in cases.items():
        folder = Path(shutil.copytree(trained[0], tmp_path / name))
        save_file(kept, folder / "adapter_model.safetensors")
        edit(folder / "adapter_config.json", **changes)
        with pytest.raises(ValueError, match=words), model.adapter(folder):
            pass
        assert model.logprobs(PROMPTS, ["0 1 2"] * 3) == scores, name
    (tmp_path / "rank" / "adapter_model.safetensors").unlink()
    for folder, words in ((tmp_path, "no adapter_config.json"), (tmp_path / "rank", "no weights")):
        with pytest.raises(ValueError, match=words), model.adapter(folder):
            pass
    with pytest.raises(ValueError, match=r"nothing_like_it.*its linear layers are down_proj"), model.new_adapter(rank=1, alpha=1, target_modules=["nothing_like_it"]):  # fmt: skip
        pass
    with pytest.raises(ValueError, match="rank=0"), model.new_adapter(rank=0, alpha=1):
        pass


# Models that cannot be had


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        (["config.json"], "has no config.json"),
        (["model.safetensors"], "has no weights"),
        (["tokenizer.json", "tokenizer_config.json"], "has no tokenizer"),
        (["chat_template.jinja"], "chat_template.jinja"),
    ],
)
def test_a_folder_without_a_file(hf_config: Config, tiny_copy: Path, removed: list[str], words: str) -> None:
    for file in removed:
        (tiny_copy / file).unlink()
    with pytest.raises(ValueError, match=words):
        load_hf(hf_config(name=str(tiny_copy)))


def test_weights_that_are_missing_or_broken_are_not_made_up(hf_config: Config, tiny_copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = tiny_copy / "model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if "layers.1.mlp.up_proj" not in k}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"no weights for model.layers.1.mlp.up_proj.weight \(1 missing\)"):
        load_hf(hf_config(name=str(tiny_copy)))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cannot be loaded .*check that its files are complete") as raised:
        load_hf(hf_config(name=str(tiny_copy)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("models/tiny", "make it with: python -m arclab.lm.tiny models/tiny$"),
        ("./nowhere", "is not a folder; give"),
        ("/no/such/folder", "is not a folder; give"),
        ("nobody/no-such-model", "cannot be loaded .*check the name and the network"),
    ],
)
def test_a_name_that_leads_nowhere(
    hf_config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, words: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words) as raised:
        load_hf(hf_config(name=name))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("cuda", "change", "words"),
    [
        (False, {"device": DeviceChoice.cuda}, "lm.device=cuda"),
        (False, {"attention": LmAttention.flash_attention_2}, "needs CUDA"),
        (True, {"attention": LmAttention.flash_attention_2, "device": DeviceChoice.cuda}, r"pip install 'arclab\[flash\]'"),
    ],
)
def test_what_this_machine_does_not_have(
    hf_config: Config, monkeypatch: pytest.MonkeyPatch, cuda: bool, change: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr("arclab.lm.hf_loading.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=words):
        load_hf(hf_config(**change))


def test_dtype_and_attention_are_as_configured(hf_config: Config, model: HfModel) -> None:
    other = load_hf(hf_config(dtype=Dtype.bfloat16, attention=LmAttention.eager))
    assert {p.dtype for p in other._model.parameters()} == {torch.bfloat16}
    assert (other._model.config._attn_implementation, model._model.config._attn_implementation) == ("eager", "sdpa")
    scores = [sum(m.logprobs(PROMPTS[:1], ["0 1 2"])[0]) for m in (other, model)]
    assert scores[0] != scores[1] and scores[0] == pytest.approx(scores[1], abs=0.5)
    assert all(c.logprob is not None for c in other.generate(PROMPTS, 2, sampling())[1].completions)
