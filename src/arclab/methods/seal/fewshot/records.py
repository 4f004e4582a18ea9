"""Outcomes: for each proposal of a stage what became of it. What is selected, learned and counted reads this file alone.

write_outcomes(path, outcomes_of(config, tasks, drawn, trials))
outcomes = read_outcomes(path)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arclab.files import read_lines, write_atomically
from arclab.methods.seal.fewshot.proposals import Proposal
from arclab.methods.seal.fewshot.trials import Key, Trial

OUTCOMES = "outcomes.jsonl"
_KINDS: dict[str, Any] = {
    "id": str, "task": str, "round": int, "seed": int, "verdict": str, "config": dict | None, "key": str, "response": str,
    "reward": float, "solved": bool, "right": list[bool], "problem": str, "num_rows": int, "num_steps": int,
    "loss_first": float | None, "loss_last": float | None, "seconds": float,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of a proposal. reward: 1 if the task was solved by what it asked for. right: of each test input, within two attempts.
    problem: why it was not trained. num_rows: pseudo-tasks. seconds: of training and answering."""

    id: str
    task: str
    round: int
    seed: int
    verdict: str
    config: dict[str, Any] | None
    key: str
    response: str
    reward: float = 0.0
    solved: bool = False
    right: list[bool]
    problem: str = ""
    num_rows: int = 0
    num_steps: int = 0
    loss_first: float | None = None
    loss_last: float | None = None
    seconds: float = 0.0


def outcomes_of(
    drawn: Mapping[str, Sequence[Proposal]], trials: Mapping[Key, Trial], number: int, seed: int
) -> list[Outcome]:  # fmt: skip
    """number: of the round."""
    return [
        _outcome(proposal, trials.get((task_id, proposal.key)) if proposal.is_ok else None, number, seed)
        for task_id, proposals in drawn.items()
        for proposal in proposals
    ]


def _outcome(proposal: Proposal, trial: Trial | None, number: int, seed: int) -> Outcome:
    common: dict[str, Any] = {
        "id": proposal.id, "task": proposal.task, "round": number, "seed": seed, "verdict": proposal.verdict,
        "config": proposal.config, "key": proposal.key, "response": proposal.response,
    }  # fmt: skip
    if trial is None:
        return Outcome(**common, right=[])
    record = trial.record
    return Outcome(
        **common, reward=trial.reward, solved=trial.is_solved, right=list(trial.right),
        problem=record.problem or record.skipped, num_rows=record.num_rows, num_steps=len(record.losses),
        loss_first=record.losses[0] if record.losses else None, loss_last=record.losses[-1] if record.losses else None,
        seconds=round(record.fit_s + record.answer_s, 3),
    )  # fmt: skip


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    write_atomically(path, "".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes))


def read_outcomes(path: Path) -> list[Outcome]:
    """DamagedFile: a line is not what was written."""
    return [Outcome(**{key: row[key] for key in _KINDS}) for row in read_lines(path, _KINDS)]
