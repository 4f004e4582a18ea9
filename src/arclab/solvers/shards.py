"""An evaluation in shards: which tasks each process has, and how what they drew becomes one.

    mine = share_of(tasks, number=0, count=4)                    # balanced by what tasks are expected to cost
    for part in parts_to_solve(tasks, config, folder): ...       # with launch.steal also tasks of others
    merge_shards(config, folder, {"samples.jsonl": KIND})        # everything that the shards drew, in the whole's folder

A shard keeps what it draws in its own folder, FOLDER/shards/NUMBER_of_COUNT, and scores nothing. The whole merges the shards'
files into its own and goes on as if it had drawn all of them itself: what is missing would be drawn then. arclab.launch.shards
starts the processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from arclab.config.compose import ConfigError, thaw_run
from arclab.config.launch_schema import SHARDS
from arclab.config.llm_schema import EvaluateLmConfig
from arclab.data.tasks import ArcTask
from arclab.files import naming
from arclab.runs.folder import RunDir, State
from arclab.runs.worklist import ItemKind, merge

CLAIMS = "claims"
_PARTS = 8  # into which a shard's tasks are divided where others may take some


def expected_cost(task: ArcTask) -> int:
    """In cells of all grids that a prompt shows: what is read, and about what has to be thought about."""
    return sum(pair.input.size + pair.output.size for pair in task.demos) + sum(pair.input.size for pair in task.tests)


def share_of(tasks: Sequence[ArcTask], number: int, count: int) -> tuple[ArcTask, ...]:
    """The tasks of shard `number` of `count`, in their order. The costliest task goes to the shard that has least so far. It
    depends on the tasks alone. ConfigError: more shards than tasks."""
    if count > len(tasks):
        raise ConfigError(f"launch.shards={count} is more than the {len(tasks)} tasks; give at most {len(tasks)}.")
    loads, owner = [0] * count, dict[str, int]()
    for task in sorted(tasks, key=lambda task: (-expected_cost(task), task.id)):
        least = min(range(count), key=lambda each: (loads[each], each))
        loads[least] += expected_cost(task)
        owner[task.id] = least
    return tuple(task for task in tasks if owner[task.id] == number)


def parts_to_solve(tasks: Sequence[ArcTask], config: EvaluateLmConfig, whole: Path) -> Iterator[tuple[ArcTask, ...]]:
    """What this shard solves, one part after the other. whole: the folder of all shards. Without launch.steal: its share, at
    once. With it a task is claimed before it is begun, by a file that one process alone can make; a shard that is done goes on
    with what the others have not claimed, from their ends."""
    launch = config.launch
    assert launch.shard is not None
    mine = share_of(tasks, launch.shard, launch.shards)
    if not launch.steal:
        yield mine
        return
    claims = Claims(whole / SHARDS / CLAIMS, launch.shard)
    size = max(1, len(mine) // _PARTS)
    others = [share_of(tasks, number, launch.shards)[::-1] for number in range(launch.shards) if number != launch.shard]
    for share in (mine, *others):
        for start in range(0, len(share), size):
            if part := tuple(task for task in share[start : start + size] if claims.take(task.id)):
                yield part


class Claims:
    """Who has begun which task: a file for each in a folder that all shards see."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number = folder, number

    def take(self, task_id: str) -> bool:
        """Is the task this shard's? Also after a kill: a claim stays its own."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / hashlib.sha256(task_id.encode()).hexdigest()[:24]
        try:
            with naming(path), path.open("x", encoding="utf-8") as file:
                file.write(str(self._number))
        except FileExistsError:
            return path.read_text(encoding="utf-8").strip() == str(self._number)
        return True


def merge_shards(config: EvaluateLmConfig, whole: Path, stores: Mapping[str, ItemKind]) -> None:
    """Adds what all shards drew to the whole's own files. stores: {pattern of files below the folder: what they hold}.
    ConfigError: a shard is not DONE, or was made with other settings."""
    folders = [config.launch.shard_folder(whole, number) for number in range(config.launch.shards)]
    for number, folder in enumerate(folders):
        _require_done(folder, number, config.launch.shards)
    for pattern, kind in stores.items():
        parts: dict[Path, list[Path]] = {}
        for folder in folders:
            for path in sorted(folder.glob(pattern)):
                parts.setdefault(whole / path.relative_to(folder), []).append(path)
        for target, paths in parts.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            merge(paths, target, kind)


def begin_with_whole(folder: Path, whole: Path, stores: Mapping[str, ItemKind]) -> None:
    """A shard that has nothing yet begins with what the whole has drawn before it was divided."""
    for pattern, kind in stores.items():
        if any(folder.glob(pattern)):
            continue
        for path in sorted(whole.glob(pattern)):
            target = folder / path.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            merge([path], target, kind)


def _require_done(folder: Path, number: int, count: int) -> None:
    run = RunDir(folder)
    state = run.state
    if state is not State.done:
        found = "was not started" if state is None else f"is {state.value}"
        raise ConfigError(
            f"shard {number} of {count} {found} ({folder}); give the command with launch.shards={count} again, which runs only "
            "what is missing."
        )
    thaw_run(run.config)  # damaged, or of another version
