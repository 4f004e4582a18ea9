"""The schema of self_improve.py method=seal_knowledge: passages that a model takes into its weights.

Rules as in schema.py: fields have no defaults (values live in conf/), check(path) returns broken rules as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar, Optional

from arclab.config.launch_schema import LaunchConfig
from arclab.config.llm_schema import HOW_MODELS_RUN, Dtype, EndpointModelConfig, HfModelConfig, ModelConfig, SamplingConfig
from arclab.config.names import broken_name, broken_path
from arclab.config.rules import at_least, sized, within
from arclab.config.run import CriterionConfig, DeviceChoice
from arclab.config.seal_schema import AdaptKind, InnerConfig
from arclab.config.sft_schema import StageSftConfig
from arclab.config.stages_schema import StagedConfig

PASSAGES = "passages"  # of data.source: invented ones
MOST_FACTS = 9  # of an invented passage
NO_SERVER, START = "none", "start"  # of query.server


class KnowledgeStage(Enum):
    start = "start"
    generate = "generate"
    query = "query"
    select = "select"
    sft = "sft"
    cpt = "cpt"
    continual = "continual"
    serve = "serve"
    round = "round"


class EditKind(Enum):
    """What the model is asked to write about a passage."""

    implications = "implications"
    implications_long = "implications_long"
    implications_very_long = "implications_very_long"
    rewrite = "rewrite"
    self_qa = "self_qa"


class Style(Enum):
    """How the model is asked. completion: a text that it goes on with, for base models. chat: its chat template."""

    completion = "completion"
    chat = "chat"


class ItemSplit(Enum):
    train = "train"
    test = "test"


class GraderKind(Enum):
    """exact: the answer is the right one. f1: they have enough words in common. contains: the right words stand in the answer,
    in their order. model: a language model says whether the answer says what the right one says."""

    exact = "exact"
    f1 = "f1"
    contains = "contains"
    model = "model"


class SelectRule(Enum):
    """best: the completions of the highest gain. shuffled: the same with gains that change places among all; the control."""

    best = "best"
    shuffled = "shuffled"


@dataclass(kw_only=True, slots=True)
class KnowledgeDataConfig:
    """source: passages (invented ones, of num_facts sentences), a JSON file of items, or a data set of the hub in the form of
    SQuAD (hub_split of it). num_train: items of each round. split: which of them the stages work on."""

    source: str
    hub_split: str
    seed: int
    num_train: int
    num_test: int
    num_facts: int
    split: ItemSplit

    def check(self, path: str) -> list[str]:
        problems = [*sized(path, 0, seed=self.seed), *within(path, 1, MOST_FACTS, num_facts=self.num_facts)]
        problems += [*at_least(path, 1, num_train=self.num_train), *at_least(path, 0, num_test=self.num_test)]
        if self.split is ItemSplit.test and self.num_test == 0:
            problems.append(f"{path}.split=test has no items with {path}.num_test=0; raise it.")
        return problems


@dataclass(kw_only=True, slots=True)
class KnowledgeScratchConfig:
    """A tiny model that stage=start makes: taught on invented passages of seed to write about them and to answer, with
    wrong_share of the answers that it writes being those of others, so that what it writes differs in worth."""

    seed: int
    num_passages: int
    wrong_share: float
    width: int
    num_layers: int
    num_heads: int
    context: int
    vocab_size: int
    steps: int
    batch_size: int
    lr: float
    warmup_steps: int

    def check(self, path: str) -> list[str]:
        problems = sized(
            path, 1, width=self.width, num_layers=self.num_layers, num_heads=self.num_heads, batch_size=self.batch_size
        )
        problems += at_least(
            path, 1, steps=self.steps, context=self.context, vocab_size=self.vocab_size, num_passages=self.num_passages
        )
        problems += [*within(path, 0, 1, wrong_share=self.wrong_share), *sized(path, 0, seed=self.seed)]
        return problems + at_least(path, 0, lr=self.lr, warmup_steps=self.warmup_steps)


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """num_completions: of each item. retries: how often an empty one is drawn again."""

    kind: EditKind
    num_completions: int
    retries: int
    sampling: SamplingConfig

    def check(self, path: str) -> list[str]:
        problems = [*at_least(path, 1, num_completions=self.num_completions), *at_least(path, 0, retries=self.retries)]
        if self.sampling.temperature == 0 and self.num_completions > 1:
            problems.append(
                f"{path}.num_completions={self.num_completions} does not go with {path}.sampling.temperature=0: all of them "
                f"would be equal; set {path}.num_completions=1 or a temperature above 0."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class GraderConfig:
    """threshold: of kind f1. model: a server that speaks OpenAI's protocol, of kind model; null with the others."""

    kind: GraderKind
    threshold: float
    model: Optional[EndpointModelConfig]

    def check(self, path: str) -> list[str]:
        problems = within(path, 0.01, 1, threshold=self.threshold)
        if (self.kind is GraderKind.model) != (self.model is not None):
            problems.append(
                f"{path}.kind={self.kind.value} {'needs' if self.model is None else 'has no use for'} {path}.model; "
                + ("give one." if self.model is None else f"set {path}.model=null, or {path}.kind=model.")
            )
        return problems


@dataclass(kw_only=True, slots=True)
class QueryConfig:
    """What each completion is worth. split_lines: each line is a sequence of its own. adaptation: how the model is trained
    on them. repetitions: of each completion, with other seeds; more_repetitions: of the two best ones of each item after
    that. passage_alone: the passage without a completion is tried too; passage_repeated: so is the passage as often as the
    first completion has sequences, which takes as many steps. other_item: so is a completion of another item, the control.
    num_retained: so many other items of the round are asked about in each trial too: what does the training cost them?
    server: none: the model answers in this process; start: in a server that this run starts and watches; or its address, or
    the run folder of stage=serve. timeout_s: without a sign of life of the server."""

    split_lines: bool
    adaptation: InnerConfig
    repetitions: int
    more_repetitions: int
    passage_alone: bool
    passage_repeated: bool
    other_item: bool
    num_retained: int
    max_new_tokens: int
    grader: GraderConfig
    server: str
    timeout_s: float

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 1, repetitions=self.repetitions, max_new_tokens=self.max_new_tokens)
        problems += [
            *at_least(path, 0, more_repetitions=self.more_repetitions, num_retained=self.num_retained),
            *within(path, 1, 1e6, timeout_s=self.timeout_s),
        ]
        if self.adaptation.kind is AdaptKind.none:
            problems.append(f"{path}.adaptation.kind=none trains nothing, so every gain would be 0; use lora or full.")
        return problems


@dataclass(kw_only=True, slots=True)
class SelectConfig:
    """Which completions are learned from. top_k: of each item. min_gain: in share of its questions; they must have more.
    drop_weight: the gain is lessened by so much of what other items lose (query.num_retained)."""

    rule: SelectRule
    top_k: int
    min_gain: float
    drop_weight: float

    def check(self, path: str) -> list[str]:
        problems = [*at_least(path, 1, top_k=self.top_k), *within(path, -1, 1, min_gain=self.min_gain)]
        return problems + within(path, 0, 100, drop_weight=self.drop_weight)


@dataclass(kw_only=True, slots=True)
class KnowledgeSftConfig(StageSftConfig):
    """Supervised fine-tuning of all weights on the selected completions."""


@dataclass(kw_only=True, slots=True)
class CptConfig:
    """Training on the sequences of all items at once (continued pretraining). split_lines: as of query."""

    split_lines: bool
    adaptation: InnerConfig

    def check(self, path: str) -> list[str]:
        if self.adaptation.kind is AdaptKind.none:
            return [f"{path}.adaptation.kind=none trains nothing; use lora or full."]
        return []


@dataclass(kw_only=True, slots=True)
class ContinualConfig:
    """num_sequences times num_edits items, one edit after the other, each sequence from the model as it is."""

    num_sequences: int
    num_edits: int

    @property
    def num_items(self) -> int:
        return self.num_sequences * self.num_edits

    def check(self, path: str) -> list[str]:
        return at_least(path, 1, num_sequences=self.num_sequences, num_edits=self.num_edits)


def needs_keys(key: str, address: str, keys: str | None) -> list[str]:
    """Broken rules of an address; none of a run folder."""
    if keys is not None or not address.startswith("tcp://") or address.startswith(("tcp://127.0.0.1:", "tcp://localhost:")):
        return []
    return [
        f"{key}={address} is of other hosts, and whoever reaches a server can train its model: give serve.keys=FOLDER "
        "(python -m arclab.methods.seal.knowledge.keys FOLDER makes it), or use tcp://127.0.0.1:PORT."
    ]


@dataclass(kw_only=True, slots=True)
class ServeConfig:
    """address: ipc (a socket of this machine's files) or tcp://127.0.0.1:PORT, 0 being a free one; of other hosts with keys
    alone. keys: the folder of keys that the server and who asks it have. heartbeat_s: between two
    signs of life. max_bytes: of a message. num_kept: answers that are kept for whoever asks again."""

    address: str
    keys: Optional[str]
    heartbeat_s: float
    max_bytes: int
    num_kept: int

    def check(self, path: str) -> list[str]:
        problems = [*within(path, 0.01, 60, heartbeat_s=self.heartbeat_s), *at_least(path, 1, num_kept=self.num_kept)]
        problems += within(path, 1024, 2**31, max_bytes=self.max_bytes)
        if self.address != "ipc" and not self.address.startswith(("ipc://", "tcp://")):
            problems.append(f"{path}.address={self.address} must be ipc, ipc://FILE or tcp://HOST:PORT; change it.")
        return problems + needs_keys(f"{path}.address", self.address, self.keys)


@dataclass(kw_only=True, slots=True)
class SealKnowledgeConfig(StagedConfig):
    """Root of self_improve.py method=seal_knowledge. lm: the model of the first round, unless scratch makes one. style: how it
    is asked, for completions and for answers."""

    STAGES: ClassVar[tuple[str, ...]] = ("start", "generate", "query", "select", "sft")
    HAS_SERVER: ClassVar[bool] = True
    SERVED_STAGES: ClassVar[tuple[str, ...]] = (KnowledgeStage.generate.value,)
    FREE_KEYS: ClassVar[tuple[str, ...]] = (
        *StagedConfig.FREE_KEYS,
        "query.server",
        "query.timeout_s",
        "serve.",
        *(f"lm.{key}" for key in HOW_MODELS_RUN),
        *(f"query.grader.model.{key}" for key in HOW_MODELS_RUN),
    )

    experiment_name: str
    name: str
    runs_dir: str
    seed: int
    stage: KnowledgeStage
    round: int
    rounds: int
    device: DeviceChoice
    num_threads: Optional[int]
    criterion: Optional[CriterionConfig]
    launch: LaunchConfig
    lm: ModelConfig
    scratch: Optional[KnowledgeScratchConfig]
    data: KnowledgeDataConfig
    style: Style
    generate: GenerateConfig
    query: QueryConfig
    select: SelectConfig
    sft: KnowledgeSftConfig
    cpt: CptConfig
    continual: ContinualConfig
    serve: ServeConfig

    @property
    def best_metric(self) -> str:
        return self.criterion.metric if self.criterion else "knowledge/accuracy"

    def file_of(self, stage: str, number: int, name: str) -> Path:
        """A file of a stage's folder."""
        return self.folder_of(stage, number) / name

    def makes(self, stage: str, number: int) -> bool:
        """Whether a round has a stage."""
        return stage != KnowledgeStage.start.value or (self.scratch is not None and number == 0)

    @property
    def order(self) -> list[tuple[str, int]]:
        return [(stage, number) for number in range(self.rounds) for stage in self.STAGES if self.makes(stage, number)]

    def check(self, path: str) -> list[str]:
        problems = [*self.check_stages(), *sized(path, 1, num_threads=self.num_threads)]
        problems += needs_keys("query.server", self.query.server, self.serve.keys)
        problems += [*broken_name("name", self.name), *broken_path("runs_dir", self.runs_dir)]
        stage = self.stage
        if not self.makes(stage.value, self.round):
            problems.append("stage=start makes the model of scratch in round=0 alone; give scratch, or choose another stage.")
        if self.select.drop_weight > 0 and self.query.num_retained == 0:
            problems.append(
                f"select.drop_weight={self.select.drop_weight:g} weighs what other items lose, and query.num_retained=0 asks "
                "about none; raise it, or set select.drop_weight=0."
            )
        if self.query.num_retained >= (self.data.num_test if self.data.split is ItemSplit.test else self.data.num_train):
            problems.append(
                f"query.num_retained={self.query.num_retained} must be below the number of items of a round; lower it, or "
                "raise data.num_train or data.num_test."
            )
        if stage is KnowledgeStage.continual:
            problems += self._check_continual()
        if self.scratch is not None and self.scratch.seed == self.data.seed:
            problems.append(
                f"scratch.seed={self.scratch.seed} must not be data.seed: the model would be taught what it is asked; "
                "change one of them."
            )
        if self.launch.server is not None and self.style is Style.completion:
            problems.append(
                f"launch.server={self.launch.server.value} answers chats alone, and style=completion needs a model of this "
                "process; use style=chat, or set launch.server=null."
            )
        if not isinstance(self.lm, HfModelConfig):
            problems += self._check_other_model()
        elif self.lm.dtype is not Dtype.float32 and self._changes_all_weights:
            problems.append(
                f"lm.dtype={self.lm.dtype.value} loses most steps of training all weights to rounding; use lm.dtype=float32."
            )
        if self.launch.num_ranks > 1:
            problems.append(
                f"launch asks for {self.launch.num_ranks} ranks, and method=seal_knowledge runs in one process; set "
                "launch.gpus and launch.cpus to 0 or 1, and launch.nodes=1."
            )
        return problems

    @property
    def _changes_all_weights(self) -> bool:
        adaptation = self.cpt.adaptation if self.stage is KnowledgeStage.cpt else self.query.adaptation
        always = (KnowledgeStage.sft, KnowledgeStage.round, KnowledgeStage.continual)
        return adaptation.kind is AdaptKind.full or self.stage in always

    def _check_other_model(self) -> list[str]:
        """A model that is behind a server, say."""
        problems, kind = list[str](), self.lm.kind
        if self.stage is not KnowledgeStage.generate:
            problems.append(
                f"lm.kind={kind} cannot be trained here, and stage={self.stage.value} trains it; choose a model of this "
                "process, such as lm=smollm2_135m, or stage=generate."
            )
        elif self.round > 0 or self.scratch is not None:
            problems.append(
                f"lm.kind={kind} writes in round=0 without scratch alone: round={self.round} begins with the model that "
                f"{'stage=sft' if self.round else 'stage=start'} has trained; choose a model of this process, such as lm=tiny."
            )
        if self.style is Style.completion:
            problems.append(f"style=completion needs a model of this process, not lm.kind={kind}; use style=chat.")
        return problems

    def _check_continual(self) -> list[str]:
        wished, data, problems = self.continual, self.data, list[str]()
        there, key = (data.num_test, "num_test") if data.split is ItemSplit.test else (data.num_train, "num_train")
        if wished.num_items > there:
            problems.append(
                f"continual.num_sequences={wished.num_sequences} times continual.num_edits={wished.num_edits} needs "
                f"{wished.num_items} items, and data.{key}={there}; raise it, or lower one of them."
            )
        if self.query.adaptation.kind is not AdaptKind.lora:
            problems.append(
                f"query.adaptation.kind={self.query.adaptation.kind.value} has no adapter that stage=continual could add to "
                "the weights; use query.adaptation.kind=lora."
            )
        return problems
