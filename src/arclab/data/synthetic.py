"""Toy tasks: procedural few-shot tasks whose rule can only be read from the demonstrations. A positive control for encoders.

    tasks = load_toy("toy:color_map+dihedral?tasks=1000&side=4&colors=4&palette=4&demos=3&tests=1&split=train&seed=0")

Inputs are side x side grids of the colours 0..colors-1, where 0 is the empty cell. Families, by rising difficulty:
    color_map        an injective map of the input colours into the colours 0..palette-1 (palette=colors unless given)
    dihedral         one of the seven flips and rotations
    translate        a shift by up to two cells a side (never none); what leaves is lost, what is freed is empty
    crop             the box of all that is not empty, or a fixed window, or the box of one colour
    lines            from every marked cell a line in one direction to the edge, of one colour, on empty cells
    dihedral_color, translate_color, crop_dihedral    the first rule, then the second; dihedral_color has the identity view too
    mirror_color, flips_color    dihedral_color with fewer views: the identity and one flip; the identity, both flips and the
                     half turn. Steps on the way to dihedral_color; a task is identifiable among all eight views
A rule is a geometry (view, shift, crop, line) and a colour map; a task shows one rule in `demos` pairs and asks for `tests`.

Identifiable: a draw is rejected if another geometry of its family also explains all demonstrations (under any injective
colour map where the family has one), or if a test uses a colour that no demonstration shows. This holds for all
demonstrations together, not for subsets of them: train with dataset.query_rule=test_pairs.

Held out: a fixed hash puts each rule and each input grid into train (70 %), test (20 %) or validation (10 %), whatever the
seed and family. A task of a split has a rule of that split (for compositions: a combination) and only input grids of it.
Two families have too few rules for that, dihedral and crop: their held-out tasks share the rules and have unseen grids.

A source is a pure function of its string, a smaller `tasks` is its beginning. `tasks` counts those of each family; families
take turns in the list. Ids: toy_dihedral_00012; other splits and seeds are named: toy_dihedral_test_s3_00012.
It does not make real ARC tasks, and says nothing about them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt

from arclab.data.augment import NUM_DIHEDRAL
from arclab.data.tasks import MAX_SIDE, NUM_COLORS, ArcTask, Pair

# (..., side, side) uint8; an output smaller than side x side lies in the top-left corner, BLANK around it.
Grids = npt.NDArray[np.uint8]
BLANK = np.uint8(255)
SPLITS = ("train", "test", "validation")
_FIRST_BUCKET = {"test": (0, 2), "validation": (2, 3), "train": (3, 10)}  # of ten
# Tasks drawn at a time, before rejection. Part of what a source string means: another value gives other tasks.
_CHUNK = 1024
_RULE_DRAWS = 12  # rules drawn per task: enough for the rarest split
_MAX_CHUNKS_WITHOUT_TASK = 20
_MAX_SHIFT, _WINDOW_SIDES, _WINDOW_STARTS = 2, (2, 3), (0, 1, 2)
_DIRECTIONS = {"n": (-1, 0), "ne": (-1, 1), "e": (0, 1), "se": (1, 1), "s": (1, 0), "sw": (1, -1), "w": (0, -1), "nw": (-1, -1)}
_MARKS = 3.0  # expected marked cells of a lines grid


@dataclass(frozen=True, slots=True)
class Geometry:
    """What happens to the cells, colours aside. `kind`s are equally likely; one with kind None is never drawn, but it
    counts when a draw is checked for ambiguity."""

    name: str
    kind: str | None
    apply: Callable[[Grids], Grids]


@dataclass(frozen=True, slots=True)
class Family:
    """geometries(side, colors): all there are. draw: input grids. has_unseen_rules: see the module's docstring."""

    geometries: Callable[[int, int], list[Geometry]]
    draw: Callable[[np.random.Generator, int, int, int], Grids]
    maps_colors: bool
    has_unseen_rules: bool = True


@dataclass(frozen=True, slots=True)
class ToySource:
    """A parsed source string."""

    families: tuple[str, ...]
    tasks: int = 1000
    side: int = 4
    colors: int = 4
    palette: int = 4
    demos: int = 3
    tests: int = 1
    split: str = "train"
    seed: int = 0


# What happens to the cells ------------------------------------------------------------------------------------------------


def anchor(grids: Grids) -> Grids:
    """What is not BLANK (a rectangle per grid) moved to the top-left corner."""
    shown = grids != BLANK
    if shown.all():
        return grids
    side = np.arange(grids.shape[-1])
    first_row, first_column = shown.any(-1).argmax(-1), shown.any(-2).argmax(-1)
    rows, columns = first_row[..., None] + side, first_column[..., None] + side
    padded = np.pad(grids, [(0, 0)] * (grids.ndim - 2) + [(0, len(side))] * 2, constant_values=BLANK)
    moved = np.take_along_axis(padded, rows[..., None], axis=-2)
    return np.take_along_axis(moved, columns[..., None, :], axis=-1)


def view(index: int, grids: Grids) -> Grids:
    """Dihedral view `index` (numbered as in arclab.data.augment) of every grid."""
    if index < 4:
        turned = np.rot90(grids, index, axes=(-2, -1))
    elif index < 6:
        turned = np.flip(grids, axis=-1 if index == 4 else -2)
    else:
        turned = grids.swapaxes(-1, -2) if index == 6 else np.flip(np.rot90(grids, axes=(-2, -1)), axis=-1)
    return anchor(turned)


def shift(rows: int, columns: int, grids: Grids) -> Grids:
    """Moved down by `rows` and right by `columns` (negative: up, left); freed cells are 0."""
    moved = np.zeros_like(grids)
    height, width = grids.shape[-2:]
    to_rows, to_columns = slice(max(rows, 0), height + min(rows, 0)), slice(max(columns, 0), width + min(columns, 0))
    from_rows, from_columns = slice(max(-rows, 0), height + min(-rows, 0)), slice(max(-columns, 0), width + min(-columns, 0))
    moved[..., to_rows, to_columns] = grids[..., from_rows, from_columns]
    return moved


def crop_window(row: int, column: int, height: int, width: int, grids: Grids) -> Grids:
    window = np.full_like(grids, BLANK)
    window[..., :height, :width] = grids[..., row : row + height, column : column + width]
    return window


def crop_box(color: int | None, grids: Grids) -> Grids:
    """The smallest box around all cells of `color` (None: around all that are not 0); all BLANK where there are none."""
    wanted = grids > 0 if color is None else grids == color
    spans = []
    for axis in (-1, -2):
        hit = np.asarray(wanted.any(axis=axis))
        spans.append(np.logical_or.accumulate(hit, -1) & np.logical_or.accumulate(hit[..., ::-1], -1)[..., ::-1])
    return anchor(np.where(spans[0][..., :, None] & spans[1][..., None, :], grids, BLANK))


def draw_lines(direction: str, color: int, grids: Grids) -> Grids:
    """From every cell above 0 a line to the edge; cells above 0 stay as they are."""
    down, right = _DIRECTIONS[direction]
    marks = (grids > 0).astype(np.uint8)
    rays = np.zeros_like(marks)
    for distance in range(1, grids.shape[-1]):
        rays |= shift(distance * down, distance * right, marks)
    return np.where((grids == 0) & (rays > 0), np.uint8(color), grids)


def _then(first: Callable[[Grids], Grids], second: Callable[[Grids], Grids], grids: Grids) -> Grids:
    return second(first(grids))


def _views(side: int, colors: int) -> list[Geometry]:
    names = ["identity", *(f"view{index}" for index in range(1, NUM_DIHEDRAL))]
    return [Geometry(name, "view", partial(view, index)) for index, name in enumerate(names)]


def _some_views(kept: Collection[int], side: int, colors: int) -> list[Geometry]:
    return [replace(g, kind=g.kind if index in kept else None) for index, g in enumerate(_views(side, colors))]


def _identity(side: int, colors: int) -> list[Geometry]:
    return _views(side, colors)[:1]


def _true_views(side: int, colors: int) -> list[Geometry]:
    identity, *others = _views(side, colors)
    return [Geometry(identity.name, None, identity.apply), *others]


def _shifts(side: int, colors: int) -> list[Geometry]:
    steps = range(-_MAX_SHIFT, _MAX_SHIFT + 1)
    true_shifts = [
        Geometry(f"shift{r:+d}{c:+d}", "shift", partial(shift, r, c)) for r, c in product(steps, steps) if (r, c) != (0, 0)
    ]
    return [Geometry("identity", None, partial(view, 0)), *true_shifts]


def _crops(side: int, colors: int) -> list[Geometry]:
    spans = [(start, size) for start in _WINDOW_STARTS for size in _WINDOW_SIDES if start + size <= side and size < side]
    windows = [
        Geometry(f"window_{r}_{c}_{h}_{w}", "window", partial(crop_window, r, c, h, w))
        for (r, h), (c, w) in product(spans, spans)
    ]
    boxes = [Geometry(f"box_of_{color}", "box_of_color", partial(crop_box, color)) for color in range(1, colors)]
    return [Geometry("box", "box", partial(crop_box, None)), *windows, *boxes]


def _lines(side: int, colors: int) -> list[Geometry]:
    return [
        Geometry(f"line_{direction}_{color}", "line", partial(draw_lines, direction, color))
        for direction, color in product(_DIRECTIONS, range(1, NUM_COLORS))
    ]


def _crop_views(side: int, colors: int) -> list[Geometry]:
    return [
        Geometry(f"{crop.name} {turn.name}", crop.kind if turn.kind else None, partial(_then, crop.apply, turn.apply))
        for crop, turn in product(_crops(side, colors), _true_views(side, colors))
    ]


# Input grids --------------------------------------------------------------------------------------------------------------


def _draw_full(rng: np.random.Generator, count: int, side: int, colors: int) -> Grids:
    return rng.integers(0, colors, (count, side, side), dtype=np.uint8)


def _draw_patch(rng: np.random.Generator, count: int, side: int, colors: int) -> Grids:
    """A rectangle of random cells, empty around it."""
    ends = np.sort(rng.random((count, 2, side)).argsort(axis=-1)[..., :2], axis=-1)  # two different places per axis
    place = np.arange(side)
    inside = (place >= ends[..., :1]) & (place <= ends[..., 1:])
    rows, columns = np.moveaxis(inside, 1, 0)
    return _draw_full(rng, count, side, colors) * (rows[:, :, None] & columns[:, None, :])


def _draw_marks(rng: np.random.Generator, count: int, side: int, colors: int) -> Grids:
    """A few marked cells, at least one."""
    marked = rng.random((count, side, side)) < _MARKS / side**2
    row, column = rng.integers(0, side, (2, count))
    marked[np.arange(count), row, column] = True
    return rng.integers(1, colors, (count, side, side), dtype=np.uint8) * marked


FAMILIES: dict[str, Family] = {
    "color_map": Family(_identity, _draw_full, maps_colors=True),
    "dihedral": Family(_true_views, _draw_full, maps_colors=False, has_unseen_rules=False),
    "translate": Family(_shifts, _draw_full, maps_colors=False),
    "crop": Family(_crops, _draw_patch, maps_colors=False, has_unseen_rules=False),
    "lines": Family(_lines, _draw_marks, maps_colors=False),
    "mirror_color": Family(partial(_some_views, (0, 4)), _draw_full, maps_colors=True),
    "flips_color": Family(partial(_some_views, (0, 2, 4, 5)), _draw_full, maps_colors=True),
    "dihedral_color": Family(_views, _draw_full, maps_colors=True),
    "translate_color": Family(_shifts, _draw_full, maps_colors=True),
    "crop_dihedral": Family(_crop_views, _draw_patch, maps_colors=False),
}


def has_unseen_rules(task: ArcTask) -> bool:
    """Whether held-out tasks of this toy task's family have rules of their own (else only grids of their own)."""
    return FAMILIES[task.source.removeprefix("toy:")].has_unseen_rules


# The splits ---------------------------------------------------------------------------------------------------------------


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _in_split(codes: npt.NDArray[np.uint64], split: str) -> npt.NDArray[np.bool_]:
    low, high = _FIRST_BUCKET[split]
    bucket = _mix(codes) % np.uint64(10)
    return (bucket >= low) & (bucket < high)


def _row_codes(rows: npt.NDArray[np.uint8], start: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One number per row (N, M) of small values, from the numbers `start` (N,)."""
    weights = _mix(np.arange(1, rows.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
    return _mix(start + (rows.astype(np.uint64) + np.uint64(1)) @ weights)


def _draw_grids(family: Family, rng: np.random.Generator, count: int, source: ToySource) -> Grids:
    """(count, side, side) input grids of the split."""
    grids = family.draw(rng, count, source.side, source.colors)
    wrong = np.arange(count)
    for _ in range(1000):
        flat = grids[wrong].reshape(len(wrong), -1)
        wrong = wrong[~_in_split(_row_codes(flat, np.full(len(wrong), source.side, np.uint64)), source.split)]
        if len(wrong) == 0:
            return grids
        grids[wrong] = family.draw(rng, len(wrong), source.side, source.colors)
    raise ValueError(
        f"toy: side={source.side} and colors={source.colors} allow too few grids of split={source.split}; use a larger side "
        "or more colors."
    )


# Tasks --------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Chunk:
    """T tasks of P pairs (demonstrations first). geometry_T indexes `geometries`; maps_TC[old] = new colour, or None.

    moved_TPSS: the inputs after the geometry; outputs_TPSS: after the colour map too.
    """

    geometries: list[Geometry]
    geometry_T: npt.NDArray[np.int64]
    maps_TC: Grids | None
    inputs_TPSS: Grids
    moved_TPSS: Grids
    outputs_TPSS: Grids


def _draw_rules(
    family: Family, geometries: list[Geometry], rng: np.random.Generator, source: ToySource
) -> tuple[npt.NDArray[np.int64], Grids | None]:
    """Up to _CHUNK rules of the split: geometry numbers, and colour maps where the family has them."""
    count = _CHUNK * _RULE_DRAWS
    kinds = [g.kind for g in geometries]
    weights = np.array([0.0 if kind is None else 1.0 / kinds.count(kind) for kind in kinds])
    geometry = rng.choice(len(geometries), size=count, p=weights / weights.sum())
    names = np.array([zlib.crc32(g.name.encode()) for g in geometries], dtype=np.uint64)
    maps = None
    if family.maps_colors:
        maps = rng.random((count, source.palette)).argsort(axis=1)[:, : source.colors].astype(np.uint8)
    if family.has_unseen_rules:
        codes = _mix(names[geometry]) if maps is None else _row_codes(maps, names[geometry])
        kept = np.flatnonzero(_in_split(codes, source.split))
        geometry, maps = geometry[kept], None if maps is None else maps[kept]
    return geometry[:_CHUNK], None if maps is None else maps[:_CHUNK]


def _draw_chunk(family: Family, rng: np.random.Generator, source: ToySource) -> _Chunk:
    geometries = family.geometries(source.side, source.colors)
    geometry_T, maps_TC = _draw_rules(family, geometries, rng, source)
    tasks, pairs, side = len(geometry_T), source.demos + source.tests, source.side
    inputs = _draw_grids(family, rng, tasks * pairs, source).reshape(tasks, pairs, side, side)
    moved = np.empty_like(inputs)
    for number in np.unique(geometry_T):
        moved[geometry_T == number] = geometries[number].apply(inputs[geometry_T == number])
    outputs = moved
    if maps_TC is not None:
        outputs = np.take_along_axis(maps_TC, moved.reshape(tasks, -1).astype(np.int64), axis=1).reshape(moved.shape)
    return _Chunk(geometries, geometry_T, maps_TC, inputs, moved, outputs)


def _explained_by_a_map(moved: Grids, outputs: Grids) -> npt.NDArray[np.bool_]:
    """(T,) whether one injective colour map turns moved (T, D, S, S) into outputs. BLANK must meet BLANK only."""
    flat_in, flat_out = (
        np.minimum(g, NUM_COLORS).astype(np.int64).reshape(len(g), int(np.prod(g.shape[1:]))) for g in (moved, outputs)
    )
    seen = np.zeros((len(moved), NUM_COLORS + 1, NUM_COLORS + 1), dtype=bool)
    seen[np.arange(len(moved))[:, None], flat_in, flat_out] = True
    blank_is_blank = ~seen[:, NUM_COLORS, :NUM_COLORS].any(1) & ~seen[:, :NUM_COLORS, NUM_COLORS].any(1)
    return (seen.sum(1) <= 1).all(1) & (seen.sum(2) <= 1).all(1) & blank_is_blank


def explanations(geometries: Sequence[Geometry], inputs: Grids, outputs: Grids, *, maps_colors: bool) -> npt.NDArray[np.int64]:
    """(T,) how many of the geometries explain all demonstrations inputs -> outputs (T, D, S, S) of each task."""

    def explains(geometry: Geometry, rows: npt.NDArray[np.int64], demos: slice) -> npt.NDArray[np.int64]:
        moved, wanted = geometry.apply(inputs[rows, demos]), outputs[rows, demos]
        good = _explained_by_a_map(moved, wanted) if maps_colors else (moved == wanted).all((1, 2, 3))
        return rows[good]

    counts = np.zeros(len(inputs), dtype=np.int64)
    for geometry in geometries:
        after_first = explains(geometry, np.arange(len(inputs)), slice(0, 1))  # most drop out here
        counts[explains(geometry, after_first, slice(None))] += 1
    return counts


def _identifiable(family: Family, chunk: _Chunk, num_demos: int) -> npt.NDArray[np.bool_]:
    """(T,) tasks with one explanation, no empty output, and no colour in a test that the demonstrations do not show."""
    inputs, outputs = chunk.inputs_TPSS[:, :num_demos], chunk.outputs_TPSS[:, :num_demos]
    good = explanations(chunk.geometries, inputs, outputs, maps_colors=family.maps_colors) == 1
    good &= (chunk.outputs_TPSS[..., 0, 0] != BLANK).all(1)
    if family.maps_colors:
        rows = np.arange(len(good))[:, None]
        shown, asked = (np.zeros((len(good), NUM_COLORS), dtype=bool) for _ in range(2))
        shown[rows, chunk.moved_TPSS[:, :num_demos].reshape(len(good), -1)] = True
        asked[rows, chunk.moved_TPSS[:, num_demos:].reshape(len(good), -1)] = True
        good &= ~(asked & ~shown).any(1)
    return good


def _as_task(chunk: _Chunk, row: int, task_id: str, family: str, num_demos: int) -> ArcTask:
    rule = chunk.geometries[chunk.geometry_T[row]].name
    if chunk.maps_TC is not None:
        rule += " colors=" + "".join(map(str, chunk.maps_TC[row]))
    pairs = []
    for given, answer in zip(chunk.inputs_TPSS[row], chunk.outputs_TPSS[row], strict=True):
        height, width = int((answer[:, 0] != BLANK).sum()), int((answer[0] != BLANK).sum())
        pairs.append(Pair(given.copy(), answer[:height, :width].copy()))
    return ArcTask(task_id, tuple(pairs[:num_demos]), tuple(pairs[num_demos:]), f"toy:{family}", rule)


def _family_tasks(name: str, source: ToySource) -> list[ArcTask]:
    family, tasks, since_task = FAMILIES[name], [], 0
    prefix = "_".join(["toy", name, *([source.split] * (source.split != "train")), *([f"s{source.seed}"] * (source.seed > 0))])
    chunk_number = 0
    while len(tasks) < source.tasks:
        rng = np.random.default_rng([source.seed, zlib.crc32(f"{name} {source.split}".encode()), chunk_number])
        chunk_number += 1
        chunk = _draw_chunk(family, rng, source)
        good = np.flatnonzero(_identifiable(family, chunk, source.demos)) if len(chunk.geometry_T) else []
        tasks += [
            _as_task(chunk, int(row), f"{prefix}_{len(tasks) + place:05d}", name, source.demos)
            for place, row in enumerate(good[: source.tasks - len(tasks)])
        ]
        since_task = 0 if len(good) else since_task + 1
        if since_task == _MAX_CHUNKS_WITHOUT_TASK:
            raise ValueError(
                f"toy:{name} with side={source.side}, colors={source.colors}, demos={source.demos}, split={source.split}: no "
                "draw is identifiable from its demonstrations; use more demos, fewer colors or a larger side."
            )
    return tasks


# The source string --------------------------------------------------------------------------------------------------------

_RANGES = {
    "tasks": (1, 100_000),
    "side": (3, MAX_SIDE),
    "colors": (2, NUM_COLORS),
    "palette": (2, NUM_COLORS),
    "demos": (1, 10),
    "tests": (1, 10),
    "seed": (0, 2**31),
}
TOY_HELP = (
    f"toy:FAMILY[+FAMILY...]?tasks=N&side=4&colors=4&palette=4&demos=3&tests=1&split={'|'.join(SPLITS)}&seed=0 "
    f"(all settings are optional; families: {', '.join(FAMILIES)})"
)


def parse_toy(text: str) -> ToySource:
    """The settings of a source string. ValueError names the wrong part and shows the form."""
    families, _, query = text.removeprefix("toy:").partition("?")
    names = tuple(families.split("+"))
    problem = next((f"family {name!r} is not known" for name in names if name not in FAMILIES), None)
    if len(set(names)) < len(names):
        problem = problem or "a family is named twice"
    values: dict[str, str | int] = {}
    for part in query.split("&") if query else ():
        key, _, value = part.partition("=")
        if key == "split" and value in SPLITS:
            values[key] = value
        elif key in _RANGES and value.isdecimal() and _RANGES[key][0] <= int(value) <= _RANGES[key][1]:
            values[key] = int(value)
        elif key in _RANGES:
            problem = problem or f"{key}={value} must be a whole number from {_RANGES[key][0]} to {_RANGES[key][1]}"
        else:
            problem = problem or f"{part!r} is not a setting"
    values.setdefault("palette", values.get("colors", ToySource(names).colors))
    if not problem and int(values["palette"]) < int(values.get("colors", ToySource(names).colors)):
        problem = f"palette={values['palette']} must be at least colors, or two colours would become one"
    if problem:
        raise ValueError(f"dataset source {text!r}: {problem}; write {TOY_HELP}.")
    assert _RANGES.keys() | {"split", "families"} == {f.name for f in fields(ToySource)}
    return ToySource(names, **values)  # pyright: ignore[reportArgumentType]


def load_toy(text: str) -> list[ArcTask]:
    """The tasks of a toy source string; the families take turns, so that any beginning of the list has all of them."""
    source = parse_toy(text)
    by_family = [_family_tasks(name, source) for name in source.families]
    return [task for turn in zip(*by_family, strict=True) for task in turn]
