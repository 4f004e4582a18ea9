"""Is an answer right? By rules, or by a language model that is asked.

    grades = Grader(config.query.grader, folder).grades([Answer(question, right, given), ...])     # True, False or None

None is "ungraded": the model that grades said neither yes nor no, or did not answer. Ungraded answers count in no share; their
number stands beside it. What a model has said is kept in grades.jsonl and is not asked again; several are asked at once.
An empty answer is wrong, without a call.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arclab.config.seal_knowledge_schema import GraderConfig, GraderKind
from arclab.lm.language_model import LanguageModel, Message, Prompt, Sampling
from arclab.lm.models import load_language_model
from arclab.runs.worklist import Line, Worklist
from arclab.text.short_answers import exact, f1, normalised

_GRADING = Sampling(16, 0.0, 1.0, 0, 0.0, (), 0)
_YES, _NO = re.compile(r"\byes\b", re.IGNORECASE), re.compile(r"\bno\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    question: str
    right: str
    given: str

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps([self.question, self.right, self.given]).encode()).hexdigest()[:24]


class Grader:
    """folder: where grades.jsonl lies. model: in place of the one that is configured, for tests. ValueError: the model cannot
    be had; it names the key of the server that is missing."""

    def __init__(self, config: GraderConfig, folder: Path, model: LanguageModel | None = None) -> None:
        self._config, self._model = config, model
        if config.kind is GraderKind.model and model is None:
            assert config.model is not None, "the schema refuses it"
            self._model = load_language_model(config.model)
        name = None if self._model is None else self._model.name
        self._worklist = Worklist(folder / "grades.jsonl", {"model": name})
        self._known: dict[str, bool | None] | None = None

    def grades(self, answers: Sequence[Answer]) -> list[bool | None]:
        if self._model is None:
            return [by_rule(answer, self._config) for answer in answers]
        if self._known is None:
            self._known = self._worklist.load(_parse)
        open_ones = {each.key: each for each in answers if each.given.strip() and each.key not in self._known}
        if open_ones:
            self._ask(self._model, list(open_ones.values()), self._known)
        return [self._known[each.key] if each.given.strip() else False for each in answers]

    def _ask(self, model: LanguageModel, answers: Sequence[Answer], known: dict[str, bool | None]) -> None:
        def keep(number: int, reply: Any) -> None:
            text = reply.completions[0].text if reply.completions else ""
            known[answers[number].key] = verdict_in(text)
            self._worklist.add(answers[number].key, {"says": text, "right": known[answers[number].key]})

        model.generate([_prompt(answer) for answer in answers], 1, _GRADING, keep)


def _parse(record: dict[str, Any], line: Line) -> bool | None:
    line.require(record, {"right": bool | None})
    return record["right"]


def _prompt(answer: Answer) -> Prompt:
    return (
        Message(
            "user",
            "Does the student's answer say what the right answer says, without contradicting it? Reply yes or no.\n\n"
            f"Question: {answer.question}\nRight answer: {answer.right}\nStudent's answer: {answer.given}",
        ),
    )


def verdict_in(text: str) -> bool | None:
    """True of yes alone, False of no alone, None of both or neither."""
    yes, no = bool(_YES.search(text)), bool(_NO.search(text))
    return None if yes == no else yes


def by_rule(answer: Answer, config: GraderConfig) -> bool:
    if config.kind is GraderKind.exact:
        return exact(answer.given, [answer.right])
    if config.kind is GraderKind.f1:
        return f1(answer.given, [answer.right]) >= config.threshold
    right, given = normalised(answer.right), normalised(answer.given)
    return right != "" and f" {right} " in f" {given} "
