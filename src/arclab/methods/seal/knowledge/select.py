"""stage=select: the completions that helped most, one or a few of each item, to learn from.

    select(config, ranks, signals, folder)      # writes sft.jsonl and selection.json

A completion must gain more than select.min_gain. Gains of a few repetitions are noisy, and the best of several is partly the
luckiest: with query.more_repetitions the two best of each item were tried again, and selection.json says what the winner was
expected to gain by the first repetitions, and what it has gained in the others.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from arclab.config.compose import ConfigError
from arclab.config.seal_knowledge_schema import SealKnowledgeConfig, SelectConfig, SelectRule
from arclab.files import as_record, read_lines, write_atomically
from arclab.methods.seal.knowledge.generate import COMPLETIONS, read_completions
from arclab.methods.seal.knowledge.trials import ROWS, Row, mean_gains, read_rows
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage

TAUGHT = "sft.jsonl"


@dataclass(frozen=True, slots=True)
class Selected:
    """gain: by which it was chosen. text: the completion."""

    item: str
    edit: str
    gain: float
    text: str


def select(config: SealKnowledgeConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    inputs = {
        "results": config.file_of("query", config.round, ROWS),
        "completions": config.file_of("generate", config.round, COMPLETIONS),
    }

    def work(run: RunDir, progress: WorkProgress) -> Made:
        rows, completions = read_rows(inputs["results"]), read_completions(inputs["completions"])
        chosen = selected(mean_gains(rows, config.select.drop_weight), completions, config.select, config.seed)
        if not chosen:
            raise ConfigError(
                f"no completion gains more than select.min_gain={config.select.min_gain}, so there is nothing to learn; lower "
                "it, or write more completions (generate.num_completions)."
            )
        lines = [{"item": each.item, "edit": each.edit, "gain": each.gain, "text": each.text} for each in chosen]
        write_atomically(run.path / TAUGHT, "".join(json.dumps(line) + "\n" for line in lines))
        again = remeasured(rows, config.query.repetitions, config.select.drop_weight)
        write_atomically(run.path / "selection.json", json.dumps(again, indent=1) + "\n")
        counts = {"selected": float(len(chosen)), "gain": fmean(each.gain for each in chosen)}
        told = f"{len(chosen)} completions of {len({each.item for each in chosen})} items are learned from"
        if again:
            counts |= {f"{name}_gain": again[name] for name in ("expected", "remeasured")}
            told += f"; their gain, expected {again['expected']:+.3f}, measured again {again['remeasured']:+.3f}"
        return Made(outputs=[run.path / TAUGHT], counts=counts, message=told)

    return make_stage(config, ranks, signals, folder, inputs, 1, work)


def selected(
    gains: Mapping[tuple[str, str], float], completions: Mapping[str, Sequence[str]], wished: SelectConfig, seed: int
) -> list[Selected]:
    """The best top_k of each item, ties by the smaller number. With rule=shuffled the gains first change places."""
    keys = sorted(gains)
    values = [gains[key] for key in keys]
    if wished.rule is SelectRule.shuffled:
        rng = random.Random(f"{seed} shuffled gains")
        values = [value for _, value in sorted(zip([rng.random() for _ in values], values, strict=True))]
    found: list[Selected] = []
    by_item: dict[str, list[tuple[float, str]]] = {}
    for (item, edit), gain in zip(keys, values, strict=True):
        by_item.setdefault(item, []).append((gain, edit))
    for item, each in by_item.items():
        best = sorted(each, key=lambda pair: (-pair[0], int(pair[1])))[: wished.top_k]
        found += [Selected(item, edit, gain, completions[item][int(edit)]) for gain, edit in best if gain > wished.min_gain]
    return found


def remeasured(rows: Sequence[Row], num_first: int, drop_weight: float = 0.0) -> dict[str, float]:
    """Of the completion of each item that was best by its first repetitions: the gain by these, and by those after them; the
    means over items. Empty if none was tried again."""
    first = mean_gains((row for row in rows if row.repetition < num_first), drop_weight)
    later = mean_gains((row for row in rows if row.repetition >= num_first), drop_weight)
    best: dict[str, str] = {}
    for item, edit in sorted(first, key=lambda key: (-first[key], int(key[1]))):
        best.setdefault(item, edit)
    both = [(first[key], later[key]) for key in best.items() if key in later]
    if not both:
        return {}
    return {"items": float(len(both)), "expected": fmean(a for a, _ in both), "remeasured": fmean(b for _, b in both)}


def read_taught(path: Path) -> list[Selected]:
    """DamagedFile: a line that is none."""
    return [as_record(line, Selected, path) for line in read_lines(path)]
