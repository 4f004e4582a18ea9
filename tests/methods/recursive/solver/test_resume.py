"""An evaluation that was killed goes on where it was and ends as one that never was; nothing is counted twice or reused wrongly."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arclab.config.compose import compose_evaluate, thaw
from arclab.config.schema import CanvasRule, EvalHalting, ExperimentConfig, VotesRule
from arclab.files import sentence_for
from arclab.methods.recursive.evaluation import apply_wishes, evaluate_in_ranks, votes_key
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.methods.recursive.setting import build_setting
from arclab.methods.recursive.solver.solver import RecursiveSolver
from arclab.methods.recursive.solver.store import Tally, VoteStore
from arclab.pages import report
from arclab.results.attempts import Attempts, Budget
from arclab.runs.checkpoints import newest_checkpoint
from arclab.runs.folder import RunDir, State
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals

from ....conftest import compose
from .common import answer_labels
from .test_adaptive import TASKS, AloneAmongRanks, mixture

CPU = Ranks(0, 1, torch.device("cpu"))
Tiny = Callable[..., ExperimentConfig]


class Killed(RuntimeError):
    """Stands for a signal."""


@pytest.fixture(scope="module")
def model() -> RecursiveModel:
    torch.manual_seed(0)
    model = build_model(compose("pretrain_encoder", ["experiment=toy_control", "decoder.width=16", "decoder.num_heads=2"]), 1)
    torch.nn.init.normal_(model.decoder.q_head.weight)
    torch.nn.init.zeros_(model.decoder.q_head.bias)
    return model


def solve(model: RecursiveModel, store: VoteStore | None, ranks: Ranks = CPU, views: int = 40, **rules: Any) -> Attempts:
    solver = RecursiveSolver(
        model, ranks, canvas=6, seed=0, batch_size=8, max_demos=10, store=store, save_every_s=0.0, **rules
    )  # fmt: skip
    return solver.solve(TASKS, Budget(views - 1))


def kill_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """The process dies before it counts this many batches."""
    original, left = RecursiveSolver._count, [batches]

    def count(self: RecursiveSolver, *args: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        original(self, *args)

    monkeypatch.setattr(RecursiveSolver, "_count", count)


def without_speed(attempts: Attempts) -> dict[str, Any]:
    return {name: pytest.approx(v) for name, v in attempts.statistics.items() if not name.startswith("timing/")}


def same(a: Attempts, b: Attempts) -> None:
    assert a.candidates.keys() == b.candidates.keys()
    for key, candidates in a.candidates.items():
        others = b.candidates[key]
        assert [(c.votes, c.grid is None or c.grid.tobytes()) for c in candidates] == [
            (c.votes, c.grid is None or c.grid.tobytes()) for c in others
        ]
        assert [c.confidence for c in candidates] == pytest.approx([c.confidence for c in others], abs=1e-5)
    assert a.statistics.keys() == b.statistics.keys() and without_speed(a) == {
        k: v for k, v in b.statistics.items() if not k.startswith("timing/")
    }


RULES: list[dict[str, Any]] = [
    {},
    {"votes": VotesRule.adaptive, "views": 120},
    {"votes": VotesRule.adaptive_first, "canvas_rule": CanvasRule.bucketed, "halting": EvalHalting.early},
]


@pytest.mark.parametrize("rules", RULES, ids=["published", "adaptive", "fast"])
def test_killed_twice_and_continued(
    model: RecursiveModel, rules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "halting" not in rules:  # one with the real model, the others quick
        answer_labels(monkeypatch, mixture(0.6, 0.3, 0.1))
    whole = solve(model, None, **rules)
    for batches in (3, 4):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_after(patch, batches)
            solve(model, VoteStore(tmp_path, "key"), **rules)
    counted: list[int] = []
    original = RecursiveSolver._count
    monkeypatch.setattr(
        RecursiveSolver, "_count", lambda self, job, finished, canvas: (counted.append(len(finished.rows_B)), original(self, job, finished, canvas))[1]
    )  # fmt: skip
    store = VoteStore(tmp_path, "key")
    same(whole, solve(model, store, **rules))
    predictions = whole.statistics["all.count"] * (1 + whole.statistics["eval/rerun_share"])
    assert 0 < sum(counted) < predictions
    counted.clear()
    same(whole, solve(model, VoteStore(tmp_path, "key"), **rules))  # killed between counting and writing the results
    assert counted == []
    store.remove()
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_take_over(model: RecursiveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks are killed at different moments; one process goes on with what both had counted."""
    answer_labels(monkeypatch, mixture(0.6, 0.3, 0.1))
    for rules in ({}, {"votes": VotesRule.adaptive_first}):
        whole, key = solve(model, None, **rules), f"key{len(rules)}"
        for rank, batches in ((0, 2), (1, 5)):
            with monkeypatch.context() as patch, pytest.raises(Killed):
                kill_after(patch, batches)
                store = VoteStore(tmp_path, key)
                monkeypatch.setattr(
                    store, "load", lambda keys, store=store: store.join(1)
                )  # both start in the same empty folder
                solve(model, store, AloneAmongRanks(rank, 2, CPU.device), **rules)
        same(whole, solve(model, VoteStore(tmp_path, key), **rules))


def tally(rows: list[int], size: int = 10) -> Tally:
    made = Tally(np.isin(np.arange(size), rows), np.array([float(len(rows))]))
    for _ in rows:
        made.box.add(("a", 0), (1, 2, b"\x01\x02"), 1, 2**50)
    made.box.add(("a", 1), None, len(rows), 2**60)
    return made


def test_a_kill_while_going_on_counts_nothing_twice(tmp_path: Path) -> None:
    """The base of the next generation is written, the files it was made of are still there."""
    keys, store = [("a", 0), ("a", 1)], VoteStore(tmp_path, "k")
    assert store.load(keys) is None
    store.save(0, keys, tally([0, 1]))
    store.save(1, keys, tally([5]))
    left = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert VoteStore(tmp_path, "k").load(keys) is not None
    for path, content in left.items():
        path.write_bytes(content)
    again = VoteStore(tmp_path, "k")
    loaded = again.load(keys)
    assert loaded is not None and loaded.done_R.nonzero()[0].tolist() == [0, 1, 5] and loaded.sums.tolist() == [3.0]
    assert loaded.box.counts == {("a", 0): {(1, 2, b"\x01\x02"): [3, 3 * 2**50]}, ("a", 1): {None: [3, 2**61]}}
    again.save(0, keys, tally([7]))
    last = VoteStore(tmp_path, "k").load(keys)
    assert last is not None and last.done_R.sum() == 4 and last.sums.tolist() == [4.0]
    assert VoteStore(tmp_path, "other").load(keys) is None


@pytest.mark.slow
def test_the_command_goes_on_and_nothing_else_reuses_its_votes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results are those of a command that was never killed; other weights, tasks or settings have another key."""
    config = tiny("trainer.steps=1", "evaluation.max_tasks=3", "evaluation.health_tasks=0")
    pretrain_in_ranks(config, CPU)
    checkpoint = newest_checkpoint(tmp_path / "runs/quickstart/t")
    command = [f"checkpoint={checkpoint}", "num_augmentations=3", "batch_size=2"]
    monkeypatch.setattr(report, "render_report", lambda result: "")
    monkeypatch.setattr(
        RecursiveSolver.__init__, "__kwdefaults__", {**RecursiveSolver.__init__.__kwdefaults__, "save_every_s": 0.0}
    )

    def evaluate(folder: str, signals: StopSignals | None = None) -> State:
        return evaluate_in_ranks(compose_evaluate([*command, f"output_dir={tmp_path}/{folder}"]), CPU, signals)

    evaluate("whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 2)
        evaluate("killed")
    (kept,) = (tmp_path / "killed").glob("votes_*")
    assert RunDir(tmp_path / "killed").state is State.failed
    told = StopSignals()
    told.number = 15
    assert evaluate("told", told) is State.preempted and list((tmp_path / "told").glob("votes_*"))
    status = RunDir(tmp_path / "told").read_status()
    assert status is not None and "predictions are kept; the same command continues" in status["message"]
    assert not (tmp_path / "told/metrics.json").exists()
    for name in ("killed", "told"):
        assert evaluate(name) is State.done
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())
        for file in ("predictions.jsonl", "submission.json"):
            assert (tmp_path / name / file).read_text() == (tmp_path / "whole" / file).read_text()

    scored = build_setting(config).scored

    def key(*overrides: str, tasks: int = 3) -> str:
        wanted, applied = compose_evaluate([*command, *overrides]), thaw(tmp_path / "runs/quickstart/t/config.yaml")
        apply_wishes(applied, wanted)
        return votes_key(applied, scored[:tasks], checkpoint, wanted.weights)

    assert key() == key("batch_size=5") and kept.name.split("_")[1] == key()
    keys = [key(o) for o in ("weights=raw", "num_augmentations=2", "evaluation.halting=early", "evaluation.votes=adaptive")]
    keys += [key(), key(tasks=2)]
    weights = checkpoint / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    assert len({*keys, key()}) == 7


def test_votes_on_a_full_disk_leave_nothing_and_name_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("arclab.methods.recursive.solver.store._packed", lambda *_: b"votes")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="votes_key") as caught:
        VoteStore(tmp_path, "key").save(0, [], None)  # pyright: ignore[reportArgumentType]
    assert sentence_for(caught.value) and not list(tmp_path.iterdir())
