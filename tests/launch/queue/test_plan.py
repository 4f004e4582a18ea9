"""Plans: what is refused, with line and column and all at once; what differs; how fast; without torch."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from arclab.config.compose import ConfigError, freeze
from arclab.config.schema import ExperimentConfig
from arclab.launch.queue.jobsfile import JobsError
from arclab.launch.queue.plan import JobsPlan, ablation_columns, by_entry, read_plan
from arclab.launch.queue.submit import submit
from arclab.runs.folder import State, open_run

from ...conftest import ROOT

PREFIX = "pretrain_encoder.py experiment=quickstart"


def plan_of(tmp_path: Path, *lines: str, only: str | None = None) -> JobsPlan:
    path = tmp_path / "jobs.txt"
    path.write_text("".join(f"{PREFIX} runs_dir={tmp_path}/runs {line}\n" for line in lines))
    return read_plan(path, *([only] if only else []))


def problems(tmp_path: Path, *lines: str, only: str | None = None) -> list[tuple[int, str]]:
    """(line, the word at the column and what follows, with the message) of everything that is wrong."""
    with pytest.raises(JobsError) as caught:
        plan_of(tmp_path, *lines, only=only)
    text = (tmp_path / "jobs.txt").read_text().splitlines()
    return [(p.line, f"{text[p.line - 1][p.column - 1 :].split()[0]} | {p.message}") for p in caught.value.problems]


def test_the_shipped_queue_composes_and_types() -> None:
    plan = read_plan(ROOT / "jobs.txt")
    assert plan.num_runs == len(plan.runs) >= 40 and len({run.folder.path for run in plan.runs}) == len(plan.runs)
    assert {run.config.title[0] for run in plan.runs} == {
        "toy_queue", "phase1_overfit", "phase1_small", "phase2_generalise", "trm_arc1", "etrm_arc1",
    }  # fmt: skip
    trained = [run for run in plan.runs if isinstance(run.config, ExperimentConfig)]
    by_itself, scored = by_entry(plan.runs)  # runs of two entries have other keys: a matrix for each
    assert by_itself == trained
    columns = {column.key for column in ablation_columns(scored)}
    assert {"checkpoint", "num_augmentations", "adaptation.kind"} <= columns
    assert all(run.config.wandb.group == run.job.section.title for run in trained)
    by_name = {run.full_name: run for run in plan.runs}
    assert by_name["toy_queue/toy-standard-evaluation"].makers == (Path("runs/toy_queue/toy-standard"),)
    assert by_name["phase1_overfit/baseline"].config.halting.halt_exploration_prob == 0.5
    assert by_name["phase1_overfit/pretrained_encoder-context-trm_compat"].makers == (Path("runs/trm_arc1/decoder"),)
    kinds = {run.config.encoder.kind for run in trained if run.config.experiment_name == "phase1_overfit"}
    assert {"standard", "variational", "lpn", "hybrid", "recurrent", "recurrent_trm", "cross_attention"} <= kinds
    assert not plan.notes
    toys = read_plan(ROOT / "jobs.txt", "toy*").runs
    assert len(toys) == 5 and all(run.config.launch.gpus == 0 for run in toys)


@pytest.mark.slow
def test_checking_the_shipped_queue_takes_no_torch_no_hydra_and_a_tenth_of_counting(tmp_path: Path) -> None:
    """Once the parameters are counted, which takes torch. Processor time, against that of the counting, so that neither a busy
    nor a slow machine fails the test; no Hydra: every shipped line is composed the quick way."""
    code = (
        "import sys; from arclab.launch.__main__ import main; main(['check', 'jobs.txt']); "
        "assert not {'torch', 'hydra', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    times_s = [_processor_time_s()]
    checks = []
    for _ in range(2):
        checks.append(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env))
        times_s.append(_processor_time_s())
    first, done = checks
    for check in (first, done):
        assert check.returncode == 0, check.stderr
        for words in (
            "retest_encoder-lpn_halting-short8",
            "17,335,299",
            "6,829,058 + 259,204,608 table",
            "nothing was started",
        ):
            assert words in check.stdout
        assert "could not be counted" not in check.stdout
    counting_s, checking_s = times_s[1] - times_s[0], times_s[2] - times_s[1]
    assert checking_s < 0.1 * counting_s, f"{checking_s:.2f} s of processor time, counting {counting_s:.2f} s"


def _processor_time_s() -> float:
    """Of all processes that have been started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_everything_that_is_wrong_is_shown_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path, "name=a encoder.widht=3", "name=b halting=papr", "name=c seed=-1 trainer.steps=0", "name=d", "name=e",
        "seed=1 name=d", "name=f decoder_init=pretrained decoder_init.path=runs/nowhere", "name=g encoder.widht=1,2", "name=h seed=five",
    )  # fmt: skip
    assert [line for line, _ in found] == [1, 2, 3, 3, 5, 6, 7, 8, 9]
    for (_, text), (word, words) in zip(found, [
        ("encoder.widht=3", "unknown key encoder.widht; did you mean encoder.width?"), ("halting=papr", "halting=papr is not an option"),
        ("seed=-1", "seed=-1 must be at least 0"), ("trainer.steps=0", "trainer.steps=0 must be at least 1"),
        ("pretrain_encoder.py", "e builds the same run as d (line 4)"), ("name=d", "name=d is also the name in line 4"),
        ("decoder_init.path=runs/nowhere", "decoder_init.path=runs/nowhere does not exist and no line"),
        ("encoder.widht=1,2", "unknown key encoder.widht"), ("seed=five", "seed: "),
    ], strict=True):  # fmt: skip
        assert text.startswith(f"{word} | ") and words in text


def test_a_folder_of_another_configuration_is_refused(tmp_path: Path) -> None:
    open_run(plan_of(tmp_path, "name=a seed=1").runs[0].config)
    assert plan_of(tmp_path, "name=a seed=1 trainer.log_every=7").runs  # a key that does not change the weights
    ((line, text),) = problems(tmp_path, "name=a seed=2")
    assert line == 1 and text.startswith("name=a | ") and "was made with seed=1, this line says seed=2 (1 keys differ)" in text


def test_a_folder_of_another_entry_is_refused_by_name(tmp_path: Path) -> None:
    run = open_run(plan_of(tmp_path, "name=a").runs[0].config)
    evaluation = f"evaluate.py solver=program_sampling lm=tiny dataset=toy output_dir={run.path}\n"
    path = tmp_path / "evaluations.txt"
    path.write_text(evaluation)
    with pytest.raises(JobsError, match="was made with entry=pretrain_encoder, this line says entry=evaluate_programs"):
        read_plan(path)


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    folder = open_run(plan_of(tmp_path, "name=a").runs[0].config)
    folder.config.write_text("trainer: [")
    first, second = plan_of(tmp_path, "name=a", "name=b seed=1").runs  # the fault of one run, not of the file
    assert "cannot be read" in first.damage and "is damaged" in first.damage and not second.damage


def test_only_leaves_the_mistakes_of_other_lines_alone(tmp_path: Path) -> None:
    lines = ("name=toy-a", "name=toy-b seed=1", "name=big encoder.widht=3")
    plan = plan_of(tmp_path, *lines, only="toy*")
    assert [run.name for run in plan.runs] == ["toy-a", "toy-b"]
    assert [run.name for run in plan_of(tmp_path, *lines, only="quickstart/*-b").runs] == ["toy-b"]
    assert [line for line, _ in problems(tmp_path, *lines, only="b*")] == [3]
    with pytest.raises(
        ConfigError, match=r"none is neither a file nor the name of one of the 3 runs of .*jobs.txt \(toy-a, toy-b, \.\.\.\)"
    ):
        plan_of(tmp_path, *lines, only="none")


def test_a_run_waits_for_the_run_that_makes_its_checkpoint(tmp_path: Path) -> None:
    maker = "name=m encoder=puzzle_table dataset.regime=puzzle_id"
    user = f"name=u decoder_init=pretrained decoder_init.path={tmp_path}/runs/quickstart/m"
    first, second = plan_of(tmp_path, maker, user).runs
    assert first.makers == () and second.makers == (first.folder.path,)
    assert plan_of(tmp_path, maker, f"{user}/checkpoints/step_00000010").runs[1].makers
    assert plan_of(tmp_path, maker, f"{user}@best").runs[1].makers == (first.folder.path,)
    (tmp_path / "scored.txt").write_text(
        f"{PREFIX} runs_dir={tmp_path}/runs {maker}\n"
        + "".join(f"evaluate.py checkpoint={tmp_path}/runs/quickstart/m@{which} split=train\n" for which in ("best", 10))
    )
    scored = read_plan(tmp_path / "scored.txt").runs[1:]
    assert [run.makers for run in scored] == [(first.folder.path,)] * 2
    assert [run.config.title[1] for run in scored] == ["m-train-best", "m-train-step10"]
    folder = open_run(first.config)
    folder.write_status(State.running, 5)
    assert plan_of(tmp_path, maker, user).runs[1].makers
    folder.write_status(State.done, 10)
    assert plan_of(tmp_path, maker, user).runs[1].makers == ()


def test_lines_that_wait_for_each_other_are_named(tmp_path: Path) -> None:
    def line(name: str, maker: str) -> str:
        return f"name={name} decoder_init=pretrained decoder_init.path={tmp_path}/runs/quickstart/{maker}"

    found = problems(
        tmp_path, line("a", "c"), line("b", "a"), line("c", "b/checkpoints/step_00000010"), line("d", "a") + " seed=1"
    )
    assert [number for number, _ in found] == [1, 2, 3]
    assert (
        "a waits for c (line 3), which waits for b (line 2), which waits for a (line 1): none of them can ever start"
        in found[0][1]
    )
    ((number, text),) = problems(tmp_path, line("self", "self"))
    assert number == 1 and "self waits for self (line 1): none of them can ever start" in text
    folder = open_run(plan_of(tmp_path, "name=c encoder=puzzle_table dataset.regime=puzzle_id").runs[0].config)
    folder.write_status(State.done, 10)
    maker = "name=c encoder=puzzle_table dataset.regime=puzzle_id"
    assert len(plan_of(tmp_path, line("a", "c"), line("b", "a"), maker).runs) == 3


def test_a_group_that_a_line_sets_stays(tmp_path: Path) -> None:
    path = tmp_path / "jobs.txt"
    path.write_text(
        f"## T\n## Criterion: c\n{PREFIX} name=a\n{PREFIX} name=b seed=1 wandb.group=mine\n{PREFIX} seed=2 name=c wandb.group=null\n"
    )
    assert [run.config.wandb.group for run in read_plan(path).runs] == ["T", "mine", "T"]
    assert "group: T" in freeze(read_plan(path).runs[0].config)


def test_the_matrix_has_a_column_for_everything_that_differs(tmp_path: Path) -> None:
    runs = plan_of(tmp_path, "name=a", "name=b encoder=lpn", "name=c encoder=lpn encoder.num_layers=3", "name=d seed=4").runs
    columns = {column.key: column for column in ablation_columns(runs)}
    assert list(columns) == ["encoder.kind", "seed", "encoder.num_layers"]
    assert (
        columns["encoder.kind"].values == ("standard", "lpn", "lpn", "standard")
        and "encoder.pooling" in columns["encoder.kind"].decided
    )
    assert columns["encoder.num_layers"].values == ("1", "1", "3", "1")
    assert columns["seed"].values == ("0", "0", "0", "4")
    every = {column.key: column.values for column in ablation_columns(runs, fold=False)}
    assert every.keys() == columns.keys() | set(columns["encoder.kind"].decided)
    assert every["encoder.pooling"] == ("mean", "", "", "mean")


def test_a_key_that_a_line_sets_never_hides_behind_another(tmp_path: Path) -> None:
    runs = plan_of(tmp_path, "name=a", "name=b encoder=lpn trainer.grad_accumulation=2").runs
    assert [column.key for column in ablation_columns(runs)] == ["encoder.kind", "trainer.grad_accumulation"]


def test_check_fails_with_exit_status_two(tmp_path: Path) -> None:
    path = tmp_path / "jobs.txt"
    path.write_text(f"{PREFIX} name=a encoder.widht=3\n")
    done = subprocess.run([sys.executable, "-m", "arclab.launch", "check", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {path}:1:50: unknown key encoder.widht")
    assert json.dumps(done.stdout) == '""'


def test_a_group_option_that_an_experiment_overrules_is_noted(tmp_path: Path) -> None:
    """experiment=quickstart sets dataset keys of its own, so dataset=arc2 alone would not count."""
    note = plan_of(tmp_path, "name=a dataset=arc2").notes[1]
    assert "dataset=arc2 says dataset.canvas=30, but the run has dataset.canvas=6" in note.message
    assert (tmp_path / "jobs.txt").read_text()[note.column - 1 :].startswith("dataset=arc2")
    for line in ("name=a halting=short8", "name=b halting=short8 halting.halt_max_steps=6", "name=c decoder=trm"):
        assert not plan_of(tmp_path, line).notes


def test_what_an_encoder_changes_beside_its_kind_is_noted(tmp_path: Path) -> None:
    """Where the experiment says it for all encoders, it is what the option says that does not count."""
    told = " ".join(note.message for note in plan_of(tmp_path, "name=a encoder=lpn encoder.num_layers=3").notes)
    assert "encoder=lpn says encoder.width=128, but the run has encoder.width=null" in told and "num_layers" not in told
    toy = "pretrain_encoder.py experiment=toy_control"
    (tmp_path / "jobs.txt").write_text(f"{toy} name=b encoder=lpn encoder.num_layers=1\n{toy} name=c encoder.num_layers=2\n")
    (note,) = read_plan(tmp_path / "jobs.txt").notes
    assert "encoder=lpn changes more than the kind" in note.message and "encoder.num_layers" not in note.message
    assert "encoder.demo_layout from aligned to concat" in note.message and "encoder.width from null to 128" in note.message


def test_an_ensemble_waits_for_all_of_its_members(tmp_path: Path) -> None:
    """Not for those that are there; and lines that need each other are found behind any of them."""
    folder = tmp_path / "runs/quickstart/m"
    scored = [f"evaluate.py checkpoint={folder} split={split}" for split in ("validation", "evaluation")]
    there = tmp_path / "there"
    there.mkdir()
    members = f"{there},{folder}/evaluation/validation,{folder}/evaluation/evaluation"
    ensemble = f"evaluate.py solver=ensemble members=[{members}] runs_dir={tmp_path}/runs name=all"
    path = tmp_path / "jobs.txt"
    path.write_text("\n".join([ensemble, f"{PREFIX} runs_dir={tmp_path}/runs name=m", *scored]) + "\n")
    plan = read_plan(path)
    assert plan.runs[0].makers == (folder / "evaluation/validation", folder / "evaluation/evaluation")
    assert [action.what for action in submit(plan.runs[:1], "local")] == [
        f"needs {folder}/evaluation/validation, which is NEW; give this command again when it is DONE, or with it"
    ]
    whole = [action.what for action in submit(plan.runs, "local", dry_run=True)]
    assert whole[0] == f"would be submitted to local (after {folder}/evaluation/validation, {folder}/evaluation/evaluation)"
    open_run(plan.runs[2].config).write_status(State.done, 3)
    assert read_plan(path).runs[0].makers == (folder / "evaluation/evaluation",)
    path.write_text(ensemble.replace("evaluation/evaluation]", "evaluation/train]") + "\n")
    with pytest.raises(JobsError, match=r"members\[2\]=.*train does not exist and no line of this file makes it"):
        read_plan(path)
    path.write_text(ensemble.replace(f"{folder}/evaluation/evaluation", f"{tmp_path}/runs/ensemble/all") + "\n" + scored[0])
    with pytest.raises(JobsError, match=r"members\[2\]: all waits for all \(line 1\): none of them can ever start"):
        read_plan(path)
