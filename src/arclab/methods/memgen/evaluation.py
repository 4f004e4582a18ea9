"""evaluate.py solver=memgen and solver=memgen_ltpo: answer a split's questions with a run's model, and score the answers.

    python evaluate.py solver=memgen checkpoint=runs/memgen/a memory=trained
    python evaluate.py solver=memgen_ltpo checkpoint=runs/memgen/a ltpo.lr=0.03

Answers are kept as they come, on every rank in a file of its own: the same command goes on after a kill. In the end
answer.json (answer_ltpo.json) has each id once, as JSON lines with a summary as the last one, and text_metrics.json the
accuracy with its interval."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arclab.config.compose import ConfigError, flat
from arclab.config.memgen_schema import EvaluateMemGenConfig, EvaluateMemGenLtpoConfig, Memory
from arclab.data.shares import owners
from arclab.files import write_atomically
from arclab.methods.memgen.answering import Answered, NewRefine, accuracy, answer, longest_first, measure, to_sampling
from arclab.methods.memgen.interaction import environment_of_ranks
from arclab.methods.memgen.ltpo import LatentOptimiser
from arclab.methods.memgen.saved import SavedMemGen, load_memgen
from arclab.methods.memgen.setting import insertion_rule
from arclab.pages.text_report import TextAnswer, TextResult, render_text_report
from arclab.runs.folder import RunDir, State, provenance
from arclab.runs.lifecycle import RecordFailure, RunFolder, WorkProgress, in_ranks, until_told, use_threads
from arclab.runs.lock import keeper
from arclab.runs.preempt import ToldToEnd
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import digest
from arclab.runs.worklist import ITEMS, Line, Worklist, read_items
from arclab.solvers.shards import ShardRecord, begin_with_whole, merge_shards, write_merge_time
from arclab.text.environments import Environment
from arclab.text.examples import TextExample
from arclab.text.load import load_text

log = logging.getLogger(__name__)
_STORES = {"answers_*_of_*.jsonl": ITEMS}


def evaluate(config: EvaluateMemGenConfig, given: RunDir | None = None) -> int:
    """given, and the exit status: see arclab.runs.lifecycle.in_ranks."""
    if isinstance(config, EvaluateMemGenLtpoConfig) and not config.ltpo.enabled:
        raise ConfigError(
            "ltpo.enabled=false, and solver=memgen_ltpo optimises latents; set ltpo.enabled=true, or use solver=memgen."
        )

    def work(ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
        return _evaluate(config, ranks, signals, folder)

    return in_ranks(work, config, given, config.device, config.num_threads)


def _evaluate(config: EvaluateMemGenConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    run = folder.run
    with folder.building():
        saved = load_memgen(Path(config.checkpoint), config.device, config.memory)
        if config.num_threads is None:
            use_threads(saved.config.trainer.num_threads)
        if isinstance(config, EvaluateMemGenLtpoConfig) and saved.config.dataset.turns is not None:
            raise ConfigError(
                f"checkpoint={config.checkpoint} answers in several turns (dataset.kind={saved.config.dataset.kind}), and "
                "solver=memgen_ltpo moves latents of one; use solver=memgen."
            )
        splits = load_text(saved.config.dataset, needs_replies=saved.config.learns_replies)
        split = config.split
        examples = splits.named(split.value)[: config.max_examples]
        if config.launch.shard is not None:
            examples = _share(config, saved, examples, config.launch.shard)
        if hidden := [example.id for example in examples if not example.answer]:
            raise ValueError(
                f"split={split.value} has no answer for {hidden[0]} ({len(hidden)} are hidden), so it cannot be scored; choose "
                "another split."
            )
        with folder.held(config, splits.notes), RecordFailure(run):
            progress = WorkProgress(run, ranks, signals, len(examples))

            def work() -> str:
                known = _known(config, run, ranks, _settings(config, saved))
                record = None if known or config.launch.shard is None else ShardRecord(run.path)
                with environment_of_ranks(saved.config, run.path, ranks) as environment:
                    answered, seconds = _answered(config, saved, environment, examples, known, run, ranks, progress)
                if not ranks.is_main:
                    return ""
                keeper(run)()
                if config.launch.shard is not None:
                    if record is not None:  # of a shard that goes on the time says nothing
                        record.add_work(
                            len(answered), sum(map(length_of, examples)), tokens=sum(a.num_tokens for a in answered)
                        )
                        record.write()
                    return f"shard {config.launch.shard} of {config.launch.shards}: {len(answered)} questions"
                message = _write(config, saved, split.value, answered, seconds, splits.notes, run)
                if config.launch.is_divided:
                    write_merge_time(run.path)
                return message

            return until_told(run, ranks, progress, work)


def _share(config: EvaluateMemGenConfig, saved: SavedMemGen, examples: Sequence[TextExample], shard: int) -> list[TextExample]:
    """The questions of a shard, in their order: whole batches of those that one process would make, so that not even the last
    digit of a probability is another one. ConfigError: more shards than batches."""
    size, count = config.batch_size or saved.config.lm.batch_size, config.launch.shards
    order = longest_first(saved.language, examples)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    if count > len(batches):
        raise ConfigError(
            f"launch.shards={count} is more than the {len(batches)} batches of {size} questions; give at most {len(batches)}, "
            "or lower batch_size."
        )
    found = owners([sum(map(length_of, batch)) for batch in batches], [batch[0].id for batch in batches], count)
    mine = {example.id for batch, owner in zip(batches, found, strict=True) if owner == shard for example in batch}
    return [example for example in examples if example.id in mine]


def length_of(example: TextExample) -> int:
    """In characters: about what answering it costs, beside others."""
    return len(example.question)


def _settings(config: EvaluateMemGenConfig, saved: SavedMemGen) -> dict[str, Any]:
    """Everything that decides an answer."""
    settings = {key: value for key, value in flat(config).items() if not key.startswith(config.FREE_KEYS)}
    weights = digest(saved.checkpoint / "model.safetensors")[:16]
    return settings | {"step": saved.step, "weights": weights, "reasoner": saved.language.identity}


def _worklist(run: RunDir, ranks: Ranks, settings: dict[str, Any]) -> Worklist:
    return Worklist(run.path / f"answers_{ranks.rank}_of_{ranks.world_size}.jsonl", settings)


def _known(config: EvaluateMemGenConfig, run: RunDir, ranks: Ranks, settings: dict[str, Any]) -> dict[str, Answered]:
    """{id: answer} of what this rank has kept; where there are shards, of what all ranks of any of them have. ConfigError: it
    was made with other settings."""
    if ranks.is_main and config.launch.shard is not None:
        begin_with_whole(run.path, config.whole_folder, _STORES)
    if ranks.is_main:
        merge_shards(config, run.path, _STORES)
    ranks.barrier()
    known = _worklist(run, ranks, settings).load(_parsed)
    if config.launch.shards > 1:
        ranks.barrier()  # nobody's file has half a line any more
        for path in sorted(run.path.glob(*_STORES)):
            Worklist(path, settings).check()
            known |= read_items(path, _parsed)[1]
        ranks.barrier()
    return known


def _answered(
    config: EvaluateMemGenConfig, saved: SavedMemGen, environment: Environment, examples: Sequence[TextExample],
    known: Mapping[str, Answered], run: RunDir, ranks: Ranks, progress: WorkProgress,
) -> tuple[list[Answered], float]:  # fmt: skip
    """All ranks' answers, in the order of the examples, and the seconds that those of this process took."""
    weaver, language = saved.config.memgen.weaver, saved.language
    rule = insertion_rule(language, weaver, saved.trigger(config.trigger, "trigger"))
    worklist = _worklist(run, ranks, _settings(config, saved))
    mine = list(examples[ranks.rank :: ranks.world_size])
    kept = [known[example.id] for example in mine if example.id in known]
    left = [example for example in mine if example.id not in known]
    start, made = time.monotonic(), 0
    batches = answer(
        saved.model, language, rule, weaver, environment, left, to_sampling(config.sampling, config.seed),
        config.batch_size or saved.config.lm.batch_size, _new_refine(config, saved),
    )  # fmt: skip
    with saved.model.memory_off(config.memory is Memory.off):
        for batch in batches:
            for each in batch:
                worklist.add(each.id, each.record())
            kept += batch
            made += sum(each.num_tokens for each in batch)
            progress.report(len(kept) * ranks.world_size)
            if progress.is_told:
                break
    # All ranks end early, or none: a rank that is told when another has finished would leave it waiting.
    done = ranks.gather_objects(len(kept))
    if sum(done) < len(examples):
        raise ToldToEnd(f"{sum(done)} of {len(examples)} answers are kept")
    by_id = {each.id: each for part in ranks.gather_objects(kept) for each in part}
    seconds = time.monotonic() - start
    log.info("%d answers, %.0f tokens/s", len(by_id), made / max(seconds, 1e-9))
    return [by_id[example.id] for example in examples], seconds


def _new_refine(config: EvaluateMemGenConfig, saved: SavedMemGen) -> NewRefine | None:
    if not isinstance(config, EvaluateMemGenLtpoConfig):
        return None
    ltpo, seed = config.ltpo, config.seed

    def new(batch: Sequence[TextExample]) -> tuple[Any, Any]:
        optimiser = LatentOptimiser(saved.model, ltpo, seed, [example.id for example in batch])
        return optimiser, optimiser.told

    return new


_FIELDS = {
    "question": str, "reply": str, "answer": str | None, "gold": str, "is_right": bool, "num_tokens": int,
    "inserted": list, "inserted_chars": list, "asked": list, "is_cut": bool, "logprob": float,
}  # fmt: skip


def _parsed(record: dict[str, Any], line: Line) -> Answered:
    line.require(record, _FIELDS)
    extra = {key: value for key, value in record.items() if key not in _FIELDS and key != "id"}
    return Answered(id=record["id"], **{key: record[key] for key in _FIELDS}, extra=extra)


def _write(
    config: EvaluateMemGenConfig, saved: SavedMemGen, split: str, answered: Sequence[Answered], seconds: float,
    notes: Sequence[str], run: RunDir,
) -> str:  # fmt: skip
    share, metrics = accuracy(answered), measure(answered)
    metrics |= _ltpo_metrics(answered)
    made = sum(each.num_tokens for each in answered)
    summary = {
        "accuracy": share.value, "n": share.n, "N": share.total, "interval95": list(share.interval), "metrics": metrics,
        "tokens_per_s": made / max(seconds, 1e-9), "memory": config.memory.value, "split": split, "step": saved.step,
        "checkpoint": str(saved.checkpoint), "chosen": saved.choice.reason, "notes": list(notes),
    }  # fmt: skip
    lines = [json.dumps({"id": each.id, **each.record()}) for each in answered]
    name = "answer_ltpo.json" if isinstance(config, EvaluateMemGenLtpoConfig) else "answer.json"
    write_atomically(run.path / name, "\n".join([*lines, json.dumps({"summary": summary})]) + "\n")
    record = {
        **summary,
        "solver": "memgen_ltpo" if isinstance(config, EvaluateMemGenLtpoConfig) else "memgen",
        "provenance": provenance(),
        "settings": flat(config),
    }
    write_atomically(run.path / "text_metrics.json", json.dumps(record, indent=1) + "\n")
    write_atomically(run.path / "report.html", _page(config, saved, answered, metrics, notes, name))
    log.info("%s: %s", run.path / name, share)
    log.info("report: %s", run.path / "report.html")
    return f"text/accuracy {share}"


def _page(
    config: EvaluateMemGenConfig, saved: SavedMemGen, answered: Sequence[Answered], metrics: dict[str, float],
    notes: Sequence[str], file: str,
) -> str:  # fmt: skip
    facts = {
        "reasoner": saved.config.lm.name,
        "memory": config.memory.value,
        "questions": f"{saved.config.dataset.name} / {config.split.value}",
        "step": f"{saved.step:,} ({saved.choice.reason})",
        "temperature": f"{config.sampling.temperature:g}",
    }
    answers = [
        TextAnswer(
            each.id, each.question, each.reply, each.answer, each.gold, each.is_right, _detail(each), each.inserted_chars
        )
        for each in answered
    ]
    made = {key: str(value) for key, value in provenance().items()} | {"checkpoint": str(saved.checkpoint)}
    return render_text_report(
        TextResult(config.title, facts, accuracy(answered), metrics, answers, notes, made, flat(config), file)
    )


def _detail(answered: Answered) -> str:
    words = [f"{len(answered.inserted)} insertions, {answered.num_tokens} tokens"]
    words += ["cut at max_new_tokens"] if answered.is_cut else []
    before, after = answered.extra.get("reward_before", []), answered.extra.get("reward_after", [])
    words += [f"reward {b:.2f} -> {a:.2f}" for b, a in zip(before, after, strict=True)]
    return "; ".join(words)


def _ltpo_metrics(answered: Sequence[Answered]) -> dict[str, float]:
    before = [value for each in answered for value in each.extra.get("reward_before", [])]
    after = [value for each in answered for value in each.extra.get("reward_after", [])]
    moved = [value for each in answered for value in each.extra.get("moved", [])]
    if not before:
        return {}
    return {
        "ltpo/reward_before": sum(before) / len(before),
        "ltpo/reward_after": sum(after) / len(after),
        "ltpo/raised_share": sum(b < a for b, a in zip(before, after, strict=True)) / len(before),
        "ltpo/moved": sum(moved) / len(moved),
        "ltpo/count": float(len(before)),
    }
