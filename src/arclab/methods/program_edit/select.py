"""stage=select: which of the sampled edits are learned from, and a page to read them through.

    select(config, ranks, signals, folder)      # writes sft.jsonl, rejected.jsonl, review.html, review.json

The page shows every edit that was kept, with buttons to accept and to reject it; it saves review.json, which stage=sft honours.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from arclab.config.compose import ConfigError
from arclab.config.program_edit_schema import ProgramEditConfig
from arclab.data.tasks import ArcTask
from arclab.files import write_atomically
from arclab.methods.program_edit.editing import EditRecord, read_records
from arclab.methods.program_edit.replies import taught, write_review, write_taught
from arclab.methods.program_edit.sample import EDITS, training_tasks
from arclab.methods.program_edit.selection import Selection, select_edits
from arclab.pages.edits import ReviewedEdit, ShownPair, render_review
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage

SFT, REJECTED, REVIEW, PAGE = "sft.jsonl", "rejected.jsonl", "review.json", "review.html"


def select(config: ProgramEditConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    edits = config.file_of("sample", config.round, EDITS)

    def work(run: RunDir, progress: WorkProgress) -> Made:
        records = read_records(edits)
        selection = select_edits(records, config.select, config.seed)
        if not selection.kept:
            raise ConfigError(
                f"none of the {len(records)} edits makes its program better ({_reasons(selection)}), so there is nothing to "
                "learn; sample more edits (sample.num_samples), or from a better model (lm)."
            )
        tasks = {task.id: task for task in training_tasks(config)}
        write_taught(run.path / SFT, taught(selection.kept))
        lines = [json.dumps({"id": id_, "why": why}) + "\n" for id_, why in selection.rejected.items()]
        write_atomically(run.path / REJECTED, "".join(lines))
        write_atomically(run.path / PAGE, review_page(config, selection, tasks))
        write_review(run.path / REVIEW)
        counts = {"kept": len(selection.kept), **Counter(selection.rejected.values())}
        return Made(
            outputs=[run.path / SFT, run.path / REJECTED],  # the review may be changed
            counts=counts,
            message=f"{len(selection.kept)} of {len(records)} edits kept; read them through: {run.path / PAGE}",
        )

    return make_stage(config, ranks, signals, folder, {"edits": edits}, 1, work)


def _reasons(selection: Selection) -> str:
    return ", ".join(f"{why} {count}" for why, count in Counter(selection.rejected.values()).most_common())


def review_page(config: ProgramEditConfig, selection: Selection, tasks: Mapping[str, ArcTask]) -> str:
    """The HTML of the edits that were kept."""
    facts = {
        "kept": str(len(selection.kept)),
        "tasks": str(len({record.task for record in selection.kept})),
        **{why.replace("_", " "): str(count) for why, count in Counter(selection.rejected.values()).most_common()},
    }
    return render_review(
        (config.experiment_name, f"{config.name}, round {config.round}"), facts, REVIEW,
        [shown_edit(record, tasks[record.task]) for record in selection.kept],
    )  # fmt: skip


def shown_edit(record: EditRecord, task: ArcTask) -> ReviewedEdit:
    """An edit as the pages show it."""
    assert record.source is not None
    return ReviewedEdit(
        record.id, f"{record.r0:.3f} to {record.r1:.3f}", record.parent_source, record.source, record.thinking,
        [_pair(task, number, rows) for number, rows in enumerate(record.grids)],
    )  # fmt: skip


def _pair(task: ArcTask, number: int, rows: Sequence[str] | None) -> ShownPair:
    pair = task.demos[number]
    assert pair.output is not None
    answer = None if rows is None else np.array([[int(cell) for cell in row] for row in rows], np.uint8)
    return ShownPair(pair.input, pair.output, answer)


def review_path(config: ProgramEditConfig) -> Path:
    return config.file_of("select", config.round, REVIEW)
