"""Augmentations of pseudo-tasks: grids turned, moved, enlarged, mirrored beside themselves and tiled, in four sets.

    for augmenter in augmenters("basic", "size"):
        view = augmenter.drawn(rng)                # Transform: its parameters are drawn once for a task
        grid = view.invert(view.apply(grid))       # each can be undone

One transform is applied to the inputs and outputs of all pairs, so that what a pair shows stays one rule. basic has 11, size 3,
chain 6, repeat 3. The augmentations of answers (dihedral views and colours) are those of arclab.data.augment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from arclab.data.augment import DIHEDRAL_INVERSE, dihedral
from arclab.data.tasks import MAX_SIDE, ArcTask, Grid, Pair

_MAX_SHIFT = 3  # cells a side
# Dihedral ids of arclab.data.augment.
_TURNS = {"rotate_90": 1, "rotate_270": 3, "rotate_180": 2}
_FLIPS = {"flip_up_down": 5, "flip_left_right": 4}
_TRANSPOSE = {"transpose": 6}
_SCALES = {"twice": (2, 2), "twice_as_high": (2, 1), "twice_as_wide": (1, 2)}
_TILES = {"tile_down": (2, 1), "tile_right": (1, 2), "tile_both": (2, 2)}


@dataclass(frozen=True, slots=True)
class Transform:
    """apply and invert: (H, W) grid -> grid."""

    name: str
    apply: Callable[[Grid], Grid]
    invert: Callable[[Grid], Grid]


@dataclass(frozen=True, slots=True)
class Augmenter:
    """drawn: its transform, with parameters drawn where it has any."""

    name: str
    drawn: Callable[[np.random.Generator], Transform]


def augmenters(*groups: str) -> list[Augmenter]:
    """Those of the named sets, in their order."""
    return [augmenter for group in groups for augmenter in GROUPS[group]]


def applied(task: ArcTask, transform: Transform) -> ArcTask | None:
    """The task in which every grid is transformed; None if one would have a side of more than 30 cells."""
    pairs = [Pair(transform.apply(p.input), None if p.output is None else transform.apply(p.output)) for p in task.pairs]
    if any(max(grid.shape) > MAX_SIDE for pair in pairs for grid in (pair.input, pair.output) if grid is not None):
        return None
    num_demos = len(task.demos)
    return replace(task, id=f"{task.id}, {transform.name}", demos=tuple(pairs[:num_demos]), tests=tuple(pairs[num_demos:]))


def _fixed(transform: Transform) -> Augmenter:
    return Augmenter(transform.name, lambda _: transform)


def _view(name: str, index: int) -> Transform:
    return Transform(name, lambda grid: _own(dihedral(grid, index)), lambda grid: _own(dihedral(grid, DIHEDRAL_INVERSE[index])))


def _scaled(name: str, factors: tuple[int, int]) -> Transform:
    high, wide = factors
    return Transform(
        name, lambda grid: _own(grid.repeat(high, axis=0).repeat(wide, axis=1)), lambda grid: _own(grid[::high, ::wide])
    )


def _tiled(name: str, factors: tuple[int, int]) -> Transform:
    high, wide = factors
    return Transform(
        name,
        lambda grid: np.tile(grid, factors),
        lambda grid: _own(grid[: grid.shape[0] // high, : grid.shape[1] // wide]),
    )


def _mirrored(name: str, axis: int, is_first: bool) -> Transform:
    """The grid beside its mirror image; is_first: the image stands before it."""

    def apply(grid: Grid) -> Grid:
        image = np.flip(grid, axis)
        return np.concatenate([image, grid] if is_first else [grid, image], axis)

    def invert(grid: Grid) -> Grid:
        return _own(np.split(grid, 2, axis)[1 if is_first else 0])

    return Transform(name, apply, invert)


def _shifted(rng: np.random.Generator) -> Transform:
    """By 0 to 3 cells a side, never by none; what leaves on one side comes in on the other."""
    down, right = divmod(int(rng.integers(1, (_MAX_SHIFT + 1) ** 2)), _MAX_SHIFT + 1)
    return Transform(
        f"moved_{down}_{right}",
        lambda grid: np.roll(grid, (down, right), (0, 1)),
        lambda grid: np.roll(grid, (-down, -right), (0, 1)),
    )


def _chained(first: Transform, second: Transform) -> Transform:
    return Transform(
        f"{first.name}_{second.name}",
        lambda grid: second.apply(first.apply(grid)),
        lambda grid: first.invert(second.invert(grid)),
    )


def _own(grid: Grid) -> Grid:
    return np.ascontiguousarray(grid)


_MIRRORS = [
    _mirrored(name, axis, is_first)
    for name, axis, is_first in (
        ("mirrored_below", 0, False), ("mirrored_above", 0, True), ("mirrored_right", 1, False), ("mirrored_left", 1, True)
    )
]  # fmt: skip
GROUPS: dict[str, tuple[Augmenter, ...]] = {
    "basic": (
        *(_fixed(_view(name, index)) for name, index in (_TURNS | _FLIPS).items()),
        *map(_fixed, _MIRRORS),
        Augmenter("moved", _shifted),
        *(_fixed(_view(name, index)) for name, index in _TRANSPOSE.items()),
    ),
    "size": tuple(_fixed(_scaled(name, factors)) for name, factors in _SCALES.items()),
    "chain": tuple(
        _fixed(_chained(_view(name, index), _scaled("twice", _SCALES["twice"])))
        for name, index in (_TURNS | _FLIPS | _TRANSPOSE).items()
    ),
    "repeat": tuple(_fixed(_tiled(name, factors)) for name, factors in _TILES.items()),
}
