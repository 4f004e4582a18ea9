"""Rollouts from a vLLM server. Its package and its GPUs are not there: a client and trl's sender are put in their place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer import grpo_trainer

from arclab.lm.training import served
from arclab.lm.training.rollouts import Rollout
from arclab.lm.training.served import Server, open_server

from . import reinforced
from .reinforced import END, SETTINGS, Sampler, rows_of, train
from .test_sft import Cadence

URL = "http://10.0.0.7:8000"


class Served:
    """Answers like vLLM: with a sampler of the weights that it was sent last. It is also trl's client and its sender."""

    newest: Served

    def __init__(self, model: Any = None, wrong_by: float = 0.0, **given: Any) -> None:
        self.model, self.given, self.sent, self.asked = model, given, list[torch.Tensor](), list[dict[str, Any]]()
        self.vllm_client = self
        Served.newest = self

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def sync_weights(self) -> None:
        self.sent.append(next(iter(self.model.parameters())).detach().clone())

    def generate(self, prompts: list[list[int]], **sampling: Any) -> dict[str, Any]:
        self.asked.append({"prompts": prompts, **sampling})
        (row,) = Sampler(self.model, sampling["temperature"])([tuple(prompts[0])], [sampling["generation_kwargs"]["seed"]])
        return {"completion_ids": [row.completion_ids], "logprobs": [[[value] for value in row.logprobs]]}


class Asking(Sampler):
    """Draws through the server, as a method's roll_out does."""

    def __call__(self, prompts: Any, seeds: Any) -> list[Rollout]:
        server = Server(Served.newest, URL)
        found = server.complete([list(prompt) for prompt in prompts], seeds, max_new_tokens=5, temperature=self.temperature)
        return [
            Rollout(prompt, list(prompt), each.token_ids, each.logprobs, each.token_ids[-1] in END)
            for prompt, each in zip(prompts, found, strict=True)
        ]


def test_the_server_is_sent_the_weights_and_what_it_says_is_learned_from(
    tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, cadence = replace(SETTINGS, updates_per_rollout=2, lr=1e-2), Cadence(steps=4)
    here = train(tiny_lm, tmp_path / "here", settings, cadence)
    monkeypatch.setattr(reinforced, "Sampler", Asking)
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Served)
    there = train(tiny_lm, tmp_path / "there", replace(settings, vllm_url=URL), cadence)
    server = Served.newest
    assert (server.given["mode"], server.given["server_base_url"]) == ("server", URL)
    assert len(server.sent) == 2 and not torch.equal(*server.sent)  # before each drawing, with what was learned in between
    assert len({asked["generation_kwargs"]["seed"] for asked in server.asked}) == len(server.asked)
    rows, own = rows_of(tmp_path / "there"), rows_of(tmp_path / "here")
    assert [row.get("rl/reward") for row in rows] == [row.get("rl/reward") for row in own]
    assert max(row.get("rl/offpolicy", 0.0) for row in rows) < 1e-4
    for name, value in there.items():  # trl's weights of tokens are all 1
        torch.testing.assert_close(value, here[name], atol=1e-4, rtol=1e-3, msg=name)


class Broken:
    def __init__(self, found: dict[str, Any] | OSError) -> None:
        self.found = found

    def generate(self, prompts: list[list[int]], **sampling: Any) -> dict[str, Any]:
        if isinstance(self.found, OSError):
            raise self.found
        return self.found


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (ConnectionError("refused"), "does not answer (refused); start it again"),
        ({"completion_ids": [[1]], "logprobs": None}, "sends no log-probabilities; start it with --logprobs-mode"),
        ({"completion_ids": [[1]], "logprobs": [[[None]]]}, "sends no log-probabilities"),
    ],
)
def test_a_server_that_fails_is_one_sentence(found: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.7") as caught:
        Server(Broken(found), URL).complete([[1, 2]], [0], max_new_tokens=1, temperature=1.0)
    assert words in str(caught.value)


def test_no_package_and_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"grpo.vllm_url=http://10.0.0.7:8000 needs the package vllm"):
        open_server("grpo.vllm_url", URL, 0.1)
    monkeypatch.setattr(served, "is_vllm_available", lambda: True)

    def refused(**given: Any) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(served, "VLLMClient", refused)
    with pytest.raises(ValueError, match=r"grpo.vllm_url=.* no vLLM server answered within 0.1 s"):
        open_server("grpo.vllm_url", URL, 0.1)
