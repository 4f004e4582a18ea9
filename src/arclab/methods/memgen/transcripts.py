"""What was played, as transcripts of the run: some of the training, some of every evaluation.

told = training_transcripts(run.path, config.trainer.steps)        # for arclab.lm.training.rollouts.Drawer
write_answers(run.path, step, answered)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arclab.lm.training.rollouts import Scored
from arclab.methods.memgen.interaction import Played
from arclab.results.transcripts import TRANSCRIPTS, Said, Transcript, append_transcripts
from arclab.text.environments import RIGHT

_MOST = 8  # of a step
_STEPS = 20  # of a training, evenly, of which some are written


def said_of(played: Played) -> list[dict[str, Any]]:
    """The turns, as a transcript has them."""
    episode, found = played.episode, []
    for number, (turn, reply) in enumerate(zip(played.turns, episode.replies, strict=True)):
        told = episode.observations[number] if number < len(episode.observations) and number + 1 < len(played.turns) else ""
        found.append(asdict(Said(reply, turn.chars, len(turn.answer.tokens), turn.answer.is_ended, told)))
    return found


def training_transcripts(run: Path, steps: int) -> Callable[[int, Sequence[Scored]], None]:
    every = max(1, steps // _STEPS)

    def told(step: int, rows: Sequence[Scored]) -> None:
        if step % every:
            return
        samples: Counter[str] = Counter()
        found = []
        for row in rows[:_MOST]:
            played: Played = row.rollout.record
            example = played.episode.example
            found.append(
                Transcript(
                    step=step, source="training", id=example.id, sample=samples[example.id], question=example.question,
                    gold=example.answer, turns=said_of(played), is_over=not played.is_cut, reward=row.reward, parts=row.parts,
                    failure=played.episode.failure, is_counted=row.is_counted,
                )
            )  # fmt: skip
            samples[example.id] += 1
        append_transcripts(run / TRANSCRIPTS, found)

    return told


def write_answers(run: Path, step: int, answered: Sequence[Any]) -> None:
    """Some of an evaluation's, if they had turns. answered: of arclab.methods.memgen.answering."""
    found = [
        Transcript(
            step=step, source="evaluation", id=each.id, sample=0, question=each.question, gold=each.gold,
            turns=each.extra["turns"], is_over=each.extra["is_over"], reward=each.extra["parts"][RIGHT],
            parts=each.extra["parts"], failure="", is_counted=True,
        )
        for each in answered[:_MOST]
        if "turns" in each.extra
    ]  # fmt: skip
    if found:
        append_transcripts(run / TRANSCRIPTS, found)
