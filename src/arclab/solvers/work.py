"""How much there is to do in an evaluation that can be divided by tasks: for arclab.launch.queue.simulate.

    work_of(config)             # {"costs": [310.0, ...], "programs_per_task": 128.0}

It loads tasks and nothing else.
"""

from __future__ import annotations

from typing import Any

from arclab.config.llm_schema import EvaluateLmConfig
from arclab.data.shares import expected_cost
from arclab.data.splits import load_tasks


def work_of(config: EvaluateLmConfig) -> dict[str, Any]:
    """costs: of the tasks that are scored. programs_per_task: at most; None: not known from the configuration."""
    tasks = load_tasks(config.dataset).named(config.split.value)[: config.max_tasks]
    return {"costs": [float(expected_cost(task)) for task in tasks], "programs_per_task": config.programs_per_task}
