"""Types of command line arguments, which refuse what a benchmark could not run with: parser.add_argument("--jobs",
type=at_least_1)."""

from __future__ import annotations

import argparse
import math


def at_least_1(text: str) -> int:
    return _whole(text, 1)


def at_least_0(text: str) -> int:
    return _whole(text, 0)


def above_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0; change it.")
    return value


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or value < least:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least {least}; change it.")
    return value
