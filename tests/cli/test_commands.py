"""The command arclab: each word starts what the script starts, and a wrong one is a sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arclab.__main__ import main
from arclab.cli import commands
from arclab.cli.commands import COMMANDS, run_command
from arclab.config.compose import ConfigError
from arclab.entries import load

from ..conftest import ROOT, refused, script_env

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def arclab(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The console script in this process."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["arclab", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(list(words), ended.value.code, said.out, said.err)

    return run


@pytest.mark.parametrize("word", COMMANDS)
def test_every_command_is_there_and_says_what_it_takes(arclab: Run, word: str) -> None:
    assert callable(load(COMMANDS[word].run))
    said = arclab(word, "--help")
    assert said.returncode == 0 and len(said.stdout.splitlines()) >= 3, said.stderr
    assert f"\n  {word} " in arclab().stdout


def test_without_a_word_nothing_is_done(arclab: Run) -> None:
    said = arclab()
    assert said.returncode == 2 and said.stdout.startswith("usage: arclab COMMAND")
    assert arclab("--help").returncode == 0 and arclab("--version").stdout.startswith("arclab ")


def test_a_typo_is_one_sentence(arclab: Run) -> None:
    refused(arclab("evalute"), "evalute is no command of arclab; did you mean evaluate?")
    refused(arclab("queue", "stats"), "stats is no command of the queue; did you mean status?")
    refused(arclab("completion", "zhs"), "did you mean zsh?")
    refused(arclab("train", "experiment=quickstart", "name=a", "trainer.step=3"), "did you mean trainer.steps?")
    refused(arclab("queue", "check", "nowhere.txt"), "nowhere.txt does not exist")


def test_train_and_evaluate_are_what_the_scripts_are(arclab: Run, run_in_process: Run) -> None:
    for word, script, given in (
        ("train", "pretrain_encoder.py", ["--cfg", "experiment=quickstart", "name=a"]),
        ("train", "pretrain_encoder.py", []),
        ("evaluate", "evaluate.py", ["--help", "split"]),
        ("self-improve", "self_improve.py", ["method=program_edit", "--help", "evaluate.model"]),
    ):
        ours, theirs = arclab(word, *given), run_in_process(script, *given)
        assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


def test_it_runs_from_any_folder_and_records_what_was_typed(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "arclab", "train", "experiment=quickstart", "name=a", "trainer.steps=1", "decoder.width=16"]
    line += [
        "decoder.num_heads=2",
        "trainer.eval_every=0",
        "evaluation.max_tasks=1",
        "wandb.mode=disabled",
        "trainer.device=cpu",
    ]
    env = {**script_env(), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/quickstart/a"
    assert '"command": "arclab train experiment=quickstart' in (run / "provenance.json").read_text()


def test_outside_of_a_clone_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "CONF_DIR", tmp_path / "conf")
    with pytest.raises(ConfigError, match=r"conf does not exist: arclab reads conf/ .* from a clone; run make install there"):
        run_command(["train", "experiment=quickstart"])


def test_what_is_only_asked_needs_no_torch() -> None:
    script = (
        "import sys; from arclab.cli.commands import run_command; run_command([]); run_command(['train', '--help']); "
        "run_command(['completion', 'words', 'train', 'encoder=']); run_command(['scoreboard', 'tests/fixtures']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=script_env(), capture_output=True, text=True, timeout=60
    )
    assert "encoder=lpn\n" in done.stdout and done.returncode == 0, done.stderr
