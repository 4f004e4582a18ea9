r"""Grade school word problems in the form of GSM8K: a question, and an answer whose last line is #### and the result.

    splits = gsm8k_splits(config)      # of config.folder, else of the Hugging Face hub; with config.sample made here

The reply is the answer as it stands, but for that last line, which becomes \boxed{result}. Validation examples are drawn from
those of train by the seed; an example's id has the number of its row, so that ids say which ones. It trains and scores nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arclab.config.text_schema import SAMPLE_LIMITS, Gsm8kConfig, WordProblem
from arclab.files import DamagedFile, numbered_lines
from arclab.text.arithmetic import Draws, word_problems
from arclab.text.examples import TextExample, TextSplits, boxed, separated, with_instruction

COLUMNS: dict[str, Any] = {"question": str, "answer": str}
_SPLITS = ("train", "test")
_MARKS = re.compile(r"<<[^<>]*>>")
_RESULT = "####"


@dataclass(frozen=True, slots=True)
class _Row:
    """line: of its file; None if it is of the hub."""

    question: str
    answer: str
    line: int | None


def gsm8k_splits(config: Gsm8kConfig) -> TextSplits:
    """ValueError, in one sentence: no such data, a row without question or result (with file and line), an empty split."""
    notes: list[str] = []
    examples: dict[str, list[TextExample]] = {}
    for split in _SPLITS:
        if config.sample:
            source, rows = Path("sample"), _sampled(split, config.seed)
        elif config.folder is not None:
            source = Path(config.folder).expanduser() / f"{split}.jsonl"
            rows = _read(source, notes)
        else:
            source = Path(config.hub_name) / split
            rows = _downloaded(config, split, notes)
        examples[split] = [_example(row, f"{split}_{number:05d}", source, config) for number, row in enumerate(rows)]
    if config.sample:
        notes.append("dataset.sample=true: a few problems that were generated here, not GSM8K")
    held_out = _held_out(len(examples["train"]), config)
    validation = [examples["train"][number] for number in held_out]
    train = [example for number, example in enumerate(examples["train"]) if number not in held_out]
    return separated(config, train, validation, examples["test"], notes)


def _held_out(num_rows: int, config: Gsm8kConfig) -> list[int]:
    """Which rows of train are for validation, in order."""
    count = config.limits["validation"]
    assert count is not None, "checked with the configuration"
    if count >= num_rows:
        raise ValueError(
            f"dataset.num_validation={count} must be below the number of training rows ({num_rows}), from which they are "
            "drawn; lower it."
        )
    # random() alone is promised to stay the same from version to version of Python.
    rng = random.Random(f"{config.seed} validation")
    return sorted(sorted(range(num_rows), key=lambda _: rng.random())[:count])


def _read(path: Path, notes: list[str]) -> list[_Row]:
    if not path.is_file():
        raise ValueError(
            f"dataset.folder={path.parent} has no {path.name}; give a folder with train.jsonl and test.jsonl, or "
            "dataset.folder=null for the Hugging Face hub."
        )
    rows: list[_Row] = []
    unused: dict[str, None] = {}
    for line, row in numbered_lines(path, is_log=False, needs_line_end=False):
        _require_columns(list(row), path, line)
        rows.append(_Row(*_texts(row, path, line), line))
        unused |= dict.fromkeys(key for key in row if key not in COLUMNS)
    if not rows:
        raise DamagedFile(path, "it has no row")
    if unused:
        notes.append(f"{path}: the columns {', '.join(unused)} are not used")
    return rows


def _require_columns(columns: list[str], path: Path, line: int | None) -> None:
    if missing := [name for name in COLUMNS if name not in columns]:
        raise DamagedFile(
            path,
            f"it has no {' and no '.join(missing)}, but {', '.join(columns) or 'no columns'}",
            line=line,
            remedy=f"dataset.kind=gsm8k needs the columns {' and '.join(COLUMNS)}: rename them, or remove the row",
        )


def _texts(row: dict[str, Any], path: Path, line: int | None) -> tuple[str, str]:
    for name in COLUMNS:
        if not isinstance(row[name], str) or not row[name].strip():
            raise DamagedFile(path, f"its {name} is empty or no text", line=line, remedy="correct that row, or remove it")
    return row["question"], row["answer"]


def _downloaded(config: Gsm8kConfig, split: str, notes: list[str]) -> list[_Row]:
    """By the library datasets, which keeps what it has downloaded."""
    import datasets
    import httpx
    from datasets.exceptions import DatasetsError

    named = f"dataset.hub_name={config.hub_name}"
    try:
        data: Any = datasets.load_dataset(config.hub_name, config.hub_config, split=split)
    # DatasetNotFoundError and ConnectionError are OSErrors; an unknown configuration or split is a ValueError.
    except (OSError, ValueError, RuntimeError, httpx.HTTPError, DatasetsError) as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"{named} cannot be loaded ({(lines[0] if lines else type(error).__name__).rstrip('.')}); check the name, "
            "hub_config and the network, or give a folder with train.jsonl and test.jsonl as dataset.folder."
        ) from error
    path = Path(config.hub_name) / split
    _require_columns(list(data.column_names), path, None)
    rows = [_Row(*_texts(row, path, number), number) for number, row in enumerate(data, start=1)]
    if unused := [name for name in data.column_names if name not in COLUMNS]:
        notes.append(f"{path}: the columns {', '.join(unused)} are not used")
    return rows


def _example(row: _Row, name: str, path: Path, config: Gsm8kConfig) -> TextExample:
    solution, mark, result = row.answer.rpartition(_RESULT)
    result = result.strip()
    if not mark or not result or "\n" in result:
        raise DamagedFile(
            path,
            f"its answer does not end with {_RESULT} and a result on one line",
            line=row.line,
            remedy="correct that row, or remove it",
        )
    solution = solution.strip() if config.calculator_marks else _MARKS.sub("", solution).strip()
    question = with_instruction(row.question.strip(), config.instruction)
    return TextExample(f"{config.name}_{name}", question, boxed(solution, result), result)


def _sampled(split: str, seed: int) -> list[_Row]:
    """A few rows of this form: a sentence a line, with calculator marks."""
    count = SAMPLE_LIMITS[split] + (SAMPLE_LIMITS["validation"] if split == "train" else 0)
    problems = word_problems(Draws((WordProblem.change, WordProblem.total), 2, 2, 3, seed), split, count)
    return [
        _Row(problem.question, "\n".join([*_marked(problem.solution), f"{_RESULT} {problem.answer}"]), None)
        for problem in problems
    ]


def _marked(solution: str) -> Iterator[str]:
    for sentence in solution.split(". "):
        marked = re.sub(r"(\d+) ([+-]) (\d+) = (\d+)", r"\1 \2 \3 = <<\1\2\3=\4>>\4", sentence.rstrip("."))
        yield f"{marked}."
