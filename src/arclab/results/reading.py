"""A run folder as plain records: settings, metric rows, status, evaluations. What the comparison and the tracking sheet read.

    runs = read_runs([Path("runs/quickstart/a"), Path("runs/program_sampling/tiny/toy_train")])

A run is one that trained, with the evaluations in its folder evaluation/, or an evaluation alone: a folder with metrics.json.

Reads files only and needs no model. Settings are read as they were written, not against today's schema, so that runs of an
older version stay comparable. Anything but config.yaml may be missing: a killed or running run is reported with what there is.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError
from arclab.config.saved_file import saved_entry
from arclab.data.tasks import parse_grid
from arclab.files import DamagedFile, Kind, numbered_lines, read_object, require_kinds, step_folders
from arclab.metrics.logger import read_rows
from arclab.metrics.names import count_of
from arclab.results.attempts import Candidate, TestKey
from arclab.results.criterion import read_criterion
from arclab.results.scoring import Share
from arclab.runs.folder import RunDir, State
from arclab.runs.killed import status_now
from arclab.runs.statewords import ENDED_BADLY, NEW, living_folders, read_state

# Where a run lies and what it is called: no difference in what was done.
LABEL_KEYS = ("experiment_name", "name", "runs_dir", "wandb")
_TRAINED_BY_DEFAULT = "pretrain_encoder"  # what an old config.yaml, without an entry, is of
CONVERGED = 0.9  # train/exact_accuracy of criterion 1 (overfitting)
_ATTEMPTS = 2
_AGAIN = "run evaluate.py again"
# What the files must hold for their numbers to be shown; those that not every version wrote are looked at where they are there.
_SETTINGS: dict[str, Kind] = {
    "trainer.steps": int, "experiment_name": str, "name": str, "evaluation.split": str, "halting.halt_max_steps": int,
    **dict.fromkeys(("dataset.train_sources", "dataset.validation_sources", "dataset.eval_sources"), list[str]),
}  # fmt: skip
_PROVENANCE: dict[str, Kind] = {"command": str, "commit": str, "started": str, "notes": list[str], "earlier": list[dict]}
_SCORED: dict[str, Kind] = {"split": str, "scores": dict[str, dict], "statistics": dict[str, float]}
_SCORED_TOO: dict[str, Kind] = {
    "step": int,
    "num_tasks": int,
    "num_augmentations": int,
    "weights": str,
    "stamps": list[str],
    "config": dict,
    "tasks_digest": str | None,
    "predictions_sha256": str,
}
_PREDICTED: dict[str, Kind] = {
    "task": str,
    "test": int,
    "candidates": list[dict],
    "num_candidates": int,
    "truth_rank": int | None,
}
_CANDIDATE: dict[str, Kind] = {"grid": list | None, "votes": int, "confidence": float}
FIT_STAMP = "scored on the training tasks: this measures fit, not generalisation"
PUBLISHED_RULES: dict[str, str | int | float] = {
    "evaluation.halting": "all_steps", "evaluation.votes": "all", "evaluation.canvas": "full", "evaluation.ranking": "count",
    "evaluation.samples": 1, "evaluation.carry_noise": 0.0,
}  # fmt: skip
_CONDITIONS = {
    "step": "trained steps",
    "weights": "weights",
    "num_augmentations": "augmented copies voted",
    "adaptation": "adaptation to each task",
}


def unlike(first: str, a: ScoredSplit, second: str, b: ScoredSplit) -> tuple[str, ...]:
    """How two evaluations were made differently, in words: other numbers may come from that."""

    def conditions(split: ScoredSplit) -> dict[str, Any]:
        settings = split.record.get("config") or {}
        rules = {key: settings.get(key, published) for key, published in PUBLISHED_RULES.items()}
        return {what: split.record.get(key) for key, what in _CONDITIONS.items()} | rules

    ours, theirs = conditions(a), conditions(b)
    return tuple(
        f"{what}: {ours[what]} for {first}, {theirs[what]} for {second}" for what in ours if ours[what] != theirs[what]
    )


def rules_stamp(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Which rules of the evaluation are not the published ones. settings: dotted key -> value."""
    other = [f"{key}={settings[key]}" for key, rule in PUBLISHED_RULES.items() if str(settings.get(key, rule)) != str(rule)]
    return (f"not the published evaluation: {', '.join(other)}",) if other else ()


def part_stamp(num_scored: int, num_tasks: int) -> tuple[str, ...]:
    """If not all tasks of the split were scored."""
    return (f"the first {num_scored} of the {num_tasks} tasks of this split were scored",) if num_scored < num_tasks else ()


@dataclass(frozen=True, slots=True)
class PredictedTest:
    """One line of predictions.jsonl. truth_rank: 0-based place of the right grid, None where it is absent. num_votes: of all
    candidates, those that are not kept included; None in files of older versions."""

    candidates: tuple[Candidate, ...]
    num_candidates: int
    truth_rank: int | None
    num_votes: int | None = None

    @property
    def all_votes(self) -> int:
        """num_votes, or, where the file does not say it, the votes of the kept candidates."""
        return sum(candidate.votes for candidate in self.candidates) if self.num_votes is None else self.num_votes

    @property
    def is_right(self) -> bool:
        return self.truth_rank is not None and self.truth_rank < _ATTEMPTS


@dataclass(frozen=True, slots=True)
class Exact:
    """Exactly right copies of test inputs. Copies of one task are no independent trials: the interval counts tasks."""

    copies: Share
    num_tasks: int

    @property
    def interval(self) -> tuple[float, float]:
        return Share(self.copies.value * self.num_tasks, self.num_tasks).interval


@dataclass(frozen=True)
class ScoredSplit:
    """One folder below evaluation/: its metrics.json as it is, and its predictions (empty if the file is missing)."""

    name: str
    record: dict[str, Any]
    predictions: dict[TestKey, PredictedTest]

    @property
    def split(self) -> str:
        return str(self.record["split"])

    @property
    def shares(self) -> dict[str, Share]:
        return {name: Share(entry["n"], entry["N"]) for name, entry in self.record["scores"].items()}

    @property
    def statistics(self) -> dict[str, float]:
        return self.record["statistics"]

    @property
    def task_ids(self) -> list[str]:
        return list(dict.fromkeys(task for task, _ in self.predictions))

    @property
    def most_candidates(self) -> int:
        """Different answers of the test input that has most of them."""
        return max((test.num_candidates for test in self.predictions.values()), default=0)

    @property
    def most_tests(self) -> int:
        """Test inputs of the task that has most of them."""
        return max(Counter(task for task, _ in self.predictions).values(), default=0)

    @property
    def has_hidden_answers(self) -> bool:
        """Some task was not scored: predictions.jsonl does not tell a hidden answer from a wrong one."""
        return self.shares["ARC/solved@2"].total != len(self.task_ids)

    @cached_property
    def solved(self) -> dict[str, bool]:
        """Task id -> every test input right within two attempts (the rule of ARC/solved@2)."""
        solved = dict.fromkeys(self.task_ids, True)
        for (task, _), test in self.predictions.items():
            solved[task] = solved[task] and test.is_right
        return solved

    @property
    def exact(self) -> Exact | None:
        """all.exact_accuracy as n/N of augmented copies, with the number of tasks behind them."""
        share = _share_of(self.statistics, "all.exact_accuracy")
        return None if share is None else Exact(share, self.shares["ARC/solved@2"].total)


@dataclass(frozen=True)
class Run:
    """One run folder. settings: dotted key -> value; status None: the run never wrote one. state_word: see
    arclab.runs.statewords. is_evaluation: it trained nothing; its settings are those that its numbers were made with.

    weight_stamps: what the newest checkpoint says that every result of its weights must carry.
    """

    path: Path
    label: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    status: dict[str, Any] | None
    provenance: dict[str, Any]
    criterion: dict[str, Any] | None
    wandb: dict[str, Any]
    weight_stamps: tuple[str, ...]
    splits: tuple[ScoredSplit, ...]
    state_word: str
    is_evaluation: bool = False

    @property
    def is_partial(self) -> bool:
        return self.state_word != State.done.value

    @property
    def step(self) -> int:
        """The last step anything is known of."""
        return max([int((self.status or {}).get("step", 0)), *(int(row["_step"]) for row in self.rows[-1:])])

    @property
    def state(self) -> str:
        """One line: DONE at step 1,800; CANCELLED at step 40 of 1,800; FAILED at step 3 of 4 (what went wrong)."""
        total = self.settings.get("trainer.steps")
        if self.is_evaluation:
            total = (self.status or {}).get("num_steps")
            if not self.is_partial:
                return self.state_word
        unit = "task" if self.is_evaluation else "step"
        where = f"{unit} {self.step:,}" + (f" of {total:,}" if self.is_partial and total is not None else "")
        # The messages of the others say what stands elsewhere: the verdict of health, the criterion's sentence.
        message = (self.status or {}).get("message", "") if self.state_word in ENDED_BADLY else ""
        return f"{self.state_word} at {where}" + (f" ({message})" if message else "")

    @property
    def health(self) -> str | None:
        """The newest health verdict: step 100: COLLAPSED ...; None if none was made."""
        row = next((r for r in reversed(self.rows) if r.get("health_note")), None)
        return None if row is None else f"step {row['_step']:,}: {row['health_note']}"

    @property
    def verdict(self) -> str:
        """PASS or FAIL by the criterion the run was started with (criterion.json), else "no criterion"."""
        return "no criterion" if self.criterion is None else str(self.criterion.get("result", "undecided"))

    @property
    def stamps(self) -> list[str]:
        """Sentences that must stand beside the run's numbers, those of its own evaluation during training included."""
        found = [*self.weight_stamps, *(stamp for split in self.splits for stamp in split.record.get("stamps", ()))]
        return list(dict.fromkeys([*found, *self.own_stamps]))

    @property
    def own_stamps(self) -> tuple[str, ...]:
        """The stamps of own_scores, which carries none itself."""
        if self.own_scores is None:
            return self.weight_stamps
        fit = (FIT_STAMP,) if self.own_scores[1] == "train" else ()
        return (*self.weight_stamps, *fit, *rules_stamp(self.settings))

    def split(self, *names: str) -> ScoredSplit | None:
        """The evaluation of the first of these splits that there is; of several the one in the folder of that name, else of the
        newest step."""
        for name in names:
            found = [split for split in self.splits if split.split == name or self._is_other_data(split, name)]
            if found:
                return max(found, key=lambda split: (split.name == name, split.record.get("step", 0)))
        return None

    def _is_other_data(self, split: ScoredSplit, name: str) -> bool:
        """Other data than those of the run that was scored (evaluation-arc2): not its evaluation, but all that an evaluation
        alone has."""
        return self.is_evaluation and split.split.startswith(f"{name}-")

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) wherever the metric was logged and finite."""
        return [(row["_step"], row[name]) for row in self.rows if row.get(name) is not None]

    def last(self, name: str) -> float | None:
        series = self.series(name)
        return series[-1][1] if series else None

    def late_mean(self, name: str) -> float | None:
        """Mean over the last tenth of the steps trained so far, weighted by train/count."""
        rows = [r for r in self.rows if r.get(name) is not None and r["_step"] > 0.9 * self.rows[-1]["_step"]]
        weights = [r.get("train/count", 1.0) for r in rows]
        total = sum(weights)
        return sum(w * r[name] for w, r in zip(weights, rows, strict=True)) / total if total else None

    @property
    def train_exact(self) -> Share | None:
        """train/exact_accuracy of the last row that has it: exactly right rows of those that halted since the row before."""
        row = next((r for r in reversed(self.rows) if r.get("train/exact_accuracy") is not None), None)
        return None if row is None else _share_of(row, "train/exact_accuracy")

    @property
    def steps_to_converge(self) -> int | None:
        """First logged step with train/exact_accuracy of at least 0.9."""
        return next((step for step, value in self.series("train/exact_accuracy") if value >= CONVERGED), None)

    @property
    def own_scores(self) -> tuple[int, str, dict[str, Share]] | None:
        """(step, split, shares) of the newest evaluation that training itself made, or None."""
        row = next((r for r in reversed(self.rows) if r.get("ARC/tasks")), None)
        if row is None:
            return None
        names = [n for n in row if n.startswith(("ARC/pass@", "ARC/solved@")) and row[n] is not None]
        shares = {n: share for n in names if (share := _share_of(row, n)) is not None}
        return row["_step"], str(self.settings.get("evaluation.split", "?")), shares


def own_exact(run: Run) -> Exact | None:
    """all.exact_accuracy of the newest evaluation that training itself made."""
    row = next((r for r in reversed(run.rows) if r.get("ARC/tasks")), {})
    share = _share_of(row, "all.exact_accuracy")
    return None if share is None else Exact(share, int(row["ARC/tasks"]))


def _share_of(record: dict[str, Any], name: str) -> Share | None:
    value, total = record.get(name), count_of(name, record)
    if value is None or total is None or not math.isfinite(value):
        return None
    return Share(round(value * total, 6), total)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """All runs, labelled by the shortest name that tells them apart. ValueError: a folder that is no run, or given twice."""
    resolved = [path.resolve() for path in paths]
    twice = [path for path, count in zip(paths, map(Counter(resolved).get, resolved), strict=True) if count != 1]
    if twice:
        raise ValueError(f"the run folder {twice[0]} was given twice; give each run once.")
    settings = [_read_settings(path) for path in paths]
    labels = _labels(paths, settings)
    living = living_folders([RunDir(path) for path in paths], must_know=False)
    return [_read_run(*parts, living.get(parts[0])) for parts in zip(paths, labels, settings, strict=True)]


def _labels(paths: Sequence[Path], settings: Sequence[dict[str, Any]]) -> list[str]:
    """name, else experiment/name, else the folder, whichever is different for every run."""
    names = [str(s.get("name", path.name)) for s, path in zip(settings, paths, strict=True)]
    longer = [f"{s.get('experiment_name', path.parent.name)}/{n}" for s, n, path in zip(settings, names, paths, strict=True)]
    return next((c for c in (names, longer) if len(set(c)) == len(c)), [str(path) for path in paths])


def _read_settings(path: Path) -> dict[str, Any]:
    """Of an evaluation: those that its numbers were made with, as soon as there are numbers."""
    settings = _results_settings(path) if _is_evaluation(path) and (path / "metrics.json").is_file() else _saved_settings(path)
    require_kinds(settings, _SETTINGS, RunDir(path).config, may_lack=True)
    return settings


def _is_evaluation(path: Path) -> bool:
    return (path / "metrics.json").is_file() or "trainer" not in _saved_entry(path)[1]


def _results_settings(path: Path) -> dict[str, Any]:
    """The settings in metrics.json; the evaluation is called by what was scored and by its folder."""
    record = read_object(path / "metrics.json", remedy=_AGAIN)
    require_kinds(record, {"config": dict}, path / "metrics.json", may_lack=True, remedy=_AGAIN)
    settings = dict(record.get("config", {}))
    experiment = settings.get("experiment_name") or record.get("solver") or path.parent.parent.name
    name = settings.get("name") or path.parent.name
    name = name if name == path.name else f"{name}-{path.name}"
    return {**settings, "experiment_name": str(experiment), "name": name}


def _saved_settings(path: Path) -> dict[str, Any]:
    plain = _saved_entry(path)[1]
    settings = dict(_flat(plain, ""))
    if "trainer" in plain:
        return settings
    return {**settings, "experiment_name": path.parent.parent.name, "name": f"{path.parent.name}-{path.name}"}


def _saved_entry(path: Path) -> tuple[str, dict[str, Any]]:
    """(entry, settings) of a config.yaml. ValueError: the folder is no run's."""
    file = RunDir(path).config
    if not file.is_file():
        reason = "has neither config.yaml nor metrics.json" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} is not a run folder (it {reason}); give a folder runs/<experiment_name>/<name>.")
    entry, settings = saved_entry(file)
    if entry == _TRAINED_BY_DEFAULT and not isinstance(settings.get("trainer"), dict):
        raise ValueError(
            f"{path} is not a run folder (its config.yaml has no trainer); give a folder runs/<experiment_name>/<name>."
        )
    return entry, settings


def _flat(node: Any, prefix: str) -> list[tuple[str, Any]]:
    if not isinstance(node, dict):
        return [(prefix.rstrip("."), node)]
    return [item for key, value in node.items() for item in _flat(value, f"{prefix}{key}.")]


def _read_run(path: Path, label: str, settings: dict[str, Any], living: str | None) -> Run:
    run, is_evaluation = RunDir(path), _is_evaluation(path)
    results = path.glob("metrics.json") if is_evaluation else (path / "evaluation").glob("*/metrics.json")
    folders = sorted(p.parent for p in results)
    return Run(
        path,
        label,
        settings,
        read_rows(run.metrics),
        status=status_now(run),
        provenance=_read_present(run.provenance, _PROVENANCE),
        criterion=read_criterion(run),
        wandb=_read_present(path / "wandb.json", {}),
        weight_stamps=_weight_stamps(run),
        splits=tuple(_read_split(folder) for folder in folders),
        state_word=_state_word(run, living, has_results=is_evaluation and bool(folders)),
        is_evaluation=is_evaluation,
    )


def _state_word(run: RunDir, living: str | None, *, has_results: bool) -> str:
    """As every table says it. Results alone, which older versions wrote without a status, are DONE."""
    status = run.read_status()
    if status is None and has_results:
        return State.done.value
    try:
        return read_state(run, living)
    except ConfigError:  # a job of SLURM, which does not answer: the word of the folder counts
        return str((status or {}).get("state", NEW))


def _weight_stamps(run: RunDir) -> tuple[str, ...]:
    steps = step_folders(run.checkpoints)
    return tuple(_read_present(steps[-1] / "state.json", {"stamps": list[str]}).get("stamps", ())) if steps else ()


def _read_present(path: Path, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """The object in a file that a run may not have (yet), or that an older version wrote with fewer keys."""
    record = read_object(path) if path.is_file() else {}
    require_kinds(record, kinds, path, may_lack=True)
    return record


def _read_split(folder: Path) -> ScoredSplit:
    path = folder / "metrics.json"
    record = read_object(path, _SCORED, remedy=_AGAIN)
    require_kinds(record, _SCORED_TOO, path, may_lack=True, remedy=_AGAIN)
    for name, entry in record["scores"].items():
        require_kinds(entry, {"n": float, "N": int}, path, remedy=_AGAIN)
        if not 0 <= entry["n"] <= entry["N"]:
            raise DamagedFile(path, f"{name} is {entry['n']} of {entry['N']}", remedy=_AGAIN)
    missing = [name for name in ("ARC/pass@2", "ARC/solved@2") if name not in record["scores"]]
    if missing:
        raise DamagedFile(path, f"it has no {missing[0]}", remedy=_AGAIN)
    predictions = folder / "predictions.jsonl"
    if not predictions.is_file():
        return ScoredSplit(folder.name, record, {})
    found = _read_predictions(predictions)
    # First the lines, whose faults have a place. Older versions wrote no checksum.
    if record.get("predictions_sha256", digest := hashlib.sha256(predictions.read_bytes()).hexdigest()) != digest:
        raise DamagedFile(predictions, "it is not the one that metrics.json beside it was made with", remedy=_AGAIN)
    return ScoredSplit(folder.name, record, found)


def _read_predictions(path: Path) -> dict[TestKey, PredictedTest]:
    found: dict[TestKey, PredictedTest] = {}
    for line, entry in numbered_lines(path, _PREDICTED, is_log=False, remedy=_AGAIN):
        key = (entry["task"], entry["test"])
        if key in found:
            raise DamagedFile(path, f"test input {key[1]} of task {key[0]} stands twice", line=line, remedy=_AGAIN)
        candidates = tuple(_read_candidate(candidate, path, line) for candidate in entry["candidates"])
        require_kinds(entry, {"num_votes": int}, path, line=line, may_lack=True, remedy=_AGAIN)
        if entry.get("num_votes", kept := sum(candidate.votes for candidate in candidates)) < kept:
            raise DamagedFile(path, f"num_votes is below the {kept} of the candidates", line=line, remedy=_AGAIN)
        found[key] = PredictedTest(candidates, entry["num_candidates"], entry["truth_rank"], entry.get("num_votes"))
    return found


def _read_candidate(record: dict[str, Any], path: Path, line: int) -> Candidate:
    require_kinds(record, _CANDIDATE, path, line=line, remedy=_AGAIN)
    rows = record["grid"]
    try:
        grid = None if rows is None else parse_grid(rows, "candidates")
    except ValueError as error:
        raise DamagedFile(path, str(error).rstrip("."), line=line, remedy=_AGAIN) from error
    return Candidate(grid, record["votes"], record["confidence"])


def settings_difference(*settings: dict[str, Any]) -> dict[str, list[str]]:
    """Dotted key -> its value in each, for the keys that differ. A key that one does not have is "not set" there."""
    keys = dict.fromkeys(key for each in settings for key in each if key.split(".")[0] not in LABEL_KEYS)
    texts = {key: [_text(each[key]) if key in each else "not set" for each in settings] for key in keys}
    return {key: values for key, values in texts.items() if len(set(values)) > 1}


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
