"""benchmarks/precision.py: each form is what its name says, attention is as before afterwards, the table has the ratios."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from arclab.config.schema import ExperimentConfig
from arclab.methods.recursive import layers
from benchmarks import precision


def test_each_form_is_what_its_name_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool, bool]] = []

    def stepper(config: ExperimentConfig, part: Any, ranks: Any, given: Any, *, padded: bool) -> Callable[[], None]:
        as_given = precision.attention_as_given
        return lambda: seen.append((config.trainer.precision.name, given.compile, layers.dense_attention is as_given))

    few = [
        'dataset.train_sources=["toy:color_map?tasks=9&side=3&colors=3&demos=3"]',
        "dataset.canvas=4",
        "trainer.batch_size=2",
    ]
    monkeypatch.setattr(precision, "stepper", stepper)
    monkeypatch.setitem(precision.EXPERIMENTS, "toy_control", few)
    kept = layers.dense_attention
    result = precision.measure("toy_control", repeats=1)
    assert seen[-len(precision.FORMS) :] == list(precision.FORMS.values()) and layers.dense_attention is kept
    assert result["rows"] == 2 and list(result["forms"]) == list(precision.FORMS)


def test_the_table_has_ratios_to_fp32() -> None:
    forms = {"fp32": {"rows_per_s": 100.0, "times_fp32": 1.0}, "bf16": {"rows_per_s": 250.0, "times_fp32": 2.5}}
    facts = {
        "command": "c",
        "commit": "0123456789ab",
        "machine": "m",
        "threads": 1,
        "bf16_units": "amx_bf16",
        "torch": "t",
        "repeats": 7,
    }
    text = precision.markdown({"runs": [{"experiment": "toy_control", "rows": 256, "forms": forms}], **facts})
    assert "| toy_control | 256 | bf16 | 250 | 2.50 |" in text and "units for bf16: amx_bf16" in text
