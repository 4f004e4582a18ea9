"""Job files: what a line means, and where it is wrong."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from arclab.config.compose import ConfigError
from arclab.launch.queue.jobsfile import JobsError, read_jobs
from arclab.launch.sweep import compose_combinations

FILE = """# a comment
pretrain_encoder.py name=alone

## Halting: does it matter?
## In more words.
## And more.
## Criterion: 90 %.
#pretrain_encoder.py name=off
pretrain_encoder.py -m name=h halting=paper,short8 halting.halt_loss_weight=0.5,1  # trailing
  pretrain_encoder.py 'dataset.train_sources=["toy:color_map?tasks=10&side=3"]' name=quoted wandb.project="a b"
## Next
## Criterion: none.
pretrain_encoder.py name=n encoder.pooling=max
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "jobs.txt"
    path.write_text(text)
    return path


def test_lines_become_runs_below_their_sections(tmp_path: Path) -> None:
    jobs = read_jobs(write(tmp_path, FILE))
    assert [(job.name, job.line, job.section.title) for job in jobs] == [
        ("alone", 2, ""), ("h_halting-paper_halt_loss_weight-0.5", 9, "Halting: does it matter?"),
        ("h_halting-paper_halt_loss_weight-1", 9, "Halting: does it matter?"), ("h_halting-short8_halt_loss_weight-0.5", 9, "Halting: does it matter?"),
        ("h_halting-short8_halt_loss_weight-1", 9, "Halting: does it matter?"), ("quoted", 10, "Halting: does it matter?"), ("n", 13, "Next"),
    ]  # fmt: skip
    assert jobs[3].overrides == ("name=h_halting-short8_halt_loss_weight-0.5", "halting=short8", "halting.halt_loss_weight=0.5")
    assert (jobs[1].section.text, jobs[1].section.criterion) == ("In more words. And more.", "90 %.")
    assert jobs[5].overrides == ('dataset.train_sources=["toy:color_map?tasks=10&side=3"]', "name=quoted", "wandb.project=a b")
    assert shlex.split(jobs[5].command) == [jobs[5].script, *jobs[5].overrides], "it can be given to a shell"
    assert jobs[5].column == 3


def test_sweeps_with_brackets_and_functions_are_hydras(tmp_path: Path) -> None:
    line = "pretrain_encoder.py name=s 'criterion={a:1,b:2},null' 'seed=range(0,3)' 'encoder.pooling=choice(mean,max)'\n"
    jobs = read_jobs(write(tmp_path, line))
    assert len({job.name for job in jobs}) == 2 * 3 * 2 and jobs[0].name == "s_criterion-a-1-b-2_seed-0_pooling-mean"
    assert jobs[-1].overrides == (f"name={jobs[-1].name}", "criterion=null", "seed=2", "encoder.pooling=max")
    (job,) = read_jobs(write(tmp_path, "pretrain_encoder.py name=s 'dataset.train_sources=[a,b]'\n"))
    assert job.overrides[1] == "dataset.train_sources=[a,b]"


def test_a_swept_name_is_taken_as_it_is(tmp_path: Path) -> None:
    jobs = read_jobs(write(tmp_path, "pretrain_encoder.py seed=1,2 name=a,b\n"))
    assert [job.overrides for job in jobs] == [
        ("seed=1", "name=a"), ("seed=1", "name=b"), ("seed=2", "name=a"), ("seed=2", "name=b")
    ]  # fmt: skip


def test_a_line_names_its_runs_as_python_m_does(tmp_path: Path) -> None:
    """The same line gives the same folders, whoever starts it."""
    words = ["experiment=quickstart", "name=s", "encoder=standard,lpn", "halting.halt_loss_weight=0.5,1"]
    jobs = read_jobs(write(tmp_path, f"pretrain_encoder.py -m {' '.join(words)}\n"))
    assert [job.name for job in jobs] == [config.name for config in compose_combinations("pretrain_encoder.py", words)]


@pytest.mark.parametrize(("line", "column", "message"), [
    ("train.py checkpoint=runs/a/b", 1, "starts with pretrain_encoder.py or evaluate.py or self_improve.py or pretrain_memgen.py, not with 'train.py'"),
    ("evaluate.py solver=nothing", 13, "solver=nothing is not an option of the group solver; choose ensemble, memgen, memgen_ltpo, program_edit, program_sampling, recursive, test_time_training, tree_search"),
    ("python pretrain_encoder.py name=a", 1, "not with 'python'"),
    ("pretrain_encoder.py seed=1", 1, "has no name"),
    ("pretrain_encoder.py name= seed=1", 1, "has no name"),
    ("pretrain_encoder.py name=a seed = 1", 28, "'seed' is no setting; write key=value"),
    ("pretrain_encoder.py name=a --cfg=job", 28, "is no setting"),
    ("pretrain_encoder.py name=a seed=1 seed=2", 35, "seed is set twice"),
    ("pretrain_encoder.py name='a", 26, "a quote ' that is not closed"),
    ("pretrain_encoder.py name=a\\", 27, "a backslash at the end"),
    ("pretrain_encoder.py name=a seed=$SEED", 33, "'$' means something to the shell"),
    ("pretrain_encoder.py name=a && rm x", 28, "'&' means something to the shell"),
    ("pretrain_encoder.py name=a seed=range(1,3)", 38, "'(' means something to the shell"),
    ("pretrain_encoder.py name=a 'seed=range(0,1000000000)'", 28, "seed has 1,000,000,000 values, and the sweep would be 1,000,000,000 runs, more than the 10,000 allowed"),
    ("pretrain_encoder.py name=a 'seed=range(0,1,0)'", 28, "seed has values without end, and the sweep would be endlessly many runs"),
    ("pretrain_encoder.py name=a 'seed=range(0,101)' 'trainer.steps=range(0,100)'", 1, "seed has 101 values, and the sweep would be 10,100 runs"),
    ("pretrain_encoder.py name=a 'seed=[1,'", 28, "seed: "),
    ("pretrain_encoder.py name=a 'seed=interval(0,1)'", 28, "without fixed values"),
])  # fmt: skip
def test_mistakes_have_a_line_and_a_column(tmp_path: Path, line: str, column: int, message: str) -> None:
    with pytest.raises(JobsError) as caught:
        read_jobs(write(tmp_path, f"# first\n\n{line}\n"))
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (3, column) and message in problem.message
    assert str(caught.value).startswith(f"{tmp_path}/jobs.txt:3:{column}: ")


def test_sections_need_a_title_and_one_criterion(tmp_path: Path) -> None:
    text = "## No criterion\npretrain_encoder.py name=a\n\n##\n## Criterion: x\n\n## Two\n## Criterion: a\n## Criterion: b\n"
    with pytest.raises(JobsError) as caught:
        read_jobs(write(tmp_path, text))
    assert [(p.line, p.message.split(";")[0]) for p in caught.value.problems] == [
        (1, "the section 'No criterion' has 0 lines '## Criterion: ...'"), (4, "a section has no title"),
        (7, "the section 'Two' has 2 lines '## Criterion: ...'"),
    ]  # fmt: skip


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.txt does not exist; give a job file"):
        read_jobs(tmp_path / "none.txt")
