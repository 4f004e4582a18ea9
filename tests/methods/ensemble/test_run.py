"""evaluate.py solver=ensemble from its members to its page, and every input that it refuses with one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import ConfigError, compose_evaluate
from arclab.config.ensemble_schema import EvaluateEnsembleConfig
from arclab.methods.ensemble.run import evaluate, read_members
from arclab.results.reading import FIT_STAMP, read_runs
from arclab.runs.folder import RunDir, State

from ...conftest import refused
from ...results.made import OTHER_SOURCE, RIGHT, SECOND, SOURCE, WRONG, make_result

TRANSDUCTIVE = "transductive: the demonstrations of the scored tasks are training data"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Members: even is right on the tasks 0, 2, 4, odd on 1, 3, 5 with its second attempt; and of each a result on other tasks."""
    for name, rest in (("members", SOURCE), ("calibration", OTHER_SOURCE)):
        make_result(tmp_path / name / "even", lambda n: WRONG if n % 2 else RIGHT, label="even", source=rest)
        stamps = (TRANSDUCTIVE, FIT_STAMP)
        make_result(tmp_path / name / "odd", lambda n: SECOND if n % 2 else WRONG, label="odd", source=rest, stamps=stamps)
    return tmp_path


def config_of(made: Path, *overrides: str, members: str = "even,odd", key: str = "members") -> EvaluateEnsembleConfig:
    paths = ",".join(str(made / key / name) for name in members.split(","))
    config = compose_evaluate(["solver=ensemble", f"members=[{paths}]", f"runs_dir={made}/runs", "num_threads=1", *overrides])
    assert isinstance(config, EvaluateEnsembleConfig)
    return config


def calibrated(made: Path) -> str:
    return f"calibration=[{made}/calibration/even,{made}/calibration/odd]"


def written(config: EvaluateEnsembleConfig) -> dict[str, Any]:
    assert evaluate(config) == 0
    return json.loads((config.folder / "metrics.json").read_text())


def test_an_ensemble_is_a_result_like_any_other(made: Path) -> None:
    config = config_of(made, "name=both")
    record = written(config)
    assert config.folder == made / "runs/ensemble/both" and RunDir(config.folder).state is State.done
    files = {path.name for path in config.folder.iterdir()}
    assert {"config.yaml", "predictions.jsonl", "submission.json", "report.html", "provenance.json", "status.json"} <= files
    # Where even is wrong, odd has the same wrong grid first. Where it is right, each has all votes of its own, and the first member
    # comes first.
    assert record["scores"]["ARC/pass@1"]["n"] == 3 and record["scores"]["ARC/pass@2"]["n"] == 6
    assert record["statistics"] == {
        "ensemble/members": 2.0, "ensemble/agreement": 0.5, "ensemble/oracle_coverage": 1.0, "ensemble/test_inputs": 6.0,
        "ensemble/best_member": 0.5,
    }  # fmt: skip
    assert record["stamps"] == [TRANSDUCTIVE, FIT_STAMP] and record["split"] == "evaluation"
    even, odd = record["members"]
    assert (even["label"], odd["stamps"], even["weight"]) == ("members-even", [TRANSDUCTIVE, FIT_STAMP], 1.0)
    assert (even["pass@2"]["n"], even["pass@2_without"]["n"], even["pass@2_added"]) == (3, 3, 0.5)
    assert (even["solved_only_with"], even["solved_only_without"], even["p_value"]) == (3, 0, 0.25)
    page = (config.folder / "report.html").read_text()
    assert "added by it" in page and "members-odd" in page and "+50.0 points" in page and "6/6 = 100.0 %" in page
    assert "demonstrations" in page  # with the tasks, which no result holds
    (run,) = read_runs([config.folder])
    assert not run.is_partial and run.settings["dataset.eval_sources"] == [SOURCE]
    # and may be a member itself
    again = compose_evaluate(
        ["solver=ensemble", f"members=[{config.folder},{made}/members/even]", f"runs_dir={made}/runs", "name=again"]
    )
    assert isinstance(again, EvaluateEnsembleConfig) and written(again)["members"][0]["folder"] == str(config.folder)


def test_every_rule_and_weight_changes_the_ranking(made: Path) -> None:
    found = {}
    for name, more in {
        "votes": [], "rank": ["merge=rank"], "weights": ["weights=[1,9]"], "calibrated": ["merge=confidence", calibrated(made)],
    }.items():  # fmt: skip
        record = written(config_of(made, f"name={name}", *more))
        predictions = (made / "runs/ensemble" / name / "predictions.jsonl").read_text()
        found[name] = (record["scores"]["ARC/pass@2"]["n"], predictions)
    assert len({text for _, text in found.values()}) == len(found)
    curve = json.loads((made / "runs/ensemble/calibrated/metrics.json").read_text())["members"][0]["calibration"]
    assert (curve["num_right"], curve["num_candidates"]) == (3, 6) and curve["of_confidence"] > 0
    # even is surer where it is right, odd's second candidates are the right ones: with that known, all come first
    assert json.loads((made / "runs/ensemble/calibrated/metrics.json").read_text())["scores"]["ARC/pass@1"]["n"] >= 3


def test_hidden_answers_give_a_submission_and_no_score(tmp_path: Path) -> None:
    challenges = tmp_path / "challenges.json"
    pair = {"input": [[1]], "output": [[2]]}
    challenges.write_text(json.dumps({"t": {"train": [pair], "test": [{"input": [[3]]}]}}))
    for name in ("a", "b"):
        make_result(tmp_path / "members" / name, lambda _: WRONG, source=f"kaggle:{challenges}", label=name)
    config = config_of(tmp_path, members="a,b")
    record = written(config)
    assert record["num_hidden"] == 1 and "ensemble/oracle_coverage" not in record["statistics"]
    assert [len(record["stamps"]), "pass@2" in record["members"][0]] == [1, False]
    submission = json.loads((config.folder / "submission.json").read_text())
    assert submission["t"][0]["attempt_1"] == [[7, 7]]
    assert "No answer is known" in (config.folder / "report.html").read_text()


BAD_KEYS = [
    (["members=[a]"], "members=[a] is too few"),
    (["members=[]"], "too few"),
    (["members=[a,a]"], "members has a twice"),
    (["members=[a,b/../a]"], "a and b/../a, which are the same folder"),
    (["members=[a,b]", "weights=[1]"], "weights=[1.0] has 1 numbers and members has 2 results"),
    (["members=[a,b]", "weights=[1,0]"], "must all be above 0"),
    (["members=[a,b]", "weights=[1,inf]"], "must all be above 0 and finite"),
    (["members=[a,b]", "merge=confidence"], "merge=confidence has nothing to calibrate on"),
    (["members=[a,b]", "merge=confidence", "calibration=[c]"], "calibration has 1 results and members has 2"),
    (["members=[a,b]", "calibration=[c,d]"], "calibration is for merge=confidence, and merge=votes"),
    (["members=[a,b]", "merge=vote"], "merge"),
    (["members=[a,b]", "launch.gpus=2"], "runs in one process"),
    (["members=[a,b]", "name=a/b"], "becomes a folder name"),
]


@pytest.mark.parametrize(("overrides", "says"), BAD_KEYS)
def test_a_setting_that_cannot_be_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        compose_evaluate(["solver=ensemble", *overrides])
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_members_that_cannot_be_merged_are_named(made: Path) -> None:
    folder = made / "members"
    make_result(folder / "fewer", lambda _: RIGHT, num_tasks=4)
    make_result(folder / "elsewhere", lambda _: RIGHT, source=f"{SOURCE}&seed=3")
    make_result(folder / "silent", lambda _: [])
    make_result(folder / "running", lambda _: RIGHT)
    RunDir(folder / "running").write_status(State.preempted, 2)
    (folder / "empty").mkdir()
    (folder / "words").mkdir()
    (folder / "words/text_metrics.json").write_text("{}")
    shutil.copytree(folder / "even", folder / "trained/evaluation/validation")
    shutil.copytree(folder / "even", folder / "bare")
    (folder / "bare/predictions.jsonl").unlink()
    says = {
        "fewer": "scored different tasks (6 and 4): 2 are in",
        "silent": "has no candidate that shows a grid",
        "running": "running is not finished (PREEMPTED)",
        "empty": "empty is no folder of results (it has no metrics.json)",
        "words": "has answers in words",
        "trained": f"did you mean {folder}/trained/evaluation/validation?",
        "evem": f"evem does not exist; did you mean {folder}/even?",
        "zzz": "zzz does not exist; give a folder with metrics.json",
        "bare": "has no predictions.jsonl",
        "elsewhere": "scored",
    }
    for name, sentence in says.items():
        with pytest.raises(ConfigError) as refusal:
            read_members(config_of(made, members=f"odd,{name}"))
        text = str(refusal.value)
        assert sentence in text and name in text and "\n" not in text, text
    assert read_members(config_of(made)).tasks


def test_other_grids_under_the_same_ids_are_other_tasks(tmp_path: Path) -> None:
    for name, answer in (("a", 2), ("b", 2), ("c", 4)):
        task = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]], "output": [[answer]]}]}
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.json").write_text(json.dumps(task))
        make_result(tmp_path / "members" / name, lambda _: RIGHT, source=f"folder:{tmp_path / name}", label=name)
    assert len(read_members(config_of(tmp_path, members="a,b")).tasks) == 1
    with pytest.raises(
        ConfigError, match=r"members/a and .*members/c scored tasks of the same ids with other grids or answers: 1 differ"
    ):
        read_members(config_of(tmp_path, members="a,c"))
    shutil.copy(tmp_path / "c/one.json", tmp_path / "b/one.json")  # the source has changed since
    with pytest.raises(ConfigError, match="hold other grids than those that were scored"):
        read_members(config_of(tmp_path, members="a,b"))
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"the tasks of .*members/b cannot be read again"):
        read_members(config_of(tmp_path, members="a,b"))


def test_calibration_never_sees_the_tasks_that_are_scored(made: Path) -> None:
    both = f"{made}/calibration/even,{made}/members/odd"
    with pytest.raises(ConfigError, match=r"has 6 of the tasks that are scored .*whose answers would decide the ranking"):
        read_members(config_of(made, "merge=confidence", f"calibration=[{both}]"))
    turned = f"{made}/calibration/odd,{made}/calibration/even"
    with pytest.raises(ConfigError, match=r"is of solver=odd and its member .* of solver=even"):
        read_members(config_of(made, "merge=confidence", f"calibration=[{turned}]"))


_SEARCHED = {"adaptation.kind": "latent", "adaptation.steps": 20, "adaptation.batch_size": 64}


@pytest.mark.parametrize(
    ("of_member", "of_calibration", "says"),
    [
        (_SEARCHED, {}, "is of adaptation.kind=none and its member .* of adaptation.kind=latent"),
        ({}, _SEARCHED, "is of adaptation.kind=latent and its member .* of adaptation.kind=none"),
        (_SEARCHED, {**_SEARCHED, "adaptation.steps": 5}, "is of adaptation.steps=5 and its member .* of adaptation.steps=20"),
        ({"evaluation.ranking": "product"}, {}, "is of evaluation.ranking=count .* of evaluation.ranking=product"),
        (
            {"evaluation.num_augmentations": 8},
            {"evaluation.num_augmentations": 0},
            "num_augmentations=0 .*num_augmentations=8",
        ),
        ({"solver.sampling.temperature": 1.0}, {"solver.sampling.temperature": 0.5}, "temperature=0.5 .*temperature=1.0"),
        # Neither which tasks, nor how fast, nor a key that an older version did not write.
        (
            _SEARCHED,
            {**_SEARCHED, "adaptation.batch_size": 8, "evaluation.max_tasks": 3, "evaluation.halting": "all_steps"},
            "",
        ),
        ({"lm.batch_size": 1, "lm.dtype": "float32"}, {"lm.batch_size": 2}, ""),
    ],
)
def test_calibration_is_of_answers_that_were_made_as_the_members(
    made: Path, of_member: dict[str, Any], of_calibration: dict[str, Any], says: str
) -> None:
    for key, settings, source in (("members", of_member, SOURCE), ("calibration", of_calibration, OTHER_SOURCE)):
        make_result(
            made / key / "even", lambda n: WRONG if n % 2 else RIGHT, label="even", source=source, settings=settings
        )  # fmt: skip
    config = config_of(made, "merge=confidence", calibrated(made))
    if not says:
        assert len(read_members(config).calibrations) == 2
        return
    with pytest.raises(ConfigError, match=says) as refusal:
        read_members(config)
    assert "\n" not in str(refusal.value)


def test_a_refusal_is_one_sentence_and_leaves_nothing(
    made: Path, run_in_process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    given = ["solver=ensemble", f"members=[{made}/members/even,{made}/members/evem]", f"runs_dir={made}/runs"]
    refused(run_in_process("evaluate.py", *given), "did you mean")
    assert not (made / "runs").exists()
    config = config_of(made, "name=both")
    written(config)
    before = {path.name: path.read_bytes() for path in config.folder.iterdir() if path.suffix in (".json", ".jsonl", ".html")}
    for name in ("even", "odd"):
        make_result(made / "members" / f"small-{name}", lambda _: RIGHT, num_tasks=2, label=name)
    small = ",".join(f"{made}/members/small-{name}" for name in ("even", "odd"))
    refused(run_in_process("evaluate.py", *given, f"members=[{small}]", "name=both"), "holds the results of 6 tasks")
    assert before == {name: (config.folder / name).read_bytes() for name in before}
