"""Forecasts of divided evaluations, by hand where they have no spread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arclab.config.compose import ConfigError
from arclab.launch.__main__ import main
from arclab.launch.queue.simulate import COMMAND_RECORD, Work, read_rates, seconds_around, simulate, speed_up, table

# Four shards that solve 10 in cost each second with 2 programs a task; the last one at half the speed.
SHARDS = [{"tasks": 5, "cost": 100.0, "programs": 10.0, "tokens": 50.0, "start_s": 4.0, "solve_s": 10.0} for _ in range(3)]
SLOW = SHARDS[0] | {"solve_s": 20.0}


def folder(path: Path, records: list[dict[str, float]], merge_s: float = 6.0) -> Path:
    for number, record in enumerate(records):
        shard = path / "shards" / f"{number}_of_{len(records)}"
        shard.mkdir(parents=True)
        (shard / "shard.json").write_text(json.dumps(record))
    (path / "merge.json").write_text(json.dumps({"seconds": merge_s}))
    return path


def test_equal_shards_by_hand(tmp_path: Path) -> None:
    rates = read_rates(folder(tmp_path, SHARDS))
    assert (rates.cost_per_s, rates.programs_per_s, rates.tokens_per_s, rates.programs_per_task) == (10, 1, 5, 2)
    work = Work(costs=(20.0,) * 40)  # 80 s in one job
    one, two, eight = (simulate(work, rates, nodes) for nodes in (1, 2, 8))
    assert (one.median_s, two.median_s, eight.median_s) == (84, 4 + 40 + 6, 4 + 10 + 6)
    assert (one.job_s, eight.job_s) == (84, 8 * 14 + 6) and eight.worst_s == eight.median_s
    assert one.bottleneck.startswith("the work itself") and simulate(work, rates, 40).bottleneck == "start and merge (10 s)"
    assert simulate(work, rates, 1000).nodes == 40  # no more shards than tasks
    assert simulate(Work(work.costs, programs_per_task=4.0), rates, 1).median_s == 4 + 160
    assert speed_up(table(work, rates, 8)) == pytest.approx([1, 84 / 50, 84 / 30, 84 / 20])


def test_stragglers_are_those_that_were_seen(tmp_path: Path) -> None:
    rates = read_rates(folder(tmp_path, [*SHARDS, SLOW]))
    assert rates.factors == pytest.approx((0.8, 0.8, 0.8, 1.6)) and sum(rates.factors) == pytest.approx(4)
    work = Work(costs=(20.0,) * 64)
    few, many = simulate(work, rates, 2), simulate(work, rates, 32)
    assert many.median_s == pytest.approx(4 + 2 * 20 / 8 * 1.6 + 6)  # of 32 shards one is always slow
    assert few.worst_s > few.median_s or few.median_s == pytest.approx(4 + 32 * 20 / 8 * 1.6 + 6)
    assert simulate(work, rates, 32) == many


def test_what_the_command_took_around_its_jobs_is_added(tmp_path: Path) -> None:
    """Jobs began 3 s after the command; the last shard ended at 130, the merge took 6 s, the command ended at 141."""
    ends = (114.0, 118.0, 130.0)
    whole = folder(tmp_path / "a", [SHARDS[0] | {"ended_s": end} for end in ends])
    first = min(ends) - 10 - 4
    around = seconds_around(whole, first - 3, 141)
    assert around == pytest.approx(3 + 141 - 130 - 6)
    (whole / "shards" / COMMAND_RECORD).write_text(json.dumps({"seconds": around}))
    rates, work = read_rates(whole), Work(costs=(20.0,) * 40)
    assert [simulate(work, rates, nodes).median_s for nodes in (1, 2)] == pytest.approx([84, 4 + 40 + 6 + 8])
    assert simulate(work, rates, 2).job_s == pytest.approx(2 * 44 + 6)  # no job runs then
    assert simulate(work, rates, 40).bottleneck == "start and merge (18 s)"
    assert seconds_around(folder(tmp_path / "b", SHARDS), 0, 1) is None
    (whole / "shards/1_of_3/shard.json").unlink()  # it was interrupted and went on
    assert seconds_around(whole, 0, 1) is None


def test_the_command_shows_each_line_that_can_be_divided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates, file = folder(tmp_path / "a", SHARDS), tmp_path / "jobs.txt"
    toy = "'dataset.eval_sources=[\"toy:color_map?tasks=8&split=test\"]'"
    file.write_text(
        f"## A\n## Criterion: b\nevaluate.py solver=program_sampling lm=tiny dataset=toy {toy} solver.num_samples=4\n"
        "pretrain_encoder.py experiment=quickstart name=a\n"
    )
    assert main(["plan", str(file), "--nodes", "4", "--rates", str(rates)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 shards, 1 programs/s and 5 tokens/s each, 4 s to start, 6 s to merge, 0 s around the jobs" in said
    assert "efficiency" in said and "quickstart/a: no solver that asks a language model for tasks" in said
    with pytest.raises(ConfigError, match=r"--rates .*nothing has no shards/\*/shard.json; give the folder of an evaluation"):
        main(["plan", str(file), "--nodes", "4", "--rates", str(tmp_path / "nothing")])
