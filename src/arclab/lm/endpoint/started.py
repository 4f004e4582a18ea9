"""A model server that this process starts, watches and ends: launch.server.

    with opened_model(config.lm, config.launch, run_folder) as model:       # a LanguageModel, behind a server if one is wished
        model.generate(...)                                                # the first call starts the server

Nothing is started for who asks for nothing (what was drawn before is looked up). The server runs on the GPUs of this process,
or of its shard; what it prints is in model_server.log. It does not install anything: launch.server_env names the environment
of a program that cannot live in this one. Only who has the key that is made for it (or that lm.api_key_env names) can ask it,
where the program knows keys: vLLM, and a command that reads MODEL_SERVER_KEY.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from arclab.config.launch_schema import LaunchConfig, ModelServer
from arclab.config.llm_schema import EndpointModelConfig, HfModelConfig, ModelConfig
from arclab.lm.endpoint.http import EndpointError
from arclab.lm.endpoint.model import EndpointModel, key_of, load_endpoint
from arclab.lm.language_model import LanguageModel, OnReply, Prompt, Reply, Samplings, ignore
from arclab.lm.models import load_language_model
from arclab.runs.watched import ServerDown, WatchedServer, Wished

LOG = "model_server.log"
_COMMANDS = {
    ModelServer.vllm: "vllm serve {model} --host 127.0.0.1 --port {port} --tensor-parallel-size {gpus}",
    ModelServer.sglang: "python -m sglang.launch_server --model-path {model} --host 127.0.0.1 --port {port} --tp-size {gpus}",
    ModelServer.transformers: "transformers serve {model} --host 127.0.0.1 --port {port}",
}
_KEY_VARIABLES = ("MODEL_SERVER_KEY", "VLLM_API_KEY")
_NOWHERE = "http://localhost/v1"  # until it is started
_TIMEOUT_S, _RETRIES = 600.0, 5  # of requests, where the model was not configured as a server
_HEALTH = ("/health", "/v1/models")
# Of this environment, and wrong in another one.
_NOT_FOR_OTHERS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX")


def opened_model(config: ModelConfig, launch: LaunchConfig, folder: Path) -> AbstractContextManager[LanguageModel]:
    """The model; with launch.server behind a server that is ended with the block. folder: for its log. ValueError, in one
    sentence: a model or a server that cannot be had."""
    if launch.server is None:
        return nullcontext(load_language_model(config))
    served = as_served(config, launch)
    assert isinstance(served, EndpointModelConfig)
    return started_model(served, launch, folder)


def as_served(config: ModelConfig, launch: LaunchConfig) -> ModelConfig:
    """What asks the server that launch starts for a model, which may be one of this process, such as a round of training has
    made. EndpointError: one that no server has."""
    if launch.server is None or isinstance(config, EndpointModelConfig):
        return config
    if not isinstance(config, HfModelConfig) or config.adapter is not None:
        what = f"lm.kind={config.kind}" if not isinstance(config, HfModelConfig) else f"lm.adapter={config.adapter}"
        raise EndpointError(
            f"launch.server={launch.server.value} serves whole models, and {what} is none; set launch.server=null, or merge "
            "the adapter into its model."
        )
    return EndpointModelConfig(
        kind="endpoint", name=config.name, max_context=config.max_context, thinking=config.thinking, base_url=_NOWHERE,
        api_key_env=None, timeout_s=_TIMEOUT_S, max_retries=_RETRIES, backoff_s=1.0, num_parallel=config.batch_size,
    )  # fmt: skip


def drawn_by(launch: LaunchConfig) -> dict[str, str]:
    """For the settings of kept draws: a server computes other digits than this process, so the two are not mixed."""
    return {} if launch.server is None else {"launch.server": launch.server.value}


@contextmanager
def started_model(config: EndpointModelConfig, launch: LaunchConfig, folder: Path) -> Iterator[StartedModel]:
    """The model, whose server is ended with the block. EndpointError: there is no such environment or program."""
    words, changes = _command(config.name, launch), _environment(launch)
    _require_program(words[0], launch, changes)
    prefix = ["env", *(f"--unset={name}" for name, value in changes.items() if value is None)]
    prefix += [f"{name}={value}" for name, value in changes.items() if value is not None]

    def command(port: int) -> Sequence[str]:
        return [*prefix, *(word.replace("{port}", str(port)) for word in words)]

    assert launch.server is not None
    key = key_of(config) or secrets.token_hex(16)
    wished = Wished(
        environment=dict.fromkeys(_KEY_VARIABLES, key), headers={"Authorization": f"Bearer {key}"},
        name=f"launch.server={launch.server.value}", command=command, log_file=folder / LOG, health=_HEALTH,
        start_s=launch.server_start_s, silent_s=launch.server_silent_s, restarts=launch.server_restarts,
        remedy=f"see {folder / LOG}, and correct launch.server_* or lm.name, or raise launch.server_start_s",
    )  # fmt: skip
    with WatchedServer(wished) as server:
        yield StartedModel(config, server, key)


class StartedModel:
    """See LanguageModel. Its server is started by the first call that needs it."""

    def __init__(self, config: EndpointModelConfig, server: WatchedServer, key: str) -> None:
        self._config, self._server, self._key = config, server, key
        self._model: EndpointModel | None = None

    @property
    def name(self) -> str:
        return self._config.name

    def num_prompts(self, num_samples: int) -> int:
        return self._config.num_parallel

    def generate(
        self, prompts: Sequence[Prompt], num_samples: int, sampling: Samplings, on_reply: OnReply = ignore
    ) -> list[Reply]:
        return self._started().generate(prompts, num_samples, sampling, on_reply)

    def logprobs(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[float]]:
        return self._started().logprobs(prompts, texts)

    def _started(self) -> EndpointModel:
        """EndpointError: the server did not start."""
        if self._model is None:
            try:
                url = f"{self._server.start()}/v1"
            except ServerDown as error:
                raise EndpointError(str(error)) from error
            self._model = load_endpoint(replace(self._config, base_url=url, base_urls=[]), self._server, self._key)
        return self._model


def _command(model: str, launch: LaunchConfig) -> list[str]:
    """Words, in which {port} is still to be filled in."""
    assert launch.server is not None
    line = launch.server_command if launch.server is ModelServer.command else _COMMANDS[launch.server]
    assert line is not None
    filled = {"{model}": model, "{gpus}": str(max(1, launch.gpus))}
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise EndpointError(f"launch.server_command cannot be divided into words ({error}); correct its quotes.") from error
    for name, value in filled.items():
        words = [word.replace(name, value) for word in words]
    return words


def _environment(launch: LaunchConfig) -> dict[str, str | None]:
    """What is different for the server. None: unset."""
    own = Path(sys.executable).parent if launch.server_env is None else Path(launch.server_env).absolute() / "bin"
    if not own.is_dir():
        raise EndpointError(
            f"launch.server_env={launch.server_env} has no folder bin; give the folder of an environment (of python -m venv or "
            "conda)."
        )
    found: dict[str, str | None] = {} if launch.server_env is None else dict.fromkeys(_NOT_FOR_OTHERS)
    found["PATH"] = f"{own}{os.pathsep}{os.environ.get('PATH', '')}"
    if launch.gpus == 0 and launch.cpus > 0:
        found["CUDA_VISIBLE_DEVICES"] = ""
    return found


def _require_program(program: str, launch: LaunchConfig, changes: Mapping[str, str | None]) -> None:
    if shutil.which(program, path=changes["PATH"]) is None:
        assert launch.server is not None
        where = launch.server_env or "this environment"
        raise EndpointError(
            f"launch.server={launch.server.value}: there is no program {program} in {where}; install it there, or give "
            "launch.server_env=PATH of an environment that has it."
        )
