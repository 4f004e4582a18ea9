"""Comparison page, tracking sheets and paired tests, on small real runs that were trained and evaluated through app."""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.compose import compose_evaluate
from arclab.files import write_atomically
from arclab.methods.recursive.evaluation import evaluate_in_ranks
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.metrics.logger import read_rows
from arclab.metrics.names import REGISTRY, Metric
from arclab.pages.analyse import analyse
from arclab.pages.compare import commits, gap_row, paired_tests, render_comparison, score_groups
from arclab.pages.compare_pictures import disagreements, failures, overlay_svgs
from arclab.pages.sheet import sheet_html
from arclab.pages.tracking import TO_FILL_IN, convergence, gap, issues, observations, tracking_sheet
from arclab.results.paired import compare_splits, difference_interval, mcnemar_p
from arclab.results.reading import FIT_STAMP, Run, read_runs, settings_difference, unlike
from arclab.results.scoring import Share
from arclab.runs.folder import RunDir, State
from arclab.runs.lock import Holder
from arclab.runs.ranks import Ranks

from ..conftest import TINY, compose

CPU = Ranks(0, 1, torch.device("cpu"))
HEADINGS = (
    "### Experiment:", "**Date**:", "**Goal**:", "**Changes from baseline**:", "**Configuration**:", "- Encoder:", "- Pre-trained decoder:",
    "- halt_max_steps:", "- halt_exploration_prob:", "- Other hyperparams:", "**Phase 1 Results (Overfit", "- Train accuracy:",
    "- Steps to converge:", "- Issues encountered:", "- Status:", "**Phase 2 Results (Full dataset)**:", "**Analysis**:", "- Key observations:",
    "- Why it worked/failed:", "- Next steps:", "**WandB Run**:",
)  # fmt: skip
PHASE_2 = ("- Train EM:", "- Test EM:", "- Pass@2:", "- Avg steps:")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two runs, a and b (another gain), trained for four steps and scored on their four training tasks."""
    root = tmp_path_factory.mktemp("runs")
    for name, gain in (("a", 0.1), ("b", 0.7)):
        overrides = [
            f"runs_dir={root}",
            f"name={name}",
            f"encoder.context.gain={gain}",
            "evaluation.max_tasks=4",
            "trainer.eval_every=4",
        ]
        pretrain_in_ranks(compose("pretrain_encoder", [*TINY, *overrides]), CPU)
        evaluate_in_ranks(compose_evaluate([f"checkpoint={root}/quickstart/{name}"]), CPU)
    return root / "quickstart"


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "quickstart"))


def load(folder: Path, *names: str) -> list[Run]:
    return read_runs([folder / name for name in names])


def set_ranks(run: Path, ranks: dict[str, list[int | None]], split: str = "train") -> None:
    """Write predictions and scores in which the truth of each test input has this place."""
    target = run / "evaluation" / split
    lines = [
        {"task": t, "test": i, "candidates": [{"grid": [[place or 0, 1]], "votes": 3, "confidence": 0.5}] * 2, "num_candidates": 2, "truth_rank": place}
        for t, places in ranks.items()
        for i, place in enumerate(places)
    ]  # fmt: skip
    if split != "train":
        shutil.copytree(run / "evaluation/train", target)
    (target / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    solved = sum(all(p is not None and p < 2 for p in places) for places in ranks.values())
    record = json.loads((target / "metrics.json").read_text())
    record["scores"] = {name: {"n": solved, "N": len(ranks)} for name in ("ARC/pass@1", "ARC/pass@2", "ARC/solved@2")}
    record |= {"split": split, "predictions_sha256": hashlib.sha256((target / "predictions.jsonl").read_bytes()).hexdigest()}
    (target / "metrics.json").write_text(json.dumps(record))


CRITERION = {
    "result": "PASS", "phase": "phase 1", "metric": "all.exact_accuracy", "threshold": 0.9, "value": 1.0, "n": 8.0, "N": 8,
    "counted": "augmented test inputs", "interval95": [0.5, 1.0], "interval_over": "4 tasks", "step": 4, "sentence": "PASS",
}  # fmt: skip


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def field(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(name)).removeprefix(name).strip()


def test_sheet_has_every_heading_in_the_order_of_the_template(folder: Path) -> None:
    text = tracking_sheet(load(folder, "a")[0], None)
    places = [text.index(heading) for heading in HEADINGS]
    assert places == sorted(places)
    set_ranks(folder / "a", {"x": [0]}, "evaluation")
    text = tracking_sheet(load(folder, "a")[0], None)
    places = [text.index(heading) for heading in (*PHASE_2, "**Analysis**")]
    assert places == sorted(places)


def test_sheet_has_the_numbers_of_the_run(folder: Path) -> None:
    (run,) = load(folder, "a")
    text = tracking_sheet(run, None)
    last = read_rows(folder / "a/metrics.jsonl")[-1]
    n, total = round(last["train/exact_accuracy"] * last["train/count"]), int(last["train/count"])
    low, high = Share(n, total).interval
    assert field(text, "- Train accuracy:").startswith(
        f"{100 * n / total:.1f}% ({n}/{total}, 95 % [{100 * low:.1f}, {100 * high:.1f}])"
    )
    assert "**Phase 1 Results (Overfit - 12 groups)**" in text and "### Experiment: quickstart/a" in text
    assert field(text, "- halt_max_steps:") == "4" and field(text, "- halt_exploration_prob:") == "0.5"
    assert field(text, "- Pre-trained decoder:") == "No" and field(text, "- Encoder:").startswith(
        "standard (demo_layout aligned"
    )
    assert "trainer.steps=4" in field(text, "- Other hyperparams:") and "decoder.width=16" in field(
        text, "- Other hyperparams:"
    )
    assert field(text, "**Date**:") == json.loads((folder / "a/provenance.json").read_text())["started"][:10]
    assert field(text, "**Goal**:") == TO_FILL_IN and field(text, "- Status:") == "no criterion"
    assert "not generalisation" in field(text, "- Issues encountered:") and "none (wandb.mode=disabled)" in text


def test_sheet_of_a_held_out_run_names_its_split(folder: Path) -> None:
    config = folder / "a/config.yaml"
    config.write_text(config.read_text().replace("split: train", "split: evaluation"))
    set_ranks(folder / "a", {"x": [0], "y": [None], "z": [5], "w": [1]}, "evaluation")
    edit(folder / "a/evaluation/evaluation/metrics.json", statistics={"all.exact_accuracy": 0.25, "all.count": 8.0})
    text = tracking_sheet(load(folder, "a")[0], None)
    low, high = Share(2, 4).interval
    assert field(text, "- Pass@2:") == f"50.0% (2/4, 95 % [{100 * low:.1f}, {100 * high:.1f}]) of tasks, evaluation split"
    assert field(text, "- Test EM:").startswith("25.0% (2/8 augmented copies, 95 % [") and "not this run" in field(
        text, "**Phase 1 Results (Overfit)**:"
    )


def test_changes_are_those_from_the_defaults_or_from_the_first_run(folder: Path) -> None:
    a, b = load(folder, "a", "b")
    alone, beside = tracking_sheet(a, None), tracking_sheet(b, a)
    assert "the defaults of experiment=quickstart" in alone and "- `decoder.width`: 64 → 16" in alone
    assert "encoder.context.gain" not in alone.split("**Configuration**")[0]
    changes = re.findall(r"^- `(.*)`: (.*) → (.*)$", beside, flags=re.MULTILINE)
    assert changes == [("encoder.context.gain", "0.1", "0.7")] and "against the run a" in beside


@pytest.mark.parametrize(("kind", "said"), [("pretrained", "Yes (pretrained, x/y)"), ("frozen", "Yes (frozen, x/y)"), ("staged", "Yes (staged for 7 steps, x/y)")])  # fmt: skip
def test_every_loaded_decoder_is_a_pretrained_one(folder: Path, kind: str, said: str) -> None:
    (run,) = load(folder, "a")
    run.settings.update({"decoder_init.kind": kind, "decoder_init.path": "x/y", "decoder_init.freeze_steps": 7})
    assert field(tracking_sheet(run, None), "- Pre-trained decoder:") == said


def test_sheet_links_the_run_where_wandb_has_one(folder: Path) -> None:
    config = folder / "a/config.yaml"
    config.write_text(config.read_text().replace("mode: disabled", "mode: auto"))
    told = {None: TO_FILL_IN, "offline": "`wandb sync", "online": "https://wandb.example/r/1"}
    for mode, words in told.items():
        if mode is not None:
            record = {"id": "1", "mode": mode, "url": "https://wandb.example/r/1" if mode == "online" else None}
            (folder / "a/wandb.json").write_text(json.dumps(record))
        assert words in field(tracking_sheet(load(folder, "a")[0], None), "**WandB Run**:"), mode


def test_page_has_the_sheet_of_every_run(folder: Path) -> None:
    """The template of the guide as HTML: what the Markdown says, escaped, with nothing of its marks left over."""
    a, b = load(folder, "a", "b")
    b.settings["goal"] = "is <gain> & co. worth it?"
    page, sheet = render_comparison([a, b]), sheet_html(tracking_sheet(b, a))
    assert sheet in page and page.count('<details class="sheet"') == 2
    assert (
        "<b>Goal</b>: is &lt;gain&gt; &amp; co. worth it?" in sheet
        and "<li><code>encoder.context.gain</code>: 0.1 → 0.7</li>" in sheet
    )
    assert (
        "<h3>Experiment: quickstart/b</h3>" in sheet
        and "<em>to fill in</em>" in sheet
        and "**" not in sheet
        and "`" not in sheet
    )
    for heading in HEADINGS[1:]:
        assert heading.strip("*-:# ").split(" (")[0] in sheet, heading


def test_the_verdict_of_health_is_in_page_and_sheet(folder: Path) -> None:
    (run,) = load(folder, "a")
    run.rows[-1].update(
        {"health": "STARVED", "health_level": "bad", "health_note": "STARVED grad/encoder_norm 0.02 < 0.05: look here"}
    )
    page, sheet = render_comparison([run]), tracking_sheet(run, None)
    assert "<dt>health</dt><dd>step 4: STARVED grad/encoder_norm 0.02 &lt; 0.05</dd>" in page
    assert "health at step 4: STARVED grad/encoder_norm 0.02 < 0.05: look here" in field(sheet, "- Issues encountered:")


def test_settings_difference_keeps_only_what_differs() -> None:
    first = {"name": "a", "seed": 0, "x.y": True, "old": None, "wandb.mode": "auto"}
    second = {"name": "b", "seed": 0, "x.y": False, "new": 1, "wandb.mode": "disabled"}
    assert settings_difference(first, second) == {"x.y": ["true", "false"], "old": ["null", "not set"], "new": ["not set", "1"]}


@pytest.mark.parametrize(("result", "status"), [("PASS", "✅ Pass"), ("FAIL", "❌ Fail")])
def test_status_is_that_of_the_criterion(folder: Path, result: str, status: str) -> None:
    sentence = f"{result} (phase 1): train/exact_accuracy 9/10"
    (folder / "a/criterion.json").write_text(json.dumps({**CRITERION, "result": result, "sentence": sentence}))
    run = load(folder, "a")
    assert field(tracking_sheet(run[0], None), "- Status:") == f"{status}: {sentence}"
    page = render_comparison(run)
    assert f'<span class="badge {result.lower()}">{result}</span>' in page and sentence in page


def test_interval_of_exact_accuracy_counts_tasks_not_copies(folder: Path) -> None:
    """Eight copies of four tasks say no more than four trials."""
    edit(folder / "a/evaluation/train/metrics.json", statistics={"all.exact_accuracy": 0.5, "all.count": 8.0})
    exact = load(folder, "a")[0].splits[0].exact
    assert exact and (exact.copies.n, exact.copies.total) == (4.0, 8) and exact.interval == Share(2, 4).interval


def test_forced_halts_are_shown_where_they_are_logged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "train/forced_halt_share"
    monkeypatch.setitem(REGISTRY, name, Metric(name, "share", "none", "halted by the step limit"))
    runs = load(folder, "a", "b")
    runs[0].rows[-1][name] = 0.625
    page = render_comparison(runs)
    assert f"{name}, last tenth" in page and "62.5 %" in page and page.count(f">{name}<") == 1


def test_first_step_at_ninety_percent_counts_as_converged(folder: Path) -> None:
    (run,) = load(folder, "a")
    assert "not reached in 4 steps" in convergence(run)
    run.rows[:] = [{"_step": s, "train/exact_accuracy": v} for s, v in ((10, 0.2), (20, 0.9), (30, 0.5), (40, 0.95))]
    assert convergence(run).startswith("20 ")


def test_late_means_weigh_rows_by_their_count(folder: Path) -> None:
    (run,) = load(folder, "a")
    run.rows[:] = [
        {"_step": s, "train/steps": v, "train/count": n} for s, v, n in ((50, 99.0, 9.0), (95, 2.0, 1.0), (100, 4.0, 3.0))
    ]
    assert run.late_mean("train/steps") == 3.5


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (3, 3, 1.0), (5, 0, 2 / 32), (6, 1, 2 * (1 + 7) / 128), (1, 9, 2 * (1 + 10) / 1024), (0, 10, 2 / 1024)],
)  # fmt: skip
def test_mcnemar_by_hand(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar_p(only_first, only_second) == pytest.approx(p, rel=1e-12)


def test_mcnemar_of_many_pairs_is_finite() -> None:
    assert 0 < mcnemar_p(1500, 1700) < 1e-3 and mcnemar_p(5000, 5000) == 1.0


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
    assert [card.id for card in disagreements([a, b])[0].cards] == ["t2", "t3", "t5"]


def test_runs_with_other_tasks_are_not_comparable(folder: Path) -> None:
    set_ranks(folder / "b", {"t1": [0], "t2": [1]})
    (pair,) = paired_tests(load(folder, "a", "b"))
    assert pair.problem == "not comparable: the task sets differ (4 tasks and 2, 0 in common)" and not pair.tests
    page = render_comparison(load(folder, "a", "b"))
    assert pair.problem in page and "The runs have no task in common." in page


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


def test_a_gap_between_unlike_evaluations_says_so(folder: Path) -> None:
    set_ranks(folder / "a", {"x": [0]}, "evaluation")
    edit(folder / "a/evaluation/evaluation/metrics.json", step=2)
    runs = load(folder, "a")
    row = gap_row(0, runs[0])
    assert row.gap and "trained steps: 4 for train, 2 for evaluation" in row.note
    assert row.note in html.unescape(render_comparison(runs))


def test_a_run_that_was_killed_is_not_running(folder: Path) -> None:
    run = RunDir(folder / "a")
    run.write_status(State.running, 3)
    write_atomically(run.path / "lock.json", json.dumps({**asdict(Holder.me()), "pid": 2**22 + 1}))
    assert "PARTIAL: RUNNING, but its process is gone, step 4" in load(folder, "a")[0].state
    write_atomically(run.path / "lock.json", json.dumps(asdict(Holder.me())))
    assert "PARTIAL: RUNNING, step 4" in load(folder, "a")[0].state


def test_gradients_are_judged_by_the_gain_and_not_once_all_is_right(folder: Path) -> None:
    """As the verdicts of health do, which would contradict the sheet otherwise."""

    def named(gain: float, exact: float) -> bool:
        rows = [
            {"_step": 0, "context_gain": gain},
            {"_step": 1, "train/exact_accuracy": exact, "train/count": 8.0, "grad/encoder_norm": 0.06},
        ]
        return any(text.startswith("grad/encoder_norm") for text in issues(replace(load(folder, "a")[0], rows=rows)))

    assert named(1.0, 0.5) and not named(0.1, 0.5) and not named(1.0, 0.95)


def test_rows_whose_colors_only_demonstrations_tell_are_named_if_they_lag(folder: Path) -> None:
    """Of 1000 rows, 400 with new colours: right in 0.2 of them and 0.7 of the others, then as often, then all of one kind."""

    def found(exact: float, new_exact: float, new_count: float) -> list[str]:
        row = {
            "train/exact_accuracy": exact,
            "train/count": 500.0,
            "train/new_colors_exact": new_exact,
            "train/new_colors_count": new_count,
        }
        rows = [{"_step": 0}, {"_step": 1, **row}, {"_step": 2, **row}]
        return [text for text in issues(replace(run, rows=rows)) if "new_colors" in text]

    (run,) = load(folder, "a")
    (sentence,) = found(0.5, 0.2, 200.0)
    assert "train/new_colors_exact ended at 0.2, other rows at 0.7" in sentence
    assert sentence.endswith("give it more steps, trainer.optimizer=muon, encoder.pooling=colors")
    run.settings.update({"trainer.optimizer": "muon", "encoder.pooling": "cls"})  # cls: an encoder that cannot pool otherwise
    assert found(0.5, 0.2, 200.0)[0].endswith("give it more steps")
    assert found(0.7, 0.6, 200.0) == [] and found(0.2, 0.2, 500.0) == []


def test_the_commits_of_a_run_that_went_on_are_all_named(folder: Path) -> None:
    earlier = [{"commit": "a" * 40, "to_step": 2}, {"commit": "b" * 40 + "+changes", "to_step": 3}]
    edit(folder / "a/provenance.json", commit="b" * 40 + "+changes", earlier=earlier)
    assert commits(load(folder, "a")[0]) == f"{'b' * 10}+changes ({'a' * 10} to step 2)"
    edit(folder / "a/provenance.json", commit="not recorded", earlier=[])
    assert commits(load(folder, "a")[0]) == "not recorded"


def test_gap_is_train_minus_held_out(folder: Path) -> None:
    set_ranks(folder / "a", {f"t{i}": [0] for i in range(4)})
    set_ranks(folder / "a", {f"e{i}": [0 if i < 1 else None] for i in range(4)}, "evaluation")
    a, b = load(folder, "a", "b")
    train, test = a.split("train"), a.split("evaluation")
    assert train and test and gap(train, test).startswith("+75.0 points [")
    with_gap, without = gap_row(0, a), gap_row(1, b)
    assert with_gap.split == "evaluation" and with_gap.gap.startswith("+75.0") and not without.gap
    assert without.note == "not evaluated on the evaluation or validation split"


def test_partial_run_is_reported_with_what_there_is(folder: Path) -> None:
    shutil.rmtree(folder / "b/evaluation")
    edit(folder / "b/status.json", state="FAILED", step=3, message="training diverged & stopped")
    runs = load(folder, "a", "b")
    page, sheet = render_comparison(runs), tracking_sheet(runs[1], runs[0])
    assert '<div class="badge partial">PARTIAL: FAILED, step 4 of 4 (training diverged &amp; stopped)</div>' in page
    assert page.count('class="badge partial"') == 1 and page.index("PARTIAL") < page.index("<header")
    assert "**PARTIAL: FAILED, step 4 of 4 (training diverged & stopped)**" in sheet
    assert "during training, step 4; evaluate.py was not run" in page


def test_scores_of_training_carry_the_stamps_of_their_weights(folder: Path) -> None:
    """A run without evaluate.py has no metrics.json to say what its numbers mean; its checkpoint and split do."""
    shutil.rmtree(folder / "b/evaluation")
    edit(sorted((folder / "b/checkpoints").glob("step_*/state.json"))[-1], stamps=["transductive: <decoder>"])
    (run,) = load(folder, "b")
    assert run.stamps == ["transductive: <decoder>", "scored on the training tasks: this measures fit, not generalisation"]
    page, sheet = render_comparison([run]), tracking_sheet(run, None)
    assert page.count("transductive: &lt;decoder&gt;") >= 2 and "<decoder>" not in page
    assert "> ⚠️ **transductive: <decoder>**" in sheet


def test_run_that_only_began_is_reported(folder: Path) -> None:
    for name in ("metrics.jsonl", "status.json", "provenance.json"):
        (folder / "b" / name).unlink()
    for name in ("evaluation", "checkpoints"):
        shutil.rmtree(folder / "b" / name)
    (run,) = load(folder, "b")
    page, sheet = render_comparison([run]), tracking_sheet(run, None)
    assert "PARTIAL: no status.json, step 0 of 4" in page and "No curves" in page and "No scores" in page
    assert field(sheet, "- Train accuracy:") == "not evaluated" and all(heading in sheet for heading in HEADINGS)


def test_finished_run_has_no_partial_badge(folder: Path) -> None:
    page = render_comparison(load(folder, "a", "b"))
    assert "PARTIAL" not in page and "DONE at step 4" in page


def test_scores_stand_side_by_side(folder: Path) -> None:
    set_ranks(folder / "a", {f"t{i}": [0] for i in range(3)})
    runs = load(folder, "a", "b")
    (group,) = score_groups(runs)
    first, second = (column.rows["ARC/pass@2"] for column in group.columns)
    assert (first.fraction, first.percent) == ("3/3", "100.0 %") and second.fraction.endswith("/4")
    page = render_comparison(runs)
    assert first.interval in page and second.interval in page and "not generalisation" in page


def test_page_loads_nothing_and_its_anchors_lead_somewhere(folder: Path) -> None:
    page = render_comparison(load(folder, "a", "b"))
    assert "<figure><svg" in page
    assert not re.search(r"https?:|//\w+\.|@import|<link|<script|<img|<iframe", page)
    references = [r for pair in re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', page) for r in pair if r]
    assert references and all(reference.startswith("#") and f'id="{reference[1:]}"' in page for reference in references)


def test_curves_hold_every_run_that_logged_the_metric(folder: Path) -> None:
    a, b = load(folder, "a", "b")
    (both,) = overlay_svgs([a, b], ["train/lm_loss"])
    assert "#2f6fdb" in both and "#e2711d" in both
    b.rows.clear()
    (one,) = overlay_svgs([a, b], ["train/lm_loss"])
    assert "#2f6fdb" in one and "#e2711d" not in one
    assert overlay_svgs([b], ["train/lm_loss"]) == []


def test_gallery_shows_real_grids_and_who_was_right(folder: Path) -> None:
    task = load(folder, "a")[0].splits[0].task_ids[0]
    for name, place in (("a", 0), ("b", None)):
        tests = [place] * sum(key[0] == task for key in load(folder, name)[0].splits[0].predictions)
        set_ranks(folder / name, {task: tests, "gone": [place]})
    (gallery,) = disagreements(load(folder, "a", "b"))
    known, gone = gallery.cards
    assert known.solvers == ("a",) and known.demos and known.tests[0].truth is not None
    assert [(x.label, x.is_right) for x in known.tests[0].answers] == [("a", True), ("b", False)]
    assert gone.tests[0].truth is None and gallery.problem == "task gone is in none of the runs' sources"
    page = render_comparison(load(folder, "a", "b"))
    assert f'data-task="{task}"' in page and "1x2 instead of" in page


def test_failures_are_the_tasks_that_no_run_solves(folder: Path) -> None:
    set_ranks(folder / "a", {"t1": [0], "t2": [None], "t3": [1, 5]})
    set_ranks(folder / "b", {"t1": [None], "t2": [3], "t3": [None, 0]})
    both, alone = failures(load(folder, "a", "b"))[0], failures(load(folder, "b"))[0]
    assert [card.id for card in both.cards] == ["t2", "t3"] and (both.num_tasks, both.num_common) == (2, 3)
    assert [card.id for card in alone.cards] == ["t1", "t2", "t3"] and not disagreements(load(folder, "b"))
    page = render_comparison(load(folder, "b"))
    assert 'id="failures-train"' in page and page.count("<article") == 3 and "Tasks that b does not solve" in page
    set_ranks(folder / "b", {"t1": [0]})
    assert "Every task is solved." in render_comparison(load(folder, "b"))
    edit(folder / "b/evaluation/train/metrics.json", scores={"ARC/solved@2": {"n": 0, "N": 0}, "ARC/pass@2": {"n": 0, "N": 0}})
    assert failures(load(folder, "b")) == []  # hidden answers: wrong is not known


def test_grids_of_validation_tasks_are_found(folder: Path) -> None:
    source = "toy:dihedral?tasks=3&side=4&split=validation"
    set_ranks(folder / "a", {"toy_dihedral_validation_00001": [None]})
    (run,) = load(folder, "a")
    run.settings["dataset.validation_sources"] = [source]
    (gallery,) = failures([run])
    assert gallery.problem == "" and gallery.cards[0].demos and gallery.cards[0].tests[0].truth is not None


def test_unreadable_source_leaves_the_predictions(folder: Path) -> None:
    set_ranks(folder / "a", {"t": [0]})
    set_ranks(folder / "b", {"t": [None]})
    runs = load(folder, "a", "b")
    for run in runs:
        run.settings.update({"dataset.train_sources": ["folder:gone"], "dataset.eval_sources": []})
    (gallery,) = disagreements(runs)
    assert "gone does not exist" in gallery.problem and gallery.cards[0].tests[0].answers[0].view is not None


def test_labels_are_as_long_as_they_must_be(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder / "a", tmp_path / "other")
    assert [run.label for run in read_runs([folder / "a", folder / "b"])] == ["a", "b"]
    assert [run.label for run in read_runs([folder / "a", other])] == [str(folder / "a"), str(other)]
    written = [path.name for path in analyse([folder / "a", other], tmp_path / "out")]
    assert written == ["compare.html", "quickstart-a.md", "quickstart-a-2.md"]


def test_command_writes_page_and_sheets(folder: Path, run_script: Any, tmp_path: Path) -> None:
    arguments = ("arclab.pages", f"{folder}/a", f"{folder}/b", "--output", f"{tmp_path}/out")
    done = run_script("-m", *arguments)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["compare.html", "quickstart-a.md", "quickstart-b.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}"], r"quickstart is not a run folder \(it has neither config.yaml nor metrics.json\)"),
        (["{}/none"], r"none is not a run folder \(it does not exist\)"),
        (["{}/a", "{}/a"], "was given twice"),
    ],
)
def test_what_is_no_run_is_one_sentence_and_status_2(folder: Path, run_script: Any, arguments: list[str], message: str) -> None:
    done = run_script("-m", "arclab.pages", *(a.format(folder) for a in arguments))
    assert done.returncode == 2 and re.search(message, done.stderr) and "Traceback" not in done.stderr


@pytest.mark.parametrize("file", ["status.json", "metrics.jsonl", "config.yaml", "evaluation/train/predictions.jsonl"])
def test_damaged_file_is_named(folder: Path, file: str) -> None:
    """With the line, where the file has one record a line."""
    (folder / "a" / file).write_text("{ broken: [\n")
    where = r" is damaged in line 1 \(" if file.endswith(".jsonl") else r" is damaged \("
    with pytest.raises(ValueError, match=re.escape(str(folder / "a" / file)) + where):
        load(folder, "a")


def test_values_that_are_not_finite_are_left_out(folder: Path) -> None:
    (run,) = load(folder, "a")
    run.rows.append({"_step": 5, "train/lm_loss": None, "train/exact_accuracy": math.nan, "train/count": 3.0})
    assert run.series("train/lm_loss")[-1][0] == 4 and run.train_exact is None


def test_scores_made_in_training_carry_the_rules_they_were_made_by(folder: Path) -> None:
    """They have no record of their own that would say so."""
    (run,) = load(folder, "a")
    assert run.own_scores is not None and run.own_stamps == (FIT_STAMP,)
    run.settings["evaluation.halting"] = "early"
    assert run.own_stamps[-1] == "not the published evaluation: evaluation.halting=early"


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
