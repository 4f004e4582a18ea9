"""What an evaluation of edits shows beside its scores: tables and pictures of what was drawn, and chains of edits.

    exhibits = exhibits_of(drawn)                                  # for report.html of evaluate.py solver=program_edit
    write_lineages(folder, title, records, tasks)                  # chains.html: how the best program of a task came about
    html = chains_page(title, facts, chains, tasks)                # chains of stage=evaluate

Nothing is run or drawn here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from arclab.data.tasks import ArcTask
from arclab.files import write_atomically
from arclab.methods.program_edit.editing import EditRecord
from arclab.methods.program_edit.measures import Drawn, right_by_thinking, share_rows, solved_by_tokens
from arclab.methods.program_edit.population import program_sha
from arclab.methods.program_edit.select import shown_edit
from arclab.pages.edit_pictures import share_lines, share_points
from arclab.pages.edits import Chain, render_chains
from arclab.results.scoring import Share
from arclab.results.writing import Exhibits, ResultPicture, ResultTable

CHAINS = "chains.html"
_SHOWN_CHAINS = 100


def exhibits_of(drawn: Sequence[Drawn]) -> Exhibits:
    """Of one search. Nothing without programs."""
    if not drawn:
        return Exhibits()
    num_tasks = len({each.task for each in drawn})
    return Exhibits((_levels_table(drawn),), tuple(pictures_of({"": drawn}, {"": num_tasks})))


def pictures_of(arms: Mapping[str, Sequence[Drawn]], num_tasks: Mapping[str, int]) -> list[ResultPicture]:
    """Shares by tokens and by the length of thinking, a line for each search. num_tasks: that it was given."""
    lines = {name: points for name, own in arms.items() if (points := solved_by_tokens(own, num_tasks[name]))}
    found = []
    if lines:
        note = "Share of the tasks of which a program was right by so many tokens, drafts and edits counted."
        found.append(ResultPicture("Tasks with a right program, by tokens", share_lines(lines, "tokens of a task"), note))
    if bins := {name: _thinking(own) for name, own in arms.items() if own}:
        note = (
            "Share of right programs among those whose thinking is as long, with 95 % intervals. Long thinking may come with "
            "hard tasks: that is no effect of the length."
        )
        found.append(ResultPicture("Right programs, by thinking", share_points(bins, "tokens of thinking"), note))
    return found


def _thinking(drawn: Sequence[Drawn]) -> list[tuple[float, Share]]:
    return [(each.mean, each.right) for each in right_by_thinking(drawn)]


def _levels_table(drawn: Sequence[Drawn]) -> ResultTable:
    """What each level gave."""
    rows = []
    for level in sorted({each.level for each in drawn}):
        own = [each for each in drawn if each.level == level]
        deltas = [each.delta for each in own if each.delta is not None]
        (_, fraction, percent, interval), *_ = share_rows({"": Share(sum(each.is_right for each in own), len(own))})
        rows.append(
            (
                f"edits, level {level}" if level else "from nothing", fraction, percent, interval,
                f"{max(each.value for each in own):.3f}", f"{sum(deltas) / len(deltas):+.4f}" if deltas else "",
                f"{sum(each.tokens or 0 for each in own):,}" if all(each.tokens is not None for each in own) else "not told",
            )
        )  # fmt: skip
    columns = ("programs", "right", "share", "95 % interval", "best worth", "mean gain", "tokens")
    return ResultTable("What was drawn", columns, tuple(rows), "Right: every demonstration and every known test output.")


def chains_page(
    title: tuple[str, str], facts: Mapping[str, str], chains: Mapping[str, Sequence[EditRecord]],
    tasks: Mapping[str, ArcTask], exhibits: Exhibits | None = None,
) -> str:  # fmt: skip
    """The HTML of chains, by their id, those that gained most first. exhibits: above them."""
    ordered = sorted(chains.items(), key=lambda each: each[1][0].r0 - each[1][-1].r1)[:_SHOWN_CHAINS]
    shown = [Chain(id_, [shown_edit(record, tasks[record.task]) for record in chain]) for id_, chain in ordered]
    return render_chains(title, facts, shown, exhibits or Exhibits())


def write_lineages(folder: Path, title: tuple[str, str], records: Sequence[EditRecord], tasks: Sequence[ArcTask]) -> None:
    """chains.html of a search: of each task the best program that edits have made, and the edits that led to it."""
    chains: dict[str, Sequence[EditRecord]] = {}
    for task in tasks:
        own = [record for record in records if record.task == task.id]
        best = max((record for record in own if record.source is not None), key=lambda record: record.r1, default=None)
        chain = [] if best is None else lineage(own, best)
        if chain and chain[-1].r1 > chain[0].r0:
            chains[f"{task.id} ({len(own)} edits)"] = chain
    facts = {"tasks": str(len(tasks)), "with a better program": str(len(chains)), "edits": str(len(records))}
    by_id = {task.id: task for task in tasks}
    write_atomically(folder / CHAINS, chains_page(title, facts, chains, by_id))


def lineage(records: Sequence[EditRecord], last: EditRecord) -> list[EditRecord]:
    """The edits that led to the last one, in order: each made the program that the next one edited. records: of one task."""
    made: dict[str, EditRecord] = {}
    for record in records:
        if record.source is not None:
            made.setdefault(program_sha(record.source), record)
    chain = [last]
    while (before := made.get(chain[0].parent)) is not None and before.turn < chain[0].turn:
        chain.insert(0, before)
    return chain
