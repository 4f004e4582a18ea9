"""The schema of the group dataset: questions with worked replies, for language models that are trained on them.

Rules as in schema.py: fields have no defaults (values live in conf/), check(path) returns broken rules as sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional

from arclab.config.dataset_schema import DatasetConfig
from arclab.config.llm_schema import PromptConfig
from arclab.config.names import broken_name
from arclab.config.rules import at_least, sized, within

START = "start"  # of dataset.search.server
SAMPLE_LIMITS = {"train": 16, "validation": 8, "test": 8}


class WordProblem(Enum):
    """Families of generated word problems; see arclab.text.arithmetic."""

    change = "change"
    compare = "compare"
    total = "total"
    boxes = "boxes"


@dataclass(kw_only=True, slots=True)
class TextDatasetConfig:
    """num_train, num_validation, num_test: at most so many examples; null: all there are.

    sample: at most SAMPLE_LIMITS examples of the same form, generated here: nothing is read or downloaded. seed: which examples
    are generated, or held out for validation.
    """

    kind: str
    name: str
    seed: int
    num_train: Optional[int]
    num_validation: Optional[int]
    num_test: Optional[int]
    sample: bool

    @property
    def has_boxed_answers(self) -> bool:
        """Is a reply scored by what its last box holds? Programs are not: they are run."""
        return True

    @property
    def shows_its_answer(self) -> bool:
        """Does the right answer stand in a question as it should, as an option does?"""
        return False

    @property
    def turns(self) -> int | None:
        """The most replies of an episode in which an environment answers; None: one reply, and nothing answers."""
        return None

    @property
    def limits(self) -> dict[str, Optional[int]]:
        """The most examples of each split, that of the sample included."""
        if not self.sample:
            return self._given
        return {split: SAMPLE_LIMITS[split] if n is None else min(n, SAMPLE_LIMITS[split]) for split, n in self._given.items()}

    @property
    def _given(self) -> dict[str, Optional[int]]:
        return {"train": self.num_train, "validation": self.num_validation, "test": self.num_test}

    def check(self, path: str) -> list[str]:
        problems = [*broken_name(f"{path}.name", self.name), *sized(path, 0, seed=self.seed)]
        for split, count in self._given.items():
            if count is not None and count < 1:
                problems.append(f"{path}.num_{split}={count} must be at least 1, or null for all; change it.")
        return problems

    def _needs(self, path: str, why: str, *splits: str) -> list[str]:
        return [
            f"{path}.num_{split}=null does not say how many {why}; give a number."
            for split in splits
            if self._given[split] is None
        ]


@dataclass(kw_only=True, slots=True)
class ArithmeticConfig(TextDatasetConfig):
    """Word problems that are generated. digits: of the largest number that a question names. Every problem has min_steps to
    max_steps calculations. instruction: stands behind every question; empty: nothing does. guessed_share: so many of the
    training replies are a wrong answer without working, which reward can unlearn and supervision cannot; its default is for
    runs made before it was a key."""

    families: list[WordProblem]
    digits: int
    min_steps: int
    max_steps: int
    instruction: str
    guessed_share: float = 0.0

    def check(self, path: str) -> list[str]:
        problems = TextDatasetConfig.check(self, path)
        problems += self._needs(path, "problems are to be generated", "train", "validation", "test")
        problems += within(path, 1, 9, digits=self.digits) + within(path, 0.0, 1.0, guessed_share=self.guessed_share)
        problems += within(path, 1, 7, min_steps=self.min_steps, max_steps=self.max_steps)
        if self.min_steps > self.max_steps:
            problems.append(
                f"{path}.min_steps={self.min_steps} must not be above {path}.max_steps={self.max_steps}; change one of them."
            )
        if not self.families or len(set(self.families)) < len(self.families):
            problems.append(
                f"{path}.families must name at least one family, and each once; choose among "
                f"{', '.join(family.name for family in WordProblem)}."
            )
        return problems


@dataclass(kw_only=True, slots=True)
class RecallConfig(TextDatasetConfig):
    """Questions for facts, of which a reasoner knows half and a weaver the other half: see arclab.text.recall. words: of a
    question."""

    words: int

    def check(self, path: str) -> list[str]:
        problems = TextDatasetConfig.check(self, path) + within(path, 2, 4, words=self.words)
        return problems + self._needs(path, "questions are to be generated", "train", "validation", "test")


@dataclass(kw_only=True, slots=True)
class HubTextConfig(TextDatasetConfig):
    """Questions of the Hugging Face hub or of a folder. hub_name, hub_config: as datasets.load_dataset takes them. folder:
    holds JSONL files of the same form; null: the hub's. instruction: stands with every question; empty: nothing does.
    Validation examples are drawn from those of train."""

    hub_name: str
    hub_config: Optional[str]
    folder: Optional[str]
    instruction: str

    def check(self, path: str) -> list[str]:
        problems = TextDatasetConfig.check(self, path)
        problems += self._needs(path, "training examples are held out for validation", "validation")
        return problems + ([] if self.hub_name else [f"{path}.hub_name is empty; give a name such as openai/gsm8k."])


@dataclass(kw_only=True, slots=True)
class Gsm8kConfig(HubTextConfig):
    """Grade school word problems: train.jsonl and test.jsonl, a question and an answer that ends with #### and the result.
    calculator_marks: whether the marks <<2+3=5>> stay in the replies."""

    calculator_marks: bool


@dataclass(kw_only=True, slots=True)
class GpqaConfig(HubTextConfig):
    """Multiple choice questions of experts: main.jsonl and diamond.jsonl. The test split is diamond (hub_diamond on the hub),
    whose questions are taken out of main, which has them too. The order of options is drawn by the seed for each question."""

    hub_diamond: str

    @property
    def shows_its_answer(self) -> bool:
        return True  # one of four letters


@dataclass(kw_only=True, slots=True)
class KodCodeConfig(HubTextConfig):
    """Functions that are scored by running their tests: train.jsonl. Validation and test are drawn from it."""

    def check(self, path: str) -> list[str]:
        return HubTextConfig.check(self, path) + self._needs(path, "training examples are held out for test", "test")

    @property
    def has_boxed_answers(self) -> bool:
        return False


class SearchReward(Enum):
    """What an answer earns: exact (1 if it is one of the right names) or f1 (the words that it has in common with the nearest
    one)."""

    exact = "exact"
    f1 = "f1"


@dataclass(kw_only=True, slots=True)
class SearchConfig:
    """The search tool. server: start (the run starts one and watches it) or the address of one that runs, such as
    http://127.0.0.1:8001. documents: JSONL with title and text, for a server that is started. top_k: documents of an answer."""

    server: str
    documents: Optional[str]
    top_k: int

    def check(self, path: str) -> list[str]:
        problems = at_least(path, 1, top_k=self.top_k)
        if self.server != START and not self.server.startswith(("http://", "https://")):
            problems.append(f"{path}.server={self.server} is no address; give {START}, or one such as http://127.0.0.1:8001.")
        return problems


@dataclass(kw_only=True, slots=True)
class TriviaQaConfig(HubTextConfig):
    """Questions with several names for the answer, and a tool that searches documents: train.jsonl and validation.jsonl, whose
    answers have a value and aliases. The test split is validation: those of test are not published. max_turns: replies of an
    episode. observation_tokens: what the environment says is cut after so many."""

    search: SearchConfig
    reward: SearchReward
    max_turns: int
    observation_tokens: int

    @property
    def turns(self) -> int:
        return self.max_turns

    @property
    def has_boxed_answers(self) -> bool:
        return False

    def check(self, path: str) -> list[str]:
        return (
            HubTextConfig.check(self, path)
            + _check_turns(path, self.max_turns, self.observation_tokens)
            + _check_search(path, self, self.search)
        )


@dataclass(kw_only=True, slots=True)
class CodeWordsConfig(TextDatasetConfig):
    """Generated questions for code words that only a search can answer: the positive control of several turns. guessed_share:
    so many training episodes guess an answer at once, which reward can unlearn and supervision cannot."""

    instruction: str
    search: SearchConfig
    reward: SearchReward
    max_turns: int
    observation_tokens: int
    guessed_share: float

    @property
    def turns(self) -> int:
        return self.max_turns

    @property
    def has_boxed_answers(self) -> bool:
        return False

    def check(self, path: str) -> list[str]:
        problems = TextDatasetConfig.check(self, path) + _check_turns(path, self.max_turns, self.observation_tokens)
        problems += self._needs(path, "questions are to be generated", "train", "validation", "test")
        problems += within(path, 0.0, 1.0, guessed_share=self.guessed_share)
        if self.search.documents is not None:
            problems.append(f"{path}.search.documents={self.search.documents}: this data set makes its own; set it to null.")
        return problems


def _check_turns(path: str, max_turns: int, observation_tokens: int) -> list[str]:
    return at_least(path, 1, max_turns=max_turns, observation_tokens=observation_tokens)


def _check_search(path: str, dataset: TextDatasetConfig, search: SearchConfig) -> list[str]:
    if search.server != START or search.documents is not None or dataset.sample:
        return []
    return [
        f"{path}.search.documents=null leaves a server that is started nothing to search; give a JSONL file with title and "
        f"text, or the address of a server as {path}.search.server."
    ]


@dataclass(kw_only=True, slots=True)
class ArcTextConfig(TextDatasetConfig):
    """ARC tasks as questions for a program. programs: a JSONL file with task_id and program, replies to learn from; null: only
    generated (toy:) tasks have programs."""

    dataset: DatasetConfig
    prompt: PromptConfig
    programs: Optional[str]

    @property
    def has_boxed_answers(self) -> bool:
        return False


@dataclass(kw_only=True, slots=True)
class ArcRefinementConfig(ArcTextConfig):
    """The same in several turns: a wrong program is answered with what it did to the demonstrations. max_turns: replies of an
    episode. observation_tokens: what the environment says is cut after so many."""

    max_turns: int
    observation_tokens: int

    @property
    def turns(self) -> int:
        return self.max_turns

    def check(self, path: str) -> list[str]:
        return TextDatasetConfig.check(self, path) + _check_turns(path, self.max_turns, self.observation_tokens)


TEXT_DATASET_SCHEMAS: dict[str, type[TextDatasetConfig]] = {
    "arithmetic": ArithmeticConfig,
    "recall": RecallConfig,
    "gsm8k": Gsm8kConfig,
    "gpqa": GpqaConfig,
    "kodcode": KodCodeConfig,
    "arc": ArcTextConfig,
    "triviaqa": TriviaQaConfig,
    "code_words": CodeWordsConfig,
    "arc_refinement": ArcRefinementConfig,
}
