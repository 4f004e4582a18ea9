"""Shards on SLURM are elements of job arrays: submitted, split, cancelled, continued. SLURM's commands are stand-ins that record
what they are asked; the same on a real one: tests/slurm/test_shards.py."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.launch import shards as launched
from arclab.launch.__main__ import main
from arclab.launch.queue.plan import PlannedRun, read_plan
from arclab.launch.queue.progress import living_jobs
from arclab.launch.queue.submit import cancel, retry, submit
from arclab.runs.folder import State
from arclab.runs.jobrecord import read_job
from arclab.runs.statewords import read_state

from .test_damage import at_once

# Each in a folder: scripts/N of what was given to sbatch, `queue` for squeue to say, a line in `asked` for each time that it was,
# `cancelled` for what scancel was given.
COMMANDS = {
    "sbatch": """[ -e full ] && [ "$(ls scripts | wc -l)" -ge 1 ] && { echo "too many jobs of yours" >&2; exit 1; }
number=$(( $(ls scripts | wc -l) + 1 )); cp "$1" "scripts/$number"; echo "Submitted batch job $number" """,
    "squeue": "echo squeue >> asked; cat queue",
    "scontrol": 'echo "MaxArraySize            = $(cat array_size)"',
    "scancel": 'echo "$@" >> cancelled',
    "sinfo": "echo main",
    "srun": "true",
}
Plan = Callable[..., tuple[PlannedRun, ...]]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cluster that takes arrays of 100."""
    (folder := tmp_path / "cluster").mkdir()
    (folder / "scripts").mkdir()
    (folder / "queue").touch()
    (folder / "array_size").write_text("100")
    for name, body in COMMANDS.items():
        (folder / name).write_text(f'#!/bin/sh\ncase $1 in /*) ;; *.sh) set -- "$PWD/$1";; esac\ncd {folder}\n{body}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """plan(3, *names): of an evaluation in so many shards, which another one follows in the file."""

    def read(shards: int, *names: str) -> tuple[PlannedRun, ...]:
        common = (
            f"evaluate.py solver=program_sampling lm=tiny dataset=toy launch=slurm_cpu launch.cpus=1 runs_dir={tmp_path}/runs"
        )
        path = tmp_path / "jobs.txt"
        path.write_text(f"## A\n## Criterion: b\n{common} launch.shards={shards} name=a\n{common} name=b seed=1\n")
        return read_plan(path, *names).runs

    return read


def jobs_of(runs: tuple[PlannedRun, ...]) -> list[str]:
    return [job.id if (job := read_job(run.folder)) is not None else "" for run in runs]


def option(script: Path, name: str) -> str:
    found = re.search(rf"^#SBATCH --{name}=(.*)$", script.read_text(), re.MULTILINE)
    return found[1] if found else ""


def say(cluster: Path, states: dict[str, str]) -> None:
    (cluster / "queue").write_text("".join(f"{job} {state}\n" for job, state in states.items()))


def test_shards_are_one_array_and_the_whole_waits_for_its_elements(cluster: Path, plan: Plan, tmp_path: Path) -> None:
    runs = plan(3)
    actions = submit(runs, "slurm")
    assert [action.job for action in actions] == jobs_of(runs) == ["1_0", "1_1", "1_2", "2", "3"]
    scripts = [cluster / "scripts" / str(number) for number in (1, 2, 3)]
    assert [option(script, "array") for script in scripts] == ["0-2%3", "", ""]
    assert option(scripts[1], "dependency") == "afterok:1_0:1_1:1_2" and not option(scripts[2], "dependency")
    folder = runs[0].folder.path.parent / "jobs"
    tasks = [pickle.loads((folder / f"1_{number}_submitted.pkl").read_bytes()).function.run_dir for number in range(3)]
    assert tasks == [run.folder.path.resolve() for run in runs[:3]]


def test_a_divided_line_that_is_submitted_several_times_at_once_is_one_array(cluster: Path, plan: Plan) -> None:
    runs = plan(3, "*-a*")
    say(cluster, {"1_0": "PENDING", "1_1": "PENDING", "1_2": "PENDING", "2": "PENDING"})
    at_once(lambda: submit(runs, "slurm"), 3)
    assert jobs_of(runs) == ["1_0", "1_1", "1_2", "2"] and len(list((cluster / "scripts").iterdir())) == 2


def test_a_whole_that_needs_many_shards_asks_for_the_queue_no_more_often(cluster: Path, plan: Plan) -> None:
    """Once for all runs, and once for the jobs that it could wait for."""
    runs = plan(5, "*-a*")
    submit(runs, "slurm")
    say(cluster, {f"1_{number}": "PENDING" for number in range(5)})
    folder = runs[-1].folder.path
    for name in ("status.json", "job.json"):
        (folder / name).unlink()
    (cluster / "asked").write_text("")
    assert [action.what.partition(" (")[0] for action in submit(runs, "slurm")] == [*["skipped: QUEUED"] * 5, "submitted"]
    assert len((cluster / "asked").read_text().splitlines()) == 2
    assert option(cluster / "scripts/3", "dependency") == "afterok:1_0:1_1:1_2:1_3:1_4"


@pytest.mark.parametrize("gone", [None, State.preempted])
def test_a_failed_merge_goes_with_the_shard_that_it_lacked(
    gone: State | None, cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command is enough, whether the shard's folder was removed by hand or the shard was preempted."""

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launched, "_wait", interrupt)
    words = ["solver=program_sampling", "lm=tiny", "dataset=toy", "launch=slurm_cpu", "launch.cpus=1", "launch.shards=2"]
    words += [f"output_dir={tmp_path}/a", "lm.name=org/tiny"]
    config = compose_run("evaluate_programs", words)
    assert launched.run_shards("evaluate.py", words, config) == 130
    runs = read_plan(tmp_path / "a/shards/jobs.txt").runs
    for run, state in zip(runs, (State.done, gone, State.failed), strict=True):
        if state is None:
            shutil.rmtree(run.folder.path)
        else:
            run.folder.write_status(state, 1, exit_status=2 if state is State.failed else 0)
    say(cluster, {"3": "PENDING"})
    assert launched.run_shards("evaluate.py", words, config) == 130
    assert jobs_of(runs) == ["1_0", "3", "4"] and option(cluster / "scripts/4", "dependency") == "afterok:3"


def test_an_array_is_not_larger_than_the_cluster_takes(cluster: Path, plan: Plan) -> None:
    (cluster / "array_size").write_text("2")
    runs = plan(5, "*-a*")
    submit(runs, "slurm")
    assert jobs_of(runs) == ["1_0", "1_1", "2_0", "2_1", "3", "4"]
    assert [option(cluster / "scripts" / str(number), "array") for number in (1, 2, 3)] == ["0-1%2", "0-1%2", ""]
    assert option(cluster / "scripts/4", "dependency") == "afterok:1_0:1_1:2_0:2_1:3"


def test_a_refused_second_array_leaves_the_first_one_and_no_trace_of_its_own(cluster: Path, plan: Plan) -> None:
    (cluster / "array_size").write_text("2")
    (cluster / "full").touch()
    runs = plan(4, "*-a*")
    with pytest.raises(
        ConfigError, match=r"too many jobs of yours.*Submitted before it: .*-shard0, .*-shard1; the same command"
    ):
        submit(runs, "slurm")
    assert [run.folder.state for run in runs] == [State.submitted, State.submitted, None, None, None]
    say(cluster, {"1_0": "RUNNING", "1_1": "PENDING"})
    (cluster / "full").unlink()
    assert [action.what.partition(" (")[0] for action in submit(runs, "slurm")] == [
        "skipped: RUNNING", "skipped: QUEUED", "submitted", "submitted", "submitted",
    ]  # fmt: skip
    assert jobs_of(runs) == ["1_0", "1_1", "2_0", "2_1", "3"]


def test_elements_are_cancelled_and_tried_again_by_themselves(
    cluster: Path, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = plan(3, "*-a*")
    submit(runs, "slurm")
    say(cluster, {"1_0": "RUNNING", "1_1": "RUNNING", "1_2": "PENDING", "2": "PENDING"})
    runs[0].folder.write_status(State.running, 1)
    assert [action.what for action in cancel(runs[0:3:2])] == ["told to save and end", "cancelled"]
    assert (cluster / "cancelled").read_text().splitlines() == ["--signal=TERM 1_0", "1_2"]
    runs[1].folder.write_status(State.running, 2, num_steps=4)
    log = runs[0].folder.path.parent / "jobs/1_1_0_log.err"
    log.write_text("error of this element\n")
    log.with_name("1_2_0_log.err").write_text("of another one\n")
    assert main(["status", str(tmp_path / "jobs.txt"), "*-a*"]) == 0
    rows = [line.split()[:4] for line in capsys.readouterr().out.splitlines() if "-a-shard1" in line]
    assert rows == [["tiny-a-shard1", "RUNNING", "1_1", "2/4"]]
    assert main(["tail", str(tmp_path / "jobs.txt"), "*-a-shard1"]) == 0
    assert "error of this element" in (said := capsys.readouterr().out) and "another one" not in said

    say(cluster, {"1_1": "RUNNING"})
    runs[0].folder.write_status(State.preempted, 1)
    runs[1].folder.write_status(State.preempted, 2)  # and requeued by SLURM
    states = [read_state(run.folder, living_jobs(runs).get(run.folder.path)) for run in runs[:3]]
    assert states == ["CANCELLED", "REQUEUED", "CANCELLED"]
    assert [action.what for action in retry(runs[:3], None)] == [
        "submitted again (CANCELLED)", "skipped: REQUEUED", "submitted again (CANCELLED)",
    ]  # fmt: skip
    assert jobs_of(runs[:3]) == ["3_0", "1_1", "3_1"]


def test_a_damaged_shard_is_not_started_and_the_others_are(cluster: Path, plan: Plan) -> None:
    runs = plan(3, "*-a*")
    runs[1].folder.path.mkdir(parents=True)
    (runs[1].folder.path / "status.json").write_text("{")
    actions = submit(runs, "slurm")
    assert [action.is_error for action in actions] == [False, True, False, True] and not actions[3].job
    assert jobs_of((runs[0], runs[2])) == ["1_0", "1_1"]
    assert json.loads(runs[2].folder.provenance.read_text())["command"].startswith("evaluate.py")


def test_stages_of_rounds_wait_for_each_other_with_their_shards(cluster: Path, tmp_path: Path) -> None:
    """Also where the lines stand in another order: shards wait for the stage before, the next stage for the merged one."""
    path = tmp_path / "jobs.txt"
    common = (
        f"self_improve.py method=tree_search lm=tiny dataset=toy name=a launch=slurm_cpu launch.cpus=1 runs_dir={tmp_path}/runs"
    )
    sampled = f"{common} stage=collect launch.shards=2"
    others = [f"{common} stage={stage}" for stage in ("curate", "sft", "evaluate")]
    path.write_text("## A\n## Criterion: b\n" + "".join(f"{line}\n" for line in (f"{sampled} round=1", *others, sampled)))
    runs = {run.name: run for run in read_plan(path).runs}
    submit(tuple(runs.values()), "slurm")
    jobs = dict(zip(runs, jobs_of(tuple(runs.values())), strict=True))
    assert [jobs[f"a-{round_}-collect-shard{n}"].partition("_")[2] for round_ in (0, 1) for n in (0, 1)] == ["0", "1"] * 2

    def waits_for(name: str) -> str:
        return option(cluster / "scripts" / jobs[name].partition("_")[0], "dependency").removeprefix("afterok:")

    assert waits_for("a-0-collect") == ":".join(jobs[f"a-0-collect-shard{n}"] for n in (0, 1))
    assert waits_for("a-0-curate") == jobs["a-0-collect"] and not waits_for("a-0-collect-shard0")
    assert waits_for("a-1-collect-shard1") and set(waits_for("a-1-collect").split(":")) >= {
        jobs[f"a-1-collect-shard{n}"] for n in (0, 1)
    }
