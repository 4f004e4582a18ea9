"""The parameters of a run are those of the model that its code builds, are counted once, and are never those of another code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import group_options
from arclab.config.plain_composer import PlainComposer
from arclab.entries import ENTRIES
from arclab.launch import sizes
from arclab.launch.queue.tables import parameters_text
from arclab.methods.recursive.model import build_model
from arclab.methods.recursive.setting import build_setting
from arclab.methods.recursive.sizes import COST_KEYS, PUZZLE_KEYS, count_parameters, count_sizes

from ..conftest import ROOT

SMALL = ["experiment=quickstart", "decoder.width=32", "decoder.num_heads=2"]
QUICK = PlainComposer()


def config_of(*overrides: str) -> Any:
    return QUICK.compose("pretrain_encoder", [*SMALL, "name=a", *overrides])


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache file of the test's own."""
    monkeypatch.setattr(sizes, "_cache_path", lambda: tmp_path / "cache/sizes.json")
    return tmp_path / "cache/sizes.json"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts in this process instead of another one, and notes how many configurations each time."""
    calls: list[int] = []

    def count(missing: dict[str, Any], notes: list[str]) -> dict[str, sizes.Counts]:
        calls.append(len(missing))
        return {key: count_sizes(config, {}) for key, config in missing.items()}

    monkeypatch.setattr(sizes, "_count_apart", count)
    return calls


@pytest.mark.parametrize("encoder", group_options("encoder"))
def test_every_encoder_counts_as_it_is_built(encoder: str) -> None:
    overrides = [f"encoder={encoder}"]
    overrides += ["dataset.regime=puzzle_id"] if encoder == "puzzle_table" else []
    overrides += ["encoder.latent_dim=16"] if encoder in ("variational", "hybrid_variational") else []
    config = config_of(*overrides)
    num_puzzles = build_setting(config).record.num_puzzles if encoder == "puzzle_table" else 0
    model = build_model(config, num_puzzles)
    counts = count_parameters(config, {})
    assert counts["model"] == sum(p.numel() for p in model.parameters())
    assert counts["decoder"] == sum(p.numel() for p in model.decoder.parameters()) == counts["model"] - counts["encoder"]
    assert counts["puzzle_table"] == 32 * num_puzzles and (num_puzzles > 1) == (encoder == "puzzle_table")


def test_a_data_set_is_loaded_once_for_all_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []

    def load(config: Any) -> Any:
        loads.append(1)
        return build_setting(config)

    monkeypatch.setattr("arclab.methods.recursive.sizes.build_setting", load)
    table, shared = ["encoder=puzzle_table", "dataset.regime=puzzle_id"], {}
    small, large, other = (
        count_parameters(config_of(*table, o), shared)["puzzle_table"]
        for o in ("decoder.width=32", "decoder.width=64", "dataset.num_augmentations=2")
    )
    assert large == 2 * small and other != small and len(loads) == 2


def test_what_is_remembered_starts_no_process(memory: Path, started: list[int]) -> None:
    first = sizes.sizes_of([config_of(), config_of("encoder.num_layers=3"), config_of("trainer.steps=7")])
    assert started == [2] and not first.notes  # the steps decide nothing
    standard, deeper, longer = first.counts
    assert standard == longer and standard and deeper and deeper["encoder"] > standard["encoder"]
    assert sizes.sizes_of([config_of("encoder.num_layers=3")]).counts == (deeper,) and started == [2]
    assert sizes.sizes_of([config_of("decoder.num_layers=1")]).counts[0] != standard and started == [2, 1]


def test_other_code_or_other_data_are_counted_anew(
    memory: Path, started: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tmp_path / "ids.txt"
    tasks.write_text("007bbfb7\n")
    config = config_of(f"dataset.train_ids={tasks}", "dataset.canvas=30", "dataset.validation_ids=null")
    for _ in range(2):
        sizes.sizes_of([config])
    tasks.write_text("007bbfb7\n00d62c1b\n")
    sizes.sizes_of([config])
    assert started == [1, 1]
    monkeypatch.setattr(sizes, "_source_digest", lambda entry: "changed")
    sizes.sizes_of([config])
    assert started == [1, 1, 1]


def test_the_digest_is_of_the_source_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counting.py").write_text("WIDTH = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = type(ENTRIES["evaluate"])(script="a.py", config="a", schema="a:A", run="a:a", sizes="counting:count")
    before = sizes._source_digest.__wrapped__(entry)
    (tmp_path / "counting.py").write_text("WIDTH = 4\n")
    assert sizes._source_digest.__wrapped__(entry) != before


@pytest.mark.parametrize("text", ['{"sizes": {"a"', '{"sizes": [1]}', '{"sizes": {"a": {"model": "many"}}}', "[]"])
def test_a_damaged_memory_is_said_and_replaced(memory: Path, started: list[int], text: str) -> None:
    memory.parent.mkdir()
    memory.write_text(text)
    found = sizes.sizes_of([config_of()])
    assert found.counts[0] and any(str(memory) in note and "damaged" in note for note in found.notes)
    assert not sizes.sizes_of([config_of()]).notes and started == [1]


def test_a_memory_that_cannot_be_written_is_said(memory: Path, started: list[int]) -> None:
    memory.parent.write_text("a file where the folder should be")
    found = sizes.sizes_of([config_of()])
    assert found.counts[0] and "not remembered" in found.notes[-1]


def test_one_process_counts_and_one_failure_leaves_the_others(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real process: torch is loaded there. A table whose tasks are gone is ?, with a reason."""
    calls: list[Any] = []
    run = subprocess.run

    def watched(*args: Any, **keys: Any) -> Any:
        calls.append(args)
        return run(*args, **keys)

    monkeypatch.setattr(subprocess, "run", watched)
    gone = config_of("encoder=puzzle_table", "dataset.regime=puzzle_id", "dataset.train_sources=[folder:nowhere]")
    evaluation = QUICK.compose("evaluate", ["checkpoint=runs/a/b"])
    found = sizes.sizes_of([config_of(), gone, evaluation, config_of("encoder=lpn", "encoder.width=16")])
    assert len(calls) == 1
    assert [parameters_text(counts) for counts in found.counts][1:3] == ["?", ""]
    assert found.counts[0] == count_sizes(config_of(), {}) and found.counts[3]
    assert len(found.notes) == 1 and "1 configuration could" in found.notes[0] and "nowhere does not exist" in found.notes[0]
    assert len(json.loads(memory.read_text())["sizes"]) == 2  # what failed is tried again


def test_without_torch_the_column_is_a_question_mark(memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch on this machine')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(sizes.__file__).parents[2]}")
    found = sizes.sizes_of([config_of(), config_of("encoder.num_layers=3")])
    assert found.counts == ({}, {}) and not memory.exists()
    assert found.notes == ("the parameters of 2 configurations could not be counted (no torch on this machine).",)


def test_the_text_of_the_column() -> None:
    assert parameters_text({"model": 6829058, "puzzle_table": 512}) == "6,829,058 + 512 table"
    assert parameters_text({"model": 12, "puzzle_table": 0}) == "12"


def test_what_else_is_printed_while_counting_is_no_error(memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('hello')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT / 'src'}")
    found = sizes.sizes_of([config_of()])
    assert [counts is not None for counts in found.counts] == [True] and not found.notes


def test_the_entry_names_the_keys_that_the_method_counts_by() -> None:
    assert set(ENTRIES["pretrain_encoder"].sizes_keys) | {"evaluation.split", "evaluation.max_tasks"} == {
        "encoder.", "decoder.", *PUZZLE_KEYS, *COST_KEYS,
    }  # fmt: skip
