"""HfModel draws what it should, ends where it should, and scores what it said. How it is loaded: test_hf_loading.py."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.llm_schema import HfModelConfig
from arclab.lm.drawing import draw
from arclab.lm.hf import HfModel, draw_seed, load_hf
from arclab.lm.hf_loading import load_tokenizer
from arclab.lm.language_model import Completion, FinishReason

from .conftest import PROMPTS, Config, edit, sampling, texts, user


def reference_logits(model: HfModel, ids: list[int]) -> torch.Tensor:
    """(T, V) of one sequence, unpadded."""
    with torch.no_grad():
        return model._model(input_ids=torch.tensor([ids])).logits[0].double()


@contextmanager
def louder(model: HfModel, token: int, by: float) -> Iterator[None]:
    """A model that likes a token: its logit is raised."""

    def raise_it(_: object, __: object, logits: torch.Tensor) -> torch.Tensor:
        return logits + by * torch.nn.functional.one_hot(torch.tensor(token), logits.shape[-1])

    handle = model._model.lm_head.register_forward_hook(raise_it)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("change", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.2}, {"temperature": 2.0, "top_k": 9, "top_p": 0.8, "min_p": 0.1}])  # fmt: skip
def test_frequencies_match_the_truncation_of_transformers(change: dict[str, Any]) -> None:
    """Evenly spaced numbers must meet each token exactly as often as its probability says."""
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits_1V = torch.randn(1, 20, generator=torch.Generator().manual_seed(1)) * 2
    asked, n = sampling(**change), 20_000
    expected = TemperatureLogitsWarper(asked.temperature)(None, logits_1V)  # pyright: ignore[reportArgumentType]
    for warper, value, neutral in ((TopKLogitsWarper, asked.top_k, 0), (TopPLogitsWarper, asked.top_p, 1), (MinPLogitsWarper, asked.min_p, 0)):  # fmt: skip
        expected = expected if value == neutral else warper(value)(None, expected)  # pyright: ignore[reportArgumentType]
    chosen = draw(logits_1V.expand(n, -1), (torch.arange(n, dtype=torch.float64) + 0.5) / n, asked)
    frequencies = torch.bincount(chosen, minlength=20) / n
    assert (frequencies - expected.softmax(-1)[0]).abs().max() < 1.5 / n
    impossible = expected.softmax(-1)[0] == 0
    assert impossible.any() == bool(set(change) - {"temperature"}) and not frequencies[impossible].any()


def test_the_outermost_numbers_meet_tokens_that_are_possible() -> None:
    logits_BV = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    numbers = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits_BV, numbers, sampling()).tolist() == [1, 2]
    assert draw(logits_BV, numbers, sampling(top_k=2, top_p=0.999)).tolist() == [1, 2]


def test_drawn_tokens_are_distributed_as_the_model_says(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square over the 30 likeliest first tokens and the rest, 3000 samples: 30 degrees of freedom, 99.9 % lie below 59.7."""
    monkeypatch.setattr(model.config, "batch_size", 1000)
    n, prompt, temperature = 3000, PROMPTS[0], 0.7
    probs_V = (reference_logits(model, model.prompt_ids(prompt))[-1] / temperature).softmax(-1)
    (reply,) = model.generate([prompt], n, sampling(max_new_tokens=1, temperature=temperature))
    logprob_V = reference_logits(model, model.prompt_ids(prompt))[-1].log_softmax(-1)
    top = probs_V.topk(30).indices.tolist()  # their log-probabilities tell them apart
    tokens = [int((logprob_V - c.logprob).abs().argmin()) for c in reply.completions if c.logprob is not None]
    observed = [tokens.count(token) for token in top]
    expected = [n * float(probs_V[token]) for token in top]
    observed, expected = [*observed, n - sum(observed)], [*expected, n - sum(expected)]
    assert sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True)) < 59.7
    flat = [n * float(p) for p in logprob_V.exp()[top]]  # the test would notice another temperature
    assert sum((o - e) ** 2 / e for o, e in zip(observed, flat, strict=False)) > 80


def test_a_sample_does_not_depend_on_its_batch(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = sampling(max_new_tokens=20)
    replies = texts(model.generate(PROMPTS, 3, asked))
    for batch_size in (1, 5, 64):
        monkeypatch.setattr(model.config, "batch_size", batch_size)
        assert texts(model.generate(PROMPTS, 3, asked)) == replies
    assert texts(model.generate(PROMPTS[::-1], 2, asked)) == [reply[:2] for reply in replies[::-1]]
    (alone,) = model.generate(PROMPTS[1:2], 1, sampling(max_new_tokens=7))
    assert alone.completions[0].text.rstrip("\ufffd") == replies[1][0][0][: len(alone.completions[0].text.rstrip("\ufffd"))]


def test_prompts_samples_and_seeds_draw_anew(model: HfModel) -> None:
    assert len({draw_seed(seed, ids, sample) for seed in (0, 1) for ids in ([1], [1, 2], [2]) for sample in (0, 1)}) == 12
    every = [
        text for seed in (0, 1) for reply in texts(model.generate([*PROMPTS], 3, sampling(seed=seed))) for text, _, _ in reply
    ]
    assert len(set(every)) == len(every) == 18


def test_temperature_0_is_greedy(model: HfModel) -> None:
    for prompt, reply in zip(PROMPTS, model.generate(PROMPTS, 2, sampling(temperature=0.0)), strict=True):
        ids = model.prompt_ids(prompt)
        for _ in range(12):
            ids = [*ids, int(reference_logits(model, ids)[-1].argmax())]
        said = ids[len(model.prompt_ids(prompt)) :]
        assert {c.text for c in reply.completions} == {model.tokenizer.decode(said)}


def test_nothing_of_generation_config_is_used(model: HfModel, tiny_copy: Path, hf_config: Config) -> None:
    edit(
        tiny_copy / "generation_config.json", do_sample=True, temperature=0.01, top_k=1, repetition_penalty=2.0, max_new_tokens=3, min_new_tokens=2,
        no_repeat_ngram_size=1, suppress_tokens=list(range(3, 200)), begin_suppress_tokens=[300], forced_eos_token_id=350, num_beams=2, num_return_sequences=2,
        temperature_unknown=7, max_time=0.0, guidance_scale=3.0, penalty_alpha=0.6, stop_strings=["e"],
    )  # fmt: skip
    hostile = load_hf(hf_config(name=str(tiny_copy)))
    for asked in (sampling(), sampling(temperature=0.0)):
        assert texts(hostile.generate(PROMPTS, 2, asked)) == texts(model.generate(PROMPTS, 2, asked))
    # It would show if it were: what transformers does with such a folder.
    from transformers import AutoModelForCausalLM

    edit(tiny_copy / "generation_config.json", num_beams=1, num_return_sequences=1, guidance_scale=None, penalty_alpha=None, stop_strings=None)  # fmt: skip
    inherited: Any = AutoModelForCausalLM.from_pretrained(tiny_copy)
    ids = torch.tensor([model.prompt_ids(PROMPTS[0])])
    assert inherited.generate(ids, attention_mask=torch.ones_like(ids)).shape[1] <= ids.shape[1] + 3


# Ends


def test_a_reply_ends_with_its_end_mark(model: HfModel) -> None:
    """Rows of a batch end at different places. The mark counts as a token and is not in the text."""
    with louder(model, model._end, 4.0):
        completions = [c for reply in model.generate(PROMPTS, 8, sampling()) for c in reply.completions]
    stopped = [c for c in completions if c.finish_reason is FinishReason.stop]
    assert len({c.num_tokens for c in stopped}) > 3 and len(stopped) < len(completions)
    assert all(c.num_tokens == 12 for c in completions if c not in stopped)
    assert all("<|" not in c.text for c in completions)
    assert all((c.text == "") == (c.num_tokens == 1) for c in stopped)


def test_the_last_token_may_be_the_end(model: HfModel) -> None:
    with louder(model, model._end, 4.0):
        reply = model.generate(PROMPTS[:1], 8, sampling())[0]
        number, full = next((i, c) for i, c in enumerate(reply.completions) if c.finish_reason is FinishReason.stop and 1 < c.num_tokens < 12)  # fmt: skip
        exact = model.generate(PROMPTS[:1], 8, sampling(max_new_tokens=full.num_tokens))[0].completions[number]
        short = model.generate(PROMPTS[:1], 8, sampling(max_new_tokens=full.num_tokens - 1))[0].completions[number]
    assert (exact.text, exact.finish_reason, exact.num_tokens) == (full.text, FinishReason.stop, full.num_tokens)
    assert (short.text, short.finish_reason, short.num_tokens) == (full.text, FinishReason.length, full.num_tokens - 1)


def test_end_tokens_of_model_and_tokenizer_and_padding_that_is_one(tiny_copy: Path, hf_config: Config) -> None:
    edit(tiny_copy / "generation_config.json", eos_token_id=[5, *range(100, 140)])
    edit(tiny_copy / "config.json", eos_token_id=7)
    edit(tiny_copy / "tokenizer_config.json", eos_token="<|pad|>", extra_special_tokens=["<|im_start|>", "<|im_end|>"])
    model = load_hf(hf_config(name=str(tiny_copy)))
    assert model._ends == {5, 7, *range(100, 140), 1, 2}
    assert model._end == 1  # as the chat template ends turns, not as the tokenizer ends texts
    replies = texts(model.generate(PROMPTS, 8, sampling()))
    reasons = [reason for reply in replies for _, reason, _ in reply]
    assert FinishReason.stop in reasons and FinishReason.length in reasons
    with louder(model, 100, 99.0):  # no special token of the tokenizer, and yet not part of the text
        ended = model.generate(PROMPTS[:1], 1, sampling())[0].completions[0]
    assert (ended.text, ended.num_tokens, ended.finish_reason) == ("", 1, FinishReason.stop)
    for pad in (5, 1):
        model._pad = pad
        assert texts(model.generate(PROMPTS, 8, sampling())) == replies


def test_a_stop_string_ends_a_reply_and_stands_at_its_end(model: HfModel) -> None:
    full = model.generate(PROMPTS, 3, sampling(max_new_tokens=24))
    text = max((part for reply in full for c in reply.completions for part in c.text[2:-2].split("\ufffd")), key=len)
    stop = text[1:-1]  # across tokens, and inside of one
    assert len(stop) > 4
    replies = model.generate(PROMPTS, 3, sampling(max_new_tokens=24, stop=("nowhere to be found", stop)))
    for before, after in zip(full, replies, strict=True):
        for whole, cut in zip(before.completions, after.completions, strict=True):
            if stop not in whole.text:
                assert (cut.text, cut.finish_reason) == (whole.text, whole.finish_reason)
                continue
            assert cut.text == whole.text[: whole.text.index(stop) + len(stop)]
            assert cut.finish_reason is FinishReason.stop and cut.num_tokens < whole.num_tokens
            assert cut.logprob is not None and whole.logprob is not None and cut.logprob > whole.logprob
    assert sum(c.text.endswith(stop) for reply in replies for c in reply.completions) >= 1
    word = model.tokenizer.convert_tokens_to_ids("grid")
    with louder(model, word, 99.0):  # in the middle of a token
        (reply,) = model.generate(PROMPTS[:1], 1, sampling(stop=("gri", "dg")))
    assert (reply.completions[0].text, reply.completions[0].num_tokens) == ("gri", 1)


# Scores


def test_logprobs_agree_with_generation_and_with_an_unpadded_pass(model: HfModel) -> None:
    """Of the model at temperature 1, whatever the samples were drawn with; the end mark's comes last."""
    with louder(model, model._end, 3.0):
        asked = sampling(max_new_tokens=4, temperature=0.8, top_k=200)
        replies = model.generate(PROMPTS, 30, asked)
        pairs = [
            (prompt, c)
            for prompt, reply in zip(PROMPTS, replies, strict=True)
            for c in reply.completions
            if "\ufffd" not in c.text
            and len(model.reply_ids(c.text)) - _has_end(c) == c.num_tokens - _has_end(c) + (not _has_end(c))
        ]
        scores = model.logprobs([prompt for prompt, _ in pairs], [c.text for _, c in pairs])
        whole = [(score, c) for score, (_, c) in zip(scores, pairs, strict=True) if _has_end(c)]
        assert len(whole) > 5 and len({c.num_tokens for _, c in whole}) > 2 and len(pairs) > len(whole) + 5
        for score, (prompt, c) in zip(scores, pairs, strict=True):
            assert sum(score[: c.num_tokens]) == pytest.approx(c.logprob, abs=1e-3)
            prompt_ids, ids = model.prompt_ids(prompt), model.reply_ids(c.text)
            logprobs_TV = reference_logits(model, prompt_ids + ids).log_softmax(-1)
            expected = [float(logprobs_TV[len(prompt_ids) - 1 + i, token]) for i, token in enumerate(ids)]
            assert score == pytest.approx(expected, abs=1e-3)


def _has_end(completion: Completion) -> bool:
    return completion.finish_reason is FinishReason.stop


def test_logprobs_keep_the_order_and_differ(model: HfModel) -> None:
    scores = model.logprobs([*PROMPTS, *PROMPTS], ["0 1", "return", "0", "", "0 1 2 3", "def"])
    assert [len(score) for score in scores[::3]] == [4, 1]
    assert scores == [pytest.approx(model.logprobs([p], [t])[0], abs=1e-4) for p, t in zip([*PROMPTS, *PROMPTS], ["0 1", "return", "0", "", "0 1 2 3", "def"], strict=True)]  # fmt: skip
    assert all(value < 0 and math.isfinite(value) for score in scores for value in score)


def test_a_prompt_that_is_shared_gives_the_same_logprobs(hf_config: Config) -> None:
    """Prompts and texts of other lengths in one batch; each prompt is computed once, not once for each text."""
    prompts = [*PROMPTS, *PROMPTS, PROMPTS[0]]
    texts = ["0 1", "return", "0", "", "0 1 2 3", "def", "0 1 2 3 4 5 6"]
    model, small = (load_hf(hf_config(batch_size=size)) for size in (8, 2))
    expected, shown = model.logprobs(prompts, texts), list[int]()
    watched = model.network.register_forward_pre_hook(
        lambda module, given, more: shown.append(more["input_ids"].numel()), with_kwargs=True
    )
    found = model.shared_logprobs(prompts, texts)
    watched.remove()
    assert found == [pytest.approx(each, abs=1e-4) for each in expected]
    longest = max(len(model.prompt_ids(prompt)) for prompt in PROMPTS), max(len(model.reply_ids(text)) for text in texts)
    assert shown == [3 * (longest[0] - 1), 7 * longest[1]], "three prompts, and seven texts behind them"
    assert (
        model.shared_logprobs([user("0")] * 17, ["1"] * 17)
        == [pytest.approx(model.logprobs([user("0")], ["1"])[0], abs=1e-4)] * 17
    )
    assert small.shared_logprobs(prompts, texts) == [pytest.approx(each, abs=1e-4) for each in expected]
    with pytest.raises(ValueError, match="prompt 1 with its reply"):
        model.shared_logprobs(PROMPTS[:2], ["0", "0 " * 5000])


def test_a_model_with_absolute_positions(hf_config: Config, tiny_copy: Path) -> None:
    """Rotary positions forgive an offset by padding; these do not."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=400, n_positions=256, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5, eos_token_id=1)
    (tiny_copy / "model.safetensors").unlink()
    GPT2LMHeadModel(config).save_pretrained(tiny_copy)
    model = load_hf(hf_config(name=str(tiny_copy)))
    together = model.logprobs(PROMPTS, ["0 1", "0", "def"])
    assert together == [pytest.approx(model.logprobs([p], [t])[0], abs=1e-3) for p, t in zip(PROMPTS, ["0 1", "0", "def"], strict=True)]  # fmt: skip
    assert model.shared_logprobs(PROMPTS, ["0 1", "0", "def"]) == [pytest.approx(each, abs=1e-3) for each in together]
    alone = [model.generate([prompt], 1, sampling())[0] for prompt in PROMPTS]
    assert texts(model.generate(PROMPTS, 1, sampling())) == texts(alone)
    assert model.max_context == 256


def test_logits_that_are_no_numbers_and_batches_that_do_not_fit(hf_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = load_hf(hf_config())
    broken._model.model.norm.weight.data[0] = torch.nan
    for asked in (sampling(), sampling(temperature=0.0), sampling(top_k=5)):
        with pytest.raises(ValueError, match=r"lm\.dtype=float32 .* not a number"):
            broken.generate(PROMPTS, 1, asked)

    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    for name, call in (("generate", lambda: broken.generate(PROMPTS, 1, sampling())), ("forward", lambda: broken.logprobs(PROMPTS[:1], ["0"]))):  # fmt: skip
        monkeypatch.setattr(broken._model, name, out_of_memory)
        with pytest.raises(ValueError, match=r"Lower lm\.batch_size=4"):
            call()


# Context


def test_a_prompt_that_is_too_long_is_refused_alone(model: HfModel, hf_config: Config) -> None:
    longest = len(model.prompt_ids(PROMPTS[1]))
    fits, tight = load_hf(hf_config(max_context=longest + 12)), load_hf(hf_config(max_context=longest + 11))
    expected = texts(model.generate(PROMPTS, 2, sampling()))
    assert texts(fits.generate(PROMPTS, 2, sampling())) == expected
    replies = tight.generate(PROMPTS, 2, sampling())
    assert [reply.num_prompt_tokens for reply in replies] == [len(model.prompt_ids(prompt)) for prompt in PROMPTS]
    assert (
        replies[1].completions == () and f"{longest} tokens" in replies[1].too_long and "max_new_tokens" in replies[1].too_long
    )
    assert [texts(replies)[i] for i in (0, 2)] == [expected[i] for i in (0, 2)] and not replies[0].too_long
    with pytest.raises(ValueError, match="prompt 1 with its reply: the prompt has"):
        tight.logprobs(PROMPTS, ["0", "0 " * 30, "0"])


def test_the_smaller_of_both_limits_holds(model: HfModel, hf_config: Config) -> None:
    assert model.max_context == 256 and load_hf(hf_config(max_context=10**6)).max_context == 256
    (reply,) = model.generate([user("0 " * 200)], 1, sampling())
    assert "context of 256" in reply.too_long


# Chat template


def test_thinking_reaches_the_template(hf_config: Config, tiny_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load_hf(hf_config(thinking=True))
    assert model.tokenizer.decode(model.prompt_ids(PROMPTS[0])).endswith("<|im_start|>assistant\n<think>\n")
    assert "enable_thinking" not in caplog.text
    template = tiny_copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("enable_thinking", "other"))
    with caplog.at_level(logging.WARNING):
        load_tokenizer(hf_config(name=str(tiny_copy), thinking=False))
    assert "lm.thinking=False changes nothing" in caplog.text


def test_a_prompt_that_the_template_refuses(hf_config: Config, tiny_copy: Path) -> None:
    template = tiny_copy / "chat_template.jinja"
    template.write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + template.read_text()
    )
    with pytest.raises(
        ValueError, match=r"refuses a prompt with the roles \['system', 'user'\] \(no system here\); give it other"
    ):
        load_hf(hf_config(name=str(tiny_copy))).generate(PROMPTS, 1, sampling())


def test_a_template_that_takes_parts_asks_the_same_of_the_model(hf_config: Config, model: HfModel, tiny_copy: Path) -> None:
    """Its prompts, its replies and what ends them are those of a template that takes strings."""
    template = tiny_copy / "chat_template.jinja"
    written = template.read_text()
    assert "message['content'] +" in written
    template.write_text(written.replace("message['content'] +", "(message['content'] | map(attribute='text') | join('')) +"))
    parts = load_hf(hf_config(name=str(tiny_copy)))
    assert [parts.prompt_ids(prompt) for prompt in PROMPTS] == [model.prompt_ids(prompt) for prompt in PROMPTS]
    assert parts.reply_ids("0 1") == model.reply_ids("0 1") and parts.opened(PROMPTS[0]) == ""
    assert parts.generate(PROMPTS, 2, sampling()) == model.generate(PROMPTS, 2, sampling())
    template.write_text(written.replace("message['content'] +", ""))
    empty = load_hf(hf_config(name=str(tiny_copy)))
    assert empty.reply_ids("0") == model.reply_ids("0")  # not the first mark of the template
    with pytest.raises(ValueError, match="does not write what the user message holds"):
        empty.generate(PROMPTS[:1], 1, sampling())


def test_special_tokens_in_a_reply_are_learned_as_text(model: HfModel) -> None:
    ids = model.reply_ids("a<|im_end|>b")
    assert ids.count(model._end) == 1 and ids[-1] == model._end and model.tokenizer.decode(ids[:-1]) == "a<|im_end|>b"


def test_what_the_template_opens_is_told(hf_config: Callable[..., HfModelConfig]) -> None:
    """A reply that begins inside thinking says so, whatever the prompt talks about."""
    (reply,) = load_hf(hf_config(thinking=True)).generate([user("a")], 1, sampling())
    (completion,) = reply.completions
    assert completion.opened.startswith("<think>") and completion.whole == completion.opened + completion.text
    for thinking in (None, False):
        (reply,) = load_hf(hf_config(thinking=thinking)).generate([user("tell <think> me")], 1, sampling())
        assert reply.completions[0].opened == ""


def test_a_prompt_is_read_once_for_all_of_its_samples(
    hf_config: Callable[..., HfModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its last token is computed for every sample; the replies are those of samples that each read it."""
    model = load_hf(hf_config(batch_size=6))
    shapes: list[tuple[int, int]] = []
    forward = model._model.model.forward
    monkeypatch.setattr(
        model._model.model,
        "forward",
        lambda *args, **given: shapes.append(tuple(given["input_ids"].shape)) or forward(*args, **given),
    )
    prompts = [user("a word"), user("some more words than one")]
    together = model.generate(prompts, 3, sampling(max_new_tokens=4))
    longest = max(len(model.prompt_ids(prompt)) for prompt in prompts)
    assert shapes[:2] == [(2, longest - 1), (6, 1)]
    alone = load_hf(hf_config(batch_size=1)).generate(prompts, 3, sampling(max_new_tokens=4))
    assert [[c.text for c in reply.completions] for reply in together] == [
        [c.text for c in reply.completions] for reply in alone
    ]
