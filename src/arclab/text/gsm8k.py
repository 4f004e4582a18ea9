r"""Grade school word problems in the form of GSM8K: a question, and an answer whose last line is #### and the result.

    splits = gsm8k_splits(config)      # of config.folder, else of the Hugging Face hub; with config.sample made here

The reply is the answer as it stands, but for that last line, which becomes \boxed{result}. Validation examples are drawn from
those of train by the seed; an example's id has the number of its row, so that ids say which ones. It trains and scores nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from arclab.config.text_schema import SAMPLE_LIMITS, Gsm8kConfig, WordProblem
from arclab.files import DamagedFile, Kind
from arclab.text.arithmetic import Draws, word_problems
from arclab.text.examples import TextExample, TextSplits, boxed, separated, with_instruction
from arclab.text.rows import Row, RowSource, held_out

COLUMNS: dict[str, Kind] = {"question": str, "answer": str}
_SPLITS = ("train", "test")
_MARKS = re.compile(r"<<[^<>]*>>")
_RESULT = "####"


def gsm8k_splits(config: Gsm8kConfig) -> TextSplits:
    """ValueError, in one sentence: no such data, a row without question or result (with file and line), an empty split."""
    notes: list[str] = []
    examples: dict[str, list[TextExample]] = {}
    given = RowSource("gsm8k", config.hub_name, config.hub_config, config.folder, COLUMNS, _SPLITS)
    for split in _SPLITS:
        source = Path("sample") if config.sample else given.path(split)
        rows = _sampled(split, config.seed) if config.sample else given.rows(split, notes)
        examples[split] = [_example(row, f"{split}_{number:05d}", source, config) for number, row in enumerate(rows)]
    if config.sample:
        notes.append("dataset.sample=true: a few problems that were generated here, not GSM8K")
    held = held_out(len(examples["train"]), config)
    validation = [examples["train"][number] for number in held]
    train = [example for number, example in enumerate(examples["train"]) if number not in held]
    return separated(config, train, validation, examples["test"], notes)


def _example(row: Row, name: str, path: Path, config: Gsm8kConfig) -> TextExample:
    solution, mark, result = row.values["answer"].rpartition(_RESULT)
    result = result.strip()
    if not mark or not result or "\n" in result:
        raise DamagedFile(
            path,
            f"its answer does not end with {_RESULT} and a result on one line",
            line=row.line,
            remedy="correct that row, or remove it",
        )
    solution = solution.strip() if config.calculator_marks else _MARKS.sub("", solution).strip()
    question = with_instruction(row.values["question"].strip(), config.instruction)
    return TextExample(f"{config.name}_{name}", question, boxed(solution, result), result)


def _sampled(split: str, seed: int) -> list[Row]:
    """A few rows of this form: a sentence a line, with calculator marks."""
    count = SAMPLE_LIMITS[split] + (SAMPLE_LIMITS["validation"] if split == "train" else 0)
    problems = word_problems(Draws((WordProblem.change, WordProblem.total), 2, 2, 3, seed), split, count)
    return [
        Row(
            {"question": problem.question, "answer": "\n".join([*_marked(problem.solution), f"{_RESULT} {problem.answer}"])},
            None,
        )
        for problem in problems
    ]


def _marked(solution: str) -> Iterator[str]:
    for sentence in solution.split(". "):
        marked = re.sub(r"(\d+) ([+-]) (\d+) = (\d+)", r"\1 \2 \3 = <<\1\2\3=\4>>\4", sentence.rstrip("."))
        yield f"{marked}."
