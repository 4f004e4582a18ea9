"""What a verdict on a run is, for any method. A method brings the rules: see HealthRules.

A verdict is `bad` (a run is stopped for it, if it may be) or a `warning` (below its failure limit, or too early to be sure).
Nothing here reads files or talks to anyone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

Row = Mapping[str, Any]


class Level(Enum):
    ok = "ok"
    warning = "warning"
    bad = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """value against threshold for one metric (or a quotient of two); the sentence says which way it should be.

    kind: of an enumeration of its method; its value is the word that people read (STARVED).
    """

    kind: Enum
    metric: str
    value: float
    threshold: float
    advice: str
    level: Level

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            compared = f"{self.value} is not finite"
        else:
            sign = "<" if self.value < self.threshold else ">" if self.value > self.threshold else "="
            compared = f"{self.value:.3g} {sign} {self.threshold:.3g}"
        warning = "warning, " if self.level is Level.warning else ""
        return f"{warning}{self.kind.value} {self.metric} {compared}: {self.advice}"


class HealthRules(Protocol):
    """The rules of a method, and the facts about the run that they need. Rows are those of metrics.jsonl, oldest first."""

    @property
    def window_steps(self) -> int:
        """The last steps whose rows verdicts look at."""
        ...

    @property
    def finite(self) -> Sequence[str]:
        """Metrics that are judged at once when they are not finite."""
        ...

    def judge(self, rows: Sequence[Row]) -> Verdict:
        """The gravest verdict on the last row."""
        ...

    def stop_reason(self, now: Verdict, before: str | None) -> str | None:
        """Why a run that may be stopped must stop, or None. before: the last bad kind's word, one check ago."""
        ...

    def outlives_window(self, row: Row) -> bool:
        """Is the newest row of this kind looked at however old it is? (An evaluation.)"""
        ...
