"""Model servers that are started for lm=endpoint: when, where, with what, and that replies survive their faults."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.config.launch_schema import LaunchConfig, ModelServer
from arclab.lm.endpoint import started
from arclab.lm.endpoint.http import EndpointError
from arclab.lm.endpoint.model import load_endpoint
from arclab.lm.endpoint.started import started_model
from arclab.lm.hf import HfModel
from arclab.runs import watched

from .conftest import sampling
from .endpoint_server import PROMPTS, every_text

STAND_IN = Path(__file__).parent / "stand_in_server.py"
EVALUATION = ["solver=program_sampling", "lm=endpoint", "lm.name=m", "dataset=toy"]


def launch(folder: Path, *overrides: str, **changes: Any) -> LaunchConfig:
    command = f"launch.server_command='{sys.executable} {STAND_IN} {folder} {{port}}'"
    given = compose_run("evaluate_programs", [*EVALUATION, "launch.server=command", command, *overrides])
    return replace(given.launch, **changes)


def model_settings(**changes: Any) -> Any:
    fields = {"max_retries": 1, "backoff_s": 0.01, "timeout_s": 30.0, "num_parallel": 2, **changes}
    return replace(compose_run("evaluate_programs", EVALUATION).lm, **fields)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "_HEALTH_EVERY_S", 0.2)
    monkeypatch.setattr(watched, "_HEALTH_TIMEOUT_S", 0.5)


def test_replies_survive_a_server_that_dies_hangs_and_errs(tmp_path: Path) -> None:
    """Without a retry of the client's: what fails because the server is started again counts for nothing."""
    with started_model(model_settings(), launch(tmp_path, server_silent_s=1.0), tmp_path) as model:
        assert model.name == "m" and not lines(tmp_path / "starts"), "nothing is started before it is needed"
        wanted = every_text(model.generate(PROMPTS, 2, sampling()))
        for fault in ("errs", "dies", "hangs"):
            (tmp_path / fault).touch()
            assert every_text(model.generate(PROMPTS, 2, sampling())) == wanted, fault
            assert not (tmp_path / fault).exists()
        starts = lines(tmp_path / "starts")
        assert len(starts) == 3 and lines(tmp_path / started.LOG) == ["loading the model"] * 3
        pid = int(starts[-1].split()[0])
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_that_does_not_start_again_is_given_up(tmp_path: Path) -> None:
    with started_model(model_settings(max_retries=5), launch(tmp_path, server_restarts=1), tmp_path) as model:
        model.generate(PROMPTS[:1], 1, sampling())
        (tmp_path / "broken").touch()
        os.kill(int(lines(tmp_path / "starts")[-1].split()[0]), signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(
            EndpointError,
            match=r"launch\.server=command ended with status 1 \(loading the model / CUDA out of memory\) and is not started again: it was, 1 times",
        ):
            model.generate(PROMPTS, 1, sampling())
        assert time.monotonic() - begun < 60


def test_what_cannot_be_started_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    words = r"^launch\.server=command did not start \(loading the model / CUDA out of memory\): it ended with status 1; see .*server\.log"
    with started_model(model_settings(), launch(tmp_path), tmp_path) as model, pytest.raises(EndpointError, match=words):
        model.generate(PROMPTS[:1], 1, sampling())
    for changes, words in (
        ({"server_env": str(tmp_path / "nowhere")}, "has no folder bin; give the folder of an environment"),
        (
            {"server_command": "no-such-program {port}"},
            "there is no program no-such-program in this environment; install it there",
        ),
        ({"server_command": "a 'b {port}"}, "cannot be divided into words"),
    ):
        with pytest.raises(EndpointError, match=words), started_model(model_settings(), launch(tmp_path, **changes), tmp_path):
            pass


@pytest.mark.parametrize(
    ("server", "program", "place_of_port", "words"),
    [
        (ModelServer.vllm, "vllm", 6, "serve {model} --host 127.0.0.1 --port {port} --tensor-parallel-size 2"),
        (
            ModelServer.sglang,
            "python",
            8,
            "-m sglang.launch_server --model-path {model} --host 127.0.0.1 --port {port} --tp-size 2",
        ),
    ],
)
def test_an_environment_of_its_own_is_used(
    server: ModelServer, program: str, place_of_port: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bin comes first, and what is meant for this one is not passed on; the GPUs are those of this process."""
    binaries = tmp_path / "env/bin"
    binaries.mkdir(parents=True)
    (binaries / program).write_text(
        f'#!/bin/sh\nprintf "%s|" "$@" > {tmp_path}/given\nexec {sys.executable} {STAND_IN} {tmp_path} "${place_of_port}"\n'
    )
    (binaries / program).chmod(0o755)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,4")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", "src"))
    wanted = replace(launch(tmp_path), server=server, server_command=None, server_env=str(tmp_path / "env"), gpus=2)
    with started_model(model_settings(name="org/a model"), wanted, tmp_path) as model:
        model.generate(PROMPTS[:1], 1, sampling())
    given = (tmp_path / "given").read_text().split("|")[:-1]
    expected = [word.format(model="org/a model", port=given[place_of_port - 1]) for word in words.split(" ")]
    assert given == expected and given[place_of_port - 1].isdigit()
    assert lines(tmp_path / "starts")[0].split()[1:] == ["6,4", "None"]


def test_only_who_has_the_key_can_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one for each server, or the user's own; no command line shows it."""
    monkeypatch.setenv("MY_KEY", "secret-of-the-user")
    for settings in (model_settings(), model_settings(api_key_env="MY_KEY")):
        with started_model(settings, launch(tmp_path), tmp_path) as model:
            model.generate(PROMPTS[:1], 1, sampling())
            process = psutil.Process(model._server._process.pid)
            words = " ".join(word for each in (process, *process.children(recursive=True)) for word in each.cmdline())
            assert model._key not in words and (settings.api_key_env is None) == (model._key != "secret-of-the-user")
            stranger = load_endpoint(replace(settings, base_url=f"{model._server.url}/v1", api_key_env=None))
            with pytest.raises(EndpointError, match="no such key"):
                stranger.generate(PROMPTS[:1], 1, sampling())
    monkeypatch.delenv("MY_KEY")
    unset = started_model(model_settings(api_key_env="MY_KEY"), launch(tmp_path), tmp_path)
    with pytest.raises(EndpointError, match=r"the variable that lm\.api_key_env names is not set"), unset:
        pass


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lm=tiny", "launch.server=vllm"], "launch.server=vllm serves lm=endpoint, and lm.kind=hf is a model of this process"),
        (["launch.server=command"], "launch.server=command needs launch.server_command with {port} in it"),
        (["launch.server=vllm", "launch.server_command=x"], "launch.server_command is of launch.server=command"),
        (["launch.server=vllm", "launch.nodes=2"], "launch.nodes=2 does not go with launch.server"),
        (["launch.server=vllm", "launch.server_restarts=-1"], "launch.server_restarts=-1 must be at least 0"),
        (["launch.server=vllm", "launch.server_start_s=0"], "launch.server_start_s=0.0 must be at least"),
        (["lm.base_urls=[http://localhost:8000/v1]"], "lm.base_urls names a server twice"),
        (["lm.base_urls=[http://me:sk-word@x/v1]"], "lm.base_urls[0] holds a user name or a password"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides: list[str], words: str) -> None:
    given = {part.partition("=")[0]: part for part in [*EVALUATION, *overrides]}
    if given["lm"] == "lm=tiny":
        del given["lm.name"]
    with pytest.raises(ConfigError) as raised:
        compose_run("evaluate_programs", list(given.values()))
    assert words in str(raised.value) and "sk-word" not in str(raised.value)


def test_gpus_are_the_servers_and_one_process_asks_it() -> None:
    config = compose_run("evaluate_programs", [*EVALUATION, "launch.server=vllm", "launch.gpus=4"])
    assert config.launch.num_ranks == 1 and config.launch.devices_per_node == 4
    with pytest.raises(
        ConfigError, match=r"launch\.server=vllm serves what draws from a language model; set launch\.server=null"
    ):
        compose_run("pretrain_encoder", ["experiment=quickstart", "name=a", "launch.server=vllm"])


@pytest.mark.slow
def test_transformers_serve_answers_as_the_model_of_this_process(model: HfModel, tiny_lm: Path, tmp_path: Path) -> None:
    """The real one, with greedy replies. It is killed once."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package)
    greedy = replace(sampling(), temperature=0.0, max_new_tokens=8)
    settings = model_settings(name=str(tiny_lm), timeout_s=300.0)
    wanted = replace(launch(tmp_path), server=ModelServer.transformers, server_command=None, cpus=1)
    with started_model(settings, wanted, tmp_path) as served:
        texts = every_text(served.generate(PROMPTS, 1, greedy))
        os.kill(int(served._server._process.pid), signal.SIGKILL)  # its guard, and so it
        assert every_text(served.generate(PROMPTS, 1, greedy)) == texts and served._server.num_starts == 2
    assert texts == every_text(model.generate(PROMPTS, 1, greedy))
