"""benchmarks/encoders.py: an encoder's time is set beside standard's of the same turn, and its record is of the encoders there are."""

from __future__ import annotations

import pytest

from arclab.files import read_object
from benchmarks.encoders import RESULTS, names, parameters, ratios


def test_ratios_are_taken_turn_by_turn() -> None:
    """The machine was ten times slower in the second turn: nobody's ratio changes."""
    found = ratios({"standard": [1.0, 10.0, 1.0], "lpn": [2.0, 20.0, 2.0]})
    assert found["lpn"] == {"seconds": 2.0, "times_standard": 2.0, "low": 2.0, "high": 2.0}
    assert ratios({"standard": [2.0], "lpn": [3.0]})["lpn"]["times_standard"] == 1.5


@pytest.mark.parametrize("name", ["standard", "lpn_variational", "in_context"])
def test_recorded_parameters_are_those_of_the_code(name: str) -> None:
    record = read_object(RESULTS, {"encoders": dict})["encoders"]
    assert list(record) == names()
    assert record[name]["parameters"] == parameters(name)
