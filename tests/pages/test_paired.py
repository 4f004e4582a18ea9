"""Paired tests: by hand, of real runs, and which runs are not comparable."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from arclab.pages.compare import render_comparison
from arclab.pages.compare_scores import gap_row
from arclab.pages.compare_tasks import task_galleries
from arclab.pages.paired_views import paired_matrices, paired_tests, standings
from arclab.pages.tracking import observations
from arclab.results.paired import compare_splits, difference_interval, mcnemar_p
from arclab.results.reading import unlike
from arclab.results.scoring import Share

from .conftest import edit, load, set_ranks


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (3, 3, 1.0), (5, 0, 2 / 32), (6, 1, 2 * (1 + 7) / 128), (1, 9, 2 * (1 + 10) / 1024), (0, 10, 2 / 1024)],
)  # fmt: skip
def test_mcnemar_by_hand(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar_p(only_first, only_second) == pytest.approx(p, rel=1e-12)


def test_mcnemar_of_many_pairs_is_finite() -> None:
    assert 0 < mcnemar_p(1500, 1700) < 1e-3 and mcnemar_p(1600, 1600) == 1.0


def test_difference_interval_is_newcombes() -> None:
    """Newcombe 1998, table II, method 10: 56/70 - 48/80 = 0.2 [0.0524, 0.3339]."""
    low, high = difference_interval(Share(56, 70), Share(48, 80))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_paired_test_counts_tasks_and_test_inputs(folder: Path) -> None:
    set_ranks(folder / "a", {"t1": [0], "t2": [1, 0], "t3": [0], "t4": [0, None], "t5": [2]})
    set_ranks(folder / "b", {"t1": [0], "t2": [0, 2], "t3": [None], "t4": [None, None], "t5": [1]})
    a, b = load(folder, "a", "b")
    (pair,) = paired_tests([a, b])
    tasks, inputs = pair.tests
    assert (tasks.total, tasks.both, tasks.only_first, tasks.only_second) == (5, 1, 2, 1)
    assert (inputs.total, inputs.both, inputs.only_first, inputs.only_second) == (7, 2, 3, 1)
    assert tasks.p_value == 1.0 and inputs.p_value == 2 * (1 + 4) / 16
    (gallery,) = task_galleries([a, b])
    assert [task.id for task in gallery.tasks if task.outcome == "some"] == ["t2", "t3", "t5"]


def test_runs_with_other_tasks_are_not_comparable(folder: Path) -> None:
    set_ranks(folder / "b", {"t1": [0], "t2": [1]})
    (pair,) = paired_tests(load(folder, "a", "b"))
    assert pair.problem == "not comparable: the task sets differ (4 tasks and 2, 0 in common)" and not pair.tests
    page = render_comparison(load(folder, "a", "b"))
    assert pair.problem in page and f"Nothing can be said on the train split: {pair.problem}." in page


def test_runs_without_a_common_split_or_with_hidden_answers_are_not_comparable(folder: Path) -> None:
    ranks: dict[str, list[int | None]] = {"t1": [0], "t2": [None]}
    set_ranks(folder / "a", ranks)
    set_ranks(folder / "b", ranks)
    edit(folder / "b/evaluation/train/metrics.json", scores={"ARC/solved@2": {"n": 1, "N": 1}, "ARC/pass@2": {"n": 1, "N": 1}})
    a, b = load(folder, "a", "b")
    assert "hidden answers" in compare_splits("a", a.splits[0], "b", b.splits[0]).problem
    shutil.rmtree(folder / "b/evaluation")
    assert "no split of both" in paired_tests(load(folder, "a", "b"))[0].problem


def test_other_grids_under_the_same_ids_are_not_comparable(folder: Path) -> None:
    edit(folder / "a/evaluation/train/metrics.json", tasks_digest="one")
    edit(folder / "b/evaluation/train/metrics.json", tasks_digest=None)
    a, b = load(folder, "a", "b")
    assert compare_splits("a", a.splits[0], "b", b.splits[0]).problem == ""  # b is from before there were digests
    edit(folder / "b/evaluation/train/metrics.json", tasks_digest="two")
    a, b = load(folder, "a", "b")
    assert "the same ids and other grids" in compare_splits("a", a.splits[0], "b", b.splits[0]).problem


def test_other_voting_is_noted(folder: Path) -> None:
    edit(folder / "b/evaluation/train/metrics.json", num_augmentations=7)
    assert paired_tests(load(folder, "a", "b"))[0].notes == ("augmented copies voted: 1 for a, 7 for b",)


def test_of_two_evaluations_the_one_of_the_splits_own_folder_counts(folder: Path) -> None:
    """A quick look in a folder of another name, even one that sorts first, does not stand for the run."""
    evaluations = folder / "a/evaluation"
    shutil.copytree(evaluations / "train", evaluations / "early_look")
    edit(evaluations / "early_look/metrics.json", step=2)
    (run,) = load(folder, "a")
    assert [split.name for split in run.splits] == ["early_look", "train"]
    found = run.split("train")
    assert found is not None and (found.name, found.record["step"]) == ("train", 4)
    shutil.rmtree(evaluations / "train")
    found = load(folder, "a")[0].split("train")
    assert found is not None and found.name == "early_look"


def test_evaluations_made_differently_say_so(folder: Path) -> None:
    """In the paired test, in the gap and in its sentence: another step, other rules, fewer views."""
    a, b = load(folder, "a", "b")
    (ours,), (theirs,) = a.splits, b.splits
    assert unlike("a", ours, "b", theirs) == ()
    theirs.record.update(step=3, num_augmentations=9)
    theirs.record["config"]["evaluation.halting"] = "early"
    words = (
        "trained steps: 4 for a, 3 for b",
        "augmented copies voted: 1 for a, 9 for b",
        "evaluation.halting: all_steps for a, early for b",
    )
    assert unlike("a", ours, "b", theirs) == compare_splits("a", ours, "b", theirs).notes == words
    held_out = replace(theirs, record={**theirs.record, "split": "evaluation"})
    run = replace(a, splits=(ours, held_out))
    row = gap_row(0, run)
    assert row.note.startswith("trained steps: 4 for train, 3 for evaluation; augmented copies voted")
    assert any("(made differently: trained steps: 4 for train, 3 for evaluation;" in line for line in observations(run))


def ranks_of(num_solved: int, num_tasks: int) -> dict[str, list[int | None]]:
    """The first tasks solved, the others not."""
    return {f"t{i}": [0 if i < num_solved else None] for i in range(num_tasks)}


def test_the_first_line_says_who_is_ahead_and_whether_that_is_decided(folder: Path) -> None:
    set_ranks(folder / "a", ranks_of(5, 20))
    set_ranks(folder / "b", ranks_of(3, 20))
    low, high = Share(5, 20).interval
    runs = load(folder, "b", "a")
    (standing,) = standings(runs)
    assert standing.sentence == (
        f"a, 25.0 % [{100 * low:.1f}, {100 * high:.1f}] of 20 tasks solved within two attempts (train split), ahead of b by 2 "
        "tasks, p = 0.50: nothing is decided between them."
    )
    page = render_comparison(runs)
    assert not standing.is_decided and page.index(standing.sentence) < page.index("<nav>")
    set_ranks(folder / "a", ranks_of(14, 20))
    (standing,) = standings(load(folder, "a", "b"))
    assert (
        standing.is_decided and "ahead of b by 11 tasks, p = 0.0010: decided between these two trainings." in standing.sentence
    )
    set_ranks(folder / "b", ranks_of(14, 20))
    assert "level with b: nothing is decided." in standings(load(folder, "a", "b"))[0].sentence
    alone = standings(load(folder, "a"))[0].sentence
    assert alone.startswith("a: 70.0 %") and "p =" not in alone
    shutil.rmtree(folder / "a/evaluation")
    assert standings(load(folder, "a")) == [] and "Nothing is decided: evaluate.py has scored no run" in render_comparison(
        load(folder, "a")
    )


def test_a_winner_of_many_runs_is_held_to_all_the_pairs(folder: Path) -> None:
    """p = 0.031 decides between two runs, and nothing where the best of five is looked at."""
    set_ranks(folder / "a", ranks_of(16, 20))
    set_ranks(folder / "b", ranks_of(10, 20))
    assert "p = 0.0312: decided" in standings(load(folder, "a", "b"))[0].sentence
    names = [shutil.copytree(folder / "b", folder / f"b{i}").name for i in range(3)]
    for name in names:
        config = folder / name / "config.yaml"
        config.write_text(config.read_text().replace("name: b", f"name: {name}"))
    set_ranks(folder / names[-1], ranks_of(0, 20))
    (standing,) = standings(load(folder, "a", "b", *names))
    assert "p = 0.0312: not decided, as 10 pairs were tested" in standing.sentence and not standing.is_decided
    assert "It is surely ahead of 1 of the 4 others (p < 0.05 for all 10 pairs)." in standing.sentence


def test_the_matrix_is_antisymmetric_and_counts_its_tests(folder: Path) -> None:
    set_ranks(folder / "a", ranks_of(3, 20))
    set_ranks(folder / "b", ranks_of(20, 20))
    other = shutil.copytree(folder / "b", folder / "c")
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("name: b", "name: c"))
    set_ranks(other, {"elsewhere": [None]})
    runs = load(folder, "a", "b", "c")
    (matrix,) = paired_matrices(runs)
    assert [header.label for header in matrix.headers] == ["b", "a", "c"]
    up, down = matrix.rows[0][1], matrix.rows[1][0]
    assert up and down and (up.text, down.text, up.sign, down.sign, up.certainty) == ("+17", "-17", "up", "down", "sure")
    assert (up.p, up.certainty) == (down.p, down.certainty) == ("<.001", "sure")
    assert up.sentence == "20 tasks: both 3, only b 17, only a 0; p < 0.0001"
    assert down.sentence == "20 tasks: both 3, only a 0, only b 17; p < 0.0001"
    assert [row[i] for i, row in enumerate(matrix.rows)] == [None] * 3
    untested = matrix.rows[2][0]
    assert untested and not untested.is_tested and "not comparable" in untested.sentence
    assert matrix.num_tests == 2 and sum(matrix.problems.values()) == 2
    page = render_comparison(runs)
    assert "2 tests (tasks and test inputs of each pair)" in page and "not corrected for their number" in page
    assert page.count('<td class="up sure"') == page.count('<td class="down sure"') == 1
