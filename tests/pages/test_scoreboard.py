"""The scoreboard: one table for results on the same tasks, every task as a cell, and answers in words apart."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arclab.config.compose import ConfigError
from arclab.pages.analyse import main
from arclab.pages.scoreboard import write_scoreboard
from arclab.results.common_tasks import task_groups
from arclab.results.finished import open_results
from arclab.runs.folder import RunDir, State

from ..conftest import ROOT
from ..results.made import OTHER_SOURCE, RIGHT, SECOND, WRONG, Answers, make_result

MANY = "toy:color_map?tasks=20&side=3&colors=3&palette=4&demos=2&split=test"
THIRD: Answers = [(3, 0.5, False), (2, 0.5, False), (1, 0.5, True)]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Results on six tasks (good solves all, mixed one of each kind), one on four of them, and one on other tasks."""
    folder = tmp_path / "methods"
    make_result(folder / "good", lambda _: RIGHT, label="good", stamps=("transductive: it has seen them", "both say this"))
    kinds = [RIGHT, SECOND, THIRD, WRONG, WRONG, WRONG]
    make_result(folder / "mixed", lambda n: kinds[n], label="mixed", stamps=("both say this",))
    make_result(folder / "few", lambda n: kinds[n], label="few", num_tasks=4)
    make_result(folder / "validation", lambda _: RIGHT, label="good", source=OTHER_SOURCE)
    edit(folder / "good", statistics={"timing/solve_s": 3.25, "num_params": 270_000.0, "programs/tokens": 12_345.0})
    return folder


def edit(folder: Path, **changes: object) -> None:
    path = folder / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def page_of(output: Path, *paths: Path) -> str:
    return write_scoreboard(paths, output).read_text()


def row(page: str, label: str) -> str:
    found = re.search(rf'<tr data-run="methods-{label}">.*?</tr>', page, re.DOTALL)
    assert found is not None
    return " ".join(re.sub(r"<svg.*?</svg>|<[^>]+>", " ", found[0], flags=re.DOTALL).split())


def test_a_method_is_a_row_with_scores_p_cost_and_stamps(made: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path / "board", made / "mixed", made / "good")
    assert page.index("methods-good") < page.index('data-run="methods-mixed"'), "the best first"
    good, mixed = row(page, "good"), row(page, "mixed")
    assert "100.0 % 6/6 [61.0, 100.0] %" in good and "best" in good and "3.2 s" in good and "270 k" in good and "12.3 k" in good
    assert "16.7 % 1/6 [3.0, 56.4] %" in mixed and "33.3 % 2/6" in mixed and "none none none" in mixed
    assert "0.12 -4 tasks (0 / 4 alone)" in mixed, "p of 4 of 4 is 1/8, times one pair"
    assert "transductive" in good and "both say this" not in good and page.count("both say this") == 1
    assert "puzzle table" not in page and "solved@2" not in page, "no column that no row fills, or that says the same"
    assert "http" not in re.sub(r"http://www.w3.org\S*", "", page)


def test_sentences_and_the_legend_can_be_read_on_a_phone(made: Path, tmp_path: Path) -> None:
    """The legend's longest entry is wider than a phone: it must break there, or the whole page scrolls sideways."""
    folder = tmp_path / "more"
    for name, answers in (("all", RIGHT), ("none", WRONG)):
        make_result(folder / name, lambda _, answers=answers: answers, label=name, source=MANY, num_tasks=20)
    page = page_of(tmp_path / "board", folder / "all", folder / "none")
    assert "ahead of more-none by 20 tasks, p &lt; 0.0001: decided" in page
    assert re.search(r"@media \(min-width: 721px\) \{ \.key > span \{ white-space: nowrap; \} \}", page)
    assert page.count(".key > span {") == 1


def test_p_values_count_all_pairs(made: Path, tmp_path: Path) -> None:
    make_result(made / "none", lambda _: WRONG, label="none")
    page = page_of(tmp_path / "board", made / "mixed", made / "good", made / "none")
    assert "0.38 -4 tasks" in row(page, "mixed"), "1/8 times three pairs"
    assert "0.0938 -6 tasks (0 / 6 alone)" in row(page, "none"), "1/32 times three pairs"


def test_every_task_is_a_cell_that_leads_to_its_page(made: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path / "board", made / "good", made / "mixed")
    cells = re.findall(r'<a class="(\w+)" href="([^"]+)" title="([^"]+)"', page)
    assert [kind for kind, *_ in cells] == ["first"] * 6 + ["first", "second", "candidate", "missed", "missed", "missed"]
    assert "methods-mixed" in cells[8][2] and "right among the candidates, but not within two attempts" in cells[8][2]
    for _, address, says in cells:
        task = (tmp_path / "board" / address).read_text()
        assert says.split(", ")[1].split(":")[0] in task and "../../scoreboard.html" in task and "demonstrations" in task


def test_only_common_tasks_count_and_the_page_says_so(made: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path / "board", made / "good", made / "few", made / "mixed")
    assert "Only the 4 tasks that all 3 results have are counted; scored were more by methods-good 6, methods-mixed 6." in page
    assert "4/4" in row(page, "good") and "1/4" in row(page, "mixed") and "2/4" in row(page, "mixed")
    assert row(page, "mixed").split("%")[1:4] == row(page, "few").split("%")[1:4], "the same answers to the same tasks"


def test_results_on_other_tasks_have_a_table_of_their_own(made: Path, tmp_path: Path) -> None:
    groups = task_groups(open_results([made / name for name in ("good", "validation", "mixed")], "RESULT"))
    assert [(group.name, len(group.runs), len(group.ids)) for group in groups] == [
        ("toy, evaluation", 2, 6),
        ("toy, validation", 1, 6),
    ]
    page = page_of(tmp_path / "board", made / "good", made / "validation", made / "mixed")
    assert "toy, validation" in page and page.count('class="side board sortable"') == 2


def test_tasks_whose_grids_differ_are_not_common(tmp_path: Path) -> None:
    for name, answers in (("a", (2, 3)), ("b", (2, 4)), ("c", (5, 6))):
        (tmp_path / name).mkdir()
        for number, answer in enumerate(answers):
            task = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]], "output": [[answer]]}]}
            (tmp_path / name / f"t{number}.json").write_text(json.dumps(task))
        make_result(tmp_path / "methods" / name, lambda _: RIGHT, source=f"folder:{tmp_path / name}", label=name)
    a, b, c = (tmp_path / "methods" / name for name in "abc")
    page = page_of(tmp_path / "board", a, b)
    assert "1 tasks have the same ids and other grids, and are left out (t1)" in page and "1/1" in row(page, "a")
    with pytest.raises(ConfigError, match="no task is common to all of"):
        task_groups(open_results([a, c], "RESULT"))
    shutil.rmtree(tmp_path / "b")
    assert "The tasks of methods-b could not be read again" in page_of(tmp_path / "board", a, b)


def test_hidden_answers_are_neither_right_nor_wrong(tmp_path: Path) -> None:
    challenges = tmp_path / "challenges.json"
    pair = {"input": [[1]], "output": [[2]]}
    challenges.write_text(json.dumps({"t": {"train": [pair], "test": [{"input": [[3]]}]}}))
    folders = [make_result(tmp_path / "methods" / n, lambda _: WRONG, source=f"kaggle:{challenges}", label=n) for n in "ab"]
    page = page_of(tmp_path / "board", *folders)
    assert page.count('<a class="hidden"') == 2 and "hidden" in row(page, "a") and "n/a" in row(page, "b")


def test_answers_in_words_are_a_section_and_a_run_stands_for_its_evaluations(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/memgen/a"
    for memory, n in (("off", 10), ("trained", 15)):
        folder = run / "evaluation" / f"test_{memory}"
        folder.mkdir(parents=True)
        record = {"n": n, "N": 20, "tokens_per_s": 412.6, "memory": memory, "split": "test", "step": 300, "solver": "memgen"}
        (folder / "text_metrics.json").write_text(json.dumps({**record, "checkpoint": "x"}))
    page = page_of(tmp_path / "board", run, made / "good")
    words = " ".join(re.sub(r"<svg.*?</svg>|<[^>]+>", " ", page[page.index('id="words"') :], flags=re.DOTALL).split())
    assert "a-test_off memgen 50.0 % 10/20 [29.9, 70.1] % off test 413 300" in words and "75.0 % 15/20" in words
    assert "methods-good" in page_of(tmp_path / "board", made / "good")
    (folder / "text_metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"test_trained/text_metrics.json is damaged"):
        page_of(tmp_path / "board", run)


def test_what_is_no_finished_result_is_refused(made: Path, tmp_path: Path) -> None:
    RunDir(made / "few").write_status(State.running, 1)
    for path, says in ((made / "few", "is not finished"), (made / "goood", "did you mean"), (tmp_path, "no folder of results")):
        with pytest.raises(ConfigError, match=says):
            write_scoreboard([path], tmp_path / "board")
    for words in ([], [str(made / "good"), "--jobs", "jobs.txt"]):
        with pytest.raises(ConfigError, match="a scoreboard is of results or of a job file"):
            main(["scoreboard", *words])
    assert not (tmp_path / "board").exists()


def test_a_job_file_gives_its_finished_evaluations(made: Path, tmp_path: Path) -> None:
    members = f"members=[{made}/good,{made}/mixed] runs_dir={tmp_path}/runs"
    jobs = tmp_path / "jobs.txt"
    jobs.write_text(
        f"evaluate.py solver=ensemble {members} name=both\nevaluate.py solver=ensemble {members} merge=rank name=late\n"
        f"evaluate.py solver=program_sampling lm=tiny dataset=toy launch.shards=2 output_dir={tmp_path}/divided\n"
    )
    make_result(tmp_path / "runs/ensemble/both", lambda _: RIGHT, label="ensemble")
    make_result(tmp_path / "divided", lambda _: RIGHT, label="in shards")
    for number in range(2):  # they have scored nothing
        (shard := tmp_path / f"divided/shards/{number}_of_2").mkdir(parents=True)
        RunDir(shard).write_status(State.done, 1)
    command = [sys.executable, "-m", "arclab.pages", "scoreboard", "--jobs", str(jobs), "--output", str(tmp_path / "board")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "left out: ensemble/late, which is NEW" in done.stdout and "shard" not in done.stdout
    assert "ensemble-both" in (tmp_path / "board/scoreboard.html").read_text()
