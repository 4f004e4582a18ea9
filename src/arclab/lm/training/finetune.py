"""Supervised fine-tuning of a local language model on replies: prompt in, reply learned, loss on the reply's tokens only.

    finetune(load_hf(config), Path("models/taught"), [(prompt, "def solve(I): ..."), ...], FinetuneSettings(steps=2000, ...))

The training text is made by the model that generates (chat template, then the reply, then the end mark), so that what is
learned is what is asked for. transformers' Trainer does the work and keeps checkpoints: the same call goes on after a kill. All
weights are trained, in float32 (in bfloat16 most steps of a usual size round to nothing); for adapters see hf.py. Rows that are
longer than the model's context are refused, never cut. A training whose loss stops being finite ends with an error and leaves
nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from arclab.config.llm_schema import Dtype
from arclab.files import DamagedFile, difference, naming, read_object, write_atomically
from arclab.lm.hf import HfModel
from arclab.lm.hf_loading import model_identity
from arclab.lm.language_model import Prompt
from arclab.lm.training.sft import IGNORED, collate
from arclab.runs.console import progress_bar

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


class _Rows(Dataset[dict[str, list[int]]]):
    """Tokenised rows. ValueError: one that does not fit into the context."""

    def __init__(self, model: HfModel, rows: Sequence[tuple[Prompt, str]]) -> None:
        self._rows, limit = [], model.max_context
        for number, (prompt, reply) in enumerate(rows):
            shown, written = model.prompt_ids(prompt), model.reply_ids(reply)
            length = len(shown) + len(written)
            if limit is not None and length > limit:
                raise ValueError(
                    f"row {number} has {length} tokens, more than the model's context of {limit}; drop it, or use a model "
                    "with a longer context."
                )
            if model.opened(prompt) and "</think>" not in reply:
                raise ValueError(
                    f"row {number}: the chat template opens <think> before the reply "
                    f"(lm.thinking={model.config.thinking}), and the reply does not close it, so that what is taught would "
                    "be read as unfinished thinking; use lm.thinking=false, or replies with </think>."
                )
            self._rows.append({"input_ids": shown + written, "labels": [IGNORED] * len(shown) + written})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self._rows[index]


class DivergedError(ValueError):
    """The loss or the weights are no longer finite."""

    def __init__(self, step: int, lr: float) -> None:
        super().__init__(f"fine-tuning diverged by step {step}: the loss or a weight is not finite; lower lr={lr:g}.")


class _Report(TrainerCallback):
    """A bar with the time left, and losses as log lines; Trainer's own would be printed."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = progress_bar(total=state.max_steps, initial=state.global_step, desc="fine-tuning", unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            log.info("step %d of %d: loss %.4f nats", state.global_step, state.max_steps, logs["loss"])
            if not math.isfinite(logs["loss"]):
                raise DivergedError(state.global_step, args.learning_rate)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()


def _require_trainable(rows: Sequence[tuple[Prompt, str]], settings: FinetuneSettings) -> None:
    for name, low in (("steps", 1), ("batch_size", 1), ("save_every", 1), ("log_every", 1), ("warmup_steps", 0)):
        value = getattr(settings, name)
        if value < low:
            raise ValueError(f"fine-tuning {name}={value} must be at least {low}; raise it.")
    if not rows:
        raise ValueError("fine-tuning rows=[] must hold at least one prompt with its reply; add some.")


def _require_fresh(model: HfModel) -> None:
    """ValueError: weights in which steps would be lost, or that are no longer what the model's name says."""
    if model.config.dtype is not Dtype.float32:
        raise ValueError(
            f"fine-tuning in lm.dtype={model.config.dtype.value} loses most steps to rounding; load the model with "
            "lm.dtype=float32."
        )
    if model.was_trained:
        raise ValueError(
            f"the weights of lm.name={model.name} have been trained already since they were loaded; load it again with load_hf."
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


def _last_whole_checkpoint(work: Path) -> str | None:
    """The newest checkpoint that was saved to its end. Trainer writes its state last; later folders are remains of a kill."""
    whole = None
    found = [path for path in work.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for folder in sorted(found, key=lambda path: int(path.name.rpartition("-")[2])):
        try:
            read_object(folder / "trainer_state.json")
        except (FileNotFoundError, DamagedFile):  # not any OSError: one that cannot be read today may be whole
            shutil.rmtree(folder)
            continue
        whole = str(folder)
    return whole


def _arguments(settings: FinetuneSettings, work: Path, device: torch.device) -> TrainingArguments:
    """ValueError if there is more than one device: each would take a batch of its own."""
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.lr,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        logging_steps=settings.log_every,
        save_steps=settings.save_every,
        save_total_limit=1,
        seed=settings.seed,
        data_seed=settings.seed,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        use_cpu=device.type == "cpu",
    )
    if arguments.n_gpu > 1 or arguments.world_size > 1:
        raise ValueError(
            f"fine-tuning uses one device, but {max(arguments.n_gpu, arguments.world_size)} are at hand, each of which would "
            f"take batch_size={settings.batch_size} rows; show it one with CUDA_VISIBLE_DEVICES=0, without torchrun."
        )
    return arguments


def finetune(model: HfModel, output: Path, rows: Sequence[tuple[Prompt, str]], settings: FinetuneSettings) -> None:
    """Train all weights of the model on rows and save it as the model folder `output`. Nothing happens if that is there
    already.

    ValueError: settings or rows that cannot be trained on, or a folder that holds something else or another training.
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
    data = _Rows(model, rows)
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(work / _IDENTITY, json.dumps(identity))
    arguments = _arguments(settings, work, model.device)
    with model.trainable() as network:
        trainer = Trainer(
            model=network, args=arguments, train_dataset=data, callbacks=[_Report()],
            data_collator=lambda batch: collate(batch, model.pad_id),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        try:
            with naming(work):
                trainer.train(resume_from_checkpoint=_last_whole_checkpoint(work))
            if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
                raise DivergedError(settings.steps, settings.lr)
        except DivergedError:
            shutil.rmtree(work)  # its checkpoints lead there again
            raise
        finished = work / "finished"
        model.save(finished)
    write_atomically(finished / _IDENTITY, json.dumps(identity))
    os.replace(finished, output)
    shutil.rmtree(work)
