r"""Multiple choice questions of experts in the form of GPQA: four options, of which one is right.

    splits = gpqa_splits(config)      # of config.folder (main.jsonl, diamond.jsonl), else of the Hugging Face hub

The test split is diamond. Main holds its questions, too, so they are taken out of train and validation, by their record and by
their text. The order of the options is drawn for each question by the seed, whatever else is in the data; the reply ends with
\boxed{letter}. It trains and scores nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from arclab.config.text_schema import SAMPLE_LIMITS, GpqaConfig, WordProblem
from arclab.files import Kind
from arclab.text.arithmetic import Draws, word_problems
from arclab.text.examples import TextExample, TextSplits, boxed, plain_question, separated, with_instruction
from arclab.text.rows import Row, RowSource, drawn_order, held_out

_RIGHT, _WRONG = "Correct Answer", tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))
COLUMNS: dict[str, Kind] = {
    "Record ID": str, "Question": str, _RIGHT: str, **dict.fromkeys(_WRONG, str), "Explanation": str | None,
}  # fmt: skip
_LETTERS = "ABCD"


def gpqa_splits(config: GpqaConfig) -> TextSplits:
    """ValueError, in one sentence: no such data, a row without question or options, an empty split."""
    notes: list[str] = []
    if config.sample:
        main, diamond = _sampled(config.seed)
        notes.append("dataset.sample=true: a few questions that were generated here, not GPQA")
    else:
        on_hub = {"main": (config.hub_config or "gpqa_main", "train"), "diamond": (config.hub_diamond, "train")}
        source = RowSource(
            "gpqa", config.hub_name, config.hub_config, config.folder, COLUMNS, ("main", "diamond"), True, on_hub
        )  # fmt: skip
        main, diamond = source.rows("main", notes), source.rows("diamond", notes)
    tested = {key for row in diamond for key in _keys(row)}
    rest = [row for row in main if not any(key in tested for key in _keys(row))]
    notes.append(f"{len(main) - len(rest)} questions of main dropped: they are among the {len(diamond)} of diamond")
    held = held_out(len(rest), config)
    train = [_example(row, "train", config) for number, row in enumerate(rest) if number not in held]
    validation = [_example(rest[number], "train", config) for number in held]
    return separated(config, train, validation, [_example(row, "diamond", config) for row in diamond], notes)


def _keys(row: Row) -> tuple[str, str]:
    return row.values["Record ID"].strip(), plain_question(row.values["Question"])


def _example(row: Row, split: str, config: GpqaConfig) -> TextExample:
    """Its id has the record's, so that ids say which questions they are."""
    values = row.values
    order = drawn_order(len(_LETTERS), f"{config.seed} options {values['Record ID']}")
    options = [values[name].strip() for name in (_RIGHT, *_WRONG)]
    listed = "\n".join(f"{letter}) {options[number]}" for letter, number in zip(_LETTERS, order, strict=True))
    answer = _LETTERS[order.index(0)]
    question = with_instruction(f"{values['Question'].strip()}\n\n{listed}", config.instruction)
    reply = boxed((values["Explanation"] or "").strip(), answer).strip()
    return TextExample(f"{config.name}_{split}_{values['Record ID'].strip()}", question, reply, answer)


def _sampled(seed: int) -> tuple[list[Row], list[Row]]:
    """Sums with four results to choose from. As in the real data, main has the questions of diamond, too."""
    sizes = {"train": SAMPLE_LIMITS["train"] + SAMPLE_LIMITS["validation"], "test": SAMPLE_LIMITS["test"]}
    draws = Draws((WordProblem.change, WordProblem.compare), 2, 1, 2, seed)
    made = {split: [_sum(draws, split, number) for number in range(count)] for split, count in sizes.items()}
    return [*made["train"], *made["test"]], made["test"]


def _sum(draws: Draws, split: str, number: int) -> Row:
    problem = word_problems(draws, split, number + 1)[number]
    options: Sequence[int] = [problem.answer, problem.answer + 1, problem.answer + 10, max(problem.answer - 1, 0) or 7]
    values = {"Record ID": f"{split}{number:04d}", "Question": problem.question, "Explanation": problem.solution}
    return Row(values | dict(zip((_RIGHT, *_WRONG), map(str, options), strict=True)), None)
