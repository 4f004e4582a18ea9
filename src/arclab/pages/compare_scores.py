"""The score tables of the comparison page: a row for every run, a column for every number, and what a click sorts by.

    table = runs_table(runs)                # the overview: state, criterion, scores of every split, training
    groups = score_groups(runs)             # per split, everything that was measured on it

Numbers that training itself logged stand in where evaluate.py was not run, and say so. Scores that cannot differ from others
(pass@5 where no test input has more than two answers) are left out; a group says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from arclab.metrics.names import REGISTRY
from arclab.pages.compare_pictures import color_of, line_sample
from arclab.pages.paired_views import SPLITS
from arclab.pages.report import ScoreRow, score_rows
from arclab.pages.tracking import average_steps, convergence, gap, issues, percent
from arclab.results.reading import Run, ScoredSplit, unlike
from arclab.results.scoring import Share, idle_scores
from arclab.runs.folder import short_commit

_HEADLINES = ("ARC/pass@1", "ARC/pass@2", "ARC/solved@2")
_STATISTICS = (
    "all.exact_accuracy",
    "all.accuracy",
    "all.q_halt_accuracy",
    "ARC/undecodable",
    "encoder/swap_drop",
    "encoder/zero_context_drop",
    "encoder/retrieval_accuracy",
    "encoder/retrieval_chance",
    "encoder/between_task_share",
    "train_encoder/swap_drop",
    "puzzle/wrong_id_drop",
    "puzzle/blank_id_drop",
)


@dataclass(frozen=True, slots=True)
class Value:
    """One number or word in a table. sort: what a click on the column sorts by ("" goes last). note: smaller, beside it."""

    text: str
    sort: float | str = ""
    note: str = ""
    bar: Markup | None = None


def share_value(share: Share) -> Value:
    (row,) = score_rows({"ARC/pass@2": share})
    return Value(row.percent, row.sort, f"{row.fraction} {row.interval}", row.bar)


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as a row of the overview. badge: pass, fail or plain. facts: label -> text, shown when the row is opened."""

    label: str
    color: str
    line: Markup
    is_partial: bool
    state: str
    word: str
    verdict: str
    sentence: str
    values: dict[str, Value]
    facts: dict[str, str]
    issues: tuple[str, ...]

    @property
    def badge(self) -> str:
        return {"PASS": "pass", "FAIL": "fail"}.get(self.verdict, "plain")


def run_rows(runs: Sequence[Run]) -> list[RunRow]:
    """In the order given. All have the same columns (the keys of values); columns that no run fills are left out."""
    columns = [_values(run, runs) for run in runs]
    filled = [name for name in columns[0] if any(values[name].text != "none" for values in columns)]
    return [
        _run_row(i, run, {name: values[name] for name in filled})
        for i, (run, values) in enumerate(zip(runs, columns, strict=True))
    ]


def _values(run: Run, runs: Sequence[Run]) -> dict[str, Value]:
    found = {f"pass@2, {name}": _pass2(run, name) for name in scored_splits(runs)}
    accuracy = run.train_exact
    found["train exact, last"] = Value(f"{100 * accuracy.value:.1f} %", accuracy.value) if accuracy else Value("none")
    reached = run.steps_to_converge
    found["steps to 90 %"] = Value("none" if reached is None else f"{reached:,}", "" if reached is None else reached)
    step = run.step
    found["steps trained"] = Value("none") if run.is_evaluation else Value(f"{step:,}", step)
    judged = next((str(row["health"]) for row in reversed(run.rows) if row.get("health")), "")
    found["health"] = Value(judged, judged) if judged else Value("none")
    return found


def _pass2(run: Run, name: str) -> Value:
    scored, own = run.split(name), run.own_scores
    if scored is not None:
        return share_value(scored.shares["ARC/pass@2"])
    if own is not None and own[1] == name and "ARC/pass@2" in own[2]:
        value = share_value(own[2]["ARC/pass@2"])
        return Value(value.text, value.sort, f"{value.note}, during training", value.bar)
    return Value("none")


def _run_row(index: int, run: Run, values: dict[str, Value]) -> RunRow:
    facts = {
        "experiment": str(run.settings.get("experiment_name", "not recorded")),
        "started": str(run.provenance.get("started", "not recorded")),
        **(_scored_facts(run) if run.is_evaluation else _trained_facts(run)),
        "commit": commits(run),
        "folder": str(run.path),
    }
    known = (run.state, *run.stamps)
    found = () if run.is_evaluation else tuple(t for t in issues(run) if t not in known and not t.startswith("health at "))
    sentence = str((run.criterion or {}).get("sentence", ""))
    return RunRow(
        run.label, color_of(index), line_sample(index), run.is_partial, run.state, run.state_word, run.verdict, sentence,
        values, facts, found,
    )  # fmt: skip


def commits(run: Run) -> str:
    """What the run was made with: the newest start's commit, and those of earlier steps where they are others."""
    now = short_commit(run.provenance)
    earlier = {short_commit(start): start.get("to_step") for start in run.provenance.get("earlier", [])}
    others = [f"{commit} to step {step}" for commit, step in earlier.items() if commit != now]
    return f"{now} ({', '.join(others)})" if others else now


def _scored_facts(run: Run) -> dict[str, str]:
    """Of an evaluation alone."""
    counts = [f"{split.record.get('num_tasks', '?')} tasks of the {split.split} split" for split in run.splits]
    sources = [source for split in run.splits if (source := _source_of(split))]
    return {"scored": ", ".join(counts) or "nothing yet", **({"from": ", ".join(sources)} if sources else {})}


def _trained_facts(run: Run) -> dict[str, str]:
    accuracy = run.train_exact
    return {
        "train/exact_accuracy, last": percent(accuracy, run.last("num_train_tasks")) if accuracy else "not logged",
        "steps to 90 %": convergence(run).split(" (")[0],
        "steps taken": average_steps(run).split(" (")[0],
        "health": ": ".join((run.health or "not judged").split(": ")[:2]),  # without the advice
    }


@dataclass(frozen=True, slots=True)
class RunScores:
    """Scores of one run on one split. source: where they were taken; rows is empty if there are none. num_candidates,
    num_tests: most answers of a test input, most test inputs of a task; None where predictions are missing."""

    label: str
    color: str
    source: str
    stamps: tuple[str, ...]
    rows: dict[str, ScoreRow]
    statistics: dict[str, Value]
    num_candidates: int | None = None
    num_tests: int | None = None


@dataclass(frozen=True, slots=True)
class ScoreGroup:
    """One split with a row for every run. names: columns of the short table; more: those of the long one; idle: scores that
    cannot differ from those, score -> the one that it equals."""

    split: str
    runs: tuple[RunScores, ...]
    names: tuple[str, ...]
    more: tuple[str, ...]
    statistics: tuple[str, ...]
    idle: dict[str, str] = field(default_factory=dict)

    @property
    def stamps(self) -> tuple[str, ...]:
        """Those of every run with scores."""
        scored = [run.stamps for run in self.runs if run.rows]
        return tuple(stamp for stamp in scored[0] if all(stamp in stamps for stamps in scored)) if scored else ()


def scored_splits(runs: Sequence[Run]) -> list[str]:
    """Splits that any run was scored on, by evaluate.py or during training; held-out ones first."""
    found = {split.split for run in runs for split in run.splits} | {run.own_scores[1] for run in runs if run.own_scores}
    return sorted(found, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def score_groups(runs: Sequence[Run]) -> list[ScoreGroup]:
    """A group for every split that any run was scored on."""
    return [_score_group(split, runs) for split in scored_splits(runs)]


def _score_group(split: str, runs: Sequence[Run]) -> ScoreGroup:
    rows = tuple(_run_scores(i, run, split) for i, run in enumerate(runs))
    names = [name for name in REGISTRY if any(name in row.rows for row in rows)]
    statistics = tuple(name for name in _STATISTICS if any(name in row.statistics for row in rows))
    idle = _idle(rows, names)
    names = [name for name in names if name not in idle]
    more = tuple(name for name in names if name not in _HEADLINES)
    return ScoreGroup(split, rows, tuple(name for name in names if name in _HEADLINES), more, statistics, idle)


def _idle(rows: Sequence[RunScores], names: Sequence[str]) -> dict[str, str]:
    """What is idle in every run with scores; nothing is said of runs without predictions."""
    scored = [row for row in rows if row.rows]
    candidates = [row.num_candidates for row in scored if row.num_candidates is not None]
    tests = [row.num_tests for row in scored if row.num_tests is not None]
    if not scored or len(candidates) < len(scored) or len(tests) < len(scored):
        return {}
    return idle_scores(names, max(candidates), max(tests))


def _run_scores(index: int, run: Run, split: str) -> RunScores:
    scored, own = run.split(split), run.own_scores
    shares: dict[str, Share] = {}
    statistics: dict[str, float] = {}
    source, stamps = "not evaluated", ()
    if scored is not None:
        shares, statistics, stamps = scored.shares, scored.statistics, tuple(scored.record.get("stamps", ()))
        source = _source_of(scored)
    elif own is not None and own[1] == split:
        shares, source = own[2], f"during training, step {own[0]:,}; evaluate.py was not run"
        statistics = {name: value for name in _STATISTICS if (value := run.last(name)) is not None}
        stamps = run.own_stamps
    rows = {row.name: row for row in score_rows({name: s for name, s in shares.items() if name in REGISTRY})}
    found = {name: value for name in _STATISTICS if (value := statistics.get(name)) is not None}
    texts = {name: Value(f"{100 * value:.1f} %", value) for name, value in found.items()}
    most = (scored.most_candidates, scored.most_tests) if scored is not None and scored.predictions else (None, None)
    return RunScores(run.label, color_of(index), source, stamps, rows, texts, *most)


def _source_of(split: ScoredSplit) -> str:
    """What the numbers were made with, as far as the results say."""
    record = split.record
    said = {
        "step": lambda step: f"step {step:,}",
        "weights": lambda weights: f"{weights} weights",
        "num_augmentations": lambda copies: f"up to {copies} augmented copies vote",
        "num_samples": lambda samples: f"{samples} programs a task",
        "model": lambda model: f"model {model}",
    }
    return ", ".join(text(record[key]) for key, text in said.items() if record.get(key) is not None)


@dataclass(frozen=True, slots=True)
class GapRow:
    """Train against held-out score of one run; note says why there is no gap."""

    label: str
    color: str
    split: str
    train: ScoreRow | None
    test: ScoreRow | None
    gap: str
    note: str


def gap_row(index: int, run: Run) -> GapRow:
    """ARC/pass@2 on the train split and on the evaluation (else the validation) split of a run."""
    train, test = run.split("train"), run.split("evaluation", "validation")
    shown = [score_rows({"ARC/pass@2": s.shares["ARC/pass@2"]})[0] if s else None for s in (train, test)]
    text = gap(train, test) if train and test else ""
    missing = [name for name, split in (("train", train), ("evaluation or validation", test)) if split is None]
    note = f"not evaluated on the {' nor the '.join(missing)} split" if missing else ""
    if train and test:
        note = "; ".join(unlike("train", train, test.split, test))
    return GapRow(run.label, color_of(index), test.split if test else "", shown[0], shown[1], text, note)
