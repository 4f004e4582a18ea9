"""Which start programs are drawn: by value, by the curriculum, in other looks where a task is hard; and what edits are worth."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from arclab.config.compose import compose_run
from arclab.config.program_edit_grpo_schema import CurriculumKind, ThinkingConfig
from arclab.config.program_edit_schema import ProgramEditConfig
from arclab.data.tasks import ArcTask
from arclab.lm.hf import DrawnTokens
from arclab.lm.training.rollouts import Drawer, RolloutSettings
from arclab.lm.training.served import Server
from arclab.methods.program_edit import rollouts
from arclab.methods.program_edit.curriculum import TaskState, observe, of_round, read_curriculum, with_baseline
from arclab.methods.program_edit.population import Origin, Population
from arclab.methods.program_edit.practice import CURRICULUM, Practice
from arclab.methods.program_edit.rollouts import REWARDS, Drawn, EditRollouts
from arclab.methods.program_edit.starts import add_mutants, add_programs, identity_source, reference_sources
from arclab.methods.program_edit.variants import augmented, permuted
from arclab.programs.edits import write_reply
from arclab.programs.sandbox.pool import Sandbox
from arclab.programs.toy import solution
from arclab.runs.ranks import Ranks

ONE = Ranks(0, 1, torch.device("cpu"))


class Chars:
    """A model whose tokens are characters and which says one thing after the other."""

    max_context: int | None = 4000

    def __init__(self, *said: str) -> None:
        self.said, self.calls = said, 0

    def prompt_ids(self, prompt: Any) -> list[int]:
        return [ord(c) for c in prompt[-1].content]

    def reply_ids(self, text: str) -> list[int]:
        return [*map(ord, text), 0]

    def draw_tokens(self, rows: Any, samplings: Any) -> list[DrawnTokens]:
        found = []
        for _, sampling in zip(rows, samplings, strict=True):
            text = self.said[self.calls % len(self.said)]
            self.calls += 1
            ids = [*map(ord, text), 0][: sampling.max_new_tokens]
            found.append(DrawnTokens(ids, [-0.5] * len(ids), text, is_ended=ids[-1] == 0))
        return found


@pytest.fixture(scope="module")
def config() -> ProgramEditConfig:
    found = compose_run(
        "self_improve_program_edit",
        [
            "method=program_edit",
            "lm=tiny",
            "dataset=toy",
            "name=a",
            "grpo.group_size=4",
            "grpo.max_new_tokens=400",
            "starts.mutants=3",
        ],
    )
    assert isinstance(found, ProgramEditConfig)
    return found


@pytest.fixture(scope="module")
def population(config: ProgramEditConfig, sandbox: Sandbox, toy_tasks: tuple[ArcTask, ...]) -> Population:
    found = Population()
    broken = "def solve(I):\n    return I[\n"  # it does not parse: worth nothing, and a start like others
    for task in toy_tasks[:4]:
        add_programs(found, sandbox, task, [identity_source("solve"), broken], Origin.identity, config)
        add_mutants(found, sandbox, task, reference_sources([task])[task.id], config)
    return found


@pytest.fixture
def practice(
    config: ProgramEditConfig, population: Population, sandbox: Sandbox, toy_tasks: tuple[ArcTask, ...], tmp_path: Path
) -> Practice:
    return Practice(config, toy_tasks[:4], population, sandbox, Chars(), ONE, tmp_path)  # type: ignore[arg-type]


def test_start_programs_come_from_every_level_of_value(practice: Practice) -> None:
    drawn = practice.choose(0, range(60), 0)
    assert [each.start.program.sha for each in drawn] == [each.start.program.sha for each in practice.choose(0, range(60), 0)]
    assert practice.choose(0, [7], 0)[0].start.program.sha == drawn[7].start.program.sha  # whoever draws it
    assert [e.start.program.sha for e in practice.choose(1, range(60), 0)] != [e.start.program.sha for e in drawn]
    assert [e.start.program.sha for e in practice.choose(0, range(60), 1)] != [e.start.program.sha for e in drawn]
    assert not any(each.start.outcome.is_right for each in drawn) and len({each.task for each in drawn}) == 4
    values = Counter(round(each.start.program.value, 2) for each in drawn)
    assert values[0.0] >= 5 and any(value > 0.3 for value in values)  # what does not parse, and what is nearly right
    assert all(each.start.program.source.strip() in each.prompt[0].content for each in drawn)


def test_an_edit_earns_what_it_adds_and_its_parts_are_logged(
    config: ProgramEditConfig, practice: Practice, sandbox: Sandbox, toy_tasks: tuple[ArcTask, ...]
) -> None:
    shown = next(
        each for each in practice.choose(0, range(40), 0) if each.task == toy_tasks[0].id and each.start.program.value > 0
    )
    right = write_reply("turn", solution(toy_tasks[0]))
    model = Chars(right, "I give up", write_reply("no", shown.start.program.source), "x" * 500)
    roll_out = EditRollouts(config, model, sandbox, practice.noted)  # type: ignore[arg-type]
    groups = RolloutSettings(group_size=4, refills=0, mask_truncated=True, shuffle_rewards=False)
    drawer = Drawer((None,), roll_out, REWARDS, groups, 0, told=practice.told, choose=lambda step, places, attempt: [shown])
    drawn = drawer.drawn([0], 5, 0)
    value, cost = shown.start.program.value, 0.001
    assert [row.reward for row in drawn.rows] == pytest.approx(
        [1.2 - value - cost, -value - cost, -cost, -value - cost], abs=1e-4
    )
    assert [row.parts["right"] for row in drawn.rows] == [1, 0, 0, 0] and [row.parts["code"] for row in drawn.rows] == [
        1,
        0,
        1,
        0,
    ]
    assert [row.is_counted for row in drawn.rows] == [True, True, True, False] and drawn.rows[3].rollout.num_drawn == 400  # cut
    sums = drawn.sums(4)
    assert (
        sums["rl/reward_program"] == pytest.approx(sum(row.parts["program"] for row in drawn.rows))
        and sums["rl/thinking_tokens"] > 0
    )
    record = drawn.rows[0].rollout.record
    assert isinstance(record, Drawn) and record.is_right and str(record.source).strip() == solution(toy_tasks[0]).strip()
    task = practice.curriculum.tasks[toy_tasks[0].id]
    assert (task.num_groups, task.mean, task.last_step) == (1, 0.25, 5)


def test_a_server_draws_the_edits_if_there_is_one(
    config: ProgramEditConfig, practice: Practice, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Model(Chars):
        def text_of(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

        def is_end(self, token: int) -> bool:
            return token == 0

    class Client:
        def generate(self, prompts: Any, **given: Any) -> dict[str, Any]:
            asked.append((given["max_tokens"], given["temperature"], given["generation_kwargs"]["seed"]))
            return {"completion_ids": [[65, 66, 0]], "logprobs": [[[-1.0], [-2.0], [-3.0]]]}

    wished = replace(config, grpo=replace(config.grpo, vllm_url="http://x", temperature=0.7))
    monkeypatch.setattr(rollouts, "open_server", lambda key, url, timeout_s: Server(Client(), url))
    roll_out = EditRollouts(wished, Model(), sandbox, practice.noted)  # type: ignore[arg-type]
    rows = roll_out(practice.choose(0, [0], 0) * 4, [1, 2, 3, 4])
    assert sorted(asked) == [(400, 0.7, seed) for seed in (1, 2, 3, 4)]
    assert [(row.completion_ids, row.logprobs, row.is_ended) for row in rows] == [([65, 66, 0], [-1.0, -2.0, -3.0], True)] * 4


def test_groups_without_a_difference_are_drawn_anew_from_the_curriculum(
    config: ProgramEditConfig, practice: Practice, sandbox: Sandbox
) -> None:
    roll_out = EditRollouts(config, Chars("no"), sandbox, practice.noted)  # type: ignore[arg-type]
    asked: list[tuple[int, tuple[int, ...], int]] = []

    def choose(step: int, places: Any, attempt: int) -> Any:
        asked.append((step, tuple(places), attempt))
        return practice.choose(step, places, attempt)

    groups = RolloutSettings(group_size=2, refills=2, mask_truncated=True, shuffle_rewards=False)
    config = replace(config, grpo=replace(config.grpo, group_size=2))
    roll_out = EditRollouts(config, Chars("no"), sandbox, practice.noted)  # type: ignore[arg-type]
    drawn = Drawer((None,), roll_out, REWARDS, groups, 0, told=practice.told, choose=choose).drawn([0, 0], 3, 4)
    assert asked == [(3, (4, 5), 0), (3, (4, 5), 1), (3, (4, 5), 2)]
    assert not any(row.is_counted for row in drawn.rows) and drawn.num_drawn == 12
    assert sum(task.num_groups for task in practice.curriculum.tasks.values()) == 6  # the curriculum hears of them all


def test_the_curriculum_decides_what_is_drawn(practice: Practice, config: ProgramEditConfig, tmp_path: Path) -> None:
    easy, hard, *_ = sorted(practice.curriculum.tasks)
    for step in range(12):
        practice.curriculum = observe(practice.curriculum, easy, [True] * 4, step)
        practice.curriculum = observe(practice.curriculum, hard, [False] * 4, step)
    assert practice.curriculum.tasks[easy].state is TaskState.saturated and practice.curriculum.tasks[hard].level == 3
    counts = Counter(each.task for step in range(4) for each in practice.choose(step, range(50), 0))
    assert counts[easy] < 12 and counts[hard] > 120  # 2 % and 8 of 10 parts
    looks = {each.start.task.demos[0].input.tobytes() for each in practice.choose(0, range(40), 0) if each.task == hard}
    assert len(looks) > 5
    practice._config = replace(config, curriculum=replace(config.curriculum, augment=False))
    looks = {each.start.task.demos[0].input.tobytes() for each in practice.choose(0, range(40), 0) if each.task == hard}
    assert len(looks) == 1
    practice._config = replace(config, curriculum=replace(config.curriculum, kind=CurriculumKind.uniform))
    counts = Counter(each.task for step in range(4) for each in practice.choose(step, range(50), 0))
    assert min(counts.values()) > 30
    practice.save(tmp_path)
    assert read_curriculum(tmp_path / CURRICULUM, practice._data, practice._tasks) == practice.curriculum


def test_rounds_go_from_easy_to_hard_with_pairs_in_other_roles(
    practice: Practice, config: ProgramEditConfig, sandbox: Sandbox
) -> None:
    config = replace(config, curriculum=replace(config.curriculum, kind=CurriculumKind.rounds, rounds=2))
    practice._config = config
    practice.measure_baseline(EditRollouts(config, Chars("no"), sandbox, practice.noted))  # type: ignore[arg-type]
    assert {task.baseline for task in practice.curriculum.tasks.values()} == {0.0} and not practice._noted
    ids = sorted(practice.curriculum.tasks)
    practice.curriculum = with_baseline(practice.curriculum, dict(zip(ids, (0.1, 0.9, 0.2, 0.8), strict=True)))
    drawn = practice.choose(0, range(40), 0)
    assert {each.task for each in drawn} == {ids[1], ids[3]}  # the easier half
    originals = {practice._tasks[id_].demos[0].input.tobytes() for id_ in ids}
    assert len({each.start.task.demos[0].input.tobytes() for each in drawn} - originals) >= 3
    for id_ in (ids[1], ids[3]):
        for step in range(12):
            practice.curriculum = observe(practice.curriculum, id_, [True] * 4, step)
    assert of_round(practice.curriculum, 2)[0] == 1
    assert {each.task for each in practice.choose(1, range(40), 0)} == {ids[0], ids[2]}


def test_variants_are_views_colours_and_roles_of_the_same_pairs(toy_tasks: tuple[ArcTask, ...]) -> None:
    task, rng = toy_tasks[0], Random(0)
    assert augmented(task, 0, rng, None) is task
    seen = [augmented(task, 1, rng, None) for _ in range(40)]
    assert any(each is task for each in seen) and all(each.id == task.id for each in seen)
    assert all(sorted(each.demos[0].input.ravel()) == sorted(task.demos[0].input.ravel()) for each in seen)  # colours stay
    colors = [augmented(task, 2, rng, None) for _ in range(40)]
    assert any(sorted(each.demos[0].input.ravel()) != sorted(task.demos[0].input.ravel()) for each in colors)

    class Stream:
        max_side = 9

        def pair(self, number: int) -> Any:
            return replace(task.demos[0], input=np.full((2, 2), number % 10, np.uint8))

    generated = [augmented(task, 3, rng, Stream()) for _ in range(20)]
    assert any(each.demos[0].input.shape == (2, 2) for each in generated) and {len(each.demos) for each in generated} == {3}
    roles = [permuted(task, rng) for _ in range(20)]
    assert {len(each.demos) for each in roles} == {3} and len({each.demos[0].input.tobytes() for each in roles}) > 2
    hidden = replace(task, tests=tuple(replace(test, output=None) for test in task.tests))
    assert permuted(hidden, rng) is hidden


def test_a_budget_of_thinking_needs_room(
    config: ProgramEditConfig, population: Population, sandbox: Sandbox, toy_tasks: Any, tmp_path: Path
) -> None:
    thinking = replace(config, think=ThinkingConfig(min_tokens=0, max_tokens=3000, num_waits=2))
    with pytest.raises(ValueError, match="no task has a start program"):
        Practice(thinking, toy_tasks[:4], population, sandbox, Chars(), ONE, tmp_path)  # type: ignore[arg-type]
