"""Python functions with tests in the form of KodCode: a problem, a solution, and a test file that imports the function.

    splits = kodcode_splits(config)       # of config.folder (train.jsonl), else of the Hugging Face hub

An example's reply is the solution in a code block, its answer the tests. Validation and test are drawn from train by the seed.
Rows whose tests name no function of the solution, or import what the sandbox does not have, are dropped, and a note says how
many. It runs nothing: see function_tests.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from arclab.config.text_schema import SAMPLE_LIMITS, KodCodeConfig
from arclab.files import Kind
from arclab.text.examples import TextExample, TextSplits, separated, with_instruction
from arclab.text.function_tests import why_not_usable
from arclab.text.rows import Row, RowSource, drawn_order, held_out

COLUMNS: dict[str, Kind] = {"question_id": str, "question": str, "solution": str, "test": str}


def kodcode_splits(config: KodCodeConfig) -> TextSplits:
    """ValueError, in one sentence: no such data, a row without problem or tests, an empty split."""
    notes: list[str] = []
    if config.sample:
        rows = list(_sampled(config.seed, sum(SAMPLE_LIMITS.values())))
        notes.append("dataset.sample=true: a few functions that were generated here, not KodCode")
    else:
        source = RowSource("kodcode", config.hub_name, config.hub_config, config.folder, COLUMNS, ("train",), has_more=True)
        rows = source.rows("train", notes)
    usable: list[Row] = []
    dropped: dict[str, int] = {}
    for row in rows:
        if why := why_not_usable(row.values["test"]):
            dropped[why] = dropped.get(why, 0) + 1
        else:
            usable.append(row)
    notes += [f"{count} examples dropped: {why}" for why, count in sorted(dropped.items())]
    num_test = config.limits["test"]
    assert num_test is not None, "checked with the configuration"
    if num_test >= len(usable):
        raise ValueError(
            f"dataset.num_test={num_test} must be below the number of usable rows ({len(usable)}), from which they are drawn; "
            "lower it."
        )
    tested = set(drawn_order(len(usable), f"{config.seed} test")[:num_test])
    examples = [_example(row, config) for row in usable]
    rest = [example for number, example in enumerate(examples) if number not in tested]
    held = held_out(len(rest), config)
    train = [example for number, example in enumerate(rest) if number not in held]
    return separated(config, train, [rest[number] for number in held], [examples[number] for number in sorted(tested)], notes)


def _example(row: Row, config: KodCodeConfig) -> TextExample:
    values = row.values
    question = with_instruction(values["question"].strip(), config.instruction)
    reply = f"```python\n{values['solution'].strip()}\n```"
    return TextExample(f"{config.name}_{values['question_id'].strip()}", question, reply, values["test"])


def _sampled(seed: int, count: int) -> Iterator[Row]:
    """Functions that scale and shift numbers, each another one."""
    order = drawn_order(10 * count, f"{seed} sample")
    for number in order[:count]:
        times, plus = number % 9 + 2, number // 9 + 1
        name = f"scale_{times}_shift_{plus}"
        yield Row(
            {
                "question_id": f"sample_{number:05d}",
                "question": f"Write a function that multiplies a whole number by {times} and then adds {plus}.",
                "solution": f"def {name}(value):\n    return value * {times} + {plus}",
                "test": f"from solution import {name}\n\n\ndef test_zero():\n    assert {name}(0) == {plus}\n\n\n"
                f"def test_others():\n    for value in (1, 7, -3):\n        assert {name}(value) == value * {times} + {plus}\n",
            },
            None,
        )
