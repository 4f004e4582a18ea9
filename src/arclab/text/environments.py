"""What a reply is worth, and what is said to it: an environment for each kind of data set.

    with open_environment(config.dataset, config.sandbox, run_folder) as environment:
        episodes = [environment.start(example, seed) for example in examples]
        environment.step(episodes, replies)                   # each takes a reply; episode.is_over, episode.observations
        scores = score_all(environment, episodes)             # Score(reward, is_right, answer, parts)

With environment.max_turns None there is one reply and no observation. Else an episode goes on until it is over or has had
max_turns replies; `stops` end a reply. Programs run in the sandbox, all of a step in parallel; boxed answers are compared in
processes of their own; a search asks its server. No reward knows test outputs of ARC tasks: whether they are right is reported
beside it. It generates nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from arclab.config.llm_schema import SandboxConfig
from arclab.config.schema import SplitName
from arclab.config.text_schema import (
    START,
    ArcRefinementConfig,
    ArcTextConfig,
    CodeWordsConfig,
    KodCodeConfig,
    SearchReward,
    TextDatasetConfig,
    TriviaQaConfig,
)
from arclab.data.tasks import ArcTask
from arclab.files import parse_json
from arclab.programs.environment import DynamicEnv, StaticEnv, StepResult, step_all
from arclab.programs.rewards import RewardKind, score_tests
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.text.answers import check_answers
from arclab.text.arc import arc_tasks
from arclab.text.examples import TextExample
from arclab.text.function_tests import run_tests
from arclab.text.search_client import SearchDown, SearchTool, search_tool
from arclab.text.short_answers import exact, f1, tagged
from arclab.text.triviaqa import documents_of, shown, write_documents

log = logging.getLogger(__name__)
RIGHT = "right"  # the part of a score that is the reward
_NO_ACTION = "Write <search>...</search> to search, or <answer>...</answer> to answer."


@dataclass(frozen=True, slots=True)
class Score:
    """parts: numbers that are logged, by name; RIGHT is the reward. is_right: what accuracy counts. answer: what was found in
    the last reply, to be shown; None: nothing."""

    parts: Mapping[str, float]
    is_right: bool
    answer: str | None

    @property
    def reward(self) -> float:
        return self.parts[RIGHT]


@dataclass(slots=True)
class Episode:
    """replies and observations, one after the other; after the last reply there may be none. state: the environment's own.
    failure: why a step could not be made; then the episode is over and has no score."""

    example: TextExample
    replies: list[str] = field(default_factory=list)
    observations: list[str] = field(default_factory=list)
    is_over: bool = False
    state: Any = None
    failure: str = ""
    score: Score | None = None


class Environment(Protocol):
    """max_turns: replies of an episode; None: one, without observations. stops: text that ends a reply. observation_tokens:
    longer observations are cut. names: of the parts of its scores."""

    max_turns: int | None
    observation_tokens: int
    stops: tuple[str, ...]
    names: tuple[str, ...]

    def start(self, example: TextExample, seed: int) -> Episode: ...

    def step(self, episodes: Sequence[Episode], replies: Sequence[str]) -> None:
        """Writes replies, observations and is_over down. RuntimeError, ValueError: see step."""
        ...

    def score(self, episodes: Sequence[Episode]) -> list[Score]: ...


@contextmanager
def open_environment(
    config: TextDatasetConfig, sandbox: SandboxConfig, folder: Path, search_url: str | None = None
) -> Iterator[Environment]:
    """folder: where a search tool that is started keeps its documents and messages. search_url: of a tool that another rank has
    started. ValueError, in one sentence: a sandbox or a search tool that cannot be had."""
    match config:
        case TriviaQaConfig() | CodeWordsConfig():
            with _tool(config, folder, search_url) as tool:
                yield Search(tool, config.reward, config.max_turns, config.observation_tokens)
        case KodCodeConfig():
            with open_sandbox(sandbox) as pool:
                yield FunctionTests(pool)
        case ArcTextConfig():
            with open_sandbox(sandbox) as pool:
                yield ArcRefinement(pool, config) if isinstance(config, ArcRefinementConfig) else ArcPrograms(pool, config)
        case _:
            yield BoxedAnswers()


@contextmanager
def _tool(config: TriviaQaConfig | CodeWordsConfig, folder: Path, url: str | None) -> Iterator[SearchTool]:
    if url is not None:
        yield SearchTool(url, config.search.top_k)
        return
    documents, own = (
        None if config.search.documents is None else Path(config.search.documents).expanduser(),
        documents_of(config),
    )
    if own is not None and config.search.server == START:
        documents = folder / "search_documents.jsonl"
        write_documents(own, documents)
    with search_tool(config.search, documents, folder / "search_server.log") as tool:
        yield tool


def search_url(environment: Environment) -> str | None:
    """The address of the tool that it asks; None: it asks none."""
    return environment.tool.url if isinstance(environment, Search) else None


def step(environment: Environment, episodes: Sequence[Episode], replies: Sequence[str]) -> None:
    """A step of all. What fails because of a reply ends that episode alone, with its failure; a tool that does not answer ends
    all of them."""
    try:
        environment.step(episodes, replies)
        return
    except SearchDown as error:
        for episode, reply in zip(episodes, replies, strict=True):
            _fail(episode, reply, str(error))
        return
    except FAILURES as error:
        log.warning("a step of %d episodes failed (%s: %s)", len(episodes), type(error).__name__, error)
    for episode, reply in zip(episodes, replies, strict=True):
        try:
            environment.step([episode], [reply])
        except FAILURES as error:
            _fail(episode, reply, f"{type(error).__name__}: {error}")


# What a step may fail of because of a reply. Anything else is a fault of this program.
FAILURES = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def _fail(episode: Episode, reply: str, why: str) -> None:
    episode.replies.append(reply)
    episode.is_over, episode.failure = True, why


def score_all(environment: Environment, episodes: Sequence[Episode]) -> list[Score]:
    """Each is scored once. ValueError: one has failed before it was over."""
    if failed := [episode for episode in episodes if episode.failure]:
        raise ValueError(failed[0].failure)
    fresh = [episode for episode in episodes if episode.score is None]
    for episode, score in zip(fresh, environment.score(fresh) if fresh else [], strict=True):
        episode.score = score
    return [episode.score for episode in episodes if episode.score is not None]


class _SingleTurn:
    """One reply and no observation."""

    max_turns: int | None = None
    observation_tokens = 0
    stops: tuple[str, ...] = ()

    def start(self, example: TextExample, seed: int) -> Episode:
        return Episode(example, state=seed)

    def step(self, episodes: Sequence[Episode], replies: Sequence[str]) -> None:
        for episode, reply in zip(episodes, replies, strict=True):
            episode.replies.append(reply)
            episode.is_over = True


class BoxedAnswers(_SingleTurn):
    """Right is the last box; see arclab.text.answers."""

    names: tuple[str, ...] = (RIGHT, "boxed")

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        checked = check_answers([(episode.replies[-1], episode.example.answer) for episode in episodes])
        return [
            Score({RIGHT: float(each.is_right), "boxed": float(each.answer is not None)}, each.is_right, each.answer)
            for each in checked
        ]


class FunctionTests(_SingleTurn):
    """Right is a function that passes all of its tests."""

    names: tuple[str, ...] = (RIGHT, "tests")

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        outcomes = run_tests(self._sandbox, [(episode.replies[-1], episode.example.answer) for episode in episodes])
        return [
            Score({RIGHT: float(each.is_right), "tests": each.num_passed / each.num_tests}, each.is_right, each.source)
            for each in outcomes
        ]


class ArcPrograms(_SingleTurn):
    """The reward is 1 for a program that reproduces every demonstration; is_right says whether its test outputs are right."""

    names: tuple[str, ...] = (RIGHT, "test_solved")

    def __init__(self, sandbox: Sandbox, config: ArcTextConfig) -> None:
        self._sandbox, self._config, self._tasks = sandbox, config, arc_tasks(config)

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        envs = [
            StaticEnv(*self._given(episode.example), seed=int(episode.state) % 2**32) for episode in episodes
        ]  # fmt: skip
        results = step_all(envs, [[episode.replies[-1]] for episode in episodes])
        return [_program_score(env.task, result) for env, (result,) in zip(envs, results, strict=True)]

    def _given(self, example: TextExample) -> tuple[ArcTask, Sandbox, Any, RewardKind, SplitName]:
        task, split = self._tasks[example.id]
        return task, self._sandbox, self._config.prompt, RewardKind.binary, split


class ArcRefinement(ArcPrograms):
    """A wrong program is answered with what it did to the demonstrations. Scored is the best program of an episode."""

    def __init__(self, sandbox: Sandbox, config: ArcRefinementConfig) -> None:
        super().__init__(sandbox, config)
        self.max_turns, self.observation_tokens = config.max_turns, config.observation_tokens

    def start(self, example: TextExample, seed: int) -> Episode:
        # One more turn than are played: the last one is over because the manager says so, and is counted as cut.
        env = DynamicEnv(*self._given(example), max_turns=(self.max_turns or 1) + 1, seed=seed % 2**32)
        return Episode(example, state=env)

    def step(self, episodes: Sequence[Episode], replies: Sequence[str]) -> None:
        step_all([episode.state for episode in episodes], [[reply] for reply in replies])
        for episode, reply in zip(episodes, replies, strict=True):
            episode.replies.append(reply)
            episode.is_over = episode.state.done
            if not episode.is_over:
                episode.observations.append(episode.state.turns[-1].feedback)

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        return [_program_score(episode.state.task, episode.state.result().best) for episode in episodes]


def _program_score(task: ArcTask, result: StepResult | None) -> Score:
    assert result is not None, "an episode has at least one reply"
    is_solved = bool(score_tests(task, result.outcome))
    return Score({RIGHT: result.reward.value, "test_solved": float(is_solved)}, is_solved, result.outcome.source)


class Search:
    """<search>words</search> is answered with documents, <answer>name</answer> ends the episode."""

    stops: tuple[str, ...] = ("</search>", "</answer>")
    names: tuple[str, ...] = (RIGHT, "exact", "f1")

    def __init__(self, tool: SearchTool, reward: SearchReward, max_turns: int, observation_tokens: int) -> None:
        if max_turns < 1:
            raise ValueError(f"dataset.max_turns={max_turns} must be at least 1; raise it.")
        self.tool, self._reward = tool, reward
        self.max_turns: int | None = max_turns
        self.observation_tokens = observation_tokens

    def start(self, example: TextExample, seed: int) -> Episode:
        return Episode(example)

    def step(self, episodes: Sequence[Episode], replies: Sequence[str]) -> None:
        actions = [_action(reply) for reply in replies]
        queries = [words for tag, words in actions if tag == "search"]
        found = iter(self.tool.search(queries))
        for episode, reply, (tag, _) in zip(episodes, replies, actions, strict=True):
            episode.replies.append(reply)
            episode.is_over = tag == "answer"
            if not episode.is_over:
                episode.observations.append(shown(next(found)) if tag == "search" else _NO_ACTION)

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        return [self._score(episode) for episode in episodes]

    def _score(self, episode: Episode) -> Score:
        names = parse_json(episode.example.answer, Path(episode.example.id))
        tag, answer = _action(episode.replies[-1])
        if tag != "answer":
            return Score(dict.fromkeys(self.names, 0.0), False, None)
        is_exact, overlap = exact(answer, names), f1(answer, names)
        reward = float(is_exact) if self._reward is SearchReward.exact else overlap
        return Score({RIGHT: reward, "exact": float(is_exact), "f1": overlap}, is_exact, answer)


def _action(reply: str) -> tuple[str, str]:
    """("search", words), ("answer", name) or ("", ""): what the reply does last, its thinking left out."""
    spoken = reply.rpartition("</think>")[2]
    found = [(spoken.rfind(f"</{tag}>"), tag, inner) for tag in ("search", "answer") if (inner := tagged(spoken, tag))]
    return max(found)[1:] if found else ("", "")
