"""An evaluation, or a stage of self_improve.py, in shards: which tasks each process solves, and how what they drew becomes one.

    for part in parts_to_solve(tasks, config, folder): ...       # with launch.steal also tasks of others
    merge_shards(config, folder, {"samples.jsonl": KIND})        # everything that the shards drew, in the whole's folder

    tasks = tasks_of_stage(tasks, config)                        # a stage: the shard's, or all
    begin_stage(config, folder, {"trees/*.jsonl": KIND})         # before it draws what its folder lacks

A shard keeps what it draws in its own folder, FOLDER/shards/NUMBER_of_COUNT, and scores nothing. The whole merges the shards'
files into its own and goes on as if it had drawn all of them itself: what is missing would be drawn then. A stage's manifest is
the whole's. arclab.launch.shards starts the processes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from arclab.config.compose import ConfigError, thaw_run
from arclab.config.launch_schema import SHARDS
from arclab.config.llm_schema import EvaluateLmConfig
from arclab.config.run import RunConfig
from arclab.config.stages_schema import StagedConfig
from arclab.data.shares import expected_cost, share_of
from arclab.data.tasks import ArcTask
from arclab.files import naming, write_atomically
from arclab.results.attempts import Attempts
from arclab.runs import slurm
from arclab.runs.folder import RunDir, State
from arclab.runs.stages import Made
from arclab.runs.worklist import ItemKind, merge

CLAIMS, RECORD, MERGE_RECORD = "claims", "shard.json", "merge.json"
_PARTS = 8  # into which a shard's tasks are divided where others may take some


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


class ShardRecord:
    """What a shard measures of itself, in shard.json of its folder: for arclab.launch.queue.simulate. start_s: from the start
    of its job to its first task. ended_s: Unix time."""

    def __init__(self, folder: Path) -> None:
        self._path, self._begun_s = folder / RECORD, time.time()
        self._record = {"tasks": 0, "cost": 0.0, "programs": 0.0, "tokens": 0.0, "solve_s": 0.0}
        self._start_s = self._begun_s - _job_began_s()

    def add(self, part: Sequence[ArcTask], attempts: Attempts) -> None:
        programs, tokens = (attempts.statistics.get(name, 0.0) for name in ("programs/count", "programs/tokens"))
        self.add_work(len(part), sum(map(expected_cost, part)), programs=programs, tokens=tokens)

    def add_work(self, tasks: int, cost: float, *, programs: float = 0.0, tokens: float = 0.0) -> None:
        """cost: expected, by which tasks were divided."""
        for name, more in {"tasks": tasks, "cost": cost, "programs": programs, "tokens": tokens}.items():
            self._record[name] += more

    def write(self) -> None:
        ended_s = time.time()
        record = {**self._record, "solve_s": ended_s - self._begun_s, "start_s": self._start_s, "ended_s": ended_s}
        write_atomically(self._path, json.dumps(record, indent=1) + "\n")


def merge_shards(config: RunConfig, whole: Path, stores: Mapping[str, ItemKind]) -> None:
    """Adds what all shards drew to the whole's own files. stores: {pattern of files below the folder: what they hold}.
    ConfigError: a shard is not DONE, or was made with other settings. Of a run that is not divided: nothing."""
    folders = list(config.launch.shard_folders(whole).values())
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


def tasks_of_stage(tasks: tuple[ArcTask, ...], config: StagedConfig) -> tuple[ArcTask, ...]:
    """What this process draws for. ValueError: more shards than tasks."""
    launch = config.launch
    return tasks if launch.shard is None else share_of(tasks, launch.shard, launch.shards)


def begin_stage(config: StagedConfig, folder: Path, stores: Mapping[str, ItemKind]) -> None:
    """What has been drawn already comes into the stage's folder. ConfigError: see merge_shards."""
    if config.launch.shard is not None:
        begin_with_whole(folder, config.whole_folder, stores)
    elif config.launch.is_divided:
        merge_shards(config, folder, stores)


def made_by_shard(config: StagedConfig, num_tasks: int) -> Made:
    """Its files are for the whole, which reads them; nobody else does."""
    told = f"shard {config.launch.shard} of {config.launch.shards}: {num_tasks} tasks"
    return Made(outputs=(), counts={"tasks": float(num_tasks)}, message=told)


def write_merge_time(whole: Path) -> None:
    """How long the whole took that scored the shards, from the start of its job."""
    seconds = time.time() - _job_began_s()
    write_atomically(whole / MERGE_RECORD, json.dumps({"seconds": seconds}) + "\n")


def _job_began_s() -> float:
    """When the program began that started this process: what SLURM runs, or torchrun (on this machine a job begins long before,
    and waits for its place); or this process, if nobody started it so."""
    starter, process = "submitit" if slurm.job_id() else "torch.distributed.run", psutil.Process()
    found = [process.create_time()]
    for parent in process.parents():
        with suppress(psutil.Error):
            found += [parent.create_time()] if starter in " ".join(parent.cmdline()) else []
    return min(found)


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
