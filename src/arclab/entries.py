"""The entry scripts: which configuration each has, and what runs it. Imports nothing of arclab, so that anybody may ask.

    entry = ENTRIES["pretrain_encoder"]
    schema, run = load(entry.schema), load(entry.run)        # only now are modules imported

A new method adds its row here; see docs/adding_a_method.md.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """References are "module:name". config: the root in conf/. run: called with the typed configuration in this process.
    prepared: called with the RunDir as a rank that a parent started; None: it runs in one process only.
    conf_dir: where the root lies; None: in conf/."""

    config: str
    schema: str
    run: str
    prepared: str | None = None
    conf_dir: str | None = None


ENTRIES = {
    "pretrain_encoder": Entry(
        config="pretrain_encoder",
        schema="arclab.config.schema:ExperimentConfig",
        run="arclab.methods.recursive.run:pretrain",
        prepared="arclab.methods.recursive.run:pretrain_prepared",
    ),
    "evaluate": Entry(
        config="evaluate",
        schema="arclab.config.evaluate_schema:EvaluateConfig",
        run="arclab.methods.recursive.evaluation:evaluate",
    ),
    "evaluate_programs": Entry(
        config="evaluate_programs",
        schema="arclab.config.llm_schema:EvaluateProgramsConfig",
        run="arclab.methods.program_sampling.run:evaluate_programs",
    ),
}


def load(reference: str) -> Any:
    """What "module:name" refers to."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
