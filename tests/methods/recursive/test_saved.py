"""Checkpoints and kept votes that were cut short, changed by a bit or rewritten: the right value or one sentence that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from arclab.data.augment import ViewRule
from arclab.data.record import TASKS_FILE, DataRecord, TaskRecord
from arclab.data.sampler import Cursor
from arclab.methods.recursive.saved import load_record
from arclab.methods.recursive.solver.store import Tally, VoteStore
from arclab.methods.recursive.training.checkpoint import TrainingProgress, progress_from
from arclab.runs.checkpoints import CheckpointFolder, load_tensors, newest_checkpoint, read_state, sealed

QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
KEYS = [("a", 0), ("a", 1)]
RECORD = DataRecord(ViewRule.content, (TaskRecord("t", "d" * 16, "e" * 16, True, "f" * 16, 3, 1),))
PROGRESS = TrainingProgress(7, (Cursor(0, 1, 2, 7, 3),), 7, 1.5, "id", {"seed": 0}, ["a stamp"], 0.25, 6)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep_last=1)
    temporary = folder.begin(7)
    save_file({"w": torch.arange(6.0)}, temporary / "model.safetensors")
    (temporary / TASKS_FILE).write_text(RECORD.text())
    folder.commit(temporary, asdict(PROGRESS))
    return folder.path(7)


def everything(checkpoint: Path) -> tuple[TrainingProgress, list[float], DataRecord | None]:
    state = read_state(newest_checkpoint(checkpoint.parent.parent))
    tensors: dict[str, Tensor] = load_tensors(checkpoint, "model.safetensors", state)
    return progress_from(state), tensors["w"].tolist(), load_record(checkpoint, state)


def votes(folder: Path) -> Tally:
    tally = Tally(np.array([True, False, True, False]), np.array([1.5, 2.0]))
    tally.box.add(("a", 0), (1, 2, b"\x01\x02"), 2, 2**60)
    tally.box.add(("a", 1), None, 1, 7)
    store = VoteStore(folder, "k")
    assert store.load(KEYS) is None
    store.save(0, KEYS, tally)
    return tally


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Cut off, a bit turned, or a piece exchanged; at a place that the length of the file does not limit."""
    kind, place = draw(st.sampled_from(["cut", "bit", "piece"])), draw(st.integers(0, 10**6))
    bit, piece = draw(st.integers(0, 7)), draw(st.binary(min_size=1, max_size=9))

    def apply(data: bytes) -> bytes:
        at = place % len(data)
        if kind == "cut":
            return data[:at]
        changed = bytes([data[at] ^ (1 << bit)]) if kind == "bit" else piece
        return data[:at] + changed + data[at + len(changed) :]

    return apply


@QUICK
@given(damage(), st.sampled_from(["state.json", "model.safetensors", TASKS_FILE]))
def test_a_damaged_checkpoint_is_named_or_right(checkpoint: Path, change: Callable[[bytes], bytes], name: str) -> None:
    right, file = everything(checkpoint), checkpoint / name
    whole = file.read_bytes()
    file.write_bytes(change(whole))
    try:
        assert everything(checkpoint) == right
    except ValueError as error:
        assert name in str(error) and "\n" not in str(error) and "remove that folder" in str(error)
        assert change(whole) != whole
    finally:
        file.write_bytes(whole)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@QUICK
@given(st.sampled_from(["step", "files", "digests", "stamps", "cursors", "ema_updates", "runtime_s", "run_id", "settings", "best_score", "best_step"]), VALUES, st.booleans())  # fmt: skip
def test_a_state_of_other_types_is_a_sentence(checkpoint: Path, key: str, value: Any, is_old: bool) -> None:
    """Also where no digest tells, as in older checkpoints. What is missing from files is named, since files is what says so."""
    file = checkpoint / "state.json"
    whole = file.read_text()
    state = {k: v for k, v in json.loads(whole).items() if k != "digest"} | {key: value}
    file.write_text(json.dumps(state if is_old else sealed(state)))
    try:
        everything(checkpoint)
    except ValueError as error:
        assert ("\n" not in str(error) and "state.json" in str(error)) or "safetensors" in str(error)
    finally:
        file.write_text(whole)


@QUICK
@given(st.sampled_from(["views", "tasks"]), VALUES | st.lists(st.fixed_dictionaries(dict.fromkeys(("id", "demos", "tests", "learns_tests", "views", "num_views", "first_row"), VALUES)), min_size=1, max_size=1))  # fmt: skip
def test_a_record_of_other_types_is_a_sentence(checkpoint: Path, key: str, value: Any) -> None:
    file = checkpoint / TASKS_FILE
    file.write_text(json.dumps({**json.loads(RECORD.text()), key: value}))
    state = read_state(checkpoint) | {"files": {TASKS_FILE: file.stat().st_size}, "digests": {}}
    try:
        load_record(checkpoint, state)
    except ValueError as error:
        assert TASKS_FILE in str(error) and "\n" not in str(error)


@QUICK
@given(damage())
def test_damaged_votes_are_named_or_right(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    shutil.rmtree(tmp_path / "votes", ignore_errors=True)
    right = votes(tmp_path / "votes")
    (file,) = (tmp_path / "votes").iterdir()
    whole = file.read_bytes()
    file.write_bytes(change(whole))
    try:
        tally = VoteStore(tmp_path / "votes", "k").load(KEYS)
    except ValueError as error:
        assert file.name in str(error) and "remove it" in str(error) and change(whole) != whole
    else:
        assert change(whole) == whole and tally is not None
        assert tally.box.counts == right.box.counts and tally.done_R.tolist() == right.done_R.tolist()


def test_a_flipped_bit_among_the_weights_is_found(checkpoint: Path) -> None:
    """The file stays a valid one of its size: only the digest tells. Checkpoints from before there were digests still load."""
    file = checkpoint / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"step_00000007: model.safetensors is damaged .*; remove that folder to use the one before it"
    ):
        load_tensors(checkpoint, "model.safetensors", read_state(checkpoint))
    state = {k: v for k, v in json.loads((checkpoint / "state.json").read_text()).items() if k not in ("digest", "digests")}
    (checkpoint / "state.json").write_text(json.dumps(state))
    assert len(load_tensors(checkpoint, "model.safetensors", read_state(checkpoint))["w"]) == 6


def test_no_byte_of_the_state_can_change(checkpoint: Path) -> None:
    """A digit that becomes another one is still JSON of the right types: a step, a seed or a count that never was."""
    file = checkpoint / "state.json"
    whole, right = file.read_bytes(), progress_from(read_state(checkpoint))
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert progress_from(read_state(checkpoint)) == right, place
        except ValueError as error:
            assert "state.json is damaged" in str(error)
