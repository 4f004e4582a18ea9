"""The reasoner that a run makes itself: a small model with random weights, trained on the training split and then frozen.

    is_there = make_reasoner(config, splits, run, ranks, stop)       # run/reasoner, an ordinary model folder

It is for positive controls: its accuracy is set by how long it is trained, so there is something for a weaver to add. It is
made once; a run that was told to end meanwhile goes on with the same command. A run whose lm.name is a finished model makes
none."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from arclab.config.memgen_schema import PretrainMemGenConfig, ScratchConfig
from arclab.lm.tiny import build_tiny
from arclab.lm.training.life import AllWeights
from arclab.lm.training.rows import IGNORED, Row
from arclab.lm.training.sft import SftSettings, StageCadence, Where, sft
from arclab.methods.memgen.insertions import INFERENCE, NONE, PROMPT, plan_of
from arclab.methods.memgen.setting import Language, insertion_rule, load_reasoner, reasoner_folder, require_room
from arclab.metrics.logger import MetricLogger
from arclab.runs.folder import RunDir
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks
from arclab.text.examples import TextSplits

log = logging.getLogger(__name__)
_TOKENIZER_TEXTS = 3000  # that its tokenizer is made of
_GAP_SHARE = 0.6  # of the places at which memory may be inserted


def make_reasoner(config: PretrainMemGenConfig, splits: TextSplits, run: RunDir, ranks: Ranks, stop: StopRequest) -> bool:
    """False: the run was told to end before the reasoner was finished. ValueError: examples that do not fit into its
    context."""
    scratch, folder = config.memgen.reasoner.scratch, reasoner_folder(run.path)
    is_there = ranks.gather_objects(folder.is_dir() if ranks.is_main else None)[0]
    if scratch is None or is_there:
        return True
    making = run.path / ".reasoner"
    start = making / "start"
    if ranks.is_main and not start.is_dir():
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        _build(scratch, splits, start, config.seed)
    ranks.barrier()
    language = load_reasoner(replace(config.lm, name=str(start)))
    rows = _rows(config, language, splits)
    model = language.model.requires_grad_(True)
    logger = MetricLogger(making / "metrics.jsonl", None, resume_step=10**9, runtime_s=0.0) if ranks.is_main else None
    with logger or nullcontext():
        where = Where(
            cadence=StageCadence(
                scratch.steps, config.trainer.num_threads, config.trainer.device, config.trainer.log_every,
                config.trainer.checkpoint_every,
            ),
            run=RunDir(making), ranks=ranks, stop=stop, logger=logger, monitor=None, title=f"{config.name} (reasoner)",
            keep_last=1,
        )  # fmt: skip
        step = sft(
            model, rows, _settings(scratch, config.seed), where, pad_id=language.pad_id, weights=AllWeights(model),
            evaluate=None, record={}, tokenizer=language.tokenizer,
            divergence_remedy="lower memgen.reasoner.scratch.lr",
        )  # fmt: skip
    if step < scratch.steps:
        return False
    if ranks.is_main:
        finished = making / "finished"
        model.save_pretrained(finished)
        language.tokenizer.save_pretrained(finished)
        os.replace(finished, folder)
        shutil.rmtree(making)
        log.info("made the reasoner %s in %d steps", folder, step)
    ranks.barrier()
    return True


def _rows(config: PretrainMemGenConfig, language: Language, splits: TextSplits) -> list[Row]:
    """Questions with their replies, without memory."""
    weaver, scratch = config.memgen.weaver, config.memgen.reasoner.scratch
    assert scratch is not None
    rule, leaps = insertion_rule(language, weaver), random.Random(f"{config.seed} position gaps")
    most = {PROMPT: weaver.prompt_latents_len, INFERENCE: weaver.inference_latents_len}
    rows: list[Row] = []
    for example in splits.train:
        for number, (prompt, reply) in enumerate(language.turns_of(example)):
            ids = prompt + reply
            require_room(language, example, len(ids), weaver, "raise memgen.reasoner.scratch.context")
            plan = plan_of(ids, len(prompt), rule.delimiters_V, rule.of_turn(number).limits)
            row: Row = {"input_ids": ids, "labels": [IGNORED] * len(prompt) + reply}
            if scratch.position_gaps:
                row["position_ids"] = [at + gap for at, gap in enumerate(_gaps(plan, most, leaps))]
            rows.append(row)
    return rows


def _gaps(plan: Sequence[int], most: Mapping[int, int], leaps: random.Random) -> Iterator[int]:
    """How far each token stands behind its own place: a random part of what memory before it might take; often nothing."""
    gap = 0
    for kind in plan:
        yield gap
        if kind != NONE and leaps.random() < _GAP_SHARE:
            gap += leaps.randint(0, most[kind])


def _build(scratch: ScratchConfig, splits: TextSplits, folder: Any, seed: int) -> None:
    texts = [
        "\n".join([example.question, example.reply, *(text for turn in example.turns for text in turn)])
        for example in splits.train[:_TOKENIZER_TEXTS]
    ]
    build_tiny(
        folder, texts=texts, seed=seed, num_layers=scratch.num_layers, width=scratch.width, num_heads=scratch.num_heads,
        context=scratch.context, vocab_size=scratch.vocab_size,
    )  # fmt: skip


def _settings(scratch: ScratchConfig, seed: int) -> SftSettings:
    return SftSettings(
        batch_size=scratch.batch_size, grad_accumulation=1, lr=scratch.lr, warmup_steps=scratch.warmup_steps,
        schedule="constant_with_warmup", weight_decay=0.0, clip_norm=1.0, seed=seed,
        key="memgen.reasoner.scratch",
    )  # fmt: skip
