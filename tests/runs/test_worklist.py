"""Worklists: finished items are kept through kills and damage, split over shards, and merged only where they fit together."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from arclab.config.compose import ConfigError
from arclab.runs.worklist import ItemKind, Line, Worklist, merge, share

from ..damage import REPEATED, damaged_bytes, outcome_or_sentence

SETTINGS = {"seed": 0, "depth": [1, 2]}


def score_of(record: dict[str, Any], line: Line) -> float:
    line.require(record, {"score": float})
    return record["score"]


def loaded(path: Path, settings: dict[str, Any] = SETTINGS) -> dict[str, float]:
    return Worklist(path, settings).load(score_of)


def written(path: Path, scores: dict[str, float], settings: dict[str, Any] = SETTINGS) -> Path:
    for id_, score in scores.items():
        Worklist(path, settings).add(id_, {"score": score})
    return path


@hypothesis.given(data=st.data())
@hypothesis.settings(REPEATED)
def test_damage_costs_no_more_than_the_lines_it_is_in(data: st.DataObject, tmp_path: Path) -> None:
    """An item is the one that was kept, or none; the next one is kept whatever the file looks like."""
    scores, path = {"a": 1.0, "b": 0.25, "\u00e9": 0.5}, tmp_path / "items.jsonl"
    path.unlink(missing_ok=True)
    whole = written(path, scores).read_bytes()
    path.write_bytes(data.draw(damaged_bytes(whole)))
    found = outcome_or_sentence(lambda: loaded(path), path)
    if found is not None:
        assert found.items() <= scores.items()
        assert loaded(written(path, {"new": 2.0})) == {**found, "new": 2.0}


def test_a_later_line_counts_and_a_damaged_one_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "items.jsonl", {"a": 1.0, "b": 2.0})
    written(path, {"a": 3.0})
    path.write_bytes(path.read_bytes().replace(b"2.0", b"2.5") + b'{"id": 7}\n{"id": "half')
    with caplog.at_level(logging.WARNING):
        assert loaded(path) == {"a": 3.0}
    checksum, number = (record.getMessage() for record in caplog.records)
    assert f"{path} is damaged in line 3 (it was changed" in checksum and "its item is made again unless" in checksum
    assert f"{path} is damaged in line 5 (id is 7 where text belongs)" in number
    assert path.read_bytes().endswith(b'{"id": 7}\n')


def test_other_settings_are_refused_in_the_words_of_the_items(tmp_path: Path) -> None:
    """A list stands for the tuple it was made of. Looking changes nothing."""
    path = written(tmp_path / "nodes.jsonl", {"a": 1.0})
    Worklist(path, {"seed": 0, "depth": (1, 2)}).check()
    kind = ItemKind(holds="nodes searched", elsewhere="choose another name=")
    before = path.read_bytes() + b'{"id": "half'
    path.write_bytes(before)
    other = Worklist(path, {"seed": 1}, kind)
    words = r"nodes\.jsonl holds nodes searched with depth=\[1, 2\], now depth=None; seed=0, now seed=1 \(2 keys differ\); choose another name=, or"
    with pytest.raises(ConfigError, match=words):
        other.check()
    with pytest.raises(ConfigError, match=words):
        other.load(score_of)
    assert path.read_bytes() == before


@hypothesis.given(
    ids=st.lists(st.text("abc", min_size=1, max_size=3), max_size=12), count=st.integers(1, 5), random=st.randoms()
)
@hypothesis.settings(REPEATED)
def test_shares_are_even_and_do_not_depend_on_the_order(ids: list[str], count: int, random: Any) -> None:
    parts = [share(ids, number, count) for number in range(count)]
    assert sorted(id_ for part in parts for id_ in part) == sorted(set(ids))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part == sorted(part, key=ids.index) for part in parts)
    shuffled = random.sample(ids, len(ids))
    assert [set(share(shuffled, number, count)) for number in range(count)] == [set(part) for part in parts]


@pytest.mark.parametrize(("number", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_there_is_no_such_shard(number: int, count: int) -> None:
    with pytest.raises(ValueError, match=rf"no shard number={number} of count={count}; give a number from 0 to"):
        share(["a"], number, count)


def test_shards_are_merged_and_merged_again_when_they_are_further(tmp_path: Path) -> None:
    """What a shard is writing just now does not count yet and is not touched. What both have made is one item."""
    first, second, target = (tmp_path / f"{name}.jsonl" for name in ("first", "second", "target"))
    written(first, {"a": 1.0, "both": 9.0})
    written(second, {"b": 2.0, "both": 9.0})
    with second.open("a") as file:
        file.write('{"id": "c", "sc')
    half = second.read_bytes()
    assert merge([first, second], target) == 3
    assert loaded(target) == {"a": 1.0, "both": 9.0, "b": 2.0} and second.read_bytes() == half
    loaded(second)
    written(second, {"c": 3.0})
    size = target.stat().st_size
    with target.open("a") as file:
        file.write('{"id": "c", "sc')  # a kill during an earlier merge
    assert merge([first, second], target) == 4
    assert loaded(target) == {"a": 1.0, "both": 9.0, "b": 2.0, "c": 3.0}
    assert target.read_bytes()[size:].count(b"\n") == 1


def test_nothing_is_merged_unless_all_fits(tmp_path: Path) -> None:
    first, other, changed, target = (tmp_path / f"{name}.jsonl" for name in ("first", "other", "changed", "target"))
    written(first, {"a": 1.0, "b": 1.0})
    written(other, {"c": 1.0}, {**SETTINGS, "seed": 5})
    written(changed, {"b": 2.0})
    with pytest.raises(ConfigError, match=rf"{other} holds items made with seed=5, and {first} with seed=0 \(1 keys differ\);"):
        merge([first, other], target)
    with pytest.raises(ConfigError, match=rf"{first} and {changed} have different content for id='b'; remove that line"):
        merge([first, changed], target)
    with pytest.raises(ConfigError, match=rf"{tmp_path / 'none'} does not exist, so it cannot be merged"):
        merge([first, tmp_path / "none"], target)
    assert not target.exists()
    written(target, {"b": 2.0})
    before = target.read_bytes()
    with pytest.raises(ConfigError, match=rf"{target} and {first} have different content"):
        merge([first], target)
    assert target.read_bytes() == before
