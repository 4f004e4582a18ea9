"""Proposals: replies in which a model says how it is to be trained on tasks, kept as they are drawn.

    drawn = propose_for(model, tasks, config, num_edits, worklist, progress)       # {task id: proposals, in order}

For each task num_edits are drawn at once. Where some of them cannot be tried, as many are drawn again, up to
propose.max_draws replies in all. Those that cannot be tried stay: the model has said them, and they earn nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from arclab.config.llm_schema import ModelConfig, SamplingConfig
from arclab.config.seal_fewshot_schema import Decoding, SealFewshotConfig
from arclab.data.tasks import ArcTask
from arclab.lm.hf import HfModel
from arclab.lm.hf_loading import model_identity
from arclab.lm.language_model import Completion, FinishReason, LanguageModel, Prompt, Reply, Sampling, prompt_digest
from arclab.methods.seal.fewshot.constrained import chosen_edits, slots_of
from arclab.methods.seal.fewshot.edits import SelfEdit, StepCounter, Verdict, edit_prompt, parse_edit
from arclab.runs.lifecycle import WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.runs.worklist import ItemKind, Line, Worklist, read_items

log = logging.getLogger(__name__)
PROPOSALS = "proposals.jsonl"
PROPOSAL_ITEMS = ItemKind(holds="proposals drawn", again="it is drawn again", elsewhere="choose another name=")
_KINDS: dict[str, Any] = {
    "task": str, "turn": int, "sample": int, "prompt": str, "verdict": str, "config": dict | None, "key": str, "response": str,
    "num_steps": int | None, "num_tokens": int | None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Proposal:
    """A line. turn: how often its task had been asked before. prompt: its digest. config: the self-edit in one form, and key,
    which is equal for equal ones (""), unless the reply is none. num_steps: of training that it asks for. decoding: how it was
    written."""

    id: str
    task: str
    turn: int
    sample: int
    prompt: str
    verdict: str
    config: dict[str, Any] | None
    key: str
    response: str
    num_steps: int | None
    num_tokens: int | None
    decoding: str

    @property
    def is_ok(self) -> bool:
        return self.verdict == Verdict.ok.value

    def edit(self, config: SealFewshotConfig) -> SelfEdit:
        """What it asks for."""
        _, edit = parse_edit(self.response, config.propose)
        assert edit is not None and self.is_ok, "only these are tried"
        return edit


def parse_proposal(record: dict[str, Any], line: Line) -> Proposal:
    line.require(record, _KINDS)
    if record["verdict"] not in {each.value for each in Verdict}:
        raise line.damaged(f"verdict={record['verdict']} is not known")
    decoding = record.get("decoding", Decoding.free.value)
    return Proposal(id=record["id"], **{key: record[key] for key in _KINDS}, decoding=decoding)


def read_proposals(path: Path, tasks: Sequence[ArcTask]) -> dict[str, list[Proposal]]:
    """{task id: its proposals} of a finished file, in the order in which they were drawn."""
    _, found = read_items(path, parse_proposal, PROPOSAL_ITEMS)
    order = sorted(found.values(), key=lambda each: (each.turn, each.sample))
    return {task.id: [each for each in order if each.task == task.id] for task in tasks}


def proposal_settings(config: SealFewshotConfig, model: ModelConfig) -> dict[str, Any]:
    """What decides the proposals of a file, beside what the tasks are."""
    found: dict[str, Any] = {"seed": config.seed, "lm.name (content)": model_identity(model.name)}
    if config.propose.decoding is not Decoding.free:
        found["propose.decoding"] = config.propose.decoding.value
    return found


def sampling_of(wished: SamplingConfig, seed: int) -> Sampling:
    return Sampling(wished.max_new_tokens, wished.temperature, wished.top_p, wished.top_k, wished.min_p, (), seed)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is drawn next for a task."""

    task: ArcTask
    turn: int
    count: int


def propose_for(
    model: LanguageModel, tasks: Sequence[ArcTask], config: SealFewshotConfig, num_edits: int, worklist: Worklist,
    progress: WorkProgress,
) -> dict[str, list[Proposal]]:  # fmt: skip
    """A task whose prompt cannot be answered has none, and a warning says so. ToldToEnd: what is drawn is kept."""
    known = worklist.load(parse_proposal)
    counter, unanswered = StepCounter(config.solver, config.seed), set[str]()
    while True:
        wanted = [each for task in tasks if task.id not in unanswered and (each := _next(task, known, config, num_edits))]
        if not wanted:
            return {task.id: _drawn(task, known) for task in tasks}
        if progress.is_told:
            raise ToldToEnd(f"the proposals of {len(tasks) - len(wanted)} of {len(tasks)} tasks are drawn")
        first = wanted[0]  # tasks are asked together for as many replies
        at_once = model.num_prompts(first.count)
        batch = [each for each in wanted if (each.turn, each.count) == (first.turn, first.count)][:at_once]
        sampling = sampling_of(config.propose.sampling, config.seed)
        prompts = [edit_prompt(each.task, config.solver.text) for each in batch]
        replies = _replies(model, prompts, first.count, replace(sampling, seed=sampling.seed + first.turn), config)
        rows: dict[str, Proposal] = {}
        for each, prompt, reply in zip(batch, prompts, replies, strict=True):
            if reply.problem:
                log.warning("%s has no proposals: %s", each.task.id, reply.problem)
                unanswered.add(each.task.id)
            for sample, completion in enumerate(reply.completions):
                row = _proposal(each, sample, prompt_digest(prompt), completion, counter, config)
                rows[row.id] = row
        worklist.add_all({id_: {key: value for key, value in asdict(row).items() if key != "id"} for id_, row in rows.items()})
        known |= rows
        progress.report(progress.num_steps * (len(tasks) - len(wanted)) // len(tasks))


def _replies(
    model: LanguageModel, prompts: Sequence[Prompt], count: int, sampling: Sampling, config: SealFewshotConfig
) -> list[Reply]:
    if config.propose.decoding is Decoding.free:
        return model.generate(prompts, count, sampling)
    assert isinstance(model, HfModel), "the schema refuses others"
    return chosen_edits(model, prompts, count, sampling, slots_of(config))


def _next(task: ArcTask, known: Mapping[str, Proposal], config: SealFewshotConfig, num_edits: int) -> _Wanted | None:
    """The first turn of a task that is not there whole; None: there is nothing left to draw."""
    most = max(num_edits, config.propose.max_draws)
    turn = num_ok = num_drawn = 0
    while (count := min(num_edits - num_ok, most - num_drawn)) > 0:
        rows = [known.get(_id_of(task, turn, sample)) for sample in range(count)]
        if any(row is None for row in rows):
            return _Wanted(task, turn, count)
        num_ok += sum(row.is_ok for row in rows if row is not None)
        turn, num_drawn = turn + 1, num_drawn + count
    return None


def _drawn(task: ArcTask, known: Mapping[str, Proposal]) -> list[Proposal]:
    return sorted((row for row in known.values() if row.task == task.id), key=lambda row: (row.turn, row.sample))


def _id_of(task: ArcTask, turn: int, sample: int) -> str:
    return f"{task.id}/{turn}/{sample}"


def _proposal(
    wanted: _Wanted, sample: int, digest: str, completion: Completion, counter: StepCounter, config: SealFewshotConfig
) -> Proposal:
    task, response = wanted.task, completion.whole
    verdict, edit = parse_edit(response, config.propose)
    if completion.finish_reason is not FinishReason.stop:
        verdict, edit = Verdict.bad_json, None
    num_steps = None if edit is None else counter.steps_of(edit, task)
    if num_steps is not None and num_steps > config.propose.max_steps:
        verdict = Verdict.over_budget
    return Proposal(
        _id_of(task, wanted.turn, sample), task.id, wanted.turn, sample, digest, verdict.value,
        None if edit is None else edit.as_json(), "" if edit is None else edit.key, response, num_steps, completion.num_tokens,
        config.propose.decoding.value,
    )  # fmt: skip


def verdict_counts(proposals: Sequence[Proposal]) -> dict[str, float]:
    """Verdict -> how many."""
    return {each.value: float(sum(p.verdict == each.value for p in proposals)) for each in Verdict}
