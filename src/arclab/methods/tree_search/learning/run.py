"""self_improve.py method=tree_search: search, keep what is good, learn it, and search again, in rounds.

    python self_improve.py experiment=search_quickstart name=a
    python self_improve.py method=tree_search lm=smollm2_135m dataset=arc1 name=b stage=collect collect.max_tasks=20
    python self_improve.py method=tree_search lm=qwen3_0_6b dataset=arc1 name=c rounds=2

Each stage is a run of its own in <runs_dir>/<experiment_name>/<name>/round_<number>/<stage>. One process.
"""

from __future__ import annotations

import os

from arclab.config.compose import ConfigError
from arclab.config.tree_learning_schema import TreeLearningConfig
from arclab.methods.tree_search.learning.collect import collect
from arclab.methods.tree_search.learning.curate import augment, curate
from arclab.methods.tree_search.learning.evaluate import evaluate, judged
from arclab.methods.tree_search.learning.report import write_report
from arclab.methods.tree_search.learning.sft import sft_stage, start
from arclab.methods.tree_search.learning.values import reward_model
from arclab.metrics.names import is_counted_share
from arclab.runs.folder import RunDir
from arclab.runs.stages import read_counts, run_stages

_STAGES = {
    "start": start, "collect": collect, "curate": curate, "augment": augment, "sft": sft_stage, "reward_model": reward_model,
    "evaluate": evaluate,
}  # fmt: skip


def improve(config: TreeLearningConfig, given: RunDir | None = None) -> int:
    """Run the stage that the configuration names, or all of them; the exit status. given: see arclab.runs.lifecycle."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"method=tree_search runs in one process, but WORLD_SIZE={os.environ['WORLD_SIZE']}; start it without torchrun."
        )
    criterion = config.criterion
    if criterion is not None and not (
        is_counted_share(criterion.metric) and criterion.metric.startswith(("learned/", "ARC/solved"))
    ):
        raise ConfigError(f"criterion.metric={criterion.metric} is not measured here; use learned/wins or ARC/solved@2.")
    return run_stages(config, given, _STAGES, _conclude)


def _conclude(config: TreeLearningConfig, run: RunDir) -> str:
    counts = [read_counts(config.folder_of("evaluate", number)) for number in range(config.rounds)]
    begun = counts[0].get("learned/start_solved", 0.0)
    told = ", ".join(f"{100 * share:.1f} %" for share in [begun, *(each.get("ARC/solved@2", 0.0) for each in counts)])
    result = judged(config, RunDir(config.folder_of("evaluate", config.rounds - 1)), run)
    write_report(config, run, result)
    return f"unseen tasks solved at the start and after each round: {told}" + (f"; {result}" if result else "")
