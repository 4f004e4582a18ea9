"""A method in rounds: its stages are runs of their own, chained by files whose digests are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arclab.config.compose import ConfigError
from arclab.entries import ENTRIES, Entry
from arclab.files import read_object
from arclab.launch.queue.plan import read_plan
from arclab.launch.start import start
from arclab.runs.folder import RunDir, State
from arclab.runs.stages import MANIFEST, digest, read_counts
from arclab.runs.worklist import Worklist

CONF = str(Path(__file__).resolve().parents[1] / "second_method" / "conf")
METHOD = "tests.second_method.staged"


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    row = Entry(
        script="second_stages.py", method="line", config="second_stages", schema=f"{METHOD}:LineStagesConfig",
        run=f"{METHOD}:improve", conf_dir=CONF,
    )  # fmt: skip
    monkeypatch.setitem(ENTRIES, "second_stages", row)
    monkeypatch.setattr("arclab.runs.preempt._SECONDS_BETWEEN_LOOKS", 0)
    return ["method=line", "name=a", f"runs_dir={tmp_path}"]


def test_all_rounds_are_made_and_may_be_more_later(name: list[str], tmp_path: Path) -> None:
    run = RunDir(tmp_path / "second/a")
    assert start("second_stages.py", [*name, "rounds=2"]) == 0
    status = run.read_status()
    assert status is not None and status["message"] == "totals [3, 3]" and status["step"] == 4
    manifest = read_object(run.path / "round_1/total" / MANIFEST)
    assert manifest["counts"] == {"total": 3} and list(manifest["inputs"]) == ["numbers"] and manifest["settings"]["items"] == 3
    assert start("second_stages.py", [*name, "rounds=3"]) == 0
    assert run.step == 6 and read_counts(run.path / "round_2/total") == {"total": 3}


def test_one_stage_is_a_run_of_its_own(name: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stage=total needs .*numbers\.jsonl, which does not exist; run stage=count first"):
        start("second_stages.py", [*name, "stage=total"])
    assert start("second_stages.py", [*name, "stage=count"]) == start("second_stages.py", [*name, "stage=total"]) == 0
    with pytest.raises(ConfigError, match="items=3, now items=4"):
        start("second_stages.py", [*name, "stage=count", "items=4"])
    assert start("second_stages.py", [*name, "rounds=1"]) == 0  # finds both done
    assert RunDir(tmp_path / "second/a").state is State.done


def test_a_changed_file_is_refused_and_named(name: list[str], tmp_path: Path) -> None:
    assert start("second_stages.py", name) == 0
    numbers = tmp_path / "second/a/round_0/count/numbers.jsonl"
    numbers.write_text(numbers.read_text() + "\n")
    with pytest.raises(ConfigError, match=r"numbers\.jsonl has been changed since its stage wrote it"):
        start("second_stages.py", [*name, "stage=total"])
    manifest = read_object(numbers.parent / MANIFEST)
    manifest["outputs"]["numbers.jsonl"] = digest(numbers)  # made again, otherwise
    (numbers.parent / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"total was made from another .*numbers\.jsonl"):
        start("second_stages.py", [*name, "stage=total"])


def test_told_to_end_inside_a_stage_it_goes_on_there(
    name: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    run, made = RunDir(tmp_path / "second/a"), list[str]()
    add = Worklist.add

    def noting(worklist: Worklist, id_: str, record: dict[str, int]) -> None:
        add(worklist, id_, record)
        made.append(id_)
        if len(made) == 2:
            run.preempt.touch()  # of the whole, not of its stage

    monkeypatch.setattr(Worklist, "add", noting)
    assert start("second_stages.py", name) == 143
    status = run.read_status()
    assert status is not None and status["state"] == "PREEMPTED" and "count of round 0 is not finished" in status["message"]
    assert RunDir(run.path / "round_0/count").state is State.preempted
    with pytest.raises(ConfigError, match=r"whose stage has not finished; run stage=count round=0 to its end first"):
        start("second_stages.py", [*name, "stage=total"])
    assert start("second_stages.py", name) == 0
    assert made == ["0", "1", "2"]


def test_lines_of_a_file_wait_for_the_stage_before(name: list[str], tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("".join(f"second_stages.py {' '.join(name)} stage={stage}\n" for stage in ("total", "count")))
    total, count = read_plan(jobs).runs
    assert total.makers == (count.folder.path,) and count.makers == ()
    for wrong, rule in (("rounds=0", "rounds=0 must be"), ("round=1", "drop round="), ("stage=tota", "tota")):
        with pytest.raises(ConfigError, match=rule):
            start("second_stages.py", [*name, wrong])
