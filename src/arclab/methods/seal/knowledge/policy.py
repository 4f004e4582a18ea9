"""The model of a round, and the items that it works on.

    model = load_hf(policy_of(config, 0))       # lm, or what stage=start has made
    items = items_at(config)                    # of this round and split

Each later round begins with what the round before has trained.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from arclab.config.llm_schema import HfModelConfig, ModelConfig, SamplingConfig
from arclab.config.seal_knowledge_schema import KnowledgeStage, SealKnowledgeConfig
from arclab.files import write_atomically
from arclab.lm.hf_loading import folder_digest
from arclab.lm.language_model import Sampling
from arclab.methods.seal.knowledge.items import Items, load_items
from arclab.methods.seal.knowledge.passages import Item

MODEL, TRAINED = "model", "trained.json"


def maker_of(config: SealKnowledgeConfig, number: int) -> Path | None:
    """The folder of the stage that made the model which a round begins with; None: it is given."""
    if number > 0:
        return config.folder_of(KnowledgeStage.sft.value, number - 1)
    return config.folder_of(KnowledgeStage.start.value, 0) if config.scratch is not None else None


def policy_inputs(config: SealKnowledgeConfig) -> dict[str, Path]:
    """What a stage reads that asks the model which its round begins with."""
    maker = maker_of(config, config.round)
    return {} if maker is None else {"policy": maker / TRAINED}


def policy_of(config: SealKnowledgeConfig, number: int) -> ModelConfig:
    maker = maker_of(config, number)
    if maker is None:
        return config.lm
    assert isinstance(config.lm, HfModelConfig), "the schema refuses others"
    return replace(config.lm, name=str(maker / MODEL), adapter=None)


def write_trained(folder: Path) -> Path:
    """TRAINED beside the model folder, which names its content."""
    path = folder / TRAINED
    write_atomically(path, json.dumps({"model": MODEL, "content": folder_digest(folder / MODEL)}) + "\n")
    return path


def all_items(config: SealKnowledgeConfig) -> Items:
    """Also those of later rounds, so that a round may be added."""
    return load_items(config.data, max(config.rounds, config.round + 1))


def items_at(config: SealKnowledgeConfig) -> tuple[Item, ...]:
    """ValueError: see load_items."""
    return all_items(config).of_round(config.data.split, config.round, config.data.num_train)


def to_sampling(wished: SamplingConfig, seed: int) -> Sampling:
    return Sampling(wished.max_new_tokens, wished.temperature, wished.top_p, wished.top_k, wished.min_p, (), seed)
