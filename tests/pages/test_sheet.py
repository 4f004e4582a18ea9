"""Tracking sheets of runs: headings, numbers, status, observations, and what is missing."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from arclab.files import write_atomically
from arclab.metrics.logger import read_rows
from arclab.pages.compare import render_comparison
from arclab.pages.compare_scores import gap_row
from arclab.pages.sheet import sheet_html
from arclab.pages.tracking import TO_FILL_IN, convergence, gap, issues, tracking_sheet
from arclab.results.scoring import Share
from arclab.runs.folder import RunDir, State
from arclab.runs.lock import Holder

from .conftest import CRITERION, edit, field, load, set_ranks

HEADINGS = (
    "### Experiment:", "**Date**:", "**Goal**:", "**Changes from baseline**:", "**Configuration**:", "- Encoder:", "- Pre-trained decoder:",
    "- halt_max_steps:", "- halt_exploration_prob:", "- Other hyperparams:", "**Phase 1 Results (Overfit", "- Train accuracy:",
    "- Steps to converge:", "- Issues encountered:", "- Status:", "**Phase 2 Results (Full dataset)**:", "**Analysis**:", "- Key observations:",
    "- Why it worked/failed:", "- Next steps:", "**WandB Run**:",
)  # fmt: skip


PHASE_2 = ("- Train EM:", "- Test EM:", "- Pass@2:", "- Avg steps:")


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


@pytest.mark.parametrize(("result", "status"), [("PASS", "✅ Pass"), ("FAIL", "❌ Fail")])
def test_status_is_that_of_the_criterion(folder: Path, result: str, status: str) -> None:
    sentence = f"{result} (phase 1): train/exact_accuracy 9/10"
    (folder / "a/criterion.json").write_text(json.dumps({**CRITERION, "result": result, "sentence": sentence}))
    run = load(folder, "a")
    assert field(tracking_sheet(run[0], None), "- Status:") == f"{status}: {sentence}"
    page = render_comparison(run)
    assert f'<span class="badge {result.lower()}" title="{sentence}">{result}</span>' in page and sentence in page


def test_interval_of_exact_accuracy_counts_tasks_not_copies(folder: Path) -> None:
    """Eight copies of four tasks say no more than four trials."""
    edit(folder / "a/evaluation/train/metrics.json", statistics={"all.exact_accuracy": 0.5, "all.count": 8.0})
    exact = load(folder, "a")[0].splits[0].exact
    assert exact and (exact.copies.n, exact.copies.total) == (4.0, 8) and exact.interval == Share(2, 4).interval


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
    assert load(folder, "a")[0].state.startswith("FAILED at step 4 of 4 (was killed after step 3")
    write_atomically(run.path / "lock.json", json.dumps(asdict(Holder.me())))
    assert load(folder, "a")[0].state == "RUNNING at step 4 of 4"


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
    assert '<span class="badge partial">FAILED at step 4 of 4 (training diverged &amp; stopped)</span>' in page
    assert page.count('class="badge partial"') == 1 and page.index("FAILED at") < page.index("<header")
    assert "**FAILED at step 4 of 4 (training diverged & stopped)**" in sheet
    assert "during training, step 4; evaluate.py was not run" in page


def test_run_that_only_began_is_reported(folder: Path) -> None:
    for name in ("metrics.jsonl", "status.json", "provenance.json"):
        (folder / "b" / name).unlink()
    for name in ("evaluation", "checkpoints"):
        shutil.rmtree(folder / "b" / name)
    (run,) = load(folder, "b")
    page, sheet = render_comparison([run]), tracking_sheet(run, None)
    assert "NEW at step 0 of 4" in page and "No curves" in page and "No scores" in page
    assert field(sheet, "- Train accuracy:") == "not evaluated" and all(heading in sheet for heading in HEADINGS)
