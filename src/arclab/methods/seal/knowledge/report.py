"""What the trials of a stage come to: shares, a test against the model as it is, cost, and the page.

    found = metrics_of(rows, batch_size)              # the knowledge/* metrics; batch_size: of query.adaptation
    write_report(config, run, rows, criterion)        # results.json and report.html

Tests and intervals count questions once: the first completion's first repetition stands for an item. Means over everything
stand beside them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from arclab.config.compose import flat
from arclab.config.seal_knowledge_schema import SealKnowledgeConfig
from arclab.files import write_atomically
from arclab.methods.seal.knowledge.trials import OTHER, PASSAGE, REPEATED, Row, mean_gains
from arclab.metrics.logger import read_rows
from arclab.pages.rounds import Histogram, RoundsPage, render_rounds
from arclab.results.criterion import judge_criterion, write_criterion
from arclab.results.paired import PairedTest
from arclab.results.scoring import Share
from arclab.results.writing import ResultTable
from arclab.runs.folder import RunDir

_PUBLISHED_PADDING = 2048  # tokens that the published inner loop pads each sequence to
_ALPHA = 0.05
BASE, FIRST, ALL = "model as it is", "first completion", "all completions"
_COUNTED = "All completions and repetitions together count a question more than once: no interval of them is one of questions."
_Grades = list[tuple[bool | None, bool | None]]  # of a question: adapted, as it is


@dataclass(frozen=True, slots=True)
class Condition:
    """What was trained on, over all questions. share: those answered right; macro: the mean of the items' shares. test: against
    the model as it is, None where questions are counted more than once."""

    name: str
    share: Share
    macro: float
    ungraded: int
    test: PairedTest | None
    seconds: float
    tokens: float

    @property
    def gain(self) -> float | None:
        return None if self.test is None else (self.test.only_first - self.test.only_second) / max(1, self.test.total)


def condition(name: str, rows: Sequence[Row], *, as_it_is: bool = False, tested: bool = True) -> Condition:
    by_item: dict[str, _Grades] = {}
    for row in rows:
        by_item.setdefault(row.item, []).extend(zip(row.base if as_it_is else row.right, row.base, strict=True))
    graded = {item: [own for own, _ in pairs if own is not None] for item, pairs in by_item.items()}
    whole = [own for each in graded.values() for own in each]
    both = [(a, b) for pairs in by_item.values() for a, b in pairs if a is not None and b is not None]
    return Condition(
        name,
        Share(sum(whole), len(whole)),
        fmean(sum(each) / len(each) for each in graded.values() if each) if whole else 0.0,
        sum(map(len, by_item.values())) - len(whole),
        PairedTest.count("questions", both) if tested and not as_it_is else None,
        0.0 if as_it_is else fmean(row.train_s for row in rows),
        0.0 if as_it_is else fmean(row.num_tokens for row in rows),
    )


def conditions(rows: Sequence[Row]) -> list[Condition]:
    """Those that were tried."""
    first = {edit: [row for row in rows if row.edit == edit and row.repetition == 0] for edit in (PASSAGE, REPEATED, OTHER)}
    completions = [row for row in rows if row.is_completion]
    shown = _first_of_each(completions)
    found = [condition(BASE, _first_of_each(rows), as_it_is=True)]
    names = {PASSAGE: "passage alone", REPEATED: "passage alone, as many steps", OTHER: "another item's completion"}
    found += [condition(names[edit], own) for edit, own in first.items() if own]
    found += [condition(FIRST, shown), condition(ALL, completions, tested=False)] if completions else []
    return found


def _first_of_each(rows: Sequence[Row]) -> list[Row]:
    """One row of each item."""
    found: dict[str, Row] = {}
    for row in sorted((row for row in rows if row.repetition == 0), key=lambda row: (row.item, row.edit)):
        found.setdefault(row.item, row)
    return list(found.values())


def metrics_of(rows: Sequence[Row], batch_size: int) -> dict[str, float]:
    """wins is 0 where another item's completion has helped as well: then it was not what the passage says that did."""
    by_name = {each.name: each for each in conditions(rows)}
    base, first, whole = by_name[BASE], by_name[FIRST], by_name[ALL]
    assert first.test is not None
    test, other = first.test, by_name.get("another item's completion")
    has_spread = other is not None and other.test is not None and (other.gain or 0) > 0 and other.test.p_value < _ALPHA
    completions = [row for row in rows if row.is_completion]
    tokens = sum(row.num_tokens for row in completions)
    gains = mean_gains(rows)
    found = {
        "questions": float(test.total),
        "base_accuracy": base.share.value,
        "accuracy": whole.share.value,
        "first_accuracy": first.share.value,
        "macro_accuracy": whole.macro,
        "gain": fmean(gains.values()) if gains else 0.0,
        "wins": 0.0 if has_spread or not test.discordant else test.only_first / test.discordant,
        "discordant": float(test.discordant),
        "p_value": test.p_value,
        "ungraded_share": whole.ungraded / (whole.ungraded + whole.share.total),
        "unadapted_share": sum(bool(row.problem) for row in completions) / len(completions),
        "train_s": whole.seconds,
        "tokens": whole.tokens,
        "padding_share": sum(row.num_padding for row in completions) / max(1, tokens),
        "published_padding": _published_tokens(completions, batch_size) / max(1, tokens),
    }
    for name, key in (("passage alone", "passage_accuracy"), ("another item's completion", "other_accuracy")):
        if name in by_name:
            found[key] = by_name[name].share.value
    return {f"knowledge/{name}": value for name, value in found.items()}


def _published_tokens(rows: Sequence[Row], batch_size: int) -> float:
    """As many as would pass through the model if every sequence were padded to the published length: sequences x epochs x that
    length. Of a training that broke off, the share of its steps that were made."""
    passes = [row.num_sequences * row.num_steps / math.ceil(row.num_sequences / batch_size) for row in rows]
    return sum(passes) * _PUBLISHED_PADDING


def judged(config: SealKnowledgeConfig, measured: RunDir, run: RunDir) -> str:
    """What the criterion says of a stage's metrics, written to criterion.json of the run; empty without one."""
    if config.criterion is None:
        return ""
    result = judge_criterion(config.criterion, read_rows(measured.metrics))
    write_criterion(result, run)
    return str(result)


def write_report(config: SealKnowledgeConfig, run: RunDir, rows: Sequence[Row], criterion: str) -> None:
    found, batch_size = conditions(rows), config.query.adaptation.batch_size
    record = {
        "overall": {name.removeprefix("knowledge/"): value for name, value in metrics_of(rows, batch_size).items()},
        "conditions": [condition_record(each) for each in found],
        "items": _by_item(rows),
        "adaptation": {key: str(value) for key, value in asdict(config.query.adaptation).items()},
    }
    write_atomically(run.path / "results.json", json.dumps(record, indent=1) + "\n")
    page = RoundsPage(
        title=(config.experiment_name, f"{config.name}, round {config.round}"),
        facts={
            "data": config.data.source, "items": str(len({row.item for row in rows})), "kind": config.generate.kind.value,
            "style": config.style.value, "grader": config.query.grader.kind.value, "seed": str(config.seed),
        },
        criterion=criterion,
        stamps=_stamps(rows),
        tables=[condition_table(found, _COUNTED), _cost_table(rows, batch_size)],
        histograms=[Histogram("Tokens that a completion trains on", "tokens", "trials", [r.num_tokens for r in rows])],
        settings=flat(config),
    )  # fmt: skip
    write_atomically(run.path / "report.html", render_rounds(page))


def _stamps(rows: Sequence[Row]) -> list[str]:
    found = []
    if ungraded := sum(value is None for row in rows for value in row.right):
        found.append(f"{ungraded} answers are ungraded and count in no share")
    if failed := sum(bool(row.problem) for row in rows):
        found.append(f"in {failed} trials the model could not be adapted and answered as it is")
    return found


def condition_record(each: Condition) -> dict[str, object]:
    low, high = each.share.interval
    record: dict[str, object] = {
        "name": each.name, "right": each.share.n, "graded": each.share.total, "ungraded": each.ungraded,
        "accuracy": each.share.value if each.share.total else None, "interval95": [low, high], "macro": each.macro,
    }  # fmt: skip
    if each.test is not None:
        record |= {"only_adapted": each.test.only_first, "only_base": each.test.only_second, "p_value": each.test.p_value}
    return record


def _by_item(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """{item: {completion: mean gain}}."""
    found: dict[str, dict[str, float]] = {}
    for (item, edit), gain in mean_gains(rows).items():
        found.setdefault(item, {})[edit] = gain
    return found


def condition_table(found: Sequence[Condition], note: str) -> ResultTable:
    rows = []
    for each in found:
        test = each.test
        told = "" if test is None else f"{test.only_first} against {test.only_second}, p = {test.p_value:.2g}"
        rows.append((each.name, str(each.share), f"{100 * each.macro:.1f} %", told, str(each.ungraded)))
    return ResultTable(
        "Closed-book accuracy",
        ("trained on", "questions right", "mean over items", "only it right, against only the model as it is", "ungraded"),
        tuple(rows),
        note,
    )


def _cost_table(rows: Sequence[Row], batch_size: int) -> ResultTable:
    completions = [row for row in rows if row.is_completion] or list(rows)
    tokens, padding = sum(row.num_tokens for row in completions), sum(row.num_padding for row in completions)
    ratio = _published_tokens(completions, batch_size) / max(1, tokens)
    cells = (
        f"{fmean(row.train_s for row in completions):.2f} s", f"{fmean(row.num_steps for row in completions):.0f}",
        f"{tokens / len(completions):,.0f}", f"{100 * padding / max(1, tokens):.1f} %", f"{ratio:.1f} times as many",
    )  # fmt: skip
    return ResultTable(
        "Cost of a completion",
        ("of", "training", "steps", "tokens", "of them padding", f"padded to {_PUBLISHED_PADDING}"),
        (("a trial", *cells),),
        f"The last column: tokens if every sequence were padded to {_PUBLISHED_PADDING}, as the published loop does.",
    )
