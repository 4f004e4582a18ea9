"""stage=generate: the model writes about each passage what it may be trained on.

    generate(config, ranks, signals, folder)       # writes completions.jsonl and splits.json

An item that is written about is kept: the same command goes on after a kill. Completions that are empty are drawn again, alone,
and stay empty if nothing comes of it. splits.json says which items are of which split.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError
from arclab.config.seal_knowledge_schema import SealKnowledgeConfig
from arclab.files import write_atomically
from arclab.lm.endpoint.started import drawn_by, opened_model
from arclab.lm.hf_loading import model_identity
from arclab.lm.language_model import FinishReason, LanguageModel, Reply
from arclab.methods.seal.knowledge.passages import Item
from arclab.methods.seal.knowledge.policy import all_items, items_at, policy_inputs, policy_of, to_sampling
from arclab.methods.seal.knowledge.prompts import edit_prompt, whole_edit
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage
from arclab.runs.worklist import ItemKind, Line, Worklist, read_items

COMPLETIONS, SPLITS = "completions.jsonl", "splits.json"
COMPLETION_ITEMS = ItemKind(holds="completions written", again="its item is written about again")


def generate(config: SealKnowledgeConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    items = items_at(config)

    def work(run: RunDir, progress: WorkProgress) -> Made:
        policy = policy_of(config, config.round)
        settings = {"seed": config.seed, "round": config.round, "lm.name (content)": model_identity(policy.name)}
        settings |= drawn_by(config.launch)
        worklist = Worklist(run.path / COMPLETIONS, settings, COMPLETION_ITEMS)
        with opened_model(policy, config.launch, run.path) as model:
            texts = _written(config, worklist, model, items, progress)
        everything = all_items(config)
        splits = {"train": [item.id for item in everything.train], "test": [item.id for item in everything.test]}
        write_atomically(run.path / SPLITS, json.dumps(splits, indent=1) + "\n")
        written = [text for each in texts.values() for text in each]
        empty = sum(not text for text in written)
        if empty == len(written):
            raise ConfigError(
                f"all {empty} completions are empty, so there is nothing to train on; use another lm, style or generate.kind."
            )
        return Made(
            outputs=[run.path / COMPLETIONS, run.path / SPLITS],
            counts={"items": len(items), "completions": len(written), "empty": empty},
            message=f"{len(written)} completions of {len(items)} items" + (f", {empty} of them empty" if empty else ""),
            notes=everything.notes,
        )

    return make_stage(config, ranks, signals, folder, policy_inputs(config), len(items), work)


def _parse(record: dict[str, Any], line: Line) -> list[str]:
    line.require(record, {"texts": list[str], "cut": int})
    return record["texts"]


def read_completions(path: Path) -> dict[str, list[str]]:
    """{item id: its completions}. DamagedFile: no such file."""
    return read_items(path, _parse, COMPLETION_ITEMS)[1]


def require_completions(path: Path, items: Sequence[Item]) -> dict[str, list[str]]:
    """The same, of at least these items. ConfigError: some are missing."""
    completions = read_completions(path)
    if missing := [item.id for item in items if item.id not in completions]:
        raise ConfigError(
            f"{path} has no completions of {missing[0]} ({len(missing)} items are missing): it was made of other data; use the "
            "data keys that it was generated with."
        )
    return completions


def _written(
    config: SealKnowledgeConfig, worklist: Worklist, model: LanguageModel, items: Sequence[Item], progress: WorkProgress
) -> dict[str, list[str]]:
    done, wished = worklist.load(_parse), config.generate
    left = [item for item in items if item.id not in done]
    at_once = max(1, model.num_prompts(wished.num_completions))
    for start in range(0, len(left), at_once):
        progress.report(len(items) - len(left) + start)
        if progress.is_told:
            raise ToldToEnd(f"{len(items) - len(left) + start} of {len(items)} items are written about")
        some = left[start : start + at_once]
        for item, (texts, num_cut) in zip(some, drawn(config, model, some), strict=True):
            worklist.add(item.id, {"texts": texts, "cut": num_cut})
            done[item.id] = texts
    return {item.id: done[item.id] for item in items}


def drawn(config: SealKnowledgeConfig, model: LanguageModel, items: Sequence[Item]) -> list[tuple[list[str], int]]:
    """Of each item its completions, and how many were cut. ConfigError: a passage is too long for the model."""
    wished = config.generate
    prompts = [edit_prompt(item, wished.kind, config.style) for item in items]
    sampling = to_sampling(wished.sampling, config.seed)
    replies = model.generate(prompts, wished.num_completions, sampling)
    found = []
    for item, prompt, reply in zip(items, prompts, replies, strict=True):
        texts = _texts(config, item, reply)
        for attempt in range(1, wished.retries + 1):
            for number in [number for number, text in enumerate(texts) if not text]:
                again = replace(sampling, seed=sampling.seed + 1_000_003 * attempt + number)
                texts[number] = _texts(config, item, model.generate([prompt], 1, again)[0])[0]
        found.append((texts, sum(each.finish_reason is FinishReason.length for each in reply.completions)))
    return found


def _texts(config: SealKnowledgeConfig, item: Item, reply: Reply) -> list[str]:
    if reply.problem:
        raise ConfigError(f"the passage of {item.id} cannot be written about: {reply.problem}")
    return [whole_edit(each.text, config.generate.kind, config.style).strip() for each in reply.completions]
