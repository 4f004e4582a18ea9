"""Toy tasks: rules do what they say, demonstrations identify them, held-out parameters are unseen, strings are checked."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from arclab.config.schema import ExperimentConfig
from arclab.data import synthetic
from arclab.data.augment import dihedral
from arclab.data.sources import load_source
from arclab.data.splits import assert_disjoint, find_overlaps, load_tasks
from arclab.data.synthetic import BLANK, FAMILIES, anchor, crop_box, crop_window, draw_lines, load_toy, shift, view
from arclab.data.tasks import ArcTask, Grid

from ..conftest import compose

SHARED = ("dihedral", "crop")


def grid(*rows: str) -> Grid:
    """grid("12.", "..3"): a dot is BLANK."""
    return np.array([[BLANK if cell == "." else int(cell) for cell in row] for row in rows], dtype=np.uint8)


def same(a: Grid, b: Grid) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def test_views_are_those_of_the_augmentations() -> None:
    square = np.arange(9, dtype=np.uint8).reshape(3, 3)
    for index in range(8):
        assert same(view(index, square[None])[0], dihedral(square, index))


def test_view_of_a_smaller_grid_is_anchored() -> None:
    assert same(view(1, grid("12.", "34.", "56.")[None])[0], grid("246", "135", "..."))
    assert same(anchor(grid("...", ".12", ".34")[None])[0], grid("12.", "34.", "..."))


def test_shift() -> None:
    square = grid("123", "456", "789")
    assert same(shift(1, -1, square[None])[0], grid("000", "230", "560"))
    assert same(shift(0, 2, square[None])[0], grid("001", "004", "007"))


def test_crops() -> None:
    picture = grid("0000", "0120", "0302", "0000")
    assert same(crop_box(None, picture[None])[0], grid("120.", "302.", "....", "...."))
    assert same(crop_box(2, picture[None])[0], grid("20..", "02..", "....", "...."))
    assert (crop_box(5, picture[None]) == BLANK).all()
    assert same(crop_window(1, 0, 2, 3, picture[None])[0], grid("012.", "030.", "....", "...."))


def test_lines_reach_the_edge_and_go_under_marks() -> None:
    marks = grid("0000", "0200", "0003", "0000")
    assert same(draw_lines("e", 5, marks[None])[0], grid("0000", "0255", "0003", "0000"))
    assert same(draw_lines("nw", 5, marks[None])[0], grid("5500", "0250", "0003", "0000"))
    assert same(draw_lines("s", 7, marks[None])[0], grid("0000", "0200", "0703", "0707"))
    assert same(draw_lines("w", 4, grid("010", "002", "000")[None])[0], grid("410", "442", "000"))


def rule_of(task: ArcTask) -> Callable[[Grid], Grid]:
    """The rule a task says it has, in other words than the generator's: from its name, on one grid."""
    names, _, colors = (task.rule or "").partition(" colors=")

    def apply(g: Grid) -> Grid:
        for name in names.split():
            kind, *numbers = name.replace("view", "view_").split("_")
            if kind == "view":
                g = dihedral(g, int(numbers[0]))
            elif kind.startswith("shift"):
                r, c = int(name[5:7]), int(name[7:9])
                h, w = g.shape
                g = np.array(
                    [[g[i - r, j - c] if 0 <= i - r < h and 0 <= j - c < w else 0 for j in range(w)] for i in range(h)]
                )
            elif kind == "window":
                r, c, h, w = map(int, numbers)
                g = g[r : r + h, c : c + w]
            elif kind == "box":
                rows, columns = np.nonzero(g == int(numbers[1]) if numbers else g > 0)
                g = g[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            elif kind == "line":
                g = _lined(g, numbers[0], int(numbers[1]))
            else:
                assert kind == "identity"
        return np.array([int(c) for c in colors])[g] if colors else g

    return apply


def _lined(g: Grid, direction: str, color: int) -> Grid:
    down, right = ("s" in direction) - ("n" in direction), ("e" in direction) - ("w" in direction)
    out = g.copy()
    for i, j in np.argwhere(g > 0):
        while 0 <= i < len(g) and 0 <= j < len(g):
            out[i, j] = out[i, j] or color
            i, j = i + down, j + right
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_follows_the_rule_of_its_task(family: str) -> None:
    for split in ("train", "test"):
        tasks = load_toy(f"toy:{family}?tasks=150&split={split}&side=4&colors=4&palette=7&tests=2")
        assert len({t.rule for t in tasks}) > 2
        for task in tasks:
            apply = rule_of(task)
            assert (len(task.demos), len(task.tests), task.source) == (3, 2, f"toy:{family}")
            for pair in task.pairs:
                assert pair.output is not None and pair.input.shape == (4, 4) and pair.output.dtype == np.uint8
                assert same(np.asarray(apply(pair.input), dtype=np.uint8), pair.output), (task.id, task.rule)


@pytest.mark.parametrize("family", FAMILIES)
def test_demonstrations_identify_the_answer(family: str) -> None:
    """Every rule of the family that explains the demonstrations gives the same answer, checked one rule at a time."""
    maps = FAMILIES[family].maps_colors
    for task in load_toy(f"toy:{family}?tasks=40&side=3&colors=3&palette=5&demos=2"):
        explaining = []
        for geometry in FAMILIES[family].geometries(3, 3):
            colors: dict[int, int] | None = {int(BLANK): int(BLANK)}
            for pair in task.demos:
                assert pair.output is not None
                moved, wanted = geometry.apply(pair.input[None])[0], np.full((3, 3), BLANK)
                wanted[: pair.output.shape[0], : pair.output.shape[1]] = pair.output
                for a, b in zip(moved.ravel().tolist(), wanted.ravel().tolist(), strict=True):
                    if colors is not None and (colors.setdefault(a, b) != b or (not maps and a != b)):
                        colors = None
            if colors is not None and len(set(colors.values())) == len(colors):
                explaining.append((geometry, colors))
        ((geometry, colors),) = explaining
        if maps:
            (test,) = task.tests
            assert set(geometry.apply(test.input[None]).ravel().tolist()) <= colors.keys()


def test_ambiguous_demonstrations_are_noticed() -> None:
    views = FAMILIES["dihedral"].geometries(3, 3)
    one_way, both_ways = grid("123", "456", "789"), grid("121", "333", "444")  # the second is its own left-right flip

    def count(g: Grid, out: Grid, *, maps_colors: bool) -> int:
        return int(synthetic.explanations(views, g[None, None], out[None, None], maps_colors=maps_colors)[0])

    assert count(one_way, dihedral(one_way, 4), maps_colors=False) == 1
    assert count(both_ways, dihedral(both_ways, 4), maps_colors=False) == 2
    recoloured = grid("565", "777", "888")
    assert count(both_ways, recoloured, maps_colors=True) == 2
    assert count(one_way, grid("111", "222", "333"), maps_colors=True) == 0  # no injective map


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_rules_and_grids_are_unseen(family: str) -> None:
    parts = [
        load_toy(f"toy:{family}?tasks=400&split={s}&seed={seed}") for s, seed in (("train", 0), ("test", 0), ("validation", 3))
    ]
    rules = [{t.rule for t in part} for part in parts]
    grids = [{p.input.tobytes() for t in part for p in t.pairs} for part in parts]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not grids[i] & grids[j]
        assert bool(rules[i] & rules[j]) == (family in SHARED)
        assert_disjoint(parts[i], parts[j])
    assert {family for family, f in FAMILIES.items() if not f.has_unseen_rules} == set(SHARED)


def test_compositions_of_fewer_views_hold_out_the_same_rules() -> None:
    held_out = {t.rule for t in load_toy("toy:dihedral_color?tasks=400&split=test")}
    for family, views in (("mirror_color", {"identity", "view4"}), ("flips_color", {"identity", "view2", "view4", "view5"})):
        rules = {t.rule for t in load_toy(f"toy:{family}?tasks=400")}
        assert {rule.split()[0] for rule in rules} == views
        assert not rules & held_out


def test_every_shift_of_a_held_out_combination_is_known() -> None:
    """Held-out translations are unseen combinations of row and column shifts that training has."""
    train, test = ({t.rule for t in load_toy(f"toy:translate?tasks=500&split={s}")} for s in ("train", "test"))
    for part in (slice(5, 7), slice(7, 9)):
        assert {str(r)[part] for r in test} <= {str(r)[part] for r in train}


def test_overlap_of_toy_tasks_is_a_shared_rule_or_grid() -> None:
    train = load_toy("toy:color_map?tasks=50")
    again = load_toy("toy:color_map?tasks=50&seed=1")
    assert find_overlaps(train, again)  # same rules, other grids
    with pytest.raises(ValueError, match="overlap with scored tasks"):
        assert_disjoint(train, again)
    dihedral_train = load_toy("toy:dihedral?tasks=50")
    assert not find_overlaps(dihedral_train, load_toy("toy:dihedral?tasks=50&split=test"))
    assert (dihedral_train[7].id, dihedral_train[7].id) in find_overlaps(dihedral_train, dihedral_train[7:8])
    real = ArcTask("real", train[3].demos, train[3].tests, "folder:x")
    assert find_overlaps(train, [real]) and find_overlaps([real], train)


def test_a_source_is_a_pure_function_of_its_string() -> None:
    def content(text: str) -> list[object]:
        return [
            (t.id, t.rule, [(p.input.tolist(), p.output.tolist()) for p in t.pairs if p.output is not None])
            for t in load_source(text)
        ]

    long = content("toy:dihedral_color+crop?tasks=1200&seed=2")
    assert content("toy:dihedral_color+crop?tasks=1200&seed=2") == long
    assert content("toy:dihedral_color+crop?tasks=20&seed=2") == long[:40]  # families in turn
    assert content("toy:dihedral_color+crop?tasks=20&seed=1") != long[:40]
    ids = [str(t.id) for t in load_toy("toy:lines+crop?tasks=2&split=test&seed=3")]
    assert ids == ["toy_lines_test_s3_00000", "toy_crop_test_s3_00000", "toy_lines_test_s3_00001", "toy_crop_test_s3_00001"]
    assert load_toy("toy:dihedral_color?tasks=13")[12].id == "toy_dihedral_color_00012"


def test_settings_of_a_source_are_used() -> None:
    base = load_toy("toy:color_map?tasks=30")
    for setting, check in {
        "side=5": lambda t: t.pairs[0].input.shape == (5, 5),
        "colors=2": lambda t: all(p.input.max() <= 1 for p in t.pairs),
        "palette=9": lambda t: len(t.rule) == len(base[0].rule),
        "demos=2": lambda t: len(t.demos) == 2,
        "tests=3": lambda t: len(t.tests) == 3,
    }.items():
        tasks = load_toy(f"toy:color_map?tasks=30&{setting}")
        assert all(map(check, tasks)), setting
    assert (
        max(int(p.output.max()) for t in load_toy("toy:color_map?tasks=30&palette=9") for p in t.pairs if p.output is not None)
        > 3
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("toy:colormap", "family 'colormap' is not known"),
        ("toy:crop+crop", "a family is named twice"),
        ("toy:crop?side=2", "side=2 must be a whole number from 3 to 30"),
        ("toy:crop?tasks=many", "tasks=many must be a whole number"),
        ("toy:crop?sides=4", "'sides=4' is not a setting"),
        ("toy:crop?split=dev", "'split=dev' is not a setting"),
        ("toy:color_map?colors=5&palette=4", "palette=4 must be at least colors"),
        ("toy:color_map?colors=10&side=3&demos=1&tests=10", "no draw is identifiable"),
    ],
)
def test_bad_sources_show_the_form(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="toy:") as error:
        load_source(text)
    assert words in str(error.value)


def test_dataset_toy() -> None:
    split = load_tasks(compose("pretrain_encoder", ["experiment=toy_control"]).dataset)
    assert (len(split.train), len(split.validation), len(split.evaluation)) == (4000, 100, 200) and not split.notes
    for first, second in pairwise((split.train, split.validation, split.evaluation)):
        assert not {t.rule for t in first} & {t.rule for t in second}


def test_validation_sources_are_held_out(tiny: Callable[..., ExperimentConfig]) -> None:
    config = tiny("dataset.validation_sources=['toy:crop?tasks=3']")
    split = load_tasks(config.dataset)
    assert [t.id for t in split.validation][-3:] == ["toy_crop_00000", "toy_crop_00001", "toy_crop_00002"]
    with pytest.raises(ValueError, match="training tasks are also scored"):
        load_tasks(tiny("dataset.train_sources=['toy:color_map?tasks=9']", "dataset.validation_sources=['toy:color_map?tasks=9']",
                        "dataset.train_ids=null", "dataset.validation_ids=null").dataset)  # fmt: skip
