"""arclab: experiments on the Abstraction and Reasoning Corpus; see README.md for the two commands to start with.

    import arclab

    run = arclab.load("runs/quickstart/a")
    answers = run.solve("my/tasks")

The names below come from arclab.api (docs/python.md); it is imported when one of them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arclab.api import Run, compose, load
    from arclab.data.tasks import ArcTask as Task
    from arclab.results.attempts import Candidate

__all__ = ["Candidate", "Run", "Task", "compose", "load"]
__version__ = "0.1.0"

_PLACES = {
    "Candidate": "arclab.results.attempts:Candidate",
    "Run": "arclab.api:Run",
    "Task": "arclab.data.tasks:ArcTask",
    "compose": "arclab.api:compose",
    "load": "arclab.api:load",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'arclab' has no attribute {name!r}")
    module, _, wanted = _PLACES[name].partition(":")
    return getattr(importlib.import_module(module), wanted)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
