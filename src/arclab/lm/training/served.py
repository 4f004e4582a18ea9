"""Rollouts from a vLLM server (trl's server mode): it generates on its own GPUs, and gets the weights after each update.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config '{"backend": "nccl"}' \\
        --logprobs-mode processed_logprobs --max-logprobs -1                            # started by you, beside the training
    server = open_server("grpo.vllm_url", "http://10.0.0.7:8000", timeout_s=240)          # on every rank
    completions = server.complete(prompts_ids, seeds, max_new_tokens=512, temperature=1.0)

GrpoSettings.vllm_url makes trl send the weights before rollouts are drawn (main rank, NCCL), and weigh each token by how far
the two are apart; rl/offpolicy shows that, STALE_ROLLOUTS says when it is too much. It needs the package vllm beside trl, and
GPUs. It is for policies that are plain language models: memory between tokens, which a server cannot insert, is generated here.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from trl.generation.vllm_client import VLLMClient
from trl.import_utils import is_vllm_available

_MOST_REQUESTS = 64  # at a time


class Client(Protocol):
    """What is used of trl's VLLMClient."""

    def generate(self, prompts: list[list[int]], **sampling: Any) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Completion:
    """token_ids: with the end token, if there is one. logprobs: of each, at the temperature that it was drawn at."""

    token_ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True, slots=True)
class Server:
    """client: of one server. url: for messages."""

    client: Client
    url: str

    def complete(
        self, prompts_ids: Sequence[list[int]], seeds: Sequence[int], *, max_new_tokens: int, temperature: float
    ) -> list[Completion]:
        """One for each prompt, with a request and a seed of its own, so that it depends on nothing else. ValueError: the server
        answered with an error, or without log-probabilities."""

        def ask(prompt_ids: list[int], seed: int) -> Completion:
            given = {"max_tokens": max_new_tokens, "temperature": temperature, "logprobs": 0}
            found = self._generate(prompt_ids, {**given, "generation_kwargs": {"seed": seed}})
            if not found["logprobs"] or any(each[0] is None for each in found["logprobs"][0]):
                raise ValueError(
                    f"the vLLM server at {self.url} sends no log-probabilities; start it with --logprobs-mode "
                    "processed_logprobs."
                )
            return Completion(list(found["completion_ids"][0]), [float(each[0]) for each in found["logprobs"][0]])

        with ThreadPoolExecutor(min(_MOST_REQUESTS, max(len(prompts_ids), 1))) as pool:
            return list(pool.map(ask, prompts_ids, seeds))

    def _generate(self, prompt_ids: list[int], sampling: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.client.generate([prompt_ids], **sampling)
        except OSError as error:  # what requests raises
            raise ValueError(
                f"the vLLM server at {self.url} does not answer ({error}); start it again, and this command."
            ) from error


def require_vllm(key: str, url: str) -> None:
    """ValueError: the package is not there. key: of the configuration, which has the url."""
    if not is_vllm_available():
        raise ValueError(
            f"{key}={url} needs the package vllm, which is not installed; install trl[vllm] in an environment with a GPU, or "
            f"set {key}=null to generate here."
        )


def open_server(key: str, url: str, timeout_s: float) -> Server:
    """Waits for it. ValueError: no package vllm, or no server at url within timeout_s."""
    require_vllm(key, url)
    try:
        client: Any = VLLMClient(base_url=url, connection_timeout=timeout_s)
    except OSError as error:
        raise ValueError(
            f"{key}={url}: no vLLM server answered within {timeout_s:g} s; start it with `vllm serve`, or correct the address."
        ) from error
    return Server(client, url)
