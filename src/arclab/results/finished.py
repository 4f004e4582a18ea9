"""Results of finished evaluations, with the tasks that they scored: what an ensemble merges and a scoreboard compares.

    runs = open_results([Path("runs/a/x/evaluation/evaluation"), ...], "members")    # ValueError: one of them cannot be used
    tasks = scored_tasks(runs[0])                                                    # {task id: ArcTask}, as they were scored
    found, problem = find_tasks(settings, "evaluation", {"007bbfb7"})                # as far as sources can be read

A result is a folder with metrics.json and predictions.jsonl. Tasks are read again from the sources in its settings, and must be
the ones that metrics.json was made with (tasks_digest). It merges and scores nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError
from arclab.config.llm_schema import HOW_MODELS_RUN
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask, tasks_digest
from arclab.files import sentence_for
from arclab.results.reading import PUBLISHED_RULES, Run, ScoredSplit, read_runs, settings_difference

_SOURCE_KEYS = {
    "train": "dataset.train_sources",
    "validation": "dataset.validation_sources",
    "evaluation": "dataset.eval_sources",
}
_NAMED = 3  # ids in a sentence
# Of the settings that decide how tasks are answered, those that say which tasks or how fast.
_ANSWERING = ("evaluation.", "adaptation.", "solver.", "lm.", "sandbox.", "weights")
_NOT_ANSWERING = (
    "evaluation.split", "evaluation.max_tasks", "evaluation.batch_size", "evaluation.health_tasks", "adaptation.batch_size",
    "adaptation.min_wins", "sandbox.num_workers", *(f"lm.{key}" for key in HOW_MODELS_RUN),
)  # fmt: skip


def open_results(paths: Sequence[Path], key: str) -> list[Run]:
    """One Run with one split for each path. ConfigError names the path, as a value of `key`: it is no folder of results, is not
    finished, or has no predictions."""
    for path in paths:
        require_result(path, key)
    runs = read_runs(paths)
    for path, run in zip(paths, runs, strict=True):
        if run.is_partial:
            raise ConfigError(f"{key}: {path} is not finished ({run.state_word}); let it end before its results are used.")
        if not run.splits[0].predictions:
            raise ConfigError(f"{key}: {path} has no predictions.jsonl, or an empty one; run its evaluation again.")
    return runs


def require_result(path: Path, key: str) -> None:
    """ConfigError if the path is no folder with metrics.json; it says what was probably meant."""
    if (path / "metrics.json").is_file():
        return
    if not path.is_dir():
        near = difflib.get_close_matches(path.name, [each.name for each in _folders(path.parent)], n=1)
        meant = f"did you mean {path.parent / near[0]}?" if near else "give a folder with metrics.json."
        raise ConfigError(f"{key}: {path} {'is a file' if path.exists() else 'does not exist'}; {meant}")
    inside = sorted(each.parent for each in path.glob("evaluation/*/metrics.json"))
    if inside:
        raise ConfigError(f"{key}: {path} is a run and not one of its results; did you mean {' or '.join(map(str, inside))}?")
    if (path / "text_metrics.json").is_file():
        raise ConfigError(f"{key}: {path} has answers in words, and only grids can be used here; leave it out.")
    if (path / "config.yaml").is_file():
        (run,) = read_runs([path])
        what = f"is not finished ({run.state_word})" if run.is_evaluation else "is a run that was not evaluated yet"
        raise ConfigError(f"{key}: {path} {what}; it has no metrics.json, so evaluate it first.")
    raise ConfigError(f"{key}: {path} is no folder of results (it has no metrics.json); give one that evaluate.py has written.")


def _folders(parent: Path) -> list[Path]:
    return [each for each in parent.iterdir() if each.is_dir()] if parent.is_dir() else []


def find_tasks(settings: Iterable[Mapping[str, Any]], split: str, wanted: set[str]) -> tuple[dict[str, ArcTask], str]:
    """The wanted tasks that the sources in the settings hold, those of the split looked at first, and why some are missing
    ("" if none is)."""
    found: dict[str, ArcTask] = {}
    problem = ""
    first = next((key for name, key in _SOURCE_KEYS.items() if name in split), None)
    keys = sorted(_SOURCE_KEYS.values(), key=lambda key: key != first)
    for source in dict.fromkeys(source for each in settings for key in keys for source in each.get(key) or ()):
        if wanted <= found.keys():
            break
        try:
            found |= {task.id: task for task in load_source(source) if task.id in wanted and task.id not in found}
        except (ValueError, OSError) as error:  # what can be read is still worth having
            problem = problem or sentence_for(error) or str(error)
    missing = sorted(wanted - found.keys())
    return found, (problem or f"task {missing[0]} is in none of the runs' sources") if missing else ""


def scored_tasks(run: Run) -> dict[str, ArcTask]:
    """The tasks of a result's only split, in the order in which they were scored. ConfigError: they cannot be read any more, or
    have other grids now."""
    (split,) = run.splits
    found, problem = find_tasks([run.settings], split.split, set(split.task_ids))
    if problem:
        raise ConfigError(f"the tasks of {run.path} cannot be read again: {problem.rstrip('.')}; put its sources back.")
    tasks = {id_: found[id_] for id_ in split.task_ids}
    digest = split.record.get("tasks_digest")  # absent in older records
    if digest is not None and tasks_digest(list(tasks.values())) != digest:
        raise ConfigError(
            f"the sources of {run.path} hold other grids than those that were scored (metrics.json, tasks_digest); evaluate it "
            "again, or put its sources back."
        )
    return tasks


def require_same_tasks(key: str, first: Run, tasks: Mapping[str, ArcTask], other: Run, others: Mapping[str, ArcTask]) -> None:
    """ConfigError if two results scored other tasks, or tasks of the same ids with other grids or known answers."""
    lacking, added = [id_ for id_ in tasks if id_ not in others], [id_ for id_ in others if id_ not in tasks]
    if lacking or added:
        alone = ((lacking, first), (added, other))
        parts = [f"{len(ids)} are in {run.path} alone ({named(ids)})" for ids, run in alone if ids]
        raise ConfigError(
            f"{key}: {first.path} and {other.path} scored different tasks ({len(tasks)} and {len(others)}): "
            f"{', '.join(parts)}; give results of the same tasks."
        )
    changed = different_grids(tasks, others)
    if changed:
        raise ConfigError(
            f"{key}: {first.path} and {other.path} scored tasks of the same ids with other grids or answers: {len(changed)} "
            f"differ ({named(changed)}); give results of the same data."
        )


def different_grids(tasks: Mapping[str, ArcTask], others: Mapping[str, ArcTask]) -> list[str]:
    """Ids of both whose grids or known answers differ."""
    return [id_ for id_ in tasks if id_ in others and tasks_digest([tasks[id_]]) != tasks_digest([others[id_]])]


def named(ids: Sequence[str]) -> str:
    """The first ids of a list, for a sentence."""
    return ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")


def method_of(run: Run, split: ScoredSplit) -> str:
    """What answered, in a word or two: ETRM standard, TRM, program_sampling tiny, ensemble votes."""
    kind = run.settings.get("encoder.kind")
    if kind is None:
        return " ".join(Path(str(part)).name for key in ("solver", "model") if (part := split.record.get(key)))
    return "TRM" if kind == "puzzle_table" else f"ETRM {kind}"


def answering_difference(mine: Mapping[str, Any], its: Mapping[str, Any]) -> dict[str, list[str]]:
    """settings_difference of the keys that decide how tasks are answered (dataset and checkpoint left out). Keys that one does
    not have yet are as published; without adaptation.* there was none."""
    defaults = {**PUBLISHED_RULES, "adaptation.kind": "none"}
    both = [
        {**defaults, **{key: value for key, value in each.items() if key.startswith(_ANSWERING) and key not in _NOT_ANSWERING}}
        for each in (mine, its)
    ]
    if both[0]["adaptation.kind"] == both[1]["adaptation.kind"]:  # else the kind says it all
        return settings_difference(*({key: each[key] for key in each if key in other} for each, other in (both, both[::-1])))
    return settings_difference(*({"adaptation.kind": each["adaptation.kind"]} for each in both))


def has_candidates(split: ScoredSplit) -> bool:
    """Does any test input have a candidate that shows a grid?"""
    return any(candidate.grid is not None for test in split.predictions.values() for candidate in test.candidates)
