"""Records in JSON files: whatever happened to the bytes, the reader gives the right value or one sentence that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arclab.files import DamagedFile, is_kind
from arclab.launch.queue.jobrecord import JobRecord, read_job
from arclab.runs.folder import RunDir, State
from arclab.runs.lock import Holder, read_holder

JOB = JobRecord("4711_3", "slurm", 1.5e9, host="node-1")
HOLDER = Holder(host="node-1", pid=7, started=1.5e9, slurm_job="5", incarnation="0", since="2026-01-01 00:00:00", start_ticks=9)
STATUS = {"state": "RUNNING", "step": 12, "message": "step 12: well", "exit_status": 0, "time": 1.5e9}
Reader = Callable[[RunDir], Any]
READERS: dict[str, tuple[Reader, dict[str, Any], dict[str, Any]]] = {
    "lock.json": (read_holder, asdict(HOLDER), get_type_hints(Holder)),
    "status.json": (RunDir.read_status, STATUS, {"state": str, "step": int, "message": str, "exit_status": int}),
    "job.json": (read_job, asdict(JOB), get_type_hints(JobRecord)),
}
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=1), st.just({})
)
quick = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read(name: str, data: bytes, folder: Path) -> Any:
    """What the reader says of a file with these bytes; None if it is one sentence that names the file."""
    reader, _, hints = READERS[name]
    (folder / name).write_bytes(data)
    try:
        value = reader(RunDir(folder))
    except DamagedFile as error:
        assert str(error).startswith(f"{folder / name} is damaged (") and "\n" not in str(error)
        return None
    record = value if isinstance(value, dict) else asdict(value)
    assert all(is_kind(record[key], hint) for key, hint in hints.items() if key in record)
    assert name != "status.json" or State(record["state"])
    return record


@pytest.mark.parametrize("name", READERS)
@quick
@given(st.data())
def test_bytes_that_are_lost_or_flipped(name: str, tmp_path: Path, data: st.DataObject) -> None:
    whole = json.dumps(READERS[name][1]).encode()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert read(name, cut, tmp_path) is None  # a part of an object is none
    flipped = bytearray(whole)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(whole) - 1), min_size=1, max_size=3)):
        flipped[bit // 8] ^= 1 << bit % 8
    read(name, bytes(flipped), tmp_path)
    assert read(name, whole + b"\n", tmp_path) == READERS[name][1]


@pytest.mark.parametrize("name", READERS)
@quick
@given(st.data())
def test_values_of_another_type(name: str, tmp_path: Path, data: st.DataObject) -> None:
    _, record, hints = READERS[name]
    key, value = data.draw(st.sampled_from(sorted(hints))), data.draw(VALUES)
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
