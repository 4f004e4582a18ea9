"""Files: what is read is right or refused by name, what is written is whole, and what a disk refuses is one sentence."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arclab.config.compose import run_main
from arclab.config.schema import ExperimentConfig
from arclab.files import (
    DamagedFile,
    difference,
    is_kind,
    naming,
    read_json,
    read_lines,
    read_object,
    read_text,
    sentence_for,
    write_atomically,
)
from arclab.methods.recursive.run import pretrain
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RecordFailure
from arclab.runs.lock import lock_path, locked

from .conftest import ROOT, script_env
from .damage import REPEATED, damaged_bytes, damaged_json, outcome_or_sentence

Tiny = Callable[..., ExperimentConfig]
RECORD = {"step": 3, "name": "ä", "best": None, "rows": [[1, 2], {"a": 0.5}]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1,}', "no JSON: .* at line 1, column"),
        (b"\xff\xfe{", "no UTF-8 text: byte 0 is 0xff"),
        (b"[" * 100_000, "nested too deep"),
        (b"9" * 10_000, "Exceeds the limit"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        (b"", "no JSON"),
    ],
)
def test_what_is_no_json_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=rf"x\.json is damaged \({words}.*; restore it, or remove it\.$"):
        read_json(path)


def test_a_line_is_named_and_one_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"step": 1}\n{"step": 2}\n{"step": ')
    assert read_lines(path, {"step": int}) == [{"step": 1}, {"step": 2}]
    for line, words in (
        (b"[]\n", "no JSON object, but a list"),
        (b"{}\n", "it has no step"),
        (b'{"step": 1.5}\n', "step is 1.5 where a whole number"),
    ):
        path.write_bytes(b'{"step": 1}\n' + line)
        with pytest.raises(
            DamagedFile, match=rf"x\.jsonl is damaged in line 2 \({words}.*; correct that line, or remove it\.$"
        ):
            read_lines(path, {"step": int})


def test_kinds() -> None:
    """true is no number, a whole number is one, and what is not finite or too large to count with is none."""
    cases: tuple[tuple[Any, Any, bool], ...] = (
        (1, int, True), (1, float, True), (True, int, False), (True, bool, True), (1.0, int, False), (None, int, False), (None, int | None, True),
        (float("nan"), float, False), (10**400, float, False), (2**63, int, False), ("1", float, False), ([], list, True), ({}, list | dict, True),
    )  # fmt: skip
    assert [is_kind(value, kind) for value, kind, _ in cases] == [expected for *_, expected in cases]


@given(content=damaged_json(RECORD))
@REPEATED
def test_a_damaged_object_is_read_or_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    record = outcome_or_sentence(lambda: read_object(path, {"step": int, "best": float | None}), path)
    assert record is None or type(record["step"]) is int


@given(content=damaged_bytes(json.dumps(RECORD).encode() + b"\n" + json.dumps(RECORD).encode() + b"\n"))
@REPEATED
def test_damaged_lines_are_read_or_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    outcome_or_sentence(lambda: read_lines(path, {"step": int}), path)
    outcome_or_sentence(lambda: read_text(path), path)


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")))
@REPEATED
def test_what_is_written_is_read(tmp_path: Path, text: str) -> None:
    write_atomically(tmp_path / "x.json", json.dumps([text]))
    assert read_json(tmp_path / "x.json") == [text]


def full_disk(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSPC, only: str = "") -> None:
    """Whatever is written under a temporary name and has `only` in its name cannot take its place."""
    replace = os.replace

    def fail(source: Any, target: Any) -> None:
        if only in str(target):
            raise OSError(code, os.strerror(code), str(source), None, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)


def test_a_failed_write_leaves_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, "old")
    full_disk(monkeypatch)
    with pytest.raises(OSError) as caught:
        write_atomically(path, "new")
    assert sentence_for(caught.value) == f"{path}: No space left on device; free some space and run the same command again."
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("n" * 300, "choose a shorter name"),
        ("file/x", "a part of the path is a file"),
        ("none/x", "moved or removed"),
        ("folder", "it is a folder"),
    ],
)
def test_a_path_that_cannot_be_written(tmp_path: Path, place: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / place, "x")
    sentence = str(sentence_for(caught.value))
    assert sentence.startswith(f"{tmp_path / place}: ") and words in sentence


def test_which_errors_are_the_users() -> None:
    """A file is; a bug, a peer that has gone and a pipe of our own are not, and keep their traceback."""
    assert sentence_for(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is not None
    assert sentence_for(OSError(errno.EDQUOT, "Disk quota exceeded")) is not None
    for bug in (
        TypeError("x"),
        OSError(errno.EBADF, "Bad file descriptor"),
        ConnectionResetError(errno.ECONNRESET, "x"),
        BrokenPipeError(errno.EPIPE, "x"),
        OSError("x"),
    ):
        assert sentence_for(bug) is None


def test_errors_of_the_libraries_that_write(tmp_path: Path) -> None:
    """tokenizers and torch: no OSError, no name."""

    def tokens() -> None:
        raise Exception("File too large (os error 27)")

    for write, code in ((tokens, errno.EFBIG), (lambda: torch.save(torch.zeros(9999), "/dev/full"), errno.ENOSPC)):
        with pytest.raises(OSError) as caught, naming(tmp_path):
            write()
        assert (caught.value.errno, caught.value.filename) == (code, str(tmp_path))


def told(main: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that an entry script prints from "error:" on. It ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        run_main(main)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    return printed[printed.index("error: ") :].splitlines()


def test_a_disk_that_fills_while_it_trains(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first error is printed and kept; a status.json that cannot be written either does not hide it."""
    config = tiny("trainer.eval_every=1")
    run = RunDir(config.folder)
    full_disk(monkeypatch, only="eval_predictions.json")
    (line,) = told(lambda _: pretrain(config), capsys)
    assert line.startswith(f"error: {run.path}/eval_predictions.json: No space left on device; free some space")
    status = run.read_status()
    assert status is not None and (status["state"], status["exit_status"]) == ("FAILED", 2)
    assert status["message"] == line.removeprefix("error: ")

    write = RunDir.write_status

    def only_running(self: RunDir, state: State, *more: Any) -> None:
        if state is State.failed:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", str(self.path / "status.json"))
        write(self, state, *more)

    monkeypatch.setattr(RunDir, "write_status", only_running)
    first, note = told(lambda _: pretrain(config), capsys)
    assert first == line and note.startswith(f"note: {run.path} could not keep this message: ") and "quota" in note
    monkeypatch.undo()
    assert pretrain(config) == 0 and run.state is State.done


def test_a_log_that_cannot_grow(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Writing to an open file gives an error without a name; closing it gives another."""
    config = tiny()
    run = RunDir(config.folder)
    run.path.mkdir(parents=True)
    run.metrics.symlink_to("/dev/full")
    monkeypatch.setattr("arclab.metrics.logger._keep_rows_until", lambda *_: None)
    (line,) = told(lambda _: pretrain(config), capsys)
    assert line == f"error: {run.metrics}: No space left on device; free some space and run the same command again."
    assert run.state is State.failed


@pytest.mark.parametrize(
    ("where", "words"),
    [("{}/file", "a part of the path is a file"), ("{}/" + "n" * 300, "choose a shorter name"), ("/proc", "moved or removed")],
)
def test_runs_where_nothing_can_be_written(
    tiny: Tiny, tmp_path: Path, where: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (line,) = told(lambda _: pretrain(tiny(f"runs_dir={where.format(tmp_path)}")), capsys)
    assert words in line and where.format(tmp_path) in line


@pytest.mark.parametrize("during", ["run.context_metrics", "training.state._moments"])
def test_a_folder_that_is_moved_while_it_trains(
    tiny: Tiny, during: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is made anew where it was. The second one is between two files of a checkpoint."""
    config = tiny("trainer.eval_every=1")
    run = RunDir(config.folder)

    def move(*_: object) -> dict[str, Any]:
        run.path.rename(run.path.with_name("moved"))
        return {"x": torch.zeros(1)}

    monkeypatch.setattr(f"arclab.methods.recursive.{during}", move)
    lines = told(lambda _: pretrain(config), capsys)
    assert lines[0].startswith(f"error: {run.path}") and "it was moved or removed" in lines[0]
    assert not run.path.exists()


def test_a_lock_that_cannot_be_given_back_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has become read-only."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "lock.json")

    with pytest.raises(ValueError, match="what happened"), locked(RunDir(tmp_path)):
        monkeypatch.setattr(Path, "unlink", refuse)
        raise ValueError("what happened")
    monkeypatch.undo()
    lock_path(RunDir(tmp_path)).unlink()
    with pytest.raises(OSError, match=r"lock\.json"), locked(RunDir(tmp_path)):
        monkeypatch.setattr(Path, "unlink", refuse)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), MemoryError(), TypeError("a bug")], ids=lambda e: type(e).__name__
)
def test_whatever_ends_a_run_ends_its_status(tmp_path: Path, error: BaseException) -> None:
    run = RunDir(tmp_path)
    run.write_status(State.running, 7)
    with pytest.raises(type(error)), RecordFailure(run):
        raise error
    status = run.read_status()
    assert status is not None and (status["state"], status["step"], status["exit_status"]) == ("FAILED", 7, 1)
    assert type(error).__name__ in status["message"]


def test_a_damaged_status_does_not_hide_what_happened(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (tmp_path / "status.json").write_text('{"state": ')
    with pytest.raises(TypeError, match="a bug") as caught, RecordFailure(run):
        raise TypeError("a bug")
    assert "status.json is damaged" in caught.value.__notes__[0]


def test_output_that_cannot_be_written() -> None:
    """To a full disk: a sentence. Into a pipe that nobody reads: silence, and the status of SIGPIPE."""
    command = [sys.executable, "-m", "arclab.metrics.workspace"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, env=script_env(), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: standard output: No space left on device; free some space and run the same command again.\n"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=ROOT, env=script_env(), stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_difference_names_the_first_key_and_counts_the_others() -> None:
    """As JSON keeps the values: lists are what tuples become, and an absent key is null."""
    assert difference({"a": (1, 2), "b": None}, {"a": [1, 2]}) == ""
    assert difference({"b": 1, "a": 0}, {"b": 2, "c": 3, "a": 0}) == "b=1, now b=2; c=None, now c=3 (2 keys differ)"
    assert difference({}, {"c": 3}, says="this line says") == "c=None, this line says c=3 (1 keys differ)"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EPIPE])
def test_a_console_that_takes_nothing_does_not_end_a_run(tiny: Tiny, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that has gone, a log on a full disk, a reader that has ended; for log lines and for the bar."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(sys, "stderr", Gone())
    assert pretrain(tiny()) == 0
