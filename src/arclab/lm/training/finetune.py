"""Supervised fine-tuning of a local language model on replies: prompt in, reply learned, loss on the reply's tokens only.

    finetune(load_hf(config), Path("models/taught"), [(prompt, "def solve(I): ..."), ...], FinetuneSettings(steps=2000, ...))

The training text is made by the model that generates (chat template, then the reply, then the end mark), so that what is
learned is what is asked for. arclab.lm.training.sft does the work and keeps checkpoints: the same call goes on after a kill.
All weights are trained, in float32 (in bfloat16 most steps of a usual size round to nothing); for adapters see hf.py. Rows
that are longer than the model's context are refused, never cut. A training whose loss stops being finite ends with an error
and leaves nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from arclab.config.llm_schema import Dtype
from arclab.config.run import DeviceChoice
from arclab.files import difference, naming, read_object, write_atomically
from arclab.lm.hf import HfModel
from arclab.lm.hf_loading import model_identity
from arclab.lm.language_model import Prompt
from arclab.lm.training.life import AllWeights, DivergedError
from arclab.lm.training.rows import IGNORED, Row
from arclab.lm.training.sft import SftSettings, StageCadence, Where, sft
from arclab.metrics.logger import MetricLogger
from arclab.runs.checkpoints import CheckpointFolder
from arclab.runs.folder import RunDir
from arclab.runs.preempt import StopRequest, ToldToEnd
from arclab.runs.ranks import Ranks

log = logging.getLogger(__name__)
_IDENTITY = "finetuned.json"


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """steps of AdamW with a cosine schedule; batch_size rows a step; save_every steps a checkpoint to go on from."""

    steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    weight_decay: float
    save_every: int
    log_every: int
    seed: int


def tokenised(model: HfModel, rows: Sequence[tuple[Prompt, str]]) -> list[Row]:
    """The rows as SFT takes them: loss on the reply and its end mark. ValueError: a row that does not fit into the context."""
    found: list[Row] = []
    for number, (prompt, reply) in enumerate(rows):
        shown, written = model.prompt_ids(prompt), model.reply_ids(reply)
        length, limit = len(shown) + len(written), model.max_context
        if limit is not None and length > limit:
            raise ValueError(
                f"row {number} has {length} tokens, more than the model's context of {limit}; drop it, or use a model with a "
                "longer context."
            )
        if model.opened(prompt) and "</think>" not in reply:
            raise ValueError(
                f"row {number}: the chat template opens <think> before the reply (lm.thinking={model.config.thinking}), and "
                "the reply does not close it, so that what is taught would be read as unfinished thinking; use "
                "lm.thinking=false, or replies with </think>."
            )
        found.append({"input_ids": shown + written, "labels": [IGNORED] * len(shown) + written})
    return found


def _require_trainable(rows: Sequence[tuple[Prompt, str]], settings: FinetuneSettings) -> None:
    for name, low in (("steps", 1), ("batch_size", 1), ("save_every", 1), ("log_every", 1), ("warmup_steps", 0)):
        value = getattr(settings, name)
        if value < low:
            raise ValueError(f"fine-tuning {name}={value} must be at least {low}; raise it.")
    if not rows:
        raise ValueError("fine-tuning rows=[] must hold at least one prompt with its reply; add some.")


def _require_fresh(model: HfModel) -> None:
    """ValueError: weights in which steps would be lost, or that are no longer what the model's name says."""
    require_float32(model)
    if model.was_trained:
        raise ValueError(
            f"the weights of lm.name={model.name} have been trained already since they were loaded; load it again with load_hf."
        )


def require_float32(model: HfModel) -> None:
    """ValueError: weights in which steps would be lost."""
    if model.config.dtype is not Dtype.float32:
        raise ValueError(
            f"fine-tuning in lm.dtype={model.config.dtype.value} loses most steps to rounding; load the model with "
            "lm.dtype=float32."
        )


def _identity(model: HfModel, rows: Sequence[tuple[Prompt, str]], settings: FinetuneSettings) -> dict[str, Any]:
    """All that decides the weights: what is trained, on what, and how."""
    text = json.dumps([[[[m.role, m.content] for m in prompt], reply] for prompt, reply in rows])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    how = {key: value for key, value in asdict(settings).items() if key not in ("save_every", "log_every")}
    adapter = model.config.adapter and model_identity(model.config.adapter)
    return {"model": model_identity(model.name), "adapter": adapter, "thinking": model.config.thinking, "rows": digest, **how}


def _require_same(folder: Path, identity: dict[str, Any]) -> None:
    """ValueError if the folder holds anything but this training."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    path = folder / _IDENTITY
    if not path.is_file():
        raise ValueError(f"{folder} is there already and holds no training of this project; remove it, or name another folder.")
    before = read_object(path, remedy="remove the folder, or name another one")
    if other := difference(before, identity):
        raise ValueError(f"{folder} was trained with {other}; name another folder, or remove it.")


def _one_device(model: HfModel, settings: FinetuneSettings) -> Ranks:
    """ValueError if there is more than one device: each would take a batch of its own."""
    count = max(torch.cuda.device_count() if model.device.type == "cuda" else 1, int(os.environ.get("WORLD_SIZE", "1")))
    if count > 1:
        raise ValueError(
            f"fine-tuning uses one device, but {count} are at hand, each of which would take "
            f"batch_size={settings.batch_size} rows; show it one with CUDA_VISIBLE_DEVICES=0, without torchrun."
        )
    return Ranks(0, 1, model.device)


def finetune(
    model: HfModel, output: Path, rows: Sequence[tuple[Prompt, str]], settings: FinetuneSettings,
    stop: StopRequest | None = None,
) -> None:  # fmt: skip
    """Train all weights of the model on rows and save it as the model folder `output`. Nothing happens if that is there
    already. stop: of the run that it is a part of.

    ValueError: settings or rows that cannot be trained on, or a folder that holds something else or another training.
    ToldToEnd: stop said so, and what was trained is kept.
    """
    _require_trainable(rows, settings)
    work = output.with_name(f".{output.name}.training")
    identity = _identity(model, rows, settings)
    for folder in (output, work):
        _require_same(folder, identity)
    if output.is_dir():
        log.info("%s is there already", output)
        return
    _require_fresh(model)
    data, ranks = tokenised(model, rows), _one_device(model, settings)
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(work / _IDENTITY, json.dumps(identity))
    try:
        with naming(work), model.trainable() as network:
            step = _train(model, network, data, settings, RunDir(work), ranks, stop)
        if step < settings.steps:
            raise ToldToEnd(f"{output.name} is saved at step {step} of {settings.steps}")
    except DivergedError:
        shutil.rmtree(work)  # its checkpoints lead there again
        raise
    finished = work / "finished"
    model.save(finished)
    write_atomically(finished / _IDENTITY, json.dumps(identity))
    os.replace(finished, output)
    shutil.rmtree(work)


def _train(
    model: HfModel, network: Any, rows: list[Row], settings: FinetuneSettings, run: RunDir, ranks: Ranks,
    stop: StopRequest | None,
) -> int:  # fmt: skip
    """The step that it came to."""
    device = DeviceChoice.cuda if ranks.device.type == "cuda" else DeviceChoice.cpu
    cadence = StageCadence(settings.steps, None, device, settings.log_every, settings.save_every)
    how = SftSettings(
        batch_size=settings.batch_size, grad_accumulation=1, lr=settings.lr, warmup_steps=settings.warmup_steps,
        schedule="cosine", weight_decay=settings.weight_decay, clip_norm=1.0, seed=settings.seed,
    )  # fmt: skip
    steps = CheckpointFolder(run.checkpoints, 1).steps()
    with MetricLogger(run.metrics, None, resume_step=steps[-1] if steps else -1, runtime_s=0.0) as logger:
        where = Where(
            cadence=cadence, run=run, ranks=ranks, stop=stop or StopRequest(run, ranks, None), logger=logger,
            monitor=None, title="fine-tuning", keep_last=1,
        )  # fmt: skip
        step = sft(
            network, rows, how, where, pad_id=model.pad_id, weights=AllWeights(network), evaluate=None, record={},
            tokenizer=model.tokenizer, divergence_remedy=f"lower lr={settings.lr:g}",
        )  # fmt: skip
    if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
        raise DivergedError(f"fine-tuning diverged by step {settings.steps}: a weight is not finite; lower lr={settings.lr:g}.")
    return step
