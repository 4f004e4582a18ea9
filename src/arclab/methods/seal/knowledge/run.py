"""self_improve.py method=seal_knowledge: passages are written about, the model is trained on that, and what helped is learned.

    python self_improve.py experiment=seal_knowledge_quickstart name=a
    python self_improve.py method=seal_knowledge lm=smollm2_135m name=b stage=generate
    python self_improve.py method=seal_knowledge lm=smollm2_135m name=b rounds=2

Each stage is a run of its own in <runs_dir>/<experiment_name>/<name>/round_<number>/<stage>. One process.
"""

from __future__ import annotations

import os

from arclab.config.compose import ConfigError
from arclab.config.seal_knowledge_schema import SealKnowledgeConfig
from arclab.methods.seal.knowledge.continual import continual
from arclab.methods.seal.knowledge.cpt import cpt
from arclab.methods.seal.knowledge.generate import generate
from arclab.methods.seal.knowledge.query import query
from arclab.methods.seal.knowledge.report import judged
from arclab.methods.seal.knowledge.select import select
from arclab.methods.seal.knowledge.server import serve
from arclab.methods.seal.knowledge.sft import sft_stage, start
from arclab.metrics.names import is_counted_share
from arclab.runs.folder import RunDir
from arclab.runs.stages import read_counts, run_stages

_STAGES = {
    "start": start, "generate": generate, "query": query, "select": select, "sft": sft_stage, "cpt": cpt,
    "continual": continual, "serve": serve,
}  # fmt: skip


def improve(config: SealKnowledgeConfig, given: RunDir | None = None) -> int:
    """Run the stage that the configuration names, or all of them; the exit status. given: see arclab.runs.lifecycle."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"method=seal_knowledge runs in one process, but WORLD_SIZE={os.environ['WORLD_SIZE']}; start it without torchrun."
        )
    criterion = config.criterion
    if criterion is not None and not (is_counted_share(criterion.metric) and criterion.metric.startswith("knowledge/")):
        raise ConfigError(f"criterion.metric={criterion.metric} is not measured here; use knowledge/wins.")
    return run_stages(config, given, _STAGES, _conclude)


def _conclude(config: SealKnowledgeConfig, run: RunDir) -> str:
    counts = [read_counts(config.folder_of("query", number)) for number in range(config.rounds)]
    told = ", ".join(f"{100 * each['base_accuracy']:.1f} % to {100 * each['accuracy']:.1f} %" for each in counts)
    result = judged(config, RunDir(config.folder_of("query", config.rounds - 1)), run)
    return f"closed-book accuracy as it is and adapted, by round: {told}" + (f"; {result}" if result else "")
