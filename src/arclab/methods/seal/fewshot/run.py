"""self_improve.py method=seal_fewshot: self-edits are proposed, tried, selected, learned and scored, in rounds.

    python self_improve.py experiment=seal_fewshot_quickstart name=a
    python self_improve.py method=seal_fewshot lm=smollm2_135m dataset=arc1 name=b stage=propose max_tasks=12
    python self_improve.py method=seal_fewshot lm=qwen3_0_6b dataset=arc1 name=c rounds=2

Each stage is a run of its own in <runs_dir>/<experiment_name>/<name>/round_<number>/<stage>. One process.
"""

from __future__ import annotations

import logging
import os
from functools import partial

from arclab.config.compose import ConfigError
from arclab.config.seal_fewshot_schema import SealFewshotConfig
from arclab.methods.seal.fewshot.adapt import adapt
from arclab.methods.seal.fewshot.evaluate import evaluate, judged
from arclab.methods.seal.fewshot.models import remarks
from arclab.methods.seal.fewshot.propose import propose
from arclab.methods.seal.fewshot.restem import restem, start
from arclab.methods.seal.fewshot.select import select
from arclab.metrics.names import is_counted_share
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Stage, read_counts, run_stages

log = logging.getLogger(__name__)
_STAGES = {
    "start": start,
    "propose": propose,
    "adapt": adapt,
    "select": select,
    "restem": restem,
    "evaluate": evaluate,
}


def improve(config: SealFewshotConfig, given: RunDir | None = None) -> int:
    """Run the stage that the configuration names, or all of them; the exit status. given: see arclab.runs.lifecycle."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"method=seal_fewshot runs in one process, but WORLD_SIZE={os.environ['WORLD_SIZE']}; start it without torchrun."
        )
    criterion = config.criterion
    if criterion is not None and not (is_counted_share(criterion.metric) and criterion.metric.startswith("seal/")):
        raise ConfigError(f"criterion.metric={criterion.metric} is not measured here; use seal/wins or seal/successful_share.")
    return run_stages(config, given, {name: partial(_remarked, stage) for name, stage in _STAGES.items()}, _conclude)


def _remarked(
    stage: Stage[SealFewshotConfig], config: SealFewshotConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder
) -> State:
    """The stage, after what must be said of its numbers."""
    for remark in remarks(config):
        log.warning("%s.", remark)
    return stage(config, ranks, signals, folder)


def _conclude(config: SealFewshotConfig, run: RunDir) -> str:
    counts = [read_counts(config.folder_of("evaluate", number)) for number in range(config.rounds)]
    shares = [counts[0].get("seal/start_share", 0.0), *(each.get("seal/successful_share", 0.0) for each in counts)]
    told = ", ".join(f"{100 * share:.1f} %" for share in shares)
    result = judged(config, RunDir(config.folder_of("evaluate", config.rounds - 1)), run)
    message = f"successful proposals at the start and after each round: {told}"
    return "; ".join([message, *remarks(config), *([result] if result else [])])
