"""What a run says before it starts, and what it refuses to start; nothing is written by then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from arclab.config.compose import ConfigError, compose_evaluate
from arclab.config.schema import ExperimentConfig
from arclab.launch.job import prepare_run
from arclab.methods.recursive.evaluation import evaluate
from arclab.methods.recursive.run import pretrain, pretrain_in_ranks
from arclab.runs import preflight
from arclab.runs.cost import GIB, Cost, Speed, about, num_evaluations, run_seconds, sentence
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import GivenFolder
from arclab.runs.ranks import Ranks
from arclab.runs.speed import measure_speed

Tiny = Callable[..., ExperimentConfig]


def test_every_start_says_what_it_will_take(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    config = tiny()
    assert pretrain(config) == 0
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if "GiB" in line]
    assert len(lines) == 1 and " t: about " in lines[0] and lines[0].endswith(" GiB on this CPU")
    assert said.index("GiB on this CPU") < said.index("training tasks")
    assert pretrain(config) == 0  # DONE: nothing will run
    assert "GiB" not in capfd.readouterr().err
    assert evaluate(compose_evaluate([f"checkpoint={config.folder}", "max_tasks=2", "device=cpu"])) == 0
    assert " GiB on this CPU" in capfd.readouterr().err


def test_what_cannot_fit_is_refused_before_anything_is_written(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_bytes", lambda device: 100_000_000)
    config = tiny()
    with pytest.raises(ConfigError) as refused:
        pretrain(config)
    text = str(refused.value)
    assert text.count("\n") == 0 and "needs about 0.4" in text and "has 0.093 GiB free" in text
    for key in ("trainer.batch_size=8", "trainer.grad_accumulation=1", "dataset.canvas=6", "launch.check_memory=false"):
        assert key in text
    assert not config.folder.exists() and "begin with" not in text
    with pytest.raises(ConfigError, match="GiB free; begin with experiment=quickstart, or "):  # no experiment was chosen
        pretrain(tiny("experiment_name=scratchpad"))
    assert pretrain(tiny("launch.check_memory=false")) == 0 and RunDir(config.folder).state is State.done


def test_a_run_on_ranks_that_was_refused_can_be_given_again_with_other_settings(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is prepared by the parent before the ranks say so."""
    monkeypatch.setattr(preflight, "free_bytes", lambda device: 100_000_000)
    ranks, config = Ranks(0, 1, torch.device("cpu")), tiny("trainer.batch_size=16")
    run = prepare_run(config)
    run.write_status(State.running, 0)
    with pytest.raises(ConfigError, match=r"launch\.check_memory=false"):
        pretrain_in_ranks(config, ranks, folder=GivenFolder(run, ranks))
    assert (run.read_status() or {})["exit_status"] == 2
    assert prepare_run(tiny("trainer.batch_size=8")).path == run.path


def test_the_line_is_plain() -> None:
    assert [about(s) for s in (0.2, 1, 40, 89, 95, 240, 5400, 86400, 260000)] == [
        "1 second", "1 second", "40 seconds", "1.5 minutes", "1.6 minutes", "4 minutes", "1.5 hours", "24 hours", "3 days",
    ]  # fmt: skip
    assert sentence(int(1.23 * GIB), 240, "this CPU") == "about 4 minutes and 1.2 GiB on this CPU"
    assert [num_evaluations(10, every, from_step=start) for every, start in ((0, 0), (5, 0), (4, 0), (4, 8), (4, 10))] == [
        0, 2, 3, 1, 0,
    ]  # fmt: skip
    cost = Cost(memory_bytes=1, step_flops=10, step_traffic=4, step_kernels=2, evaluation_flops=100)
    assert run_seconds(cost, Speed(10.0, 4.0, 0.5), 3, 2) == 3 * (1 + 1 + 1) + 2 * 10
    assert Cost.of(cost.counts()) == cost and Cost.of({"model": 3}) is None


def test_the_speed_of_this_machine_is_measured_without_a_random_number() -> None:
    before = torch.get_rng_state()
    speed = measure_speed(torch.device("cpu"), torch.float32)
    assert 1e8 < speed.flops_per_s < 1e14 and 1e8 < speed.bytes_per_s < 1e13
    assert torch.equal(torch.get_rng_state(), before)
