"""evaluate.py solver=ensemble: finished results on the same tasks -> one merged ranking, scored, with what each member adds.

    python evaluate.py solver=ensemble members=[RESULT,RESULT] merge=votes weights=[2,1]

It answers nothing itself: it reads metrics.json and predictions.jsonl of its members, and their tasks from their sources.
Weights are given, not learned; merge=confidence learns on other tasks alone (arclab.results.calibration), which were answered
as those of the member: by the same model, rules of evaluation, adaptation and sampling. One process, and seconds: nothing is
kept for a continuation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError, flat
from arclab.config.ensemble_schema import ENSEMBLE, EvaluateEnsembleConfig, MergeRule
from arclab.config.run import DeviceChoice
from arclab.data.tasks import ArcTask
from arclab.pages.publish import publish
from arclab.results.calibration import Calibration, fit_calibration
from arclab.results.ensembles import (
    Contribution,
    Member,
    Rule,
    agreement,
    by_probability,
    by_rank,
    by_votes,
    contributions,
    merge,
    oracle_coverage,
)  # fmt: skip
from arclab.results.finished import answering_difference, has_candidates, named, open_results, require_same_tasks, scored_tasks
from arclab.results.paired import PairedTest
from arclab.results.reading import Run
from arclab.results.scoring import Share
from arclab.results.writing import KEPT_CANDIDATES, Evaluation, ResultTable, Subject, require_no_larger
from arclab.runs.folder import RunDir, State, provenance
from arclab.runs.lifecycle import RecordFailure, RunFolder, WorkProgress, in_ranks, until_told
from arclab.runs.lock import keeper
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals

_IDENTITY = ("solver", "model", "checkpoint", "weights")  # of metrics.json: what answered
# Where the tasks of a result come from: an ensemble can be a member and be compared, too.
_DATA_KEYS = ("dataset.name", "dataset.train_sources", "dataset.validation_sources", "dataset.eval_sources")


@dataclass(frozen=True, slots=True)
class Merged:
    """The members with the tasks that all of them scored. calibrations: of each member; empty without merge=confidence."""

    runs: list[Run]
    tasks: tuple[ArcTask, ...]
    members: list[Member]
    calibrations: list[Calibration]


def evaluate(config: EvaluateEnsembleConfig, given: RunDir | None = None) -> int:
    """Merge and write the results. ValueError: nothing was written. given, and the exit status: see
    arclab.runs.lifecycle.in_ranks."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"solver={ENSEMBLE} runs in one process, but WORLD_SIZE={os.environ['WORLD_SIZE']}; start it without torchrun."
        )

    def work(ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
        return _evaluate(config, ranks, signals, folder)

    return in_ranks(work, config, given, DeviceChoice.cpu, config.num_threads)


def _evaluate(config: EvaluateEnsembleConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    run = folder.run
    with folder.building():
        merged = read_members(config)
        require_no_larger(run.path, len(merged.tasks), 0)
        notes = _notes(merged)
        with folder.held(config, notes), RecordFailure(run):
            progress = WorkProgress(run, ranks, signals, len(merged.tasks))

            def work() -> str:
                result = evaluation(config, merged, notes, run.path)
                keeper(run)()
                return publish(result, run.path)

            return until_told(run, ranks, progress, work)


def read_members(config: EvaluateEnsembleConfig) -> Merged:
    """ConfigError, which names the member: it cannot be used, or scored other tasks than the first one."""
    runs = open_results([Path(path) for path in config.members], "members")
    tasks = scored_tasks(runs[0])
    for run in runs:
        if not has_candidates(run.splits[0]):
            raise ConfigError(f"members: {run.path} has no candidate that shows a grid, so it can add nothing; leave it out.")
    for run in runs[1:]:
        require_same_tasks("members", runs[0], tasks, run, scored_tasks(run))
    calibrations = _calibrations(config, runs)
    rules: list[Rule] = [by_probability(each) for each in calibrations]
    if not rules:
        rules = [by_rank if config.merge is MergeRule.rank else by_votes] * len(runs)
    weights = config.weights or [1.0] * len(runs)
    members = [
        Member(run.label, weight, run.splits[0].predictions, rule)
        for run, weight, rule in zip(runs, weights, rules, strict=True)
    ]
    return Merged(runs, tuple(tasks.values()), members, calibrations)


def _calibrations(config: EvaluateEnsembleConfig, runs: Sequence[Run]) -> list[Calibration]:
    """ConfigError: a result is not of the member in its place, or is of tasks that are scored here."""
    paths = [Path(path) for path in config.calibration or []]
    found = open_results(paths, "calibration") if paths else []
    for run, other in zip(runs, found, strict=False):
        if difference := _method_difference(run, other):
            key, mine, its = difference
            raise ConfigError(
                f"calibration: {other.path} is of {key}={its} and its member {run.path} of {key}={mine}; give the results of "
                "the same method, in the order of members."
            )
        if shared := [id_ for id_ in other.splits[0].task_ids if id_ in set(run.splits[0].task_ids)]:
            raise ConfigError(
                f"calibration: {other.path} has {len(shared)} of the tasks that are scored ({named(shared)}), whose answers "
                "would decide the ranking; give a result on other tasks."
            )
    return [fit_calibration(other.splits[0], other.path) for other in found]


def _method_difference(run: Run, other: Run) -> tuple[str, Any, Any] | None:
    """(key, its value in each) of the first thing in which two results were answered differently, None if there is none."""
    mine, its = _identity(run), _identity(other)
    if mine != its:
        key = next(key for key in _IDENTITY if mine[key] != its[key])
        return key, mine[key], its[key]
    found = answering_difference(run.settings, other.settings)
    return next(((key, ours, theirs) for key, (ours, theirs) in found.items()), None)


def _identity(run: Run) -> dict[str, Any]:
    found = {key: run.splits[0].record.get(key) for key in _IDENTITY}
    checkpoint = found["checkpoint"]
    return {**found, "checkpoint": os.path.realpath(checkpoint) if isinstance(checkpoint, str) else None}


def _notes(merged: Merged) -> tuple[str, ...]:
    """Those of the members, and what is not known of their votes."""
    found = [note for run in merged.runs for note in run.splits[0].record.get("notes", ())]
    for run in merged.runs:
        tests = run.splits[0].predictions.values()
        cut = sum(test.num_candidates > len(test.candidates) for test in tests)
        if cut:
            found.append(f"{run.label}: of {cut} test inputs only the {KEPT_CANDIDATES} best candidates are kept, and merged")
        if cut and any(test.num_votes is None for test in tests):
            found.append(
                f"{run.label} is of an older version that does not say how many votes there were: shares are of those of the "
                "kept candidates"
            )
    return tuple(dict.fromkeys(found))


def evaluation(config: EvaluateEnsembleConfig, merged: Merged, notes: tuple[str, ...], folder: Path) -> Evaluation:
    """The merged answers with their statistics and tables."""
    attempts = merge(merged.members)
    is_scored = any(all(test.output is not None for test in task.tests) for task in merged.tasks)
    parts = contributions(merged.tasks, merged.members) if is_scored else []
    coverage = oracle_coverage(merged.tasks, merged.members)
    attempts.statistics = {"ensemble/members": float(len(merged.members)), "ensemble/agreement": agreement(merged.members)}
    if coverage.total:
        attempts.statistics |= {
            "ensemble/oracle_coverage": coverage.value,
            "ensemble/test_inputs": float(coverage.total),
            "ensemble/best_member": max(part.alone.value for part in parts),
        }
    attempts.statistics |= _cost(merged.runs)
    stamps = dict.fromkeys(stamp for run in merged.runs for stamp in run.splits[0].record.get("stamps", ()))
    result = Evaluation(
        subject=_subject(config, merged, folder), tasks=merged.tasks, attempts=attempts, stamps=tuple(stamps), notes=notes,
        provenance=provenance(),
    )  # fmt: skip
    whole = result.shares["ARC/pass@2"]
    record = {**result.subject.record, "members": _member_records(merged, parts, whole)}
    tables = (_table(merged, parts, whole, coverage),)
    return replace(result, subject=replace(result.subject, record=record, tables=tables))


def _cost(runs: Sequence[Run]) -> dict[str, float]:
    """What the members cost together, where each says it. A model that several members have counts once."""
    found = [run.splits[0].statistics for run in runs]
    cost: dict[str, float] = {}
    if all("timing/solve_s" in each for each in found):
        cost["timing/solve_s"] = sum(each["timing/solve_s"] for each in found)
    for name in ("programs/tokens", "programs/run"):
        if any(name in each for each in found):
            cost[name] = sum(each.get(name, 0.0) for each in found)
    for name in ("num_params", "num_puzzle_params"):
        models = {
            tuple(map(str, _identity(run).values())): each[name] for run, each in zip(runs, found, strict=True) if name in each
        }
        if models and (name != "num_params" or all(name in each for each in found)):
            cost[name] = sum(models.values())
    return cost


def _subject(config: EvaluateEnsembleConfig, merged: Merged, folder: Path) -> Subject:
    first = merged.runs[0]
    (split,) = first.splits
    facts = {
        "dataset": f"{split.record.get('dataset', 'not recorded')} / {split.split}",
        "members": str(len(merged.members)),
        "merged by": config.merge.value,
        "weights": "equal" if config.weights is None else ", ".join(f"{weight:g}" for weight in config.weights),
    }
    record = {
        "split": split.split,
        "dataset": split.record.get("dataset"),
        "solver": ENSEMBLE,
        "model": config.merge.value,
    }
    settings = {**flat(config), **{key: first.settings[key] for key in _DATA_KEYS if key in first.settings}}
    return Subject(config.title, facts, {"folder": str(folder)}, record, settings)


def _member_records(merged: Merged, parts: Sequence[Contribution], whole: Share) -> list[dict[str, Any]]:
    """The fields of metrics.json for each member."""
    records = []
    for number, (run, member) in enumerate(zip(merged.runs, merged.members, strict=True)):
        record: dict[str, Any] = {"label": member.label, "folder": str(run.path), "weight": member.weight}
        record["stamps"] = run.splits[0].record.get("stamps", [])
        if merged.calibrations:
            curve = merged.calibrations[number]
            record["calibration"] = {name: getattr(curve, name) for name in curve.__slots__}
        if parts:
            part = parts[number]
            record |= {
                "pass@2": _share_record(part.alone),
                "pass@2_without": _share_record(part.without),
                "pass@2_added": whole.value - part.without.value,
                "solved_only_with": part.paired.only_first,
                "solved_only_without": part.paired.only_second,
                "p_value": part.paired.p_value,
            }
        records.append(record)
    return records


def _share_record(share: Share) -> dict[str, Any]:
    return {"n": share.n, "N": share.total, "value": share.value, "interval95": list(share.interval)}


def _table(merged: Merged, parts: Sequence[Contribution], whole: Share, coverage: Share) -> ResultTable:
    """What each member is worth, on the page."""
    columns = ["member", "weight"]
    columns += ["right, of candidates"] if merged.calibrations else []
    columns += ["pass@2 alone", "pass@2 without it", "added by it", "tasks only with / only without it, p"] if parts else []
    rows = []
    for number, member in enumerate(merged.members):
        row = [member.label, f"{member.weight:g}"]
        if merged.calibrations:
            curve = merged.calibrations[number]
            row.append(f"{curve.num_right} of {curve.num_candidates}")
        if parts:
            part = parts[number]
            added = 100 * (whole.value - part.without.value)
            row += [str(part.alone), str(part.without), f"{added:+.1f} points", _paired_text(part.paired)]
        rows.append(tuple(row))
    reach = "No answer is known, so nothing is scored."
    if coverage.total:
        reach = f"Right grid among the candidates of any member: {coverage} of the test inputs; no merging can do better."
    return ResultTable("Members", tuple(columns), tuple(rows), f"{reach} {_rule_text(merged)}")


def _rule_text(merged: Merged) -> str:
    if merged.calibrations:
        return "Calibrated by logistic regression on share of votes and confidence, on other tasks of each member."
    return "p: exact McNemar test of tasks solved within two attempts, one for each member, not corrected for their number."


def _paired_text(test: PairedTest) -> str:
    return f"{test.only_first} / {test.only_second}, p = {test.p_value:.2g}"
