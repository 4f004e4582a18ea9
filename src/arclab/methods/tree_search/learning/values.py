"""stage=reward_model: what a program that is not finished is worth, learned from the pairs of the round.

    reward_model(config, ranks, signals, folder)          # writes value/ (a model folder) and trained.json
    values, asked = values_for(config, number)            # for the round's search; (None, {}): there is none

A value model reads exactly what the search shows it: the prompt, and the program so far without marks (value_ids, for both).
It is the policy of the round with a value head, trained by arclab.lm.training.preference on the pairs of all rounds so far; a
task's pairs weigh 1 together. A part of the tasks is held out: on their pairs its accuracy is measured, and its scale and
centre are set, so that values of -1 to 1 mean what rewards do: the chance that a pair is right is sigmoid of twice the
difference of atanh(value). trained.json says for which prompts it was trained; the search refuses it for others.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from arclab.config.compose import ConfigError, flat
from arclab.config.llm_schema import HfModelConfig
from arclab.config.tree_learning_schema import TreeLearningConfig, TreeStage
from arclab.data.tasks import ArcTask
from arclab.files import difference, read_object, write_atomically
from arclab.lm.chat_template import conversation_ids
from arclab.lm.hf_loading import folder_digest, load_tokenizer
from arclab.lm.language_model import Prompt
from arclab.lm.training.preference import PairRow, prefer, read_values, value_network
from arclab.lm.training.sft import SftSettings, StageCadence, Where
from arclab.methods.tree_search.engine import Values
from arclab.methods.tree_search.learning.policy import TRAINED, policy_inputs, policy_of, training_tasks
from arclab.methods.tree_search.learning.records import PAIRS, PreferencePair, read_records
from arclab.methods.tree_search.learning.teaching import shown_as
from arclab.methods.tree_search.prompts import continued
from arclab.methods.tree_search.steps import Steps
from arclab.metrics.logger import MetricLogger
from arclab.runs.checkpoints import CheckpointFolder, file_digest, read_state
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.preempt import StopRequest, ToldToEnd
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage

VALUE = "value"
_KINDS = {"content": str, "scale": float, "center": float, "prompts": dict}
_LARGEST_SCALE = 50.0


@dataclass(frozen=True, slots=True)
class Reader:
    """How a value model reads: the tokenizer and chat template of the policy that it was made of."""

    tokenizer: Any
    name: str
    thinking: bool | None
    pad_id: int

    def value_ids(self, prompt: Prompt, source: str) -> list[int]:
        """What the search shows: the prompt, and the program so far as the beginning of the reply."""
        return conversation_ids(self.tokenizer, self.name, continued(prompt, source), thinking=self.thinking)


def reader_of(config: HfModelConfig) -> Reader:
    tokenizer = load_tokenizer(config)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Reader(tokenizer, config.name, config.thinking, int(pad))


def prompt_settings(config: TreeLearningConfig) -> dict[str, Any]:
    """What decides the text that a value model reads, beside the task."""
    found = {key: value for key, value in flat(config.solver).items() if key.startswith(("prompt.", "steps.", "examples."))}
    if config.solver.examples.file is not None:
        found["examples.file"] = file_digest(Path(config.solver.examples.file))
    return found | {"lm.thinking": config.lm.thinking}


def is_used(config: TreeLearningConfig, number: int) -> bool:
    """Whether the search of a round asks a value model: that of the round before."""
    return number > 0 and config.reward_model.steps > 0 and config.reward_model.is_used


def value_inputs(config: TreeLearningConfig, number: int) -> dict[str, Path]:
    if not is_used(config, number):
        return {}
    return {"reward_model": config.folder_of(TreeStage.reward_model.value, number - 1) / TRAINED}


def values_for(config: TreeLearningConfig, number: int) -> tuple[Values | None, dict[str, Any]]:
    """For the search of a round. ConfigError: it was trained for other prompts."""
    if not is_used(config, number):
        return None, {}
    folder = config.folder_of(TreeStage.reward_model.value, number - 1)
    record = read_object(folder / TRAINED, _KINDS)
    return load_values(config, folder / VALUE, record), {"reward_model (content)": record["content"]}


def load_values(config: TreeLearningConfig, folder: Path, record: Mapping[str, Any]) -> Values:
    if other := difference(record["prompts"], prompt_settings(config), says="and the search has"):
        raise ConfigError(
            f"the reward model {folder} was trained for prompts with {other}; train one for these, or search as then."
        )
    assert isinstance(config.lm, HfModelConfig), "the schema refuses others"
    reader = reader_of(replace(config.lm, name=str(folder), adapter=None))
    network = value_network(str(folder), reader.pad_id, is_trained=True).eval()
    scale, center = record["scale"], record["center"]

    def values(asked: Sequence[tuple[Prompt, str]]) -> list[float]:
        """Siblings stand side by side, and share what they were asked with."""
        found = dict[int, float]()
        for places in _side_by_side(asked):
            rows = [reader.value_ids(*asked[place]) for place in places]
            found |= dict(zip(places, read_values(network, rows, reader.pad_id), strict=True))
        return [math.tanh((found[place] - center) * scale / 2) for place in range(len(asked))]

    return values


def _side_by_side(asked: Sequence[tuple[Prompt, str]]) -> Iterable[list[int]]:
    groups: dict[Prompt, list[int]] = defaultdict(list)
    for place, (prompt, _) in enumerate(asked):
        groups[prompt].append(place)
    return groups.values()


def reward_model(config: TreeLearningConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    """ConfigError: no pairs, or of one task alone."""
    inputs = {f"pairs of round {k}": config.folder_of("collect", k) / PAIRS for k in range(config.round + 1)}
    inputs |= policy_inputs(config, config.round + 1)
    wished = config.reward_model

    def work(run: RunDir, progress: WorkProgress) -> Made:
        tasks = {task.id: task for task in training_tasks(config)}
        files = [path for key, path in inputs.items() if key.startswith("pairs")]
        pairs = [pair for path in files for pair in read_records(path, PreferencePair) if pair.task in tasks]
        given = policy_of(config, config.round + 1)
        assert isinstance(given, HfModelConfig), "the schema refuses others"
        reader = reader_of(given)
        held = held_out_tasks(pairs, wished.held_out, config.seed)
        rows = pair_rows(config, reader, pairs, tasks)
        taught = [row for row, pair in zip(rows, pairs, strict=True) if pair.task not in held]
        measured = [row for row, pair in zip(rows, pairs, strict=True) if pair.task in held]
        network = value_network(given.name, reader.pad_id)
        _train(config, network, taught, reader, run, ranks, StopRequest(run, ranks, signals))
        gaps, middles = _gaps(network.eval(), measured, reader)
        scale, center = calibrated(gaps), float(np.median(middles))
        _save(network, reader, run)
        accuracy = float(np.mean([gap > 0 for gap in gaps]))
        record = {
            "content": folder_digest(run.path / VALUE),
            "scale": scale,
            "center": center,
            "prompts": prompt_settings(config),
        }
        write_atomically(run.path / TRAINED, json.dumps(record) + "\n")
        counts = {"pairs": float(len(taught)), "held_out_pairs": float(len(measured)), "accuracy": accuracy, "scale": scale}
        counts |= {"loss_before": pair_loss(gaps, 1.0), "loss_calibrated": pair_loss(gaps, scale)}
        message = f"right on {100 * accuracy:.1f} % of {len(measured)} held-out pairs, learned from {len(taught)}"
        return Made(outputs=[run.path / TRAINED], counts=counts, message=message)

    return make_stage(config, ranks, signals, folder, inputs, wished.steps, work)


def held_out_tasks(pairs: Sequence[PreferencePair], share: float, seed: int) -> set[str]:
    """Whole tasks, at least one. ConfigError: all pairs are of one task."""
    ids = sorted({pair.task for pair in pairs})
    if len(ids) < 2:
        raise ConfigError(
            f"the trees have {len(pairs)} preference pairs of {len(ids)} tasks, and a reward model needs pairs of at least 2; "
            "search more tasks (collect.max_tasks), or longer, or set reward_model.steps=0."
        )
    random.Random(f"{seed} pairs").shuffle(ids)
    return set(ids[: min(max(1, round(share * len(ids))), len(ids) - 1)])


def pair_rows(
    config: TreeLearningConfig, reader: Reader, pairs: Sequence[PreferencePair], tasks: Mapping[str, ArcTask]
) -> list[PairRow]:
    """Better and worse text as the search shows them, and a weight: of a task 1 together, divided by the mean."""
    sizes, steps = Counter(pair.task for pair in pairs), Steps.of(config.solver.steps)
    rng, mean = random.Random(f"{config.seed} shuffled labels"), len(sizes) / max(1, len(pairs))
    rows: list[PairRow] = []
    for pair in pairs:
        prompt = shown_as(config, tasks[pair.task], pair.prompt, None if pair.prompt.endswith(":hinted") else pair.asked).prompt
        texts = [reader.value_ids(prompt, steps.source(pair.prefix + each)) for each in (pair.chosen, pair.rejected)]
        if config.reward_model.shuffle_labels and rng.random() < 0.5:
            texts.reverse()
        rows.append({"chosen": texts[0], "rejected": texts[1], "weight": [1 / sizes[pair.task] / mean]})
    return rows


def _train(
    config: TreeLearningConfig, network: Any, rows: list[PairRow], reader: Reader, run: RunDir, ranks: Ranks, stop: StopRequest
) -> None:  # fmt: skip
    """ToldToEnd: it is saved as far as it came."""
    wished, making = config.reward_model, RunDir(run.path / f".{VALUE}", run)
    making.path.mkdir(parents=True, exist_ok=True)
    record = {"rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]}
    checkpoints = CheckpointFolder(making.checkpoints, 1)
    steps = checkpoints.steps()
    if steps and read_state(checkpoints.path(steps[-1])).get("rows") != record["rows"]:
        raise ConfigError(f"{run.path} has begun to learn from other pairs; remove it to begin again.")
    settings = SftSettings(
        batch_size=wished.batch_size, grad_accumulation=1, lr=wished.lr, warmup_steps=wished.warmup_steps, schedule="cosine",
        weight_decay=0.0, clip_norm=1.0, seed=config.seed, key="reward_model",
    )  # fmt: skip
    cadence = StageCadence(wished.steps, config.num_threads, config.device, config.sft.log_every, config.sft.checkpoint_every)
    with MetricLogger(making.metrics, None, resume_step=steps[-1] if steps else -1, runtime_s=0.0) as logger:
        where = Where(
            cadence=cadence, run=making, ranks=ranks, stop=stop, logger=logger, monitor=None,
            title=f"reward model, round {config.round}", keep_last=1,
        )  # fmt: skip
        step = prefer(
            network.train().to(ranks.device), rows, settings, where, pad_id=reader.pad_id,
            divergence_remedy=f"lower reward_model.lr={wished.lr:g}", record=record,
        )  # fmt: skip
    if step < wished.steps:
        raise ToldToEnd(f"the reward model is saved at step {step} of {wished.steps}")


def _gaps(network: Any, rows: Sequence[PairRow], reader: Reader) -> tuple[list[float], list[float]]:
    """Of each pair how far the better text is above the worse one, and their mean."""
    found = [read_values(network, [row["chosen"], row["rejected"]], reader.pad_id) for row in rows]
    return [better - worse for better, worse in found], [(better + worse) / 2 for better, worse in found]


def calibrated(gaps: Sequence[float]) -> float:
    """The factor at which sigmoid(factor x gap) is the most likely account of the held-out pairs; 0 where they are no better
    than chance. The loss is convex in it."""
    low, high = 0.0, _LARGEST_SCALE
    for _ in range(60):
        one, two = low + (high - low) / 3, high - (high - low) / 3
        if pair_loss(gaps, one) <= pair_loss(gaps, two):
            high = two
        else:
            low = one
    return (low + high) / 2


def pair_loss(gaps: Sequence[float], scale: float) -> float:
    """Mean of -log sigmoid(scale x gap), in nats."""
    return float(np.mean(np.logaddexp(0.0, -scale * np.asarray(gaps))))


def _save(network: Any, reader: Reader, run: RunDir) -> None:
    building, target = run.path / f".{VALUE}" / "finished", run.path / VALUE
    for folder in (building, target):
        shutil.rmtree(folder, ignore_errors=True)
    network.save_pretrained(building)
    reader.tokenizer.save_pretrained(building)
    os.replace(run.path / f".{VALUE}" / "metrics.jsonl", run.metrics)
    os.replace(building, target)
    shutil.rmtree(run.path / f".{VALUE}")
