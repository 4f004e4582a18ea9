"""The recursive solver on real tasks: an oracle scores everything, augmentations are undone, files are complete."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from arclab.config.compose import compose_evaluate
from arclab.config.schema import ExperimentConfig
from arclab.data.codec import FIRST_COLOR
from arclab.data.sampler import Batch
from arclab.data.tasks import ArcTask, Pair
from arclab.methods.recursive.evaluation import build_solver, evaluate_in_ranks
from arclab.methods.recursive.model import Reading, RecursiveModel, build_model
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.methods.recursive.setting import Setting, build_setting
from arclab.methods.recursive.solver.continuous_batching import ReadyRows
from arclab.methods.recursive.solver.solver import RecursiveSolver
from arclab.metrics.names import count_of
from arclab.results.attempts import Attempts, Budget, Candidate
from arclab.results.scoring import score
from arclab.results.writing import submission
from arclab.runs.ranks import Ranks

from .common import answer_labels

Tiny = Callable[..., ExperimentConfig]
CPU = Ranks(0, 1, torch.device("cpu"))


def solver_of(config: ExperimentConfig) -> tuple[RecursiveSolver, Setting, RecursiveModel]:
    setting = build_setting(config)
    model = build_model(config, setting.data.space.num_puzzles)
    return build_solver(config, setting, model, CPU, batch_size=7), setting, model


def test_a_perfect_model_scores_everything_with_all_votes(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong inverse, offset or pairing would cost votes: every augmented copy must give the same, right grid."""
    solver, setting, model = solver_of(tiny("evaluation.max_tasks=null", "dataset.num_augmentations=20"))
    answer_labels(monkeypatch)
    attempts = solver.solve(setting.scored, Budget(20))
    assert all(len(candidates) == 1 for candidates in attempts.candidates.values())
    assert len(attempts.candidates) == sum(len(t.tests) for t in setting.scored) == 13
    shares = score(setting.scored, attempts)
    assert shares["ARC/pass@1"].n == shares["ARC/solved@1"].n == len(setting.scored) == 12
    assert attempts.statistics["all.exact_accuracy"] == attempts.statistics["all.accuracy"] == 1.0
    assert attempts.statistics["all.count"] == sum(c[0].votes for c in attempts.candidates.values())
    assert attempts.statistics["all.steps"] == model.halting.halt_max_steps


def test_shares_are_taken_over_known_answers(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hidden answer is predicted and voted on, and is no mistake."""
    solver, setting, _ = solver_of(tiny("evaluation.max_tasks=2"))
    answer_labels(monkeypatch)
    first, second = setting.scored
    hidden = replace(first, tests=tuple(replace(pair, output=None) for pair in first.tests))
    statistics = solver.solve([hidden, second], Budget(0)).statistics
    assert (statistics["all.labelled"], statistics["all.exact_accuracy"]) == (len(second.tests), 1.0)
    assert statistics["all.count"] == len(first.tests) + len(second.tests)
    assert count_of("all.exact_accuracy", statistics) == len(second.tests)


def test_sure_votes_are_ordered_by_their_confidence_in_fp64(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halt logits around 20, most of which are 1 in fp32: the order is that of the published rule, (votes, mean confidence)."""
    solver, setting, _ = solver_of(tiny("dataset.num_augmentations=7"))
    rng = np.random.default_rng(0)
    drawn: dict[int, tuple[int, float]] = {}

    def change(ready: ReadyRows) -> torch.Tensor:
        for row in ready.rows_B.tolist():
            drawn[row] = int(rng.integers(4)), float(np.float32(rng.normal(20, 4)))
        black = torch.where(ready.labels_BS >= FIRST_COLOR, FIRST_COLOR, ready.labels_BS)
        answers = torch.stack([ready.labels_BS, ready.inputs_BS, black, torch.zeros_like(black)])
        return answers[[drawn[row][0] for row in ready.rows_B.tolist()], torch.arange(len(black))]

    answer_labels(monkeypatch, change, lambda ready: torch.tensor([drawn[row][1] for row in ready.rows_B.tolist()]))
    tied = 0
    for _ in range(60):
        task = setting.scored[0]
        assert len(task.tests) == 1
        drawn.clear()
        (candidates,) = solver.solve([task], Budget(7)).candidates.values()
        logits = [[logit for variant, logit in drawn.values() if variant == v] for v in range(4)]
        shares = [(len(part), float(torch.tensor(part).double().sigmoid().mean()), v) for v, part in enumerate(logits) if part]
        shares.sort(reverse=True)
        assert [(c.votes, c.confidence) for c in candidates] == [
            (votes, pytest.approx(mean, abs=1e-15)) for votes, mean, _ in shares
        ]
        none = [place for place, (_, _, v) in enumerate(shares) if v == 3]
        assert [place for place, c in enumerate(candidates) if c.grid is None] == none
        single = [(len(part), torch.tensor(part).sigmoid().mean().item()) for part in logits if part]
        tied += len(set(single)) < len(single)
    assert tied > 5  # in fp32 their order would be one of content


def test_what_is_scored_stands_in_the_corner(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where training translates: neither test inputs nor demonstrations are moved, in all views."""
    solver, setting, _ = solver_of(tiny("dataset.translate=true", "dataset.num_augmentations=7", "dataset.canvas=10"))
    seen: list[torch.Tensor] = []
    answer_labels(monkeypatch, lambda ready: seen.append(ready.inputs_BS) or ready.labels_BS)
    monkeypatch.setattr(
        RecursiveModel,
        "read",
        lambda self, data: seen.append(data.demo_inputs_BKS[(data.demo_inputs_BKS > 0).any(-1)]) or Reading(0),
    )
    solver.solve(setting.scored, Budget(7))
    rows = torch.cat(seen)
    assert len(rows) > 40 and (rows[:, 0] >= FIRST_COLOR).all()


def test_labels_never_reach_the_model(tiny: Tiny) -> None:
    """The same predictions with the answers hidden: the solver reads test outputs for statistics only."""
    solver, setting, _ = solver_of(tiny())
    hidden = [ArcTask(t.id, t.demos, tuple(Pair(p.input, None) for p in t.tests), t.source) for t in setting.scored]
    open_, closed = solver.solve(setting.scored, Budget(3)), solver.solve(hidden, Budget(3))
    for key, candidates in open_.candidates.items():
        assert [(c.votes, c.confidence) for c in candidates] == [(c.votes, c.confidence) for c in closed.candidates[key]]
    assert "all.exact_accuracy" in open_.statistics and "all.exact_accuracy" not in closed.statistics


def test_votes_start_anew_at_every_evaluation(tiny: Tiny) -> None:
    solver, setting, _ = solver_of(tiny())
    first, second = (solver.solve(setting.scored, Budget(2)) for _ in range(2))
    assert first.statistics["all.count"] == second.statistics["all.count"]
    assert all([c.votes for c in first.candidates[k]] == [c.votes for c in second.candidates[k]] for k in first.candidates)


def test_demonstrations_reach_the_solver_in_full(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    solver, setting, _ = solver_of(tiny("evaluation.max_tasks=null"))
    seen: dict[int, set[int]] = {}

    original = RecursiveModel.read

    def spy(self: RecursiveModel, data: Batch) -> Reading:
        for t, n in zip(data.task_id_B.tolist(), data.num_demos_B.tolist(), strict=True):
            seen.setdefault(t, set()).add(n)
        return original(self, data)

    monkeypatch.setattr(RecursiveModel, "read", spy)
    solver.solve(setting.scored, Budget(1))
    assert {t: {len(task.demos)} for t, task in enumerate(setting.scored)} == seen


def test_undecodable_predictions_count_as_wrong_and_do_not_crash(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    solver, setting, _ = solver_of(tiny())
    answer_labels(monkeypatch, lambda ready: torch.zeros_like(ready.labels_BS))
    attempts = solver.solve(setting.scored, Budget(2))
    assert attempts.statistics["ARC/undecodable"] == 1.0
    assert all(c[0].grid is None for c in attempts.candidates.values())
    assert score(setting.scored, attempts)["ARC/pass@1000"].n == 0
    assert all(a == [[0]] for rows in submission(setting.scored, attempts).values() for row in rows for a in row.values())


def test_a_trained_trm_is_scored_with_its_own_rows(tiny: Tiny) -> None:
    """Moving one puzzle's vector moves the candidates of its task and of no other."""
    solver, setting, model = solver_of(tiny("dataset.num_augmentations=2", "evaluation.max_tasks=3", trm=True))
    torch.nn.init.normal_(model.decoder.lm_head.weight)
    before = solver.solve(setting.scored, Budget(2))
    assert model.puzzle_table is not None
    first = setting.puzzle_rows[setting.scored[1].id]
    model.puzzle_table.weight[first : first + 3] = torch.randn(3, 16) * 5
    after = solver.solve(setting.scored, Budget(2))

    def confidences(a: Attempts, task: ArcTask) -> list[float]:
        return [c.confidence for n in range(len(task.tests)) for c in a.candidates[task.id, n]]

    model.decoder.q_head.weight.data.normal_()
    changed = [_content(before, t) != _content(after, t) for t in setting.scored]
    assert changed == [False, True, False]
    assert confidences(before, setting.scored[0]) == confidences(after, setting.scored[0])


def _content(attempts: Attempts, task: ArcTask) -> list[bytes | None]:
    return [
        None if c.grid is None else c.grid.tobytes() for n in range(len(task.tests)) for c in attempts.candidates[task.id, n]
    ]


def test_submission_has_two_attempts_for_every_test_input() -> None:
    pair = Pair(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8))
    task = ArcTask("t", (pair,), (pair, pair), "here")
    two = [Candidate(np.array([[1, 2]], np.uint8), 3, 0.9), Candidate(np.array([[4]], np.uint8), 1, 0.2)]
    made = submission([task], Attempts({("t", 0): two, ("t", 1): [two[1]]}))
    assert made == {"t": [{"attempt_1": [[1, 2]], "attempt_2": [[4]]}, {"attempt_1": [[4]], "attempt_2": [[0]]}]}


def test_files_of_an_evaluation_agree(tiny: Tiny, tmp_path: Path) -> None:
    """metrics.json, predictions.jsonl and submission.json tell the same story and name their making."""
    pretrain_in_ranks(tiny("trainer.steps=1", "evaluation.max_tasks=3"), CPU)
    evaluate_in_ranks(compose_evaluate([f"checkpoint={tmp_path}/runs/quickstart/t", "num_augmentations=1"]), CPU)
    folder = tmp_path / "runs/quickstart/t/evaluation/train"
    record = json.loads((folder / "metrics.json").read_text())
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    made = json.loads((folder / "submission.json").read_text())
    assert record["scores"]["ARC/pass@2"]["N"] == 3 == len({p["task"] for p in predictions}) == len(made)
    for p in predictions:
        assert sum(c["votes"] for c in p["candidates"]) <= 2 and p["num_candidates"] >= 1
        assert made[p["task"]][p["test"]]["attempt_1"] == (p["candidates"][0]["grid"] or [[0]])
    assert {"command", "commit", "machine", "torch"} <= record["provenance"].keys() and record["seed"] == 0
    assert "scored on the training tasks" in record["stamps"][0]
