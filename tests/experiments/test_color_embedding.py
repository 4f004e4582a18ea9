"""experiments/color_embedding.py: its runs differ by the embedding alone, and what the table says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from arclab.config.compose import flat
from experiments import color_embedding

from ..conftest import compose

ROWS = [
    {"_step": 10, "_runtime": 1.0, "train/exact_accuracy": 0.2, "train/lm_loss": 1.5},
    {"_step": 20, "_runtime": 2.0, "train/exact_accuracy": 0.5, "train/lm_loss": 0.7},
    {"_step": 50, "_runtime": 3.0, "train/exact_accuracy": 0.4, "train/lm_loss": 0.6},
    {"_step": 50, "_runtime": 4.0, "all.exact_accuracy": 0.25, "all.count": 40.0, "ARC/pass@1": 0.75, "ARC/tasks": 4.0},
]


@pytest.mark.parametrize("task", color_embedding.TASKS)
def test_arms_differ_by_the_embedding_alone(task: str) -> None:
    given = color_embedding.parse([])
    configs = [flat(compose("pretrain_encoder", color_embedding.overrides(given, task, a, 1))) for a in color_embedding.ARMS]
    for config in configs[1:]:
        assert {k for k in config if config[k] != configs[0][k]} == {"name", "decoder.color_embedding"}
    # An identity must fit into a head, or no attention can compare two of them.
    assert configs[0]["decoder.width"] // configs[0]["decoder.num_heads"] >= 10


def test_a_record_says_when_the_loss_was_reached() -> None:
    made = color_embedding.record(ROWS, 0.7)
    assert (made["first_step"], made["steps"], made["loss"], made["n"], made["N"]) == (20, 50, 0.6, 10, 40)
    assert made["pass@1"] == [3, 4]
    assert color_embedding.record(ROWS, 0.5)["first_step"] is None and made["losses"] == {50: 0.6}


def test_the_table_is_of_the_runs_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_here: Callable[[Callable[[str], None]], list[str]]
) -> None:
    """And the same command adds what was missing."""

    def before(name: str) -> None:
        if name == stopped:
            raise ValueError("stopped")

    (tmp_path / "results").mkdir()
    stopped = "views-shared-seed0"
    trained = train_here(before)
    monkeypatch.setattr(color_embedding, "__file__", str(tmp_path / "color_embedding.py"))
    small = ["trainer.steps=2", "trainer.eval_every=2", "trainer.log_every=1", "trainer.warmup_steps=0", "dataset.num_augmentations=2",
             "trainer.batch_size=8", "evaluation.num_augmentations=1", "evaluation.max_tasks=2"]  # fmt: skip
    command = [
        "--tasks",
        "views",
        "--arms",
        "free",
        "shared",
        "--seeds",
        "0",
        "--runs-dir",
        str(tmp_path),
        "--save",
        "--set",
        *small,
    ]
    assert color_embedding.main(command) == 1
    assert color_embedding.main([*command, "--table"]) == 0 and trained == ["views-free-seed0"]
    stopped = ""
    assert color_embedding.main(command) == 0 and trained == ["views-free-seed0", "views-shared-seed0"]
    saved = json.loads((tmp_path / "results" / "color_embedding.json").read_text())
    assert [(row["task"], row["arm"], row["N"]) for row in saved["rows"]] == [("views", "free", 6), ("views", "shared", 6)]
    assert "| views | shared | 1: none |" in (tmp_path / "results" / "color_embedding.md").read_text()
