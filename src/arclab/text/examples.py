"""What a text dataset consists of: questions with worked replies, in three splits that share no question.

    example = TextExample("total_test_00000", "Tom has 3 apples. ...", "Tom has 3. ...", "7")
    splits = separated(config, train, validation, test)         # no more than config.limits of each

Where examples come from: arithmetic.py, gsm8k.py, gpqa.py, kodcode.py, triviaqa.py, arc.py; by a configuration: load.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arclab.config.text_schema import TextDatasetConfig


@dataclass(frozen=True, slots=True)
class TextExample:
    r"""question: what the user says. reply: a worked solution that ends with \boxed{answer}; empty where the data has none, and
    then the example is in no training split. answer: the right one; empty where it is hidden. Examples of ARC tasks have a
    program as reply, and the outputs of their test inputs as JSON as answer; of functions, the tests; of searches, a JSON list
    of names. woven: the reply that a weaver is taught, if that is another one than the reasoner's; inserts: at which places
    (the end of the prompt, then each delimiter) it is taught to insert memory, empty: at all. Both are of constructed tasks
    (recall.py). turns: what the environment says after the reply, and the next reply, and so on."""

    id: str
    question: str
    reply: str
    answer: str
    woven: str = ""
    inserts: tuple[bool, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TextSplits:
    """train is learned from, validation steers, test is for final numbers. notes: sentences the user must see (what was left
    out); every report repeats them."""

    train: tuple[TextExample, ...]
    validation: tuple[TextExample, ...]
    test: tuple[TextExample, ...]
    notes: tuple[str, ...]

    def named(self, name: str) -> tuple[TextExample, ...]:
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def separated(
    config: TextDatasetConfig,
    train: Sequence[TextExample],
    validation: Sequence[TextExample],
    test: Sequence[TextExample],
    notes: Sequence[str] = (),
    *,
    needs_replies: bool = True,
) -> TextSplits:
    """At most config.limits examples of each, without those training examples that have no reply or ask what is asked in
    validation or test, and without validation examples that ask what test asks; notes say how many were dropped.
    needs_replies: False where only reward is learned from. ValueError: nothing is left of a split."""
    limits = config.limits
    test = test[: limits["test"]]
    tested = {same_question(example) for example in test}
    kept_validation = [example for example in validation if same_question(example) not in tested]
    scored = tested | {same_question(example) for example in kept_validation}
    worked = [example for example in train if example.reply or not needs_replies]
    kept = [example for example in worked if same_question(example) not in scored]
    dropped = {
        "training examples dropped: the data has no reply for them": len(train) - len(worked),
        "training examples dropped: their question is asked in validation or test too": len(worked) - len(kept),
        "validation examples dropped: their question is asked in test too": len(validation) - len(kept_validation),
    }
    found = [f"{count} {what}" for what, count in dropped.items() if count]
    for split, examples in (("train", kept), ("validation", kept_validation), ("test", test)):
        if not examples:
            why = f" ({'; '.join(found)})" if found else ""
            raise ValueError(f"dataset.name={config.name} has no {split} example{why}; give it data that have some.")
    return TextSplits(
        tuple(kept[: limits["train"]]), tuple(kept_validation[: limits["validation"]]), tuple(test), (*notes, *found)
    )  # fmt: skip


def same_question(example: TextExample) -> str:
    return plain_question(example.question)


def plain_question(text: str) -> str:
    """Equal for questions that differ in case and white space alone."""
    return " ".join(text.casefold().split())


def with_instruction(question: str, instruction: str) -> str:
    return f"{question}\n\n{instruction}" if instruction else question


def boxed(solution: str, answer: str) -> str:
    """The reply: a solution, and the answer in the form in which answers.py looks for it."""
    return f"{solution}\nThe answer is \\boxed{{{answer}}}"
