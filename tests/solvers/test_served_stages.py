"""launch.server for stages of self_improve.py: what a round draws comes from a server of that round's model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.entries import ENTRIES, load
from arclab.lm.endpoint.http import EndpointError
from arclab.lm.endpoint.started import LOG, opened_model
from arclab.lm.language_model import Message, Sampling
from arclab.methods.program_edit.sample import model_config
from arclab.methods.seal.fewshot.models import proposer_of
from arclab.methods.seal.knowledge.policy import policy_of as writer_of
from arclab.methods.tree_search.learning.policy import policy_of

STAND_IN = Path(__file__).parents[1] / "lm/stand_in_server.py"
TOY = "toy:color_map?tasks=3&side=3&colors=3&palette=4&demos=2"
TASKS = [
    "dataset=toy", f'dataset.train_sources=["{TOY}&split=train"]', f'dataset.eval_sources=["{TOY}&split=test"]',
    f'dataset.validation_sources=["{TOY}&split=validation"]',
]  # fmt: skip
SANDBOX = ["sandbox.num_workers=1", "sandbox.min_isolation=limits"]
# method -> stage, its settings, what it makes.
DRAWN = {
    "tree_search": (
        "collect", [*TASKS, *SANDBOX, "search=sampling", "search.num_programs=2", "search.branching=2"], "trees",
    ),
    "program_edit": (
        "sample", [*TASKS, *SANDBOX, "starts.drafts=1", "starts.mutants=0", "sample.num_samples=1"], "edits.jsonl",
    ),
    "seal_fewshot": ("propose", [*TASKS, "propose.num_edits=2", "propose.max_draws=2"], "proposals.jsonl"),
    "seal_knowledge": ("generate", ["data.num_train=2", "style=chat"], "completions.jsonl"),
}  # fmt: skip


def config_of(folder: Path, method: str, stage: str, *more: str) -> Any:
    given = [
        f"method={method}", f"stage={stage}", "lm=tiny", *DRAWN[method][1], "name=a", "experiment_name=e",
        f"runs_dir={folder}/runs", "num_threads=1", "launch.server=command",
        f"launch.server_command='{sys.executable} {STAND_IN} {folder} {{port}} 0 {{model}}'", *more,
    ]  # fmt: skip
    return compose_run(f"self_improve_{method}", list({word.partition("=")[0]: word for word in given}.values()))


def models_started(folder: Path) -> list[str]:
    path = folder / "starts"
    return [line.split()[-1] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("method", DRAWN)
@pytest.mark.parametrize("lm", ["endpoint", "hf"])
def test_a_stage_draws_from_a_server_of_its_own(method: str, lm: str, tmp_path: Path) -> None:
    stage, _, made = DRAWN[method]
    models = {"endpoint": ["lm=endpoint", "lm.name=given"], "hf": ["lm.name=given"]}[lm]
    config = config_of(tmp_path, method, stage, *models)
    assert load(ENTRIES[f"self_improve_{method}"].run)(config, None) == 0
    assert models_started(tmp_path) == ["given"] and (config.folder / LOG).read_text().startswith("loading the model")
    assert (config.folder / made).exists() and json.loads((config.folder / "manifest.json").read_text())["stage"] == stage
    asked = (tmp_path / "requests").read_text()
    assert load(ENTRIES[f"self_improve_{method}"].run)(config, None) == 0
    assert asked and (tmp_path / "requests").read_text() == asked and len(models_started(tmp_path)) == 1


def test_a_round_asks_a_server_of_the_model_that_the_round_before_has_made(tmp_path: Path) -> None:
    prompt, sampling = (Message("user", "hello"),), Sampling(8, 1.0, 1.0, 0, 0.0, (), 0)
    tree, edit, fewshot, knowledge = (config_of(tmp_path, method, DRAWN[method][0], "round=1") for method in DRAWN)
    chosen = (policy_of(tree, 1), model_config(edit, 1), proposer_of(fewshot, 1), writer_of(knowledge, 1))
    for model in chosen:
        with opened_model(model, tree.launch, tmp_path) as served:
            served.generate([prompt], 1, sampling)
    assert models_started(tmp_path) == [model.name for model in chosen]
    assert [Path(model.name).parts[-3:] for model in chosen] == [
        ("round_0", stage, "model") for stage in ("sft", "sft", "restem", "sft")
    ]


def test_what_no_server_serves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"launch\.server=command serves what stage=collect and .* stage=sft draws nothing"):
        config_of(tmp_path, "tree_search", "sft")
    with pytest.raises(ConfigError, match=r"launch\.server=command serves what stage=sample and .* stage=select draws nothing"):
        config_of(tmp_path, "program_edit", "select")
    with pytest.raises(ConfigError, match=r"launch\.server=command answers chats alone, and style=completion"):
        config_of(tmp_path, "seal_knowledge", "generate", "style=completion")
    with pytest.raises(ConfigError, match=r"propose\.decoding=constrained asks .* and launch\.server=command does not say it"):
        config_of(tmp_path, "seal_fewshot", "propose", "propose.decoding=constrained")
    for method, stage in (("seal_fewshot", "adapt"), ("seal_knowledge", "continual")):
        with pytest.raises(ConfigError, match=rf"launch\.server=command serves what .* stage={stage} draws nothing"):
            config_of(tmp_path, method, stage)
    config = config_of(tmp_path, "tree_search", "collect", f"lm.adapter={tmp_path}")
    with pytest.raises(EndpointError, match=r"launch\.server=command serves whole models, and lm\.adapter=.* is none"):
        opened_model(config.lm, config.launch, tmp_path)
