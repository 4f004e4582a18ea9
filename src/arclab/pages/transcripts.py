"""The page of conversations: every turn, where memory was inserted, what the environment said, and what it earned.

    python -m arclab.pages transcripts RUN            # RUN/transcripts.jsonl -> RUN/transcripts.html

Self-contained, in the style of arclab.pages.report. The newest stand first, those of evaluations before those of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arclab.files import write_atomically
from arclab.pages.templating import page
from arclab.results.transcripts import TRANSCRIPTS, Said, Transcript, read_transcripts

SHOWN = 120  # on the page; the file beside it has all


@dataclass(frozen=True, slots=True)
class ShownTurn:
    """pieces: the reply, cut where memory was inserted: one more than insertions."""

    number: int
    said: Said

    @property
    def pieces(self) -> list[str]:
        marks = self.said.inserted_chars
        return [
            self.said.reply[start:end]
            for start, end in zip([0, *marks], [*marks, len(self.said.reply)], strict=True)
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShownTranscript:
    transcript: Transcript

    @property
    def turns(self) -> list[ShownTurn]:
        return [ShownTurn(number, said) for number, said in enumerate(self.transcript.said, start=1)]

    @property
    def earned(self) -> str:
        each = self.transcript
        if each.reward is None:
            return f"no reward: {each.failure or 'it could not be computed'}"
        rest = "; ".join(f"{name} {value:.3g}" for name, value in each.parts.items())
        return f"reward {each.reward:.3g}" + (f" ({rest})" if rest else "")

    @property
    def notes(self) -> list[str]:
        each = self.transcript
        found = [] if each.is_over else [f"not over after {len(each.turns)} turns"]
        return found + ([] if each.is_counted else ["no part of the loss"])


def render_transcripts(title: str, transcripts: list[Transcript]) -> str:
    newest = sorted(transcripts, key=lambda each: (each.source != "evaluation", -each.step))
    rewards = [each.reward for each in transcripts if each.reward is not None]
    facts = {
        "conversations": str(len(transcripts)),
        "mean reward": f"{sum(rewards) / len(rewards):.3g}" if rewards else "none",
        "turns": f"{sum(len(each.turns) for each in transcripts) / max(1, len(transcripts)):.2g} each",
        "cut at the last turn": str(sum(not each.is_over for each in transcripts)),
        "without reward": str(len(transcripts) - len(rewards)),
    }
    return page(
        "transcripts.html.j2", title=title, facts=facts, shown=[ShownTranscript(each) for each in newest[:SHOWN]],
        num_all=len(transcripts), file=TRANSCRIPTS,
    )  # fmt: skip


def write_transcript_page(run: Path) -> Path:
    """RUN/transcripts.html. ValueError: the run has no conversations."""
    source = run / TRANSCRIPTS
    if not source.is_file():
        raise ValueError(f"{run} has no {TRANSCRIPTS}; give the folder of a run whose data set has several turns.")
    output = run / "transcripts.html"
    write_atomically(output, render_transcripts(f"{run.parent.name} / {run.name}", read_transcripts(source)))
    return output
