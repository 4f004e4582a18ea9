"""The schema of evaluate.py solver=tree_search: how a program is cut into steps, and how a tree of them is grown.

Rules as in schema.py: fields have no defaults (values live in conf/), check(path) returns broken rules as sentences.
search.kind decides which keys search has."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import Optional

from arclab.config.llm_schema import EvaluateWithProgramsConfig, MemGenModelConfig, PromptConfig
from arclab.config.rules import at_least, within

TREE_SEARCH = "tree_search"


class Schedule(Enum):
    """How the temperature goes from start (first rollout) to end (last rollout). constant: start all the time. lerp: evenly.
    beta_cdf: by the distribution function of a beta distribution, which dwells in the middle where concentration is below 1."""

    constant = "constant"
    lerp = "lerp"
    beta_cdf = "beta_cdf"


class TerminalReward(Enum):
    """What a finished program is worth. Both are 1 if every demonstration is reproduced and -1 if the program does not run.
    binary: -1 for all others. percent_correct: -1 and half of the share of right cells over all demonstrations, so that partial
    credit never comes near a solution."""

    binary = "binary"
    percent_correct = "percent_correct"


@dataclass(kw_only=True, slots=True)
class TemperatureConfig:
    """start and end as in Schedule. target_fraction: mean of the beta distribution, concentration: the sum of its parameters;
    both for beta_cdf."""

    schedule: Schedule
    start: float
    end: float
    target_fraction: float
    concentration: float

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 0, start=self.start, end=self.end)
        if not 0 < self.target_fraction < 1:
            problems.append(f"{path}.target_fraction={self.target_fraction} must be above 0 and below 1; 0.5 is even.")
        if not self.concentration > 0:
            problems.append(f"{path}.concentration={self.concentration} must be above 0; 0.75 dwells in the middle.")
        return problems


@dataclass(kw_only=True, slots=True)
class SearchConfig:
    """What all kinds have. branching: programs or steps drawn at once from one node. num_programs: most that are finished for
    a task, duplicates and failures included; parallel leaves and the nodes of a beam may finish a few more. num_draws: most
    draws of a task, which are steps where programs grow step by step; null: no limit. max_tokens, max_s: of a task, generated
    and by the clock; null: no limit (max_s makes the tree depend on the machine). stop_groups: end when the programs that
    reproduce every demonstration give so many different answers to the test inputs; null: never. parallel_leaves: nodes of one
    tree that are drawn from at the same time. max_program_tokens: longest program, in generated tokens."""

    kind: str
    branching: int
    num_programs: int
    num_draws: Optional[int]
    max_tokens: Optional[int]
    max_s: Optional[float]
    stop_groups: Optional[int]
    parallel_leaves: int
    max_program_tokens: int
    reward: TerminalReward
    temperature: TemperatureConfig

    def check(self, path: str) -> list[str]:
        problems = at_least(
            path, 1, branching=self.branching, num_programs=self.num_programs, parallel_leaves=self.parallel_leaves,
            max_program_tokens=self.max_program_tokens,
        )  # fmt: skip
        optional = {"num_draws": self.num_draws, "max_tokens": self.max_tokens, "stop_groups": self.stop_groups}
        problems += at_least(path, 1, **{key: value for key, value in optional.items() if value is not None})
        if self.max_s is not None and not self.max_s > 0:
            problems.append(f"{path}.max_s={self.max_s} must be above 0; null is no limit.")
        if self.temperature.start == 0 and self.branching > 1:
            problems.append(
                f"{path}.branching={self.branching} does not go with {path}.temperature.start=0: all draws would be equal; set "
                f"{path}.branching=1 or a temperature above 0."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class StepSearchConfig(SearchConfig):
    """Of kinds that grow programs step by step. num_rollouts: walks from the root; the temperature goes from start to end over
    them. max_depth: most steps of a program. max_step_tokens: a step that has no end by then is given up, and counted."""

    num_rollouts: int
    max_depth: int
    max_step_tokens: int

    def check(self, path: str) -> list[str]:
        own = at_least(path, 1, num_rollouts=self.num_rollouts, max_depth=self.max_depth, max_step_tokens=self.max_step_tokens)
        return [*SearchConfig.check(self, path), *own]


@dataclass(kw_only=True, slots=True)
class BeamConfig(StepSearchConfig):
    """beam_width nodes of a depth are kept: the best by a reward model; without one they are picked at random, and the result
    says so."""

    beam_width: int

    def check(self, path: str) -> list[str]:
        return [*StepSearchConfig.check(self, path), *at_least(path, 1, beam_width=self.beam_width)]


@dataclass(kw_only=True, slots=True)
class MctsConfig(StepSearchConfig):
    """Each node is drawn from once. c_puct: weight of the prior, which is the model's own probability of a step among its
    siblings. fpu_reduction: a node without an outcome counts as its parent less so much. virtual_loss: outcomes of -1 that a
    walk under way counts as."""

    c_puct: float
    fpu_reduction: float
    virtual_loss: float

    def check(self, path: str) -> list[str]:
        own = at_least(path, 0, c_puct=self.c_puct, fpu_reduction=self.fpu_reduction, virtual_loss=self.virtual_loss)
        return [*StepSearchConfig.check(self, path), *own]


@dataclass(kw_only=True, slots=True)
class PwMctsConfig(MctsConfig):
    """Progressive widening: a node with N outcomes below it may be drawn from again while fewer than
    ceil(branching N^widening_exponent) steps were drawn from it, duplicates included."""

    widening_exponent: float

    def check(self, path: str) -> list[str]:
        return [*MctsConfig.check(self, path), *within(path, 0, 1, widening_exponent=self.widening_exponent)]


@dataclass(kw_only=True, slots=True)
class CustomConfig(MctsConfig):
    """Every visit draws from the node again, until more than max_successes programs below it reproduce all demonstrations."""

    max_successes: int

    def check(self, path: str) -> list[str]:
        return [*MctsConfig.check(self, path), *at_least(path, 0, max_successes=self.max_successes)]


@dataclass(kw_only=True, slots=True)
class BootstrapConfig(MctsConfig):
    """Rollouts with a description of the rule make successes, rollouts without it failures, in one tree.
    regeneration_probability: that a node is drawn from again at a visit. hints: a JSON file {task id: description}. The first
    hinted_rollouts rollouts are hinted, later ones not with probability unhinted_share; from last_hinted on (null: never) none
    is."""

    regeneration_probability: float
    hints: str
    hinted_rollouts: int
    unhinted_share: float
    last_hinted: Optional[int]

    def check(self, path: str) -> list[str]:
        shares = {"regeneration_probability": self.regeneration_probability, "unhinted_share": self.unhinted_share}
        problems = [*MctsConfig.check(self, path), *within(path, 0, 1, **shares)]
        problems += at_least(path, 0, hinted_rollouts=self.hinted_rollouts)
        return problems + ([] if self.last_hinted is None else at_least(path, 1, last_hinted=self.last_hinted))


@dataclass(kw_only=True, slots=True)
class SampleConfig(SearchConfig):
    """Whole programs, each drawn by itself: the baseline of every search, in the same prompt and files."""


@dataclass(kw_only=True, slots=True)
class SampleRefineConfig(SearchConfig):
    """num_first whole programs, then corrections of programs that ran, each asked for with what is wrong. Which program is
    corrected is drawn from Beta(1 + C h, 1 + C (1 - h) + n): h its share of demonstrations reproduced, n the corrections of it
    that were drawn, C = thompson_c. num_islands: the first programs are dealt out to so many islands, which take turns; a
    correction stays on the island of what it corrects, so that one early success does not draw all of them."""

    num_first: int
    thompson_c: float
    num_islands: int

    def check(self, path: str) -> list[str]:
        return [
            *SearchConfig.check(self, path), *at_least(path, 1, num_first=self.num_first, num_islands=self.num_islands),
            *at_least(path, 0, thompson_c=self.thompson_c),
        ]  # fmt: skip


SEARCH_SCHEMAS: dict[str, type[SearchConfig]] = {
    "beam": BeamConfig,
    "mcts": MctsConfig,
    "pwmcts": PwMctsConfig,
    "custom": CustomConfig,
    "bootstrap": BootstrapConfig,
    "sampling": SampleConfig,
    "sample_refine": SampleRefineConfig,
}


@dataclass(kw_only=True, slots=True)
class StepsConfig:
    """How a reply is read. It begins with program_begin and root, which the model finds written already; root is code that
    opens the function. step_end: text that ends a step; program_end: text that ends the program (the end of the model's turn
    does, too). Both are no part of the program: a comment line, or special tokens of a model trained on them."""

    program_begin: str
    root: str
    step_end: str
    program_end: str

    def check(self, path: str) -> list[str]:
        problems = [
            f"{path}.{key} is empty; give the text that ends a {what}."
            for key, text, what in (("step_end", self.step_end, "step"), ("program_end", self.program_end, "program"))
            if not text.strip()
        ]
        if not problems and (self.step_end in self.program_end or self.program_end in self.step_end):
            problems.append(f"{path}.step_end and {path}.program_end must not hold each other; give two different texts.")
        if not problems and any(mark in self.root for mark in (self.step_end, self.program_end)):
            problems.append(f"{path}.root holds a text that ends a step or the program; leave it out.")
        return problems


@dataclass(kw_only=True, slots=True)
class ExamplesConfig:
    """Worked examples above the task. file: JSON, a list of {"name", "task": {"train", "test"}, "program"}; null: none. sets:
    lists of names, each a prompt of its own; null: each example alone is one. rotate: rollouts take the sets in turn; else each
    draws one."""

    file: Optional[str]
    sets: Optional[list[list[str]]]
    rotate: bool

    def check(self, path: str) -> list[str]:
        if self.file is None and self.sets is not None:
            return [f"{path}.sets names examples and {path}.file has none; set {path}.file, or {path}.sets=null."]
        if self.sets is not None and not all(self.sets):
            return [f"{path}.sets holds an empty list, which is no prompt with examples; leave it out."]
        return []


@dataclass(kw_only=True, slots=True)
class TreeSearchConfig:
    """Programs grown step by step, executed as they grow. trees_at_once: tasks that are searched at the same time; null: as
    many as keep the model busy. top_p, top_k, min_p: as in SamplingConfig."""

    kind: str
    prompt: PromptConfig
    steps: StepsConfig
    examples: ExamplesConfig
    top_p: float
    top_k: int
    min_p: float
    trees_at_once: Optional[int]

    def check(self, path: str) -> list[str]:
        problems = [*at_least(path, 0, top_k=self.top_k), *within(path, 0, 1, min_p=self.min_p)]
        if self.kind != TREE_SEARCH:
            problems.append(f"{path}.kind={self.kind} is not known; choose {TREE_SEARCH}.")
        if not 0 < self.top_p <= 1 or not math.isfinite(self.top_p):
            problems.append(f"{path}.top_p={self.top_p} must be above 0 and at most 1; 1 keeps every token.")
        if not re.search(rf"^def[ \t]+{re.escape(self.prompt.entry)}[ \t]*\(", self.steps.root, re.MULTILINE):
            problems.append(
                f"{path}.steps.root does not open the function {path}.prompt.entry={self.prompt.entry}; begin a line "
                f"of it with def {self.prompt.entry}(."
            )
        return problems + ([] if self.trees_at_once is None else at_least(path, 1, trees_at_once=self.trees_at_once))


@dataclass(kw_only=True, slots=True)
class EvaluateTreeSearchConfig(EvaluateWithProgramsConfig):
    """Root of evaluate.py solver=tree_search. The folder is <runs_dir>/<solver>/<model>/<name>, or output_dir; name null:
    <dataset>_<split>_<search>."""

    solver: TreeSearchConfig
    search: SearchConfig

    @property
    def solver_kind(self) -> str:
        return self.solver.kind

    @property
    def run_name(self) -> str:
        return self.name or f"{EvaluateWithProgramsConfig.run_name.fget(self)}_{self.search.kind}"  # pyright: ignore[reportOptionalCall]

    def check(self, path: str) -> list[str]:
        problems = EvaluateWithProgramsConfig.check(self, path)
        if isinstance(self.lm, MemGenModelConfig):
            problems.append(
                "lm.kind=memgen does not stop at the end of a step, which solver=tree_search needs; use "
                "solver=program_sampling lm=memgen, or another model."
            )
        return problems
