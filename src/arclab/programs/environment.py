"""A task as an environment: a prompt, replies, and what their programs earned. For training by reinforcement and for search.

    env = StaticEnv(task, sandbox, prompt_config, RewardKind.smooth, SplitName.train)
    results = env.step(completions)                       # any number of replies to env.prompt(), run at once; then it is done
    env = DynamicEnv(task, sandbox, prompt_config, RewardKind.binary, SplitName.train, max_turns=4)
    while not env.done:
        (result,) = env.step([model_reply(env.prompt())])  # after a wrong program the prompt goes on with what was wrong
    env.result().reward
    step_all(envs, replies)                                # one call of the sandbox for many environments of any kind

Prompts, feedback and rewards know demonstrations only. Programs answer test inputs, too (result.outcome.answers, for voting);
who wants to report whether they are right asks rewards.score_tests. It does not generate, train or search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arclab.config.llm_schema import PromptConfig
from arclab.config.schema import SplitName
from arclab.data.tasks import ArcTask
from arclab.lm.language_model import Completion, FinishReason, Message, Prompt
from arclab.programs.feedback import feedback
from arclab.programs.outcomes import Outcome, ProgramRun, run_jobs
from arclab.programs.prompts import Parsed, parse_program, render_prompt
from arclab.programs.rewards import Reward, RewardKind, check_use_tests, solves, training_reward
from arclab.programs.sandbox.pool import Sandbox


@dataclass(frozen=True, slots=True)
class StepResult:
    """One reply and what became of it. done: whether its environment takes no further one."""

    reply: str
    parsed: Parsed
    outcome: Outcome
    reward: Reward
    done: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """What was asked, the answer, and what it was told; feedback "" at the end."""

    prompt: Prompt
    result: StepResult
    feedback: str


@dataclass(frozen=True, slots=True)
class Episode:
    """reward: that of the best program by itself (of delta: its value, which is what its edits sum up to). num_solved: the
    demonstrations that it reproduces. best: None before the first step."""

    reward: float
    num_solved: int
    best: StepResult | None


class Environment:
    """What both kinds have in common. ValueError: use_tests where test outputs may not be known.

    use_tests: test pairs count as demonstrations in rewards (not in prompts, feedback or done). parent: the program that the
    first reply is an edit of, for RewardKind.delta. seed: of random numbers in programs.
    """

    def __init__(
        self, task: ArcTask, sandbox: Sandbox, prompt_config: PromptConfig, reward_kind: RewardKind, split: SplitName, *,
        use_tests: bool = False, parent: Outcome | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        check_use_tests(task, split, use_tests)
        self.task, self.sandbox, self.prompt_config, self.reward_kind, self.split = (
            task,
            sandbox,
            prompt_config,
            reward_kind,
            split,
        )
        self.use_tests, self.seed, self.done = use_tests, seed, False
        self._parent = parent
        self._best: StepResult | None = None

    def prompt(self) -> Prompt:
        """What the next replies answer."""
        return render_prompt(self.task, self.prompt_config)

    def step(self, replies: Sequence[str | Completion]) -> list[StepResult]:
        """A result for every reply, in order."""
        return step_all([self], [replies])[0]

    def result(self) -> Episode:
        """The best program so far: by its reward, then by demonstrations, then the earlier one."""
        if self._best is None:
            return Episode(0.0, 0, None)
        return Episode(self._best.reward.program, _num_solved(self._best), self._best)

    def _job(self, parsed: Parsed) -> ProgramRun:
        return ProgramRun(self.task, parsed.source, self.prompt_config.entry, with_tests=True, seed=self.seed)

    def _take(self, texts: list[str], parsed: list[Parsed], outcomes: list[Outcome]) -> list[StepResult]:
        raise NotImplementedError

    def _judged(self, text: str, parsed: Parsed, outcome: Outcome, *, done: bool) -> StepResult:
        earned = training_reward(
            self.reward_kind, self.task, outcome, split=self.split, use_tests=self.use_tests, parent=self._parent
        )
        result = StepResult(text, parsed, outcome, earned, done)
        if self._best is None or _rank(result) > _rank(self._best):
            self._best = result
        return result


class StaticEnv(Environment):
    """One turn: all replies answer the same prompt, and none sees what became of another."""

    def _take(self, texts: list[str], parsed: list[Parsed], outcomes: list[Outcome]) -> list[StepResult]:
        self.done = True
        return [self._judged(*each, done=True) for each in zip(texts, parsed, outcomes, strict=True)]


class DynamicEnv(Environment):
    """Up to max_turns replies, one a step, until a program reproduces every demonstration.

    The prompt of a later turn is the whole conversation: earlier replies as they were written, and what was wrong with each.
    For RewardKind.delta a program's parent is that of the turn before.
    """

    def __init__(
        self, task: ArcTask, sandbox: Sandbox, prompt_config: PromptConfig, reward_kind: RewardKind, split: SplitName, *,
        max_turns: int, use_tests: bool = False, parent: Outcome | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        if max_turns < 1:
            raise ValueError(f"max_turns={max_turns} must be at least 1; raise it.")
        super().__init__(task, sandbox, prompt_config, reward_kind, split, use_tests=use_tests, parent=parent, seed=seed)
        self.max_turns = max_turns
        self.turns: list[Turn] = []

    def prompt(self) -> Prompt:
        assert not self.done, "the conversation is over; its text is transcript()"
        if not self.turns:
            return super().prompt()
        return (*self.transcript(), Message("user", self.turns[-1].feedback))

    def _take(self, texts: list[str], parsed: list[Parsed], outcomes: list[Outcome]) -> list[StepResult]:
        assert len(texts) == 1, "a conversation takes one reply a turn"
        prompt, outcome = self.prompt(), outcomes[0]
        self.done = solves(outcome) or len(self.turns) + 1 == self.max_turns
        result = self._judged(texts[0], parsed[0], outcome, done=self.done)
        told = "" if self.done else feedback(self.task, parsed[0], outcome, self.prompt_config)
        self.turns.append(Turn(prompt, result, told))
        self._parent = outcome
        return [result]

    def transcript(self) -> Prompt:
        """All that was said so far, the last reply included."""
        if not self.turns:
            return self.prompt()
        last = self.turns[-1]
        return (*last.prompt, Message("assistant", last.result.reply))


def step_all(envs: Sequence[Environment], replies: Sequence[Sequence[str | Completion]]) -> list[list[StepResult]]:
    """A step of every environment with its replies, all programs in one call of the sandbox that they share."""
    assert all(env.sandbox is envs[0].sandbox and not env.done for env in envs), "environments of one sandbox that are not done"
    assert len({id(env) for env in envs}) == len(envs), "each environment once"
    texts = [[reply.text if isinstance(reply, Completion) else reply for reply in group] for group in replies]
    parsed = [[_parsed(env, reply) for reply in group] for env, group in zip(envs, replies, strict=True)]
    jobs = [env._job(each) for env, group in zip(envs, parsed, strict=True) for each in group]
    outcomes = iter(run_jobs(envs[0].sandbox, jobs) if envs else [])
    return [
        env._take(group, each, [next(outcomes) for _ in each]) for env, group, each in zip(envs, texts, parsed, strict=True)
    ]


def _parsed(env: Environment, reply: str | Completion) -> Parsed:
    """A reply that comes as text alone ended by itself."""
    text, reason = (reply.whole, reply.finish_reason) if isinstance(reply, Completion) else (reply, FinishReason.stop)
    return parse_program(text, entry=env.prompt_config.entry, finish_reason=reason)


def _num_solved(result: StepResult) -> int:
    return sum(demo.is_right for demo in result.outcome.demos)


def _rank(result: StepResult) -> tuple[float, int]:
    return result.reward.program, _num_solved(result)
