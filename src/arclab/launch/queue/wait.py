"""Wait for the runs of a plan that were submitted, and hand each over as it ends.

    for run, progress in wait_until_ended(plan.runs, on_change=show):
        score(run.folder, progress.state)

It reads run folders and the queue only, so the jobs go on if the one who waits is killed, and can be waited for again. It
submits nothing and ends nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from arclab.launch.queue.plan import PlannedRun
from arclab.launch.queue.progress import OPEN_STATES, RunProgress, living_jobs, read_progress
from arclab.runs.statewords import LOST

POLL_S = 2.0
OnChange = Callable[[Sequence[tuple[PlannedRun, RunProgress]]], None]


def wait_until_ended(
    runs: Sequence[PlannedRun], on_change: OnChange | None = None, *, poll_s: float = POLL_S
) -> Iterator[tuple[PlannedRun, RunProgress]]:
    """Each run once, when nothing of it is queued or running, in the order of their ends: it may be DONE, failed, never
    submitted (NEW), or damaged.

    on_change: called with all runs, in their order, when the state or step of one is another than at the last look. poll_s:
    seconds between two looks. LOST is believed when it is seen twice: a queue and a shared disk can be seconds apart.
    """
    latest: dict[Path, RunProgress] = {}
    waiting = {run.folder.path: run for run in runs}
    while waiting:
        before = dict(latest)
        latest |= _look_at(list(waiting.values()))
        if on_change is not None and _steps(latest) != _steps(before):
            on_change([(run, latest[run.folder.path]) for run in runs])
        ended = [path for path in waiting if has_ended(latest[path], before.get(path))]
        for path in ended:
            yield waiting.pop(path), latest[path]
        if not ended:
            time.sleep(poll_s)


def _look_at(runs: Sequence[PlannedRun]) -> dict[Path, RunProgress]:
    living = living_jobs(runs, must_know=False)
    return {run.folder.path: read_progress(run, living.get(run.folder.path)) for run in runs}


def has_ended(now: RunProgress, before: RunProgress | None) -> bool:
    """before: of the last look, None at the first."""
    if now.state == LOST:
        return before is not None and before.state == LOST
    return now.state not in OPEN_STATES


def _steps(progress: Mapping[Path, RunProgress]) -> dict[Path, tuple[str, int]]:
    return {path: (p.state, p.step) for path, p in progress.items()}
