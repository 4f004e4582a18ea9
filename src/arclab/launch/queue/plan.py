"""A job file with its configurations: what every run is, what differs between runs, and whether all of it can be started.

    plan = read_plan(Path("jobs.txt"), "toy*")           # JobsError with every mistake, by line and column
    columns = ablation_columns(plan.runs)                # what differs, a column for each independent key

Refused are: keys and values that the schema refuses, two lines that build the same run, a run folder that two lines or another
configuration claim, and a checkpoint that neither exists nor is made by a run of the file. It starts nothing.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError, flat, identity, other_run
from arclab.config.plain_composer import PlainComposer
from arclab.config.run import RunConfig
from arclab.files import DamagedFile, sentence_of
from arclab.launch.queue.jobsfile import JobLine, JobsError, Problem, parse_jobs
from arclab.runs.folder import RunDir, State, how_to_continue

# Where a run lies and how it is started: no difference in what is trained.
LABEL_KEYS = ("name", "runs_dir", "output_dir", "wandb.", "launch.", "criterion")
# Columns of the matrix that stand for all they decide and no line sets.
_LEADING_KEYS = ("experiment_name", "encoder.kind", "decoder_init.kind")


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run, typed. makers: the folders of the runs of the same file that make what it needs, and are not DONE yet. damage:
    why the config.yaml of its folder cannot be read; "" if it can."""

    job: JobLine
    config: RunConfig
    makers: tuple[Path, ...]
    damage: str = ""

    @property
    def name(self) -> str:
        return self.config.title[1]

    @property
    def full_name(self) -> str:
        """With the experiment in front."""
        return "/".join(self.config.title)

    @property
    def folder(self) -> RunDir:
        return RunDir(self.config.folder)


@dataclass(frozen=True, slots=True)
class JobsPlan:
    """The runs of a file that were asked for, in the file's order; num_runs counts those of the whole file.

    notes: what is no mistake but may not be meant.
    """

    path: Path
    runs: tuple[PlannedRun, ...]
    num_runs: int
    notes: tuple[Problem, ...]


def read_plan(path: Path, *names: str) -> JobsPlan:
    """The checked plan of the runs with these names or patterns, without any of all runs. JobsError: all mistakes of the file,
    or those of their lines and of the syntax."""
    jobs, problems = parse_jobs(path)
    composer = PlainComposer()
    composed: list[tuple[JobLine, RunConfig]] = []
    for job in jobs:
        try:
            composed += _with_shards(composer, job)
        except ConfigError as error:
            problems += _problems_of(job, error, names)
    wanted = [(job, config) for job, config in composed if _is_wanted(config, names)]
    problems += _same_runs(wanted) + _claimed_folders(wanted, composer) + _missing_checkpoints(wanted, composed)
    problems += _circles(wanted, composed)
    if problems:
        raise JobsError(path, list(dict.fromkeys(problems)))
    for name in names:
        if not any(_is_wanted(config, [name]) for _, config in composed):
            shown = [config.title[1] for _, config in composed[:8]]
            known = ", ".join([*shown, *(["..."] if len(shown) < len(jobs) else [])])
            raise ConfigError(f"{name} is neither a file nor the name of one of the {len(jobs)} runs of {path} ({known}).")
    folders = {_real(config.folder): config.folder for _, config in composed}
    runs = tuple(PlannedRun(job, config, _open_makers(config, folders), _damage(config, composer)) for job, config in wanted)
    return JobsPlan(path, runs, len(composed), tuple(dict.fromkeys(note for run in runs for note in _notes(run.job, composer))))


def _notes(job: JobLine, composer: PlainComposer) -> list[Problem]:
    sentences = composer.overruled(job.entry, job.overrides)
    return [Problem(job.line, job.column_of(sentence.partition("=")[0]), sentence) for sentence in sentences]


def _with_shards(composer: PlainComposer, job: JobLine) -> list[tuple[JobLine, RunConfig]]:
    """The run of a line; before it, where launch.shards divides it, its shards."""
    config = _compose(composer, job)
    if not config.launch.is_divided:
        return [(job, config)]
    own = tuple(override for override in job.overrides if not override.lstrip("+").startswith("launch.shard="))
    shards = [replace(job, overrides=(*own, f"launch.shard={number}")) for number in range(config.launch.shards)]
    return [*((shard, _compose(composer, shard)) for shard in shards), (job, config)]


def _compose(composer: PlainComposer, job: JobLine) -> RunConfig:
    """ConfigError also if the run's folder is not known yet."""
    config = composer.compose(job.entry, job.overrides)
    try:
        _ = config.folder
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    wandb = getattr(config, "wandb", None)
    if wandb is not None and wandb.group is None and job.section.title:
        wandb.group = job.section.title
    return config


def _is_wanted(config: RunConfig, names: Sequence[str]) -> bool:
    own = (config.title[1], "/".join(config.title))
    return not names or any(fnmatchcase(each, name) for each in own for name in names)


def _problems_of(job: JobLine, error: ConfigError, names: Sequence[str]) -> list[Problem]:
    """One for every sentence. Without its experiment's name a broken line is matched by name alone."""
    if names and job.name and not any(fnmatchcase(job.name, name.rpartition("/")[2]) for name in names):
        return []
    return [Problem(job.line, job.column_of(sentence), sentence) for sentence in str(error).splitlines()]


def _same_runs(runs: Sequence[tuple[JobLine, RunConfig]]) -> list[Problem]:
    """Two lines that train the same thing, whatever they are called."""
    seen: dict[str, tuple[JobLine, str]] = {}
    problems = []
    for job, config in runs:
        keys = {k: v for k, v in identity(config).items() if k not in ("name", "experiment_name")}
        same = json.dumps([job.entry, config.launch.shard, keys], sort_keys=True)
        first, name = seen.setdefault(same, (job, config.title[1]))
        if first is not job:
            text = f"{config.title[1]} builds the same run as {name} (line {first.line}); change a setting or drop one."
            problems.append(Problem(job.line, job.column, text))
    return problems


def _claimed_folders(runs: Sequence[tuple[JobLine, RunConfig]], composer: PlainComposer) -> list[Problem]:
    """Run folders that two lines share, or that hold a run of another configuration."""
    seen: dict[Path, JobLine] = {}
    problems = []
    for job, config in runs:
        path = config.folder
        first = seen.setdefault(_real(path), job)
        column = job.column_of("name")
        if first is not job:
            problems.append(
                Problem(
                    job.line,
                    column,
                    f"name={config.title[1]} is also the name in line {first.line}, so both have the folder {path}; rename "
                    "one.",
                )
            )
        elif RunDir(path).config.is_file():
            problems += [Problem(job.line, column, text) for text in _other_configuration(path, config, composer)]
    return problems


def _other_configuration(path: Path, config: RunConfig, composer: PlainComposer) -> list[str]:
    try:
        held = composer.thaw(RunDir(path).config)
    except ConfigError:
        return []  # no fault of the line: see _damage
    other, how = other_run(held, config, says="this line says"), how_to_continue(RunDir(path))
    return [f"the run folder {path} was made with {other}; choose another name, or remove the folder{how}."] if other else []


def _damage(config: RunConfig, composer: PlainComposer) -> str:
    """Why the configuration in the run's folder cannot be read: the fault of that run alone, not of the file."""
    path = config.folder
    if not RunDir(path).config.exists():
        return ""
    try:
        composer.thaw(RunDir(path).config)
    except ConfigError as error:
        return (
            f"the run folder {path} has a config.yaml that cannot be read ({str(error).splitlines()[0].rstrip('.')}); choose "
            "another name, or remove the folder."
        )
    except OSError as error:
        return sentence_of(error)
    return ""


def _real(path: Path) -> Path:
    """Without links; as it is where they go round in a circle, which Path.resolve answers with a RuntimeError."""
    return Path(os.path.realpath(path))


def _missing_checkpoints(
    runs: Iterable[tuple[JobLine, RunConfig]], all_runs: Sequence[tuple[JobLine, RunConfig]]
) -> list[Problem]:
    makers = {_real(config.folder) for _, config in all_runs}
    problems = []
    for job, config in runs:
        for key, path in config.inputs().items():
            if not path.exists() and _maker(path, makers) is None:
                text = (
                    f"{key}={path} does not exist and no line of this file makes it; give a run folder or a file that is there."
                )
                problems.append(Problem(job.line, job.column_of(key), text))
    return problems


def _circles(runs: Iterable[tuple[JobLine, RunConfig]], all_runs: Sequence[tuple[JobLine, RunConfig]]) -> list[Problem]:
    """Lines that wait for each other's results, or for their own: none of them could ever start."""
    jobs = {_real(config.folder): (job, config) for job, config in all_runs}
    makers, titles = set(jobs), {id(job): config.title[1] for job, config in all_runs}
    problems = []
    for job, config in runs:
        for key, path in _open_inputs(config, makers).items():
            if chain := _way_back(job, path, jobs):
                names = ", which waits for ".join(f"{titles[id(j)]} (line {j.line})" for j in chain)
                text = (
                    f"{key}: {titles[id(job)]} waits for {names}: none of them can ever start; take another run's checkpoint."
                )
                problems.append(Problem(job.line, job.column_of(key), text))
    return problems


def _way_back(job: JobLine, path: Path, jobs: Mapping[Path, tuple[JobLine, RunConfig]]) -> list[JobLine]:
    """The lines from the one that makes the path, each waiting for the next, to the job itself; empty if none leads there."""
    makers, seen = set(jobs), set[int]()

    def search(path: Path) -> list[JobLine]:
        folder = _maker(path, makers)
        assert folder is not None
        maker, config = jobs[folder]
        if maker is job:
            return [job]
        if id(maker) in seen:
            return []
        seen.add(id(maker))
        found = next(filter(None, map(search, _open_inputs(config, makers).values())), [])
        return [maker, *found] if found else []

    return search(path)


def _maker(path: Path, makers: set[Path]) -> Path | None:
    """The run folder among `makers` that the path is, or lies in."""
    return next((folder for folder in (_real(path), *_real(path).parents) if folder in makers), None)


def _open_makers(config: RunConfig, folders: Mapping[Path, Path]) -> tuple[Path, ...]:
    """The folders of the runs that make what is still to be made. folders: the same without links."""
    makers = (_maker(path, set(folders)) for path in _open_inputs(config, set(folders)).values())
    return tuple(dict.fromkeys(folders[maker] for maker in makers if maker is not None))


def _open_inputs(config: RunConfig, makers: set[Path]) -> dict[str, Path]:
    """The inputs that runs of the file still have to make."""
    found = {key: (path, _maker(path, makers)) for key, path in config.inputs().items()}
    return {key: path for key, (path, maker) in found.items() if maker is not None and not _is_done(RunDir(maker))}


def _is_done(run: RunDir) -> bool:
    """Not if its status is damaged: that is said where the run itself is shown."""
    try:
        return run.state is State.done
    except DamagedFile:
        return False


@dataclass(frozen=True, slots=True)
class Column:
    """A key with its value in every run ("" where a run does not have it). decided: keys that follow from it."""

    key: str
    values: tuple[str, ...]
    decided: tuple[str, ...]


def ablation_columns(runs: Sequence[PlannedRun], *, fold: bool = True) -> list[Column]:
    """A column for every key that is not the same in all runs.

    With fold, a key that no line sets stands behind the column that decides it: the experiment, the encoder kind, the decoder
    init, or any column it always changes together with.
    """
    settings = [flat(run.config) for run in runs]
    keys = [k for k in dict.fromkeys(k for s in settings for k in s) if not k.startswith(LABEL_KEYS)]
    values = {key: tuple(_text(s[key]) if key in s else "" for s in settings) for key in keys}
    differing = {key: row for key, row in values.items() if len(set(row)) > 1}
    if not fold:
        return [Column(key, row, ()) for key, row in differing.items()]
    return _folded(differing, {word.key for run in runs for word in run.job.words})


def _folded(differing: dict[str, tuple[str, ...]], set_by_lines: set[str]) -> list[Column]:
    leading = [key for key in _LEADING_KEYS if key in differing]
    columns: dict[str, list[str]] = {key: [] for key in leading}
    for key in differing:
        owner = None if key in set_by_lines else next((k for k in columns if k != key and _decides(k, key, differing)), None)
        if owner is None:
            columns[key] = []
        elif key not in columns:
            columns[owner].append(key)
    return [Column(key, differing[key], tuple(decided)) for key, decided in columns.items()]


def _decides(owner: str, key: str, rows: dict[str, tuple[str, ...]]) -> bool:
    """Equal values of the owner never come with different values of the key; of an ordinary owner, nor the other way round."""
    num_pairs = len(set(zip(rows[owner], rows[key], strict=True)))
    return num_pairs == len(set(rows[owner])) and (owner in _LEADING_KEYS or num_pairs == len(set(rows[key])))


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def by_entry(runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Runs that have the same keys together: those of one entry."""
    entries = dict.fromkeys(run.job.entry for run in runs)
    return [[run for run in runs if run.job.entry == entry] for entry in entries]


def by_section(runs: Sequence[PlannedRun]) -> list[tuple[Any, list[PlannedRun]]]:
    """(section, its runs) in the order of the file."""
    grouped = itertools.groupby(runs, key=lambda run: run.job.section)
    return [(section, list(members)) for section, members in grouped]
