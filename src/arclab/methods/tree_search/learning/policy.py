"""The policy of a round: who writes the steps, and the search that asks it, in a stage's own folder.

    with open_sandbox(config.sandbox) as sandbox:
        found = searched(config, policy_of(config, 1), tasks, run.path, sandbox, progress)     # trees, attempts

The first round begins with lm (or with what stage=start made), each later one with what the round before has trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError, flat
from arclab.config.llm_schema import HOW_MODELS_RUN, HfModelConfig, ModelConfig
from arclab.config.tree_learning_schema import TreeLearningConfig, TreeStage
from arclab.config.tree_search_schema import BootstrapConfig, SampleConfig, SearchConfig
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask
from arclab.files import read_object
from arclab.lm.endpoint.started import as_served, opened_model
from arclab.lm.hf_loading import model_identity
from arclab.methods.tree_search.archive import Setting
from arclab.methods.tree_search.engine import Values
from arclab.methods.tree_search.prompts import Example, load_examples, load_hints
from arclab.methods.tree_search.search import TreeFile
from arclab.methods.tree_search.solver import TreeSearch
from arclab.methods.tree_search.steps import Steps
from arclab.methods.tree_search.trees import Tree
from arclab.programs.sandbox.pool import Sandbox
from arclab.results.attempts import Attempts, Budget
from arclab.runs.checkpoints import file_digest
from arclab.runs.lifecycle import WorkProgress

MODEL, TWIN, TRAINED = "model", "twin", "trained.json"


def maker_of(config: TreeLearningConfig, number: int) -> Path | None:
    """The folder of the stage that made the policy which a round begins with; None: it is given."""
    if number > 0:
        return config.folder_of(TreeStage.sft.value, number - 1)
    return config.folder_of(TreeStage.start.value, 0) if config.scratch is not None else None


def policy_inputs(config: TreeLearningConfig, number: int) -> dict[str, Path]:
    """What a stage reads that asks the policy which a round begins with."""
    maker = maker_of(config, number)
    return {} if maker is None else {"policy": maker / TRAINED}


def policy_of(config: TreeLearningConfig, number: int, which: str = MODEL) -> ModelConfig:
    """The policy that a round begins with. which: MODEL, or the TWIN that was taught with it, where there was one."""
    maker = maker_of(config, number)
    if maker is None:
        return config.lm
    assert isinstance(config.lm, HfModelConfig), "the schema refuses others"
    folder = maker / which
    return replace(config.lm, name=str(folder if folder.is_dir() else maker / MODEL), adapter=None)


def training_tasks(config: TreeLearningConfig) -> tuple[ArcTask, ...]:
    """The tasks that are searched to learn from. ConfigError: there are none."""
    return named_tasks(config, config.collect.split.value, "collect.split", config.collect.max_tasks)


def named_tasks(config: TreeLearningConfig, split: str, key: str, max_tasks: int | None) -> tuple[ArcTask, ...]:
    tasks = load_tasks(config.dataset).named(split)[:max_tasks]
    if not tasks:
        raise ConfigError(f"{key}={split} has no tasks in dataset={config.dataset.name}; choose another split, or dataset.")
    return tasks


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search has found: the trees by task id, and the answers that they give."""

    trees: Mapping[str, Tree]
    attempts: Attempts


def sampling_of(search: SearchConfig) -> SampleConfig:
    """Plain sampling of whole programs, otherwise with the settings of a search."""
    shared = {each.name: getattr(search, each.name) for each in fields(SampleConfig)}
    return SampleConfig(**{**shared, "kind": "sampling"})


def searched(
    config: TreeLearningConfig, policy: ModelConfig, tasks: Sequence[ArcTask], folder: Path, sandbox: Sandbox,
    progress: WorkProgress, *, search: SearchConfig | None = None, values: Values | None = None,
    asked: Mapping[str, Any] | None = None,
) -> Searched:  # fmt: skip
    """Trees in folder/trees, which the same call goes on with. search: None: that of the run. asked: what names the content of
    `values`, for the files. ToldToEnd: the run is told to end, and what is grown is kept."""
    search, policy = search or config.search, as_served(policy, config.launch)
    setting = Setting(config.solver, search, config.seed, values is not None)
    settings = tree_settings(config, policy, setting) | dict(asked or {})
    steps = Steps.of(config.solver.steps)
    for task in tasks:
        TreeFile(folder, task, steps, settings).check()
    hints = load_hints(Path(search.hints), [task.id for task in tasks]) if isinstance(search, BootstrapConfig) else None
    with opened_model(policy, config.launch, folder) as model:
        solver = TreeSearch(
            model, sandbox, setting, folder=folder, settings=settings, examples=examples_of(config), hints=hints,
            values=values, show_progress=True, progress=progress,
        )  # fmt: skip
        attempts = solver.solve(tasks, Budget())
    return Searched(solver.trees, attempts)


def examples_of(config: TreeLearningConfig) -> list[tuple[Example, ...]]:
    return load_examples(config.solver.examples, Steps.of(config.solver.steps))


def tree_settings(config: TreeLearningConfig, policy: ModelConfig, setting: Setting) -> dict[str, Any]:
    """Everything that decides a tree, the bytes of the policy, of examples and of hints included."""
    own = {"lm": policy, "solver": setting.solver, "search": setting.search, "sandbox": config.sandbox}
    free = (
        "sandbox.num_workers",
        "sandbox.min_isolation",
        "solver.trees_at_once",
        "lm.name",
        *(f"lm.{k}" for k in HOW_MODELS_RUN),
    )
    found: dict[str, Any] = {"seed": setting.seed, "lm (content)": model_identity(policy.name)}
    for part, node in own.items():
        found |= {f"{part}.{key}": value for key, value in flat(node).items() if f"{part}.{key}" not in free}
    for key in ("solver.examples.file", "search.hints"):
        if (path := found.get(key)) and Path(path).is_file():
            found[f"{key} (content)"] = file_digest(Path(path))
    return found


def content_of(trained: Path) -> str:
    """What names the weights of a model folder that a stage made, by its TRAINED file."""
    return read_object(trained, {"content": str})["content"]
