"""What a checkpoint is continued and scored with: the tasks, the settings and the bytes that it was made with, or one sentence."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from arclab.config.compose import compose_evaluate, config_hash
from arclab.config.schema import ExperimentConfig
from arclab.data.augment import ViewRule
from arclab.data.record import NO_RECORD
from arclab.files import step_folders
from arclab.methods.recursive.evaluation import evaluate_in_ranks
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.methods.recursive.setting import build_setting
from arclab.runs.checkpoints import read_state, sealed
from arclab.runs.folder import RunDir, State
from arclab.runs.ranks import Ranks

from ....conftest import TINY, TINY_TRM, compose

CPU = Ranks(0, 1, torch.device("cpu"))
# Task -> the colour that it paints; t3 looks the same from all sides.
COLORS = {"t1": 1, "t2": 2, "t3": 3, "t4": 4}


def write_task(path: Path, color: int, symmetric: bool = False) -> None:
    """Every colour has grids of its own size, so that no two tasks are the same but for colours."""
    height, width = 1 + (color - 1) // 4, 2 + (color - 1) % 4
    shapes = [
        [[color * (symmetric or (i, j) == place) for j in range(width)] for i in range(height)] for place in ((0, 0), (0, 1))
    ]
    shapes = [[[color] * side] * side for side in (1, 2)] if symmetric else shapes
    pairs = [{"input": shape, "output": [[color]]} for shape in shapes]
    path.write_text(json.dumps({"train": pairs, "test": [{"input": shapes[0] + shapes[0], "output": [[color, color]]}]}))


def tasks_in(root: Path) -> Path:
    """Two folders, a with t1 and t2, b with t3 and t4."""
    for name, color in COLORS.items():
        folder = root / ("a" if name in ("t1", "t2") else "b")
        folder.mkdir(parents=True, exist_ok=True)
        write_task(folder / f"{name}.json", color, symmetric=name == "t3")
    return root


def configured(*overrides: str, trm: bool = True) -> ExperimentConfig:
    """Paths from the working directory, so that a run and its tasks can be copied as a whole."""
    none = ("dataset.eval_sources=[]", "dataset.train_ids=null", "dataset.validation_ids=null", "evaluation.max_tasks=null")
    return compose(
        "pretrain_encoder",
        [*(TINY_TRM if trm else TINY), 'dataset.train_sources=["folder:tasks/a","folder:tasks/b"]', *none, "runs_dir=runs", "name=t",
         "dataset.num_augmentations=20", "trainer.steps=6", "trainer.checkpoint_every=3", "trainer.keep_last=9", "evaluation.health_tasks=0",
         "encoder.optim.lr=0.5", *overrides],
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/quickstart/t with a puzzle table, and its tasks."""
    root = tmp_path_factory.mktemp("continuing")
    tasks_in(root / "tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        pretrain_in_ranks(configured(), CPU)
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, which is the working directory."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def scores(root: Path, *wishes: str) -> dict[str, str]:
    """Task -> everything that the evaluation says of it, candidates and confidences too."""
    output = root / "scored"
    shutil.rmtree(output, ignore_errors=True)
    evaluate_in_ranks(compose_evaluate([f"checkpoint={root}/runs/quickstart/t", f"output_dir={output}", *wishes]), CPU)
    records = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    return {record["task"]: json.dumps(record) for record in records}


def notes(root: Path) -> list[str]:
    return json.loads((root / "scored/metrics.json").read_text())["notes"]


def unfinished(root: Path) -> None:
    """As killed after step 3."""
    run = RunDir(root / "runs/quickstart/t")
    shutil.rmtree(run.checkpoints / "step_00000006")
    run.write_status(State.running, 3)


def edit_state(checkpoint: Path, *without: str, **values: object) -> None:
    """Another state.json, with a digest of its own if it had one."""
    path = checkpoint / "state.json"
    state = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("digest", *without)} | values
    path.write_text(json.dumps(state if "digest" in without else sealed(state)))


def as_before_there_were_records(root: Path) -> None:
    """tasks.json, digests and settings gone, config_hash in their place."""
    config = configured()
    for checkpoint in step_folders(root / "runs/quickstart/t/checkpoints"):
        (checkpoint / "tasks.json").unlink()
        files = {k: v for k, v in read_state(checkpoint)["files"].items() if k != "tasks.json"}
        edit_state(checkpoint, "digest", "digests", "settings", files=files, config_hash=config_hash(config))


def reorder(tasks: Path) -> None:
    (tasks / "a/t1.json").rename(tasks / "b/t1.json")


def rename(tasks: Path) -> None:
    (tasks / "a/t1.json").rename(tasks / "a/t9.json")


def change_demonstrations(tasks: Path) -> None:
    write_task(tasks / "a/t2.json", 7)


def change_answer(tasks: Path) -> None:
    task = json.loads((tasks / "b/t4.json").read_text())
    task["test"][0]["output"] = [[5]]
    (tasks / "b/t4.json").write_text(json.dumps(task))


def remove(tasks: Path) -> None:
    (tasks / "b/t3.json").unlink()


def add(tasks: Path) -> None:
    write_task(tasks / "a/t0.json", 8)


CHANGES: list[tuple[Callable[[Path], None], str | None, str]] = [
    (reorder, None, r"the tasks are the same ones in another order \(from task t1 on\)"),
    (rename, r"task t1 is missing \(1 of 4 are, and t9 has its content: a task is known by its name\)", "task t1 is missing"),
    (change_demonstrations, r"task t2 has other demonstrations \(1 of 4 differ\)", "task t2 has other demonstrations"),
    (change_answer, "task t4 has other test pairs", "task t4 has other test pairs"),
    (remove, r"task t3 is missing \(1 of 4 are\)", "task t3 is missing"),
    (add, r"no vectors for 1 of 5 tasks \(t0, ...\); take what was added since out of its source", r"task t0 is new \(1 are\)"),
]


@pytest.mark.parametrize(("change", "scored", "continued"), CHANGES, ids=[change.__name__ for change, _, _ in CHANGES])
def test_rows_of_a_puzzle_table_are_found_by_task(
    root: Path, change: Callable[[Path], None], scored: str | None, continued: str
) -> None:
    """What is scored is what was trained, wherever its file lies by now; nothing is trained on by a run of other tasks."""
    before = scores(root)
    assert set(before) == set(COLORS) and not any("puzzle table" in note or "record" in note for note in notes(root))
    change(root / "tasks")
    if scored is None:
        assert scores(root) == before
    else:
        with pytest.raises(ValueError, match=scored):
            scores(root)
    unfinished(root)
    config = (root / "runs/quickstart/t/checkpoints/step_00000003/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=rf"training tasks are not those of checkpoint .*: {continued}.*; put the tasks back"):
        pretrain_in_ranks(configured(), CPU)
    assert [p.name for p in step_folders(root / "runs/quickstart/t/checkpoints")] == ["step_00000003"]
    assert config == (root / "runs/quickstart/t/checkpoints/step_00000003/model.safetensors").read_bytes()


def test_rows_belong_to_augmentations_too(root: Path) -> None:
    """Row first + n is that of augmentation n, which another seed draws differently."""
    saved = root / "runs/quickstart/t/config.yaml"
    saved.write_text(saved.read_text().replace("\nseed: 0\n", "\nseed: 1\n"))
    edit_state(root / "runs/quickstart/t/checkpoints/step_00000006", settings=None)  # which say so first
    with pytest.raises(ValueError, match=r"task t1 has other augmentations \(4 of 4 differ\)"):
        scores(root)


def test_a_checkpoint_without_a_record_goes_on_and_says_so(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the views that it was made with: those of a symmetric task repeat, so that its table has more rows."""
    with_record = scores(root)
    as_before_there_were_records(root)
    with pytest.raises(ValueError, match=r"has 82 vectors, and the tasks that load now need 85; put the tasks back"):
        scores(root)  # a table by the newer rule
    unfinished(root)
    with pytest.raises(ValueError, match="has 82 vectors, and the tasks that load now need 85"):
        pretrain_in_ranks(configured(), CPU)
    shutil.rmtree(root / "runs")
    build = build_setting
    with pytest.MonkeyPatch.context() as patch:  # a run of the older version
        patch.setattr("arclab.methods.recursive.run.build_setting", lambda config, rule: build(config, ViewRule.action))
        pretrain_in_ranks(configured(), CPU)
    as_before_there_were_records(root)
    old = scores(root)
    assert set(old) == set(with_record) and notes(root)[-1] == NO_RECORD
    whole = torch_bytes(root)
    unfinished(root)
    with caplog.at_level(logging.WARNING):
        assert pretrain_in_ranks(configured(), CPU) is State.done
    assert NO_RECORD in caplog.text and torch_bytes(root) == whole and scores(root) == old
    record = json.loads((root / "runs/quickstart/t/checkpoints/step_00000006/tasks.json").read_text())
    assert record["views"] == "action" and [task["num_views"] for task in record["tasks"]] == [21] * 4
    reorder(root / "tasks")
    assert scores(root) == old


def torch_bytes(root: Path) -> bytes:
    return (root / "runs/quickstart/t/checkpoints/step_00000006/model.safetensors").read_bytes()


def test_an_encoder_is_scored_on_other_training_tasks_with_a_note_and_never_continues_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tasks_in(tmp_path / "tasks")
    few_shot = configured('dataset.validation_sources=["folder:held_out"]', trm=False)
    (tmp_path / "held_out").mkdir()
    write_task(tmp_path / "held_out/h1.json", 9)
    pretrain_in_ranks(few_shot, CPU)
    scores(tmp_path, "split=validation")
    assert not any("training tasks of today" in note for note in notes(tmp_path))
    shutil.move(tmp_path / "tasks/a/t1.json", tmp_path / "held_out/t1.json")
    scores(tmp_path, "split=validation")
    assert "trained on: task t1 is missing" in notes(tmp_path)[-1]
    stamps = json.loads((tmp_path / "scored/metrics.json").read_text())["stamps"]
    assert "1 of the 2 scored tasks were trained on (task t1)" in stamps
    unfinished(tmp_path)
    with pytest.raises(ValueError, match=r"training tasks are not those of checkpoint .*task t1 is missing"):
        pretrain_in_ranks(few_shot, CPU)


@pytest.mark.parametrize("key", ["seed=1", "name=other", "experiment_name=elsewhere", "trainer.warmup_steps=2"])
@pytest.mark.parametrize("is_old", [False, True])
def test_a_checkpoint_of_another_run_is_not_continued(root: Path, key: str, is_old: bool) -> None:
    """Moved into the folder of another run. An older one has a hash of its settings alone: seed and W&B id tell it apart."""
    if is_old:
        as_before_there_were_records(root)
    other = configured(key)
    moved = other.folder
    if moved.exists():
        unfinished(root)
        (moved / "status.json").unlink()
        (moved / "run_id").unlink()
    else:
        moved.mkdir(parents=True)
        shutil.copytree(root / "runs/quickstart/t/checkpoints/step_00000003", moved / "checkpoints/step_00000003")
    name = key.partition("=")[0]
    words = f"made with {name}=.* now {name}=" if not is_old or name == "seed" else "belongs to the W&B run"
    with pytest.raises(ValueError, match=rf"step_00000003 .*{words}.*it is of another run; continue that run, or remove"):
        pretrain_in_ranks(other, CPU)
    assert [p.name for p in step_folders(moved / "checkpoints")] == ["step_00000003"]


@pytest.mark.parametrize("is_old", [False, True])
def test_a_run_goes_on_with_free_keys_and_with_keys_that_are_new(
    root: Path, is_old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that the schema gained since is missing from what a checkpoint keeps, and changes the hash that older ones keep."""
    run = RunDir(root / "runs/quickstart/t")
    whole, run_id = torch_bytes(root), read_state(run.checkpoints / "step_00000006")["run_id"]
    checkpoint = root / "runs/quickstart/t/checkpoints/step_00000003"
    if is_old:
        as_before_there_were_records(root)
        edit_state(checkpoint, "digest", config_hash="0123456789abcdef")
        monkeypatch.setattr(
            "arclab.methods.recursive.run.view_rule", lambda record: ViewRule.content
        )  # by which this table was made
    else:
        settings = read_state(checkpoint)["settings"]
        edit_state(checkpoint, settings={k: v for k, v in settings.items() if k != "trainer.profile"} | {"gone": 1})
    unfinished(root)
    assert pretrain_in_ranks(configured("trainer.log_every=3", "trainer.num_workers=1"), CPU) is State.done
    assert torch_bytes(root) == whole and read_state(run.checkpoints / "step_00000006")["run_id"] == run.run_id == run_id


def test_a_checkpoint_in_the_folder_of_another_run_is_not_used(root: Path) -> None:
    """Its weights would be scored, or start a decoder, as another function: here of other cycles."""
    saved, before = root / "runs/quickstart/t/config.yaml", scores(root)
    checkpoint = saved.parent / "checkpoints/step_00000006"
    saved.write_text(saved.read_text().replace("l_cycles: 2", "l_cycles: 1"))
    words = r"step_00000006 was made with decoder.l_cycles=2, now decoder.l_cycles=1 .*: it is not of the run that .*config\.yaml describes"
    with pytest.raises(ValueError, match=words):
        scores(root)
    other = configured("name=other", "decoder.l_cycles=1", "decoder_init=pretrained", f"decoder_init.path={saved.parent}")
    with pytest.raises(ValueError, match=words):
        pretrain_in_ranks(other, CPU)
    state = read_state(checkpoint)
    edit_state(checkpoint, settings={k: v for k, v in state["settings"].items() if k != "decoder.l_cycles"} | {"gone": 1})
    assert set(scores(root)) == set(before)  # of another version: nothing that both know differs


def test_a_moved_run_has_the_id_of_its_folder(root: Path) -> None:
    """The same settings under another runs_dir: two folders must not write to one W&B run."""
    unfinished(root)
    copy = root / "elsewhere/quickstart/t"
    shutil.copytree(root / "runs/quickstart/t/checkpoints", copy / "checkpoints")
    old = read_state(copy / "checkpoints/step_00000003")["run_id"]
    pretrain_in_ranks(configured("runs_dir=elsewhere"), CPU)
    assert read_state(copy / "checkpoints/step_00000006")["run_id"] == RunDir(copy).run_id != old


def test_a_folder_that_was_set_aside_is_left_alone(root: Path) -> None:
    checkpoints = root / "runs/quickstart/t/checkpoints"
    before = scores(root)
    shutil.copytree(checkpoints / "step_00000003", checkpoints / "step_00000045.bad")
    shutil.copytree(checkpoints / "step_00000003", checkpoints / "step_old")
    (checkpoints / "step_00000046").write_text("no folder")
    assert scores(root) == before
    unfinished(root)
    assert pretrain_in_ranks(configured(), CPU) is State.done
    names = {path.name for path in checkpoints.iterdir()}
    assert names == {"step_00000003", "step_00000006", "step_00000045.bad", "step_old", "step_00000046"}
