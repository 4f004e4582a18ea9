"""The command line around the queue: logs, watching, wrong words."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from arclab.config.compose import ConfigError
from arclab.launch.__main__ import main
from arclab.launch.queue import commands
from arclab.launch.queue.plan import read_plan
from arclab.runs.folder import State, open_run

from ...conftest import ROOT


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "arclab.launch", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.txt"
    path.write_text(
        "".join(
            f"pretrain_encoder.py experiment=quickstart runs_dir={tmp_path}/runs name={n} seed={i}\n"
            for i, n in enumerate("ab")
        )
    )
    return path


def test_tail_shows_the_end_and_follows(file: Path) -> None:
    folder = open_run(read_plan(file, "a").runs[0].config)
    folder.console.write_text("".join(f"line {i}\n" for i in range(100)))
    assert launch("tail", str(file), "a", "-n", "2").stdout.splitlines()[1:] == ["line 98", "line 99"]
    command = [sys.executable, "-u", "-m", "arclab.launch", "tail", str(file), "-n", "1", "--follow", "a"]
    # A shell's background job, and so its children, starts with SIGINT ignored.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=listen) as follower:
        timer = threading.Timer(60, follower.kill)
        timer.start()
        assert follower.stdout is not None
        assert [follower.stdout.readline().strip() for _ in range(2)][1] == "line 99"
        with folder.console.open("a") as log:
            log.write("line 100\n")
        assert follower.stdout.readline() == "line 100\n"
        follower.send_signal(signal.SIGINT)
        assert follower.wait() == 0
        timer.cancel()


def test_before_training_the_log_of_the_job_is_shown(file: Path) -> None:
    folder = open_run(read_plan(file, "a").runs[0].config)
    silent = launch("tail", str(file), "a")
    assert silent.returncode == 2 and "a has written nothing yet" in silent.stderr
    (folder.path / "jobs").mkdir()
    (folder.path / "jobs/12_0_log.err").write_text("ModuleNotFoundError: torch\n")
    assert "ModuleNotFoundError: torch" in launch("tail", str(file), "a").stdout


def test_watching_ends_when_nothing_runs(file: Path) -> None:
    open_run(read_plan(file, "a").runs[0].config).write_status(State.failed, 3, "the last words")
    done = launch("status", str(file), "--watch", "0.1")
    assert done.returncode == 0 and "1 FAILED, 1 NEW" in done.stdout and "a: the last words" in done.stdout


@pytest.mark.parametrize(("arguments", "message"), [
    (("tail", "{file}", "*"), "* matches 2 runs (a, b) and tail shows one; give its name"),
    (("tail", "{file}"), "jobs.txt has 2 runs (a, b) and tail shows one; give its name"),
    (("cancel", "{file}", "x"), "x is neither a file nor the name of one of the 2 runs of {file} (a, b)"),
    (("status", "{file}", "a", "x"), "x is neither a file nor the name of one of the 2 runs of {file} (a, b)"),
    (("cancel", "{file}"), "cancel needs a name; give a run of {file}, a pattern, or '*'"),
    (("cancel", "a", "{file}"), "{file} is a file, and one job file comes before the names; give: cancel {file} a"),
    (("report", "other.txt"), "other.txt"),
    (("tail", "{file}", "a", "-n", "0"), "argument -n/--lines: '0' must be a whole number of at least 1"),
    (("status", "--watch", "{file}"), "argument --watch: '{file}' must be a number of seconds above 0 (FILE and names come before it)"),
    (("status", "{file}", "--wach", "1"), "unrecognized arguments: --wach 1"), (("doctor", "a"), "a does not exist; give a job file"),
])  # fmt: skip
def test_wrong_words_in_the_place_of_names(
    file: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, errors = in_process(*(word.format(file=file) for word in arguments), capsys=capsys)
    assert status == 2 and message.format(file=file) in errors


def in_process(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit status, standard error) without the second that a process takes to begin."""
    try:
        return main(arguments), capsys.readouterr().err
    except ConfigError as error:
        return 2, str(error)
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code, capsys.readouterr().err


@pytest.mark.parametrize(("words", "file", "names"), [
    ([], "jobs.txt", []), (["a"], "jobs.txt", ["a"]), (["a", "e/b*"], "jobs.txt", ["a", "e/b*"]), (["mine.txt"], "mine.txt", []),
    (["mine.txt", "a", "b"], "mine.txt", ["a", "b"]), (["plan", "a"], "plan", ["a"]), (["folder"], "jobs.txt", ["folder"]),
])  # fmt: skip
def test_every_command_takes_file_and_names_in_the_same_way(
    words: list[str], file: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with options before, between and behind; --only is another way to give a name."""
    (tmp_path / "plan").write_text("")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    given: list[tuple[str, list[str]]] = []
    for command in ("check", "submit", "status", "tail", "cancel", "retry", "report"):
        monkeypatch.setattr(commands, f"{command}_command", lambda found: given.append((str(found.file), found.names)) or 0)
        option = {"tail": ["-n", "3"], "retry": ["--failed"], "report": ["--output", "x"]}.get(command, [])
        for line in ([*words, *option], [*option, *words], [*words[:1], *option, *words[1:]]):
            main([command, *line])
        main([command, *words, *option, "--only", "z"])
        assert given == [(file, names)] * 3 + [(file, [*names, "z"])], command
        given.clear()


def test_wrong_words(file: Path) -> None:
    assert launch("sumbit", str(file)).returncode == launch("retry", str(file)).returncode == 2
    assert "--failed" in launch("retry", str(file)).stderr
    none = launch("submit", str(file), "--cluster", "local", "--places", "0")
    assert none.returncode == 2 and "--places 0 must be at least 1" in none.stderr
