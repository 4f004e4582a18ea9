"""Records in JSON files: whatever happened to the bytes, the reader gives the right value or one sentence that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arclab.files import is_kind
from arclab.runs.folder import RunDir, State
from arclab.runs.jobrecord import JobRecord, read_job
from arclab.runs.lock import Holder, read_holder

from .damage import OTHER_VALUES, REPEATED, damaged_json, outcome_or_sentence

JOB = JobRecord("4711_3", "slurm", 1.5e9, host="node-1")
HOLDER = Holder(host="node-1", pid=7, started=1.5e9, slurm_job="5", incarnation="0", since="2026-01-01 00:00:00", start_ticks=9)
STATUS = {"state": "RUNNING", "step": 12, "message": "step 12: well", "exit_status": 0, "time": 1.5e9}
Reader = Callable[[RunDir], Any]
READERS: dict[str, tuple[Reader, dict[str, Any], dict[str, Any]]] = {
    "lock.json": (read_holder, asdict(HOLDER), get_type_hints(Holder)),
    "status.json": (RunDir.read_status, STATUS, {"state": str, "step": int, "message": str, "exit_status": int}),
    "job.json": (read_job, asdict(JOB), get_type_hints(JobRecord)),
}


def read(name: str, data: bytes, folder: Path) -> dict[str, Any] | None:
    """What the reader says of a file with these bytes; None if it is one sentence that names the file."""
    reader, _, hints = READERS[name]
    (folder / name).write_bytes(data)
    value = outcome_or_sentence(lambda: reader(RunDir(folder)), folder / name)
    if value is None:
        return None
    record = value if isinstance(value, dict) else asdict(value)
    assert all(is_kind(record[key], hint) for key, hint in hints.items() if key in record)
    assert name != "status.json" or State(record["state"])
    return record


@pytest.mark.parametrize("name", READERS)
@REPEATED
@given(st.data())
def test_damaged_records(name: str, tmp_path: Path, data: st.DataObject) -> None:
    whole = READERS[name][1]
    read(name, data.draw(damaged_json(whole)), tmp_path)
    text = json.dumps(whole).encode()
    assert read(name, text[: data.draw(st.integers(0, len(text) - 1))], tmp_path) is None  # a part of an object is none
    assert read(name, text + b"\n", tmp_path) == whole


@pytest.mark.parametrize("name", READERS)
@REPEATED
@given(st.data())
def test_one_value_of_another_kind(name: str, tmp_path: Path, data: st.DataObject) -> None:
    _, record, hints = READERS[name]
    key, value = data.draw(st.sampled_from(sorted(hints))), data.draw(st.sampled_from(OTHER_VALUES))
    found = read(name, json.dumps({**record, key: value}).encode(), tmp_path)
    assert found is None or (found[key] == value and is_kind(value, hints[key]))
    lacking = {other: v for other, v in record.items() if other != key}
    found = read(name, json.dumps({**lacking, "of_a_newer_version": value}).encode(), tmp_path)
    assert found is None or key not in found or key in ("exit_status", *vars_with_default(name))


def vars_with_default(name: str) -> set[str]:
    """What a file of an older version may lack."""
    both = {"start_ticks", "boot_id", "pid_namespace"}
    return {"lock.json": both | {"has_lock"}, "job.json": both | {"host", "is_cancelled"}}.get(name, set())


def test_files_of_older_versions_stay_readable(tmp_path: Path) -> None:
    new = {key: value for key, value in asdict(HOLDER).items() if key not in vars_with_default("lock.json")}
    (tmp_path / "lock.json").write_text(json.dumps(new))
    assert read_holder(RunDir(tmp_path)) == replace(HOLDER, start_ticks=None)
    (tmp_path / "job.json").write_text('{"id": "12", "cluster": "slurm", "submitted": 1.0}')
    assert read_job(RunDir(tmp_path)) == JobRecord("12", "slurm", 1.0)
