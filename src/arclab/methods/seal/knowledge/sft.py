"""Models that learn to write about passages: stage=sft from the selected completions, stage=start from nothing.

    sft_stage(config, ranks, signals, folder)       # writes model/ (a model folder) and trained.json
    start(config, ranks, signals, folder)           # the same, for a tiny model of the first round

All weights are trained, in float32, with the loss on the reply alone. One process. A kill loses at most the steps since the
last checkpoint; a request to end is heard at each step, and what was trained is kept.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from arclab.config.llm_schema import HfModelConfig
from arclab.config.seal_knowledge_schema import EditKind, KnowledgeScratchConfig, SealKnowledgeConfig, Style
from arclab.lm.hf import load_hf
from arclab.lm.language_model import PLAIN, Message, Prompt
from arclab.lm.tiny import build_tiny
from arclab.lm.training.finetune import FinetuneSettings, finetune
from arclab.methods.seal.knowledge.passages import Item, passages
from arclab.methods.seal.knowledge.policy import MODEL, items_at, policy_inputs, policy_of, write_trained
from arclab.methods.seal.knowledge.prompts import edit_prompt, question_prompt, whole_edit
from arclab.methods.seal.knowledge.select import TAUGHT, read_taught
from arclab.runs.folder import RunDir, State
from arclab.runs.lifecycle import RunFolder, WorkProgress
from arclab.runs.preempt import StopRequest
from arclab.runs.ranks import Ranks
from arclab.runs.signals import StopSignals
from arclab.runs.stages import Made, make_stage

Lesson = tuple[Prompt, str]
_ANSWERED = 10  # of so many passages that a model is taught to write about, it is taught to answer one by heart


def sft_stage(config: SealKnowledgeConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    inputs = {"selected": config.file_of("select", config.round, TAUGHT), **policy_inputs(config)}
    wished = config.sft

    def work(run: RunDir, progress: WorkProgress) -> Made:
        items = {item.id: item for item in items_at(config)}
        taught = read_taught(inputs["selected"])
        lessons = [
            (edit_prompt(items[each.item], config.generate.kind, config.style), reply_to_learn(each.text, config))
            for each in taught
        ]
        settings = FinetuneSettings(
            steps=wished.steps, batch_size=wished.batch_size, lr=wished.lr, warmup_steps=wished.warmup_steps,
            weight_decay=wished.weight_decay, save_every=wished.checkpoint_every, log_every=wished.log_every, seed=config.seed,
        )  # fmt: skip
        policy = policy_of(config, config.round)
        assert isinstance(policy, HfModelConfig), "the schema refuses others"
        return _taught(config, policy, run, lessons, settings, StopRequest(run, ranks, signals))

    return make_stage(config, ranks, signals, folder, inputs, wished.steps, work)


def reply_to_learn(text: str, config: SealKnowledgeConfig) -> str:
    """A completion without what its prompt has begun."""
    begun = whole_edit("x", config.generate.kind, config.style).removesuffix("x")
    return text.removeprefix(begun) if begun else text


def _taught(
    config: SealKnowledgeConfig, policy: HfModelConfig, run: RunDir, lessons: Sequence[Lesson], settings: FinetuneSettings,
    stop: StopRequest,
) -> Made:  # fmt: skip
    """ToldToEnd: stop said so, and what was trained is kept."""
    finetune(load_hf(replace(policy, device=config.device)), run.path / MODEL, lessons, settings, stop)
    counts = {"rows": float(len(lessons)), "steps": float(settings.steps)}
    trained = write_trained(run.path)
    return Made(outputs=[trained], counts=counts, message=f"learned from {len(lessons)} rows: {run.path / MODEL}")


def start(config: SealKnowledgeConfig, ranks: Ranks, signals: StopSignals, folder: RunFolder) -> State:
    """Make the model of the first round. It is taught passages that no run asks about."""
    scratch = config.scratch
    assert scratch is not None, "the schema refuses this stage without it"

    def work(run: RunDir, progress: WorkProgress) -> Made:
        lessons = scratch_lessons(scratch, config)
        base = run.path / ".base"
        if not base.is_dir():
            texts = [prompt[-1].content + reply for prompt, reply in lessons[:1000]]
            build_tiny(
                base, texts=texts, seed=config.seed, num_layers=scratch.num_layers, width=scratch.width,
                num_heads=scratch.num_heads, context=scratch.context, vocab_size=scratch.vocab_size,
            )  # fmt: skip
        settings = FinetuneSettings(
            steps=scratch.steps, batch_size=scratch.batch_size, lr=scratch.lr, warmup_steps=scratch.warmup_steps,
            weight_decay=0.0, save_every=max(1, scratch.steps // 4), log_every=max(1, scratch.steps // 20), seed=config.seed,
        )  # fmt: skip
        assert isinstance(config.lm, HfModelConfig), "the schema refuses others"
        model = replace(config.lm, name=str(base), adapter=None)
        return _taught(config, model, run, lessons, settings, StopRequest(run, ranks, signals))

    return make_stage(config, ranks, signals, folder, {}, scratch.steps, work)


def scratch_lessons(scratch: KnowledgeScratchConfig, config: SealKnowledgeConfig) -> list[Lesson]:
    """Of invented passages: writing about them, and answering what was stated. Names of these passages are in no run's data,
    since the seeds differ; the words that names are made of are."""
    assert config.data.seed != scratch.seed, "the schema refuses it"
    rng, lessons = random.Random(f"{scratch.seed} lessons"), list[Lesson]()
    items = passages(scratch.num_passages, config.data.num_facts, scratch.seed)
    for place, item in enumerate(items):
        others = items[place - 3] if place >= 3 else item  # of the same kind
        edit = edit_of(item, others, config.generate.kind, scratch.wrong_share, rng)
        lessons.append((edit_prompt(item, config.generate.kind, config.style), _without_lead(edit, config)))
        lessons += closed_book(item, config.style) if place % _ANSWERED == 0 else []
    return lessons


def closed_book(item: Item, style: Style) -> list[Lesson]:
    """What is learned without the passage: it itself, and the answers."""
    plain: list[Lesson] = [((Message(PLAIN, f"{item.title}\n"),), item.context)]
    return plain + [(question_prompt(item.title, each.text, style), f" {each.answer}") for each in item.questions]


def edit_of(item: Item, other: Item, kind: EditKind, wrong_share: float, rng: random.Random) -> str:
    """What a model should write: statements, or questions with answers; some are those of another passage."""
    sentences, strangers = item.context.split(". "), other.context.split(". ")
    lines: list[str] = []
    for number, question in enumerate(item.questions, start=1):
        is_wrong = rng.random() < wrong_share and number <= len(other.questions)
        if kind is EditKind.self_qa:
            answer = other.questions[number - 1].answer if is_wrong else question.answer
            lines.append(f"Question {number}: {question.text}\nAnswer: {answer}")
        else:
            lines.append((strangers if is_wrong else sentences)[number - 1].rstrip(".") + ".")
    return "\n".join(lines)


def _without_lead(edit: str, config: SealKnowledgeConfig) -> str:
    learned = reply_to_learn(edit, config)
    return learned if config.style is Style.chat or learned != edit else f"\n{edit}"
