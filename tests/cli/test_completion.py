"""Completion offers words that can be typed, in both shells where they are installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arclab.cli.commands import COMMANDS
from arclab.cli.completion import candidates
from arclab.config.compose import compose_run, entry_for, group_options
from arclab.config.help import groups_of, keys_of
from arclab.entries import ENTRIES, choice_key, choices_of

from ..conftest import ROOT, script_env

SCRIPTS = {command.script for command in COMMANDS.values()}


def test_words_of_the_command_and_of_the_queue() -> None:
    assert candidates([]) == candidates([""]) == list(COMMANDS)
    assert candidates(["ev"]) == ["evaluate"] and candidates(["--v"]) == ["--version"]
    assert {"check", "submit", "status", "doctor"} <= set(candidates(["queue", ""]))
    assert candidates(["queue", "sub"]) == ["submit"] and "--dry-run" in candidates(["queue", "submit", "--"])
    assert "--dry-run" not in candidates(["queue", "status", "--"]) and candidates(["queue", "status", ""]) == []
    assert candidates(["completion", ""]) == ["bash", "zsh"] and candidates(["nothing", "x"]) == []
    assert candidates(["scoreboard", "--m"]) == ["--markdown"] and candidates(["scoreboard", ""]) == []


def test_groups_options_keys_and_values() -> None:
    assert candidates(["train", "encoder=st"]) == ["encoder=standard", "encoder=standard_tiny"]
    assert candidates(["train", "-m", "encoder=lpn,hier"]) == ["encoder=lpn,hierarchical"]
    assert candidates(["train", "enc"]) == ["encoder=", "encoder/context=", "encoder."]
    assert candidates(["train", "trainer.dev"]) == ["trainer.device="]
    assert candidates(["train", "trainer.device=c"]) == ["trainer.device=cpu", "trainer.device=cuda"]
    assert candidates(["train", "trainer.steps="]) == [] and candidates(["train", "nothing="]) == []
    assert candidates(["train", "--help", "encoder.ki"]) == ["encoder.kind"]
    assert "--cfg" in candidates(["train", "--"])


def test_the_solver_decides_what_evaluate_offers() -> None:
    assert candidates(["evaluate", "solver="]) == [f"solver={name}" for name in choices_of("evaluate.py")]
    assert "checkpoint=" in candidates(["evaluate", "ch"]) and "lm=" not in candidates(["evaluate", "l"])
    assert "lm=" in candidates(["evaluate", "solver=program_sampling", "lm"])
    assert candidates(["evaluate", "solver=wrong", "mo"]) == []


@pytest.mark.parametrize("entry", [name for name, entry in ENTRIES.items() if entry.script in SCRIPTS])
def test_every_group_and_key_can_be_reached(entry: str) -> None:
    """Typing on from what is offered leads to every name."""
    before = (
        [] if ENTRIES[entry].choice in (None, "recursive") else [f"{choice_key(ENTRIES[entry].script)}={ENTRIES[entry].choice}"]
    )
    command = next(word for word, command in COMMANDS.items() if command.script == ENTRIES[entry].script)
    reached, waiting = set[str](), [""]
    while waiting:
        offered = candidates([command, *before, waiting.pop()])
        waiting += [word for word in offered if word.endswith(".")]
        reached |= {word for word in offered if word.endswith("=")}
    assert {f"{name}=" for name in [*groups_of(entry), *keys_of(entry)]} <= reached


def test_an_option_that_is_offered_composes() -> None:
    for option in candidates(["train", "halting="]):
        assert compose_run(entry_for("pretrain_encoder.py", []), ["experiment=quickstart", "name=a", option])
    assert len(candidates(["train", "halting="])) == len(group_options("halting"))


@pytest.fixture
def arclab_in_path(tmp_path: Path) -> dict[str, str]:
    """An environment with a command arclab of this source tree."""
    command = tmp_path / "arclab"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m arclab "$@"\n')
    command.chmod(0o755)
    env = script_env()
    return {**env, "PATH": f"{tmp_path}:{env['PATH']}", "PYTHONPATH": str(ROOT / "src")}


@pytest.mark.parametrize(
    "line, replies",
    [("arclab eva", ["evaluate"]), ("arclab train encoder=st", ["standard", "standard_tiny"]), ("arclab queue che", ["check"])],
)
def test_bash_gets_the_replies(arclab_in_path: dict[str, str], line: str, replies: list[str]) -> None:
    """As bash calls it, which takes = for the end of a word."""
    script = (
        'eval "$(arclab completion bash)"; complete -p arclab >&2; COMP_LINE=$1; COMP_POINT=${#COMP_LINE}; _arclab arclab; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, "-", line], env=arclab_in_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == replies and "-F _arclab arclab" in done.stderr, done.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_gets_the_replies(arclab_in_path: dict[str, str]) -> None:
    script = (
        'compdef() { true }; compadd() { print -l -- "$@" }; eval "$(arclab completion zsh)"; '
        "words=(arclab train encoder=st); CURRENT=3; _arclab"
    )
    done = subprocess.run(["zsh", "-fc", script], env=arclab_in_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["--", "encoder=standard", "encoder=standard_tiny"], done.stderr
