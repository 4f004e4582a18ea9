"""The schema of language models, sampling, prompts, the sandbox, and evaluate.py's solvers that need no checkpoint.

Rules as in schema.py: fields have no defaults (values live in conf/), check(path) returns broken rules as sentences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from keyword import iskeyword
from pathlib import Path
from typing import ClassVar, Optional
from urllib.parse import urlsplit

from arclab.config.checkpoint_key import broken_checkpoint, checkpoint_wish
from arclab.config.dataset_schema import DatasetConfig
from arclab.config.launch_schema import LaunchConfig
from arclab.config.names import broken_name, broken_path
from arclab.config.rules import at_least, sized, within
from arclab.config.run import DeviceChoice, EvaluationConfig
from arclab.config.schema import SplitName


class Isolation(Enum):
    """How well a program is locked in. limits: own session, resource limits, bare environment, killed with all it started.
    seccomp: also no files, network, processes, threads or signals."""

    limits = 0
    seccomp = 1


class Dtype(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class LmAttention(Enum):
    """Names of transformers. flash_attention_2 needs CUDA and the package flash-attn."""

    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


class Memory(Enum):
    """off: the plain reasoner. random: a weaver that was never trained, the twin of the one that was. trained: the weaver of
    the checkpoint."""

    off = "off"
    random = "random"
    trained = "trained"


class GridFormat(Enum):
    """A row of a grid as text. spaced: 0 1 2. digits: 012. pipes: 0|1|2. json: the whole grid as [[0, 1, 2], ...]."""

    spaced = "spaced"
    digits = "digits"
    pipes = "pipes"
    json = "json"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """A language model. name: see the kinds. max_context: tokens of prompt and reply together; null: as the model says.

    thinking: passed to the chat template as enable_thinking; null: not passed.
    """

    kind: str
    name: str
    max_context: Optional[int]
    thinking: Optional[bool]

    def check(self, path: str) -> list[str]:
        problems = [] if self.name else [f"{path}.name is empty; give a model's name or the path of its folder."]
        if self.max_context is not None:
            problems += at_least(path, 2, max_context=self.max_context)
        return problems


@dataclass(kw_only=True, slots=True)
class HfModelConfig(ModelConfig):
    """A model that transformers loads into this process. name: a folder, or a name on the Hugging Face hub.

    adapter: folder of a LoRA adapter. batch_size: sequences that are generated at once.
    """

    adapter: Optional[str]
    dtype: Dtype
    attention: LmAttention
    device: DeviceChoice
    batch_size: int

    def check(self, path: str) -> list[str]:
        return [*ModelConfig.check(self, path), *at_least(path, 1, batch_size=self.batch_size)]


class TriggerKind(Enum):
    """After which delimiters of an answer memory is inserted. always: all, up to max_inference_aug_num. never: none; what
    stands at the end of the prompt stays. first_k: the first ones. random: each with a probability. entropy: where the reasoner
    is unsure of the next token. head, lora: as trainer=trigger_grpo has taught it, also at the end of the prompt."""

    always = "always"
    never = "never"
    first_k = "first_k"
    random = "random"
    entropy = "entropy"
    head = "head"
    lora = "lora"


TRAINED_TRIGGERS = (TriggerKind.head, TriggerKind.lora)


@dataclass(kw_only=True, slots=True)
class TriggerConfig:
    """Of generation; weavers are trained with memory at every delimiter up to the limit. kind: null is as the run is
    configured, for evaluations. probability: of kind random. threshold: of kind entropy, in nats; memory is inserted where the
    entropy of the reasoner's next token is at least so much. count: of kind first_k, insertions inside an answer; its default
    is for what was saved before it was a key. Each is null with other kinds."""

    kind: Optional[TriggerKind]
    probability: Optional[float]
    threshold: Optional[float]
    count: Optional[int] = None

    def check(self, path: str) -> list[str]:
        problems = []
        for name, value, owner in (
            ("probability", self.probability, TriggerKind.random),
            ("threshold", self.threshold, TriggerKind.entropy),
            ("count", self.count, TriggerKind.first_k),
        ):
            problems += self._check_owned(path, name, value, owner, "NUMBER")
        problems += [] if self.count is None else at_least(path, 0, count=self.count)
        if self.probability is not None:
            problems += within(path, 0, 1, probability=self.probability)
        if self.threshold is not None and not self.threshold >= 0:
            problems.append(f"{path}.threshold={self.threshold} must be at least 0, which is always; give a number of nats.")
        return problems

    def _check_owned(self, path: str, name: str, value: object, owner: TriggerKind, form: str) -> list[str]:
        """A value that belongs to one kind: given with it, and with no other."""
        if self.kind is owner and value is None:
            return [f"{path}.{name} has no value, and {path}.kind={owner.value} needs one; set {path}.{name}={form}."]
        if self.kind is not owner and value is not None:
            return [f"{path}.{name}={value} is of {path}.kind={owner.value}; set that, or {path}.{name}=null."]
        return []


def as_the_run() -> TriggerConfig:
    """Of evaluations and runs that were saved before the trigger was a key."""
    return TriggerConfig(kind=None, probability=None, threshold=None)


@dataclass(kw_only=True, slots=True)
class MemGenModelConfig(ModelConfig):
    """A run of pretrain_memgen.py: its reasoner, with the memory of its weaver. name: the run folder (also
    RUN@best, RUN@last and RUN@STEP), or one of its checkpoints. thinking: as the run has it; must be null."""

    memory: Memory
    trigger: TriggerConfig = field(default_factory=as_the_run)
    device: DeviceChoice
    batch_size: int

    def check(self, path: str) -> list[str]:
        problems = [*ModelConfig.check(self, path), *at_least(path, 1, batch_size=self.batch_size)]
        problems += broken_checkpoint(f"{path}.name", self.name)
        if self.thinking is not None:
            problems.append(
                f"{path}.thinking={self.thinking} is a setting of the run that was trained; set {path}.thinking=null."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class EndpointModelConfig(ModelConfig):
    """A server that speaks OpenAI's protocol (vLLM, SGLang, transformers serve). name: as the server calls the model.

    base_urls: further servers of the same model; all are asked in turn, and one that fails again and again is left out.
    api_key_env: environment variable with the key; null: no key. timeout_s: for a whole request, from connecting to the last
    byte. A request that fails for a reason that may pass is sent again up to max_retries times, after backoff_s, 2 backoff_s, 4
    backoff_s, ...; num_parallel: requests in flight.
    """

    base_url: str
    api_key_env: Optional[str]
    timeout_s: float
    max_retries: int
    backoff_s: float
    num_parallel: int
    base_urls: list[str] = field(default_factory=list)  # runs that were made before it was a key have none

    @property
    def addresses(self) -> list[str]:
        return [self.base_url, *self.base_urls]

    def check(self, path: str) -> list[str]:
        problems = [*ModelConfig.check(self, path), *at_least(path, 0, max_retries=self.max_retries, backoff_s=self.backoff_s)]
        problems += [*at_least(path, 1, num_parallel=self.num_parallel), *at_least(path, 0.001, timeout_s=self.timeout_s)]
        named = [("base_url", self.base_url), *((f"base_urls[{place}]", url) for place, url in enumerate(self.base_urls))]
        problems += [f"{path}.{key}{wrong}." for key, url in named if (wrong := _wrong_with_address(url))]
        if len(set(self.addresses)) < len(self.addresses):
            problems.append(f"{path}.base_urls names a server twice (or that of {path}.base_url); leave it out.")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            problems.append(  # not shown: it may be the key itself
                f"{path}.api_key_env must be the name of an environment variable (letters, digits and _), not a key; export "
                f"the key as LM_KEY, say, and give {path}.api_key_env=LM_KEY."
            )
        return problems


def _wrong_with_address(url: str) -> str:
    """What is wrong with a server's address; empty if nothing is. The address stands in results and pages, so it must hold no
    secret, and one that may hold one is not shown."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return " is no address: host or port are wrong; give the server's, like http://localhost:8000/v1"
    if "@" in url:
        return " holds a user name or a password, which would stand in the results; leave it out, and give a key by api_key_env"
    if "?" in url or "#" in url:
        return (
            " has a query or a fragment (? or #), which is not sent and may hold a key; leave it out, and give "
            "a key by api_key_env"
        )
    if parts.scheme not in ("http", "https") or not host or " " in url or not url.isprintable():
        return f"={ascii(url)[1:-1]} must start with http:// or https:// and a host; give the server's address"
    return ""


# Keys of a model that decide where and how fast it runs, and no reply.
HOW_MODELS_RUN = (
    "device", "batch_size", "base_url", "base_urls", "api_key_env", "timeout_s", "max_retries", "backoff_s", "num_parallel",
)  # fmt: skip
MODEL_SCHEMAS: dict[str, type[ModelConfig]] = {
    "hf": HfModelConfig,
    "endpoint": EndpointModelConfig,
    "memgen": MemGenModelConfig,
}


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How replies are drawn. Nothing is inherited from a model's own generation_config.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 keep every token.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 0, temperature=self.temperature, top_k=self.top_k)
        problems += [*at_least(path, 1, max_new_tokens=self.max_new_tokens), *within(path, 0, 1, min_p=self.min_p)]
        if not 0 < self.top_p <= 1:
            problems.append(f"{path}.top_p={self.top_p} must be above 0 and at most 1; 1 keeps every token.")
        return problems


@dataclass(kw_only=True, slots=True)
class PromptConfig:
    """How a task is shown. instructions: whether the rules of the game are spelled out (a model trained on the bare grids needs
    none). show_tests: whether test inputs are shown. show_shapes: rows x columns beside every grid. entry: the function asked
    for."""

    grid_format: GridFormat
    instructions: bool
    show_tests: bool
    show_shapes: bool
    entry: str

    def check(self, path: str) -> list[str]:
        return (
            []
            if self.entry.isidentifier() and not iskeyword(self.entry)
            else [f"{path}.entry={self.entry} must be a name of Python; for example solve."]
        )


@dataclass(kw_only=True, slots=True)
class SandboxConfig:
    """Limits of one program with all of its inputs; see arclab.programs.sandbox.pool. num_workers: null: one for each core.
    min_isolation: refuse to run programs if the system allows less."""

    num_workers: Optional[int]
    cpu_s: int
    wall_s: float
    memory_mb: int
    stdout_bytes: int
    min_isolation: Isolation

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 1, cpu_s=self.cpu_s) + at_least(path, 0.05, wall_s=self.wall_s)
        problems += at_least(path, 16, memory_mb=self.memory_mb) + at_least(path, 0, stdout_bytes=self.stdout_bytes)
        return problems + ([] if self.num_workers is None else at_least(path, 1, num_workers=self.num_workers))


def default_sandbox() -> SandboxConfig:
    """Of runs made before they had one."""
    return SandboxConfig(
        num_workers=None, cpu_s=2, wall_s=5.0, memory_mb=512, stdout_bytes=4096, min_isolation=Isolation.seccomp
    )  # fmt: skip


PROGRAM_SAMPLING = "program_sampling"


@dataclass(kw_only=True, slots=True)
class ProgramSamplingConfig:
    """num_samples programs for every task, voted on by what they answer."""

    kind: str
    num_samples: int
    prompt: PromptConfig
    sampling: SamplingConfig

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 1, num_samples=self.num_samples)
        if self.kind != PROGRAM_SAMPLING:
            problems.append(f"{path}.kind={self.kind} is not known; choose {PROGRAM_SAMPLING}.")
        if self.sampling.temperature == 0 and self.num_samples > 1:
            problems.append(
                f"{path}.num_samples={self.num_samples} does not go with {path}.sampling.temperature=0: all samples would be "
                f"equal; set {path}.num_samples=1 or a temperature above 0."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class EvaluateLmConfig(EvaluationConfig):
    """What roots of evaluate.py have whose solver asks a language model. The folder is <runs_dir>/<solver>/<model>/<name>, or
    output_dir; name null: <dataset>_<split>."""

    HAS_SHARDS: ClassVar[bool] = True
    CAN_STEAL: ClassVar[bool] = True
    HAS_SERVER: ClassVar[bool] = True
    FREE_KEYS: ClassVar[tuple[str, ...]] = (
        "launch.",
        "num_threads",
        "output_dir",
        *(f"lm.{key}" for key in HOW_MODELS_RUN),
    )

    lm: ModelConfig
    dataset: DatasetConfig
    name: Optional[str]
    runs_dir: str
    split: SplitName
    max_tasks: Optional[int]
    output_dir: Optional[str]
    seed: int
    num_threads: Optional[int]
    launch: LaunchConfig

    @property
    def solver_kind(self) -> str:
        raise NotImplementedError

    @property
    def programs_per_task(self) -> float | None:
        """That are drawn, at most; None: not known before."""
        return None

    @property
    def run_name(self) -> str:
        return self.name or f"{self.dataset.name}_{self.split.value}"

    @property
    def title(self) -> tuple[str, str]:
        return self.solver_kind, f"{Path(self.lm.name).name}-{self.run_name}{self.launch.shard_suffix}"

    @property
    def whole_folder(self) -> Path:
        """Also of a shard, whose own lies in it."""
        if self.output_dir:
            return Path(self.output_dir)
        return Path(self.runs_dir) / self.solver_kind / Path(self.lm.name).name / self.run_name

    @property
    def folder(self) -> Path:
        return self.launch.folder_in(self.whole_folder)

    def inputs(self) -> dict[str, Path]:
        """A model that another run makes; the whole needs its shards."""
        is_run = isinstance(self.lm, MemGenModelConfig) and self.lm.name
        found = {"lm.name": checkpoint_wish(self.lm.name).path} if is_run else {}
        return found | self.launch.shard_folders(self.whole_folder)

    def check(self, path: str) -> list[str]:
        problems = sized(path, 1, num_threads=self.num_threads)
        problems += [] if self.name is None else broken_name("name", self.name)
        problems += broken_path("runs_dir", self.runs_dir)
        if self.launch.server is not None and not isinstance(self.lm, EndpointModelConfig):
            problems.append(
                f"launch.server={self.launch.server.value} serves lm=endpoint, and lm.kind={self.lm.kind} is a model of this "
                "process; choose lm=endpoint, or set launch.server=null."
            )
        if self.launch.num_ranks > 1:
            problems.append(
                f"launch asks for {self.launch.num_ranks} ranks, and solver={self.solver_kind} runs in one process; set "
                "launch.gpus and launch.cpus to 0 or 1, and launch.nodes=1."
            )
        return problems + ([] if self.max_tasks is None else at_least(path, 1, max_tasks=self.max_tasks))


@dataclass(kw_only=True, slots=True)
class EvaluateWithProgramsConfig(EvaluateLmConfig):
    """The same for solvers that ask it for programs, which are run."""

    FREE_KEYS: ClassVar[tuple[str, ...]] = (*EvaluateLmConfig.FREE_KEYS, "sandbox.num_workers")

    sandbox: SandboxConfig


@dataclass(kw_only=True, slots=True)
class EvaluateProgramsConfig(EvaluateWithProgramsConfig):
    """Root of evaluate.py solver=program_sampling."""

    solver: ProgramSamplingConfig

    @property
    def programs_per_task(self) -> float | None:
        return float(self.solver.num_samples)

    @property
    def solver_kind(self) -> str:
        return self.solver.kind
