"""stage=select: which self-edits are learned, from outcomes.jsonl alone.

    lessons = select_edits(outcomes, config.select)                 # all that earned a reward, each once
    select(config, ranks, signals, folder)                          # writes sft.jsonl, and twin.jsonl with restem.twin

The twin's lessons are chosen in the same way once the rewards have changed places among the self-edits that could be tried: it
learns the format as well, but not which self-edits work.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from arclab.config.compose import ConfigError
from arclab.config.seal_fewshot_schema import SealFewshotConfig, SealStage, SelectSealConfig
from arclab.files import read_lines, write_atomically
from arclab.methods.seal.fewshot.edits import Verdict
from arclab.methods.seal.fewshot.models import MODEL, TWIN
from arclab.methods.seal.fewshot.records import OUTCOMES, Outcome, read_outcomes
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage

LESSONS = {MODEL: "sft.jsonl", TWIN: "twin.jsonl"}


@dataclass(frozen=True, slots=True)
class Lesson:
    """A reply that is learned for a task. weight: how much it counts; 1 is the mean."""

    id: str
    task: str
    key: str
    reply: str
    weight: float


def select_edits(outcomes: Sequence[Outcome], config: SelectSealConfig) -> list[Lesson]:
    """All with a reward; of equal self-edits of a task the first, and of a task the first max_per_task."""
    kept: list[Outcome] = []
    seen, per_task = set[tuple[str, str]](), Counter[str]()
    for each in outcomes:
        if each.reward > 0 and (each.task, each.key) not in seen and per_task[each.task] < config.max_per_task:
            seen.add((each.task, each.key))
            per_task[each.task] += 1
            kept.append(each)
    share = len(kept) / max(1, len(per_task))  # of a task, so that the mean weight is 1
    return [
        Lesson(each.id, each.task, each.key, each.response, share / per_task[each.task] if config.even_tasks else 1.0)
        for each in kept
    ]


def with_shuffled_rewards(outcomes: Sequence[Outcome], seed: int) -> list[Outcome]:
    """The rewards of all self-edits that could be tried, drawn anew among them."""
    tried = [each for each in outcomes if each.verdict == Verdict.ok.value]
    rewards = [each.reward for each in tried]
    random.Random(f"{seed} shuffled rewards").shuffle(rewards)
    drawn = {each.id: reward for each, reward in zip(tried, rewards, strict=True)}
    return [replace(each, reward=drawn.get(each.id, 0.0)) for each in outcomes]


def read_lessons(path: Path) -> list[Lesson]:
    kinds = {"id": str, "task": str, "key": str, "reply": str, "weight": float}
    return [Lesson(**{key: row[key] for key in kinds}) for row in read_lines(path, kinds)]


def select(config: SealFewshotConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    path = config.folder_of(SealStage.adapt.value, config.round) / OUTCOMES

    def work(run: RunDir, progress: WorkProgress) -> Made:
        outcomes = read_outcomes(path)
        chosen = {MODEL: select_edits(outcomes, config.select)}
        if not chosen[MODEL]:
            verdicts = ", ".join(f"{word} {count}" for word, count in Counter(each.verdict for each in outcomes).most_common())
            raise ConfigError(
                f"none of the {len(outcomes)} proposals let its task be solved ({verdicts}), so there is nothing to learn; "
                "draw more (propose.num_edits), give other tasks, or a better model (lm)."
            )
        if config.restem.twin:
            chosen[TWIN] = select_edits(with_shuffled_rewards(outcomes, config.seed), config.select)
        for which, lessons in chosen.items():
            write_atomically(run.path / LESSONS[which], "".join(json.dumps(asdict(each)) + "\n" for each in lessons))
        kept = chosen[MODEL]
        counts = {
            "kept": float(len(kept)), "tasks": float(len({each.task for each in kept})),
            "different": float(len({each.key for each in kept})), "positive": float(sum(each.reward > 0 for each in outcomes)),
        }  # fmt: skip
        message = f"{len(kept)} of {len(outcomes)} proposals kept, of {counts['tasks']:.0f} tasks"
        return Made(outputs=[run.path / LESSONS[which] for which in chosen], counts=counts, message=message)

    return make_stage(config, ranks, signals, folder, {"outcomes": path}, 1, work)
