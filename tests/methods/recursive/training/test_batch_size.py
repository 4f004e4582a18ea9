"""trainer.batch_size=auto: what is found fits, is written down, is kept, and makes the run that the number alone makes."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from arclab.config.compose import ConfigError, thaw
from arclab.config.plain_composer import PlainComposer
from arclab.config.schema import ExperimentConfig
from arclab.launch.job import prepare_run
from arclab.launch.queue.plan import _other_configuration
from arclab.methods.recursive.model import build_model
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.methods.recursive.setting import build_setting
from arclab.methods.recursive.training.batch_size import Cost, batch_sizes, by_steps, find_batch_size, measure
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import GivenFolder
from arclab.runs.memory import available_bytes, memory_budget
from arclab.runs.ranks import Ranks

Tiny = Callable[..., ExperimentConfig]
CPU = Ranks(0, 1, torch.device("cpu"))
AUTO = "trainer.batch_size=auto"


@pytest.mark.slow
def test_the_number_grows_with_the_budget_and_fits(tiny: Tiny) -> None:
    small = (AUTO, "dataset.max_train_tasks=8", "decoder.h_cycles=1")
    config = tiny(*small)
    setting = build_setting(config)
    model = build_model(config, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    budgets = (5_000_000, 20_000_000)
    found = [find_batch_size(config, model, setting.data, CPU, budget) for budget in budgets]
    assert found == sorted(set(found))
    cost, next_cost = (measure(config, model, setting.data, CPU.device, n) for n in (found[0], 2 * found[0]))
    assert cost is not None and cost.peak_bytes < 1.1 * budgets[0]
    assert next_cost is not None and next_cost.peak_bytes > budgets[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match=r"trainer\.batch_size=auto: not even 1 rows fit .*set trainer\.recompute=true"):
        find_batch_size(config, model, setting.data, CPU, 1_000_000)
    recomputed = tiny(*small, "trainer.recompute=true")
    assert find_batch_size(recomputed, build_model(recomputed, 1), setting.data, CPU, budgets[0]) > found[0]


def test_sizes_are_those_that_ranks_pieces_and_canvases_allow(tiny: Tiny) -> None:
    config = tiny(AUTO, "trainer.grad_accumulation=2", "trainer.canvas=bucketed")
    data = build_setting(config).data
    queries = int((data.trainable_T * data.space.num_augmentations_T).sum())
    sizes = batch_sizes(config, data, 2)
    assert sizes[0] == 4 and all(size % 2 == 0 for size in sizes)  # two canvases
    assert 2 * sizes[-1] <= queries < 4 * sizes[-1]
    assert {b / a for a, b in itertools.pairwise(sizes)} <= {1.5, 4 / 3}
    contrasting = tiny(AUTO, "trainer.grad_accumulation=2", "trainer.canvas=bucketed", "encoder.contrastive.weight=1.0")
    assert batch_sizes(contrasting, data, 2)[0] == 8  # two rows in each piece of each canvas


class OfTwo(Ranks):
    """One of two ranks, with the other one's room for 3 rows."""

    def gather_objects(self, item):  # type: ignore[no-untyped-def]
        return [item, 3]


def test_every_rank_takes_what_fits_on_all(tiny: Tiny) -> None:
    config = tiny(AUTO, trm=True)
    setting = build_setting(config)
    model = build_model(config, setting.data.space.num_puzzles)
    assert find_batch_size(config, model, setting.data, OfTwo(0, 2, CPU.device), 2**30) == 6


@pytest.mark.parametrize("budget", [50, 1_000, 12_345, 99_999, 10**7])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_the_search_by_steps_ends_at_the_edge(budget: int, spread: float) -> None:
    """Rows of uneven cost, some sizes out of memory: the size found fits, the next one does not, and few are tried."""
    sizes = sorted({f * 2**p for f in (1, 3) for p in range(15)})
    noise = dict(zip(sizes, np.random.default_rng(0).uniform(1 - spread, 1 + spread, len(sizes)), strict=True))
    tried: list[int] = []

    def measured(num_rows: int) -> Cost | None:
        tried.append(num_rows)
        peak = 40 + int(7 * num_rows * noise[num_rows])
        return None if peak > 1.05 * budget else Cost(num_rows, peak, 40)

    found = by_steps(sizes, measured, budget)
    fits = [size for size in sizes if 40 + int(7 * size * noise[size]) <= budget]
    assert found in fits and len(tried) == len(set(tried)) <= 12
    larger = [size for size in sizes if size > found][:1]
    assert not set(larger) & set(fits) and set(larger) <= set(tried)
    assert by_steps(sizes, lambda num_rows: None, budget) == 0


def trained(config: ExperimentConfig, budget: int, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, torch.Tensor], RunDir]:
    monkeypatch.setattr("arclab.methods.recursive.run.memory_budget", lambda device, num_local_ranks: budget)
    pretrain_in_ranks(config, CPU)
    run = RunDir(config.folder)
    return load_file(run.checkpoints / "step_00000004" / "model.safetensors"), run


@pytest.mark.slow
def test_the_run_is_that_of_the_number_and_keeps_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = 10_000_000
    weights, run = trained(tiny(AUTO, trm=True), budget, monkeypatch)
    number = thaw(run.config).trainer.batch_size
    assert isinstance(number, int) and number > 2
    explicit, twin = trained(tiny(f"trainer.batch_size={number}", "name=explicit", trm=True), budget, monkeypatch)
    assert thaw(twin.config).trainer == thaw(run.config).trainer
    assert all(torch.equal(weights[name], explicit[name]) for name in explicit)
    # The same command, with more memory: from the checkpoint, with the number it was made with.
    shutil.rmtree(run.checkpoints / "step_00000004")
    run.write_status(State.preempted, 2)
    again, _ = trained(tiny(AUTO, trm=True), 50 * budget, monkeypatch)
    assert all(torch.equal(again[name], explicit[name]) for name in explicit)
    assert thaw(run.config).trainer.batch_size == number
    with pytest.raises(ConfigError, match=rf"was made with trainer\.batch_size={number}, now trainer\.batch_size={number + 1}"):
        pretrain_in_ranks(tiny(f"trainer.batch_size={number + 1}", trm=True), CPU)


def test_a_prepared_folder_says_auto_until_its_run_has_found_the_number(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(AUTO, trm=True)
    run = prepare_run(config)
    assert thaw(run.config).trainer.batch_size == "auto"
    monkeypatch.setattr("arclab.methods.recursive.run.memory_budget", lambda device, num_local_ranks: 10_000_000)
    pretrain_in_ranks(thaw(run.config), CPU, folder=GivenFolder(run, CPU))
    number = thaw(run.config).trainer.batch_size
    assert isinstance(number, int)
    assert thaw(prepare_run(config).config).trainer.batch_size == number  # submitted again
    assert not _other_configuration(run.path, config, PlainComposer())
    assert _other_configuration(run.path, tiny("trainer.batch_size=7", trm=True), PlainComposer())
    # Without a checkpoint there is nothing to keep the number for: memory may have been the reason.
    shutil.rmtree(run.checkpoints)
    run.write_status(State.failed, 0)
    assert thaw(prepare_run(config).config).trainer.batch_size == "auto"


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_memory_is_that_of_the_machine_or_of_its_container(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/jobs/mine\n")
    free = available_bytes(tmp_path, tmp_path / "none")
    assert free > 10**8
    stat = "anon 5\ninactive_file 3000\n"
    group(tmp_path / "jobs", memory__max="1000000", memory__current="400000", memory__stat=stat)
    group(tmp_path / "jobs/mine", memory__max="max", memory__current="100000")
    assert available_bytes(tmp_path, own) == 603_000  # the limit is the parent's, and cached pages can go
    group(tmp_path / "jobs/mine", memory__max="5", memory__current="10")
    assert available_bytes(tmp_path, own) == 0
    own.write_text("9:memory:/one\n3:cpu:/x\n")
    group(tmp_path / "memory/one", memory__limit_in_bytes="7000", memory__usage_in_bytes="1000")
    assert available_bytes(tmp_path, own) == 6000
    assert memory_budget(CPU.device, 4) == pytest.approx(memory_budget(CPU.device, 1) / 4, rel=0.2)
