"""The page of a job file: every run with its state, and every number with n/N, its interval, source and stamps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arclab.config.schema import ExperimentConfig
from arclab.pages.queue_report import write_queue_report
from arclab.results.scoring import Share
from arclab.runs.folder import State, open_run

Tiny = Callable[..., ExperimentConfig]


def reported(config: ExperimentConfig, runs_dir: Path, state: str, **others: object) -> dict[str, object]:
    path = runs_dir / config.experiment_name / config.name
    return {"name": config.name, "experiment": config.experiment_name, "path": str(path), "state": state, "job": "7", "step": 20,
            "total_steps": 40, "verdict": "HEALTHY", "message": "", "parameters": "1,234", "line": 3,
            "command": f"pretrain_encoder.py name={config.name}", **others}  # fmt: skip


def make_run(config: ExperimentConfig, exact: list[float], result: dict[str, Any] | None) -> None:
    run = open_run(config)
    rows = [
        {"_step": 10 * (i + 1), "_runtime": 1.0 * i, "_timestamp": 1e9, "train/lm_loss": 1.0 / (i + 1), "all.exact_accuracy": value,
         "all.count": 40.0, "ARC/tasks": 20.0, "ARC/pass@1": value, "ARC/pass@2": value, "ARC/solved@2": value}
        for i, value in enumerate(exact)
    ]  # fmt: skip
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.write_status(State.done if result else State.running, 10 * len(exact))
    if result:
        (run.path / "criterion.json").write_text(json.dumps(result))


def test_links_lead_to_folders_with_signs_of_an_address(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(f"runs_dir='{tmp_path}/a b#1'")
    make_run(config, [0.5], None)
    request = {"file": "jobs.txt", "sections": [
        {"title": "t", "text": "", "criterion": "none", "runs": [reported(config, tmp_path / "a b#1", "RUNNING")]}]}  # fmt: skip
    write_queue_report(request, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert 'href="../a%20b%231/quickstart/t/config.yaml"' in page


def row_of(page: str, name: str) -> str:
    match = re.search(rf'<tr data-run="{name}">.*?</tr>', page, re.DOTALL)
    assert match is not None
    return re.sub(r"\s+", " ", match[0])


def test_the_page_of_a_queue(tiny: Tiny, tmp_path: Path) -> None:
    done, running, new, failed = (
        tiny(f"name={name}", f"seed={i}") for i, name in enumerate(("done", "running", "new", "failed"))
    )
    criterion = {"result": "PASS", "phase": "p", "metric": "all.exact_accuracy", "threshold": 0.9, "value": 0.95, "n": 38.0, "N": 40,
                 "counted": "augmented test inputs", "interval95": [0, 1], "interval_over": "20 tasks", "step": 20, "sentence": "s"}  # fmt: skip
    make_run(done, [0.5, 0.95], criterion)
    make_run(running, [0.25], None)
    make_run(failed, [0.1], None)
    runs = tmp_path / "runs"
    request = {"file": "jobs.txt", "sections": [
        {"title": "First: <it> works", "text": "More words.", "criterion": "at least 90 %",
         "runs": [reported(done, runs, "DONE"), reported(running, runs, "RUNNING"), reported(new, runs, "NEW", step=0, verdict=""),
                  reported(failed, runs, "FAILED", message="line one\nKeyError: 'x'")]},
        {"title": "Second", "text": "", "criterion": "none", "runs": [
            reported(tiny("name=later"), runs, "NEW"), reported(tiny("name=scored"), runs, "NEW", step=0, total_steps=None)]},
    ]}  # fmt: skip
    pages = write_queue_report(request, tmp_path / "runs/report")
    page = pages[0].read_text()
    assert pages[0].name == "index.html" and {p.name for p in pages[1:]} >= {"compare.html"}
    assert (
        "First: &lt;it&gt; works" in page
        and "More words." in page
        and "at least 90 %" in page
        and ">1 PASS, 1 RUNNING, 1 NEW, 1 FAILED<" in page
    )

    low, high = Share(19, 20).interval
    row = row_of(page, "done")
    assert "95.0 %" in row and "38/40 augmented test inputs" in row and f"[{100 * low:.1f}, {100 * high:.1f}] %" in row
    assert "train split, step 20; wanted at least 90 %" in row and 'class="badge pass">PASS' in row
    assert "this measures fit, not generalisation" in row and 'href="../quickstart/done/metrics.jsonl"' in row
    assert "during training" in row_of(page, "running") and "PASS" not in row_of(page, "running")
    assert "nothing measured" in row_of(page, "new") and "<a " not in row_of(page, "new")
    assert 'class="chip"' in row_of(page, "running") and 'class="chip"' not in row_of(page, "new")  # has no curve
    assert "<td>\N{EN DASH}<" in row_of(page, "scored")  # an evaluation has no steps
    assert "KeyError: &#39;x&#39;" in row_of(page, "failed")
    first, second = page.split('<section id="')[1:]
    assert (
        first.count("<figure>") >= 2
        and "01-first/compare.html" in first
        and (tmp_path / "runs/report/01-first/compare.html").is_file()
    )
    assert "<figure>" not in second and "Compare these runs" not in second


def test_nothing_is_fetched_and_links_lead_somewhere(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("name=done")
    make_run(config, [0.5], None)
    request = {
        "file": "jobs.txt",
        "sections": [{"title": "", "text": "", "criterion": "", "runs": [reported(config, tmp_path / "runs", "LOST")]}],
    }
    page, *_ = write_queue_report(request, tmp_path / "report")
    text = page.read_text()
    assert "Runs without a hypothesis" in text and not re.search(r'(src|href)="(https?:)?//', text)
    links = re.findall(r'href="([^"#]+)"', text)
    assert links and all((page.parent / link).is_file() for link in links)
