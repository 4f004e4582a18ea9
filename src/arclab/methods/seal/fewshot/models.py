"""Which models and tasks a stage works with.

config.lm, or what stage=start made, proposes in the first round; in each later one what the round before has trained. What
is adapted to tasks is the same model, or with adapted=first always that of the first round.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from arclab.config.compose import ConfigError
from arclab.config.llm_schema import HfModelConfig, ModelConfig
from arclab.config.seal_fewshot_schema import AdaptedModel, Decoding, SealFewshotConfig, SealStage
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask
from arclab.methods.seal import replication
from arclab.methods.seal.replication import SCORED_OTHERS, SCORED_TRAINING, asked_tasks

MODEL, TWIN, TRAINED = "model", "twin", "trained.json"
CONSTRAINED = (
    "propose.decoding=constrained: the JSON of the self-edits was given and the model chose their values alone, so that how "
    "many are valid says nothing of it"
)


def maker_of(config: SealFewshotConfig, number: int) -> Path | None:
    """The folder of the stage that made the model which a round begins with; None: it is given."""
    if number > 0:
        return config.folder_of(SealStage.restem.value, number - 1)
    return config.folder_of(SealStage.start.value, 0) if config.scratch is not None else None


def model_inputs(config: SealFewshotConfig, number: int) -> dict[str, Path]:
    """What a stage reads that works with the model which a round begins with, and with the one that is adapted."""
    numbers = {"model": number} | ({"adapted": 0} if config.adapted is AdaptedModel.first else {})
    makers = {key: maker_of(config, each) for key, each in numbers.items()}
    return {key: maker / TRAINED for key, maker in makers.items() if maker is not None}


def proposer_of(config: SealFewshotConfig, number: int, which: str = MODEL) -> ModelConfig:
    """The model that a round begins with. which: MODEL, or the TWIN that was trained beside it."""
    maker = maker_of(config, number)
    if maker is None:
        return config.lm
    assert isinstance(config.lm, HfModelConfig), "the schema refuses others"
    return replace(config.lm, name=str(maker / which), adapter=None)


def adapted_of(config: SealFewshotConfig, number: int, which: str = MODEL) -> HfModelConfig:
    """The model that is adapted to tasks, where that model proposes."""
    chosen = proposer_of(config, 0) if config.adapted is AdaptedModel.first else proposer_of(config, number, which)
    assert isinstance(chosen, HfModelConfig), "the schema refuses others"
    return chosen


def training_tasks(config: SealFewshotConfig) -> tuple[ArcTask, ...]:
    """Those that are proposed for."""
    tasks = _named(config, "train", "dataset")
    return tasks[: config.max_tasks] if config.compat is None else asked_tasks(tasks, config.max_tasks)


def tried_tasks(config: SealFewshotConfig) -> tuple[ArcTask, ...]:
    """The training tasks whose self-edits are tried: all, but in a replication."""
    asked = training_tasks(config)
    if config.compat is None:
        return asked
    scored = {task.id for task in replication.scored_tasks(_named(config, "train", "dataset"), SCORED_TRAINING)}
    return tuple(task for task in asked if task.id in scored)


def scored_tasks(config: SealFewshotConfig) -> tuple[ArcTask, ...]:
    """The tasks of stage evaluate."""
    tasks = _named(config, config.evaluate.split.value, "evaluate.split")
    return tasks[: config.evaluate.max_tasks] if config.compat is None else replication.scored_tasks(tasks, SCORED_OTHERS)


def asked_of_scored(config: SealFewshotConfig) -> tuple[ArcTask, ...]:
    """Those of scored_tasks that are proposed for: all, but in a replication."""
    scored = scored_tasks(config)
    if config.compat is None:
        return scored
    tasks = _named(config, config.evaluate.split.value, "evaluate.split")
    asked = {task.id for task in asked_tasks(tasks, config.evaluate.max_tasks)}
    return tuple(task for task in scored if task.id in asked)


def _named(config: SealFewshotConfig, split: str, key: str) -> tuple[ArcTask, ...]:
    """ConfigError: there are none, or answers are not known."""
    tasks = load_tasks(config.dataset).named(split)
    if not tasks:
        raise ConfigError(f"{key}: dataset={config.dataset.name} has no tasks in its split {split}; choose another one.")
    hidden = next((task.id for task in tasks if any(test.output is None for test in task.tests)), None)
    if hidden is not None:
        raise ConfigError(
            f"task {hidden} of {config.dataset.name} / {split} hides its answer, and a self-edit is judged by it; choose tasks "
            "with answers."
        )
    return tasks


def remarks(config: SealFewshotConfig) -> list[str]:
    """What must stand beside the numbers of every stage."""
    replicated = [] if config.compat is None else [replication.REMARK]
    return replicated + ([CONSTRAINED] if config.propose.decoding is Decoding.constrained else [])
