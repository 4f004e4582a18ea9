"""What holds for every tree, whatever the kind of search: property tests with a model that writes at random."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arclab.config.llm_schema import Isolation
from arclab.methods.tree_search.archive import Setting
from arclab.methods.tree_search.engine import Engine
from arclab.methods.tree_search.search import TaskSearch
from arclab.methods.tree_search.solver import TreeSearch
from arclab.methods.tree_search.trees import Ending, Node, NodeKind, load_tree, tree_path
from arclab.programs.sandbox.pool import Sandbox
from arclab.results.attempts import Budget

from .common import TASKS, babble, grown, scripted, setting_of, shape_of

KINDS = ("beam", "mcts", "pwmcts", "custom", "sampling", "sample_refine")


def backed_up(node: Node) -> list[float]:
    """The rewards at and below a node, counted anew."""
    own = [] if node.reward is None else [node.reward]
    return own + [reward for child in node.children for reward in backed_up(child)]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS), seed=st.integers(0, 1000), branching=st.integers(1, 4), budget=st.integers(1, 30),
    programs=st.integers(1, 12), leaves=st.integers(1, 3),
)  # fmt: skip
def test_what_holds_for_every_tree(
    sandbox: Sandbox, kind: str, seed: int, branching: int, budget: int, programs: int, leaves: int
) -> None:  # fmt: skip
    """Visits and Q are the outcomes below; nothing is drawn from a node that is over; every draw, and every finished program, is
    in its budget; no walk is left under way."""
    setting = setting_of(
        kind, f"search.branching={branching}", f"search.num_draws={budget}", f"search.parallel_leaves={leaves}",
        f"search.num_programs={programs}",
    )  # fmt: skip
    setting = Setting(setting.solver, setting.search, seed)
    for tree in grown(setting, sandbox, tasks=TASKS[:2]).values():
        for node in tree.nodes.values():
            rewards = backed_up(node)
            assert node.visits == len(rewards) and node.q == pytest.approx(sum(rewards) / len(rewards) if rewards else 0)
            assert -1 <= node.q <= 1 and node.virtual == 0 and not node.is_pending
            stopped = node.is_terminal and kind != "sample_refine"
            assert not (stopped and node.children), "a finished program was gone on from"
            assert len({child.text for child in node.children}) == len(node.children) or node.kind is NodeKind.task
        assert tree.num_attempts == len(list(tree.drawn())) + len(tree.duplicates) <= budget
        ended = [node.is_terminal for node in tree.drawn()] + [tree.nodes[each.of].is_terminal for each in tree.duplicates]
        assert tree.num_programs == sum(ended)
        if leaves == 1 and kind != "beam":  # others may finish what is under way
            assert tree.num_programs <= programs
        assert tree.end is not None and tree.end.reason in ("programs", "draws", "rollouts", "exhausted", "enough")
        used_up = {"programs": tree.num_programs >= programs, "draws": tree.num_attempts == budget}
        assert used_up.get(tree.end.reason, True)
        if leaves == 1 and kind != "beam":  # others end for one reason, and what is under way may use up more
            assert tree.end.reason in used_up or not any(used_up.values())
            assert tree.end.reason == "programs" or not used_up["programs"]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 1000), leaves=st.integers(1, 3), data=st.data())
def test_a_tree_does_not_depend_on_how_the_work_is_dealt_out(
    sandbox: Sandbox, kind: str, seed: int, leaves: int, data: st.DataObject
) -> None:
    """Not on prompts at once, trees at once, workers, or the order of tasks: the same seed gives the same tree."""
    setting = setting_of(kind, "search.num_draws=24", f"search.parallel_leaves={leaves}")
    setting = Setting(setting.solver, setting.search, seed)
    tasks = TASKS[:3]
    first = grown(setting, sandbox, tasks=tasks, num_parallel=1)
    setting.solver.trees_at_once = data.draw(st.integers(1, 4))
    with Sandbox(num_workers=1, min_isolation=Isolation.limits) if data.draw(st.booleans()) else _shared(sandbox) as other:
        second = grown(setting, other, tasks=data.draw(st.permutations(tasks)), num_parallel=data.draw(st.integers(1, 5)))
    assert {id_: shape_of(tree) for id_, tree in first.items()} == {id_: shape_of(tree) for id_, tree in second.items()}


class _shared:  # lower case, as contextlib's
    """A sandbox that stays open."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def __enter__(self) -> Sandbox:
        return self._sandbox

    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_is_read_as_it_was_grown_and_goes_on_where_it_was_cut(kind: str, sandbox: Sandbox, tmp_path: Path) -> None:
    """The file alone gives visits and Q. Cut anywhere, also within a line, the search goes on to the same tree, drawing only
    what is missing; done, it draws nothing."""
    setting, task = setting_of(kind, "search.num_draws=30", "search.parallel_leaves=2", "search.branching=4"), TASKS[0]
    grown(setting, sandbox, tasks=[task], folder=tmp_path)
    path = tree_path(tmp_path, task.id)
    whole, kept = load_tree(path), path.read_bytes()
    assert whole.end is not None and whole.num_attempts > 6
    lines = kept.splitlines(keepends=True)
    for num_lines, extra in ((1, 0), (4, 9), (len(lines) // 2, 0), (len(lines) - 1, 5), (len(lines), 0)):
        path.write_bytes(b"".join(lines[:num_lines]) + (lines[num_lines][:extra] if extra else b""))
        model = scripted(babble)
        solver = TreeSearch(model, sandbox, setting, folder=tmp_path)
        solver.solve([task], Budget())
        again = load_tree(path)
        assert shape_of(again) == shape_of(whole) == shape_of(solver.trees[task.id])
        assert model.num_completions < whole.num_attempts or num_lines <= 4
    assert model.num_calls == 0  # pyright: ignore[reportPossiblyUnboundVariable]
    outcome = next(node.outcome for node in whole.programs())
    assert outcome is not None and outcome.answers and outcome.demos and whole.source(whole.programs()[0]) == outcome.source


def test_every_way_to_end_is_met(sandbox: Sandbox) -> None:
    """So that the properties above were tested on all of them."""
    trees = grown(
        setting_of(
            "custom", "search.num_draws=300", "search.max_depth=4", "search.num_rollouts=99", "search.max_program_tokens=60"
        ),
        sandbox,
    )
    found = {node.ending for tree in trees.values() for node in tree.nodes.values()}
    assert found >= {Ending.program_end, Ending.turn_end, Ending.invalid, Ending.empty, Ending.max_depth}


@pytest.mark.parametrize(("at_once", "expected"), [(1, 1), (3, 3), (None, 4)])
def test_trees_at_once_are_as_many_as_asked_for(sandbox: Sandbox, at_once: int | None, expected: int) -> None:
    """By the prompts of one call; without a number twice as many as the model answers at once."""
    setting = setting_of("sampling", "search.num_programs=6", *([] if at_once is None else [f"solver.trees_at_once={at_once}"]))
    model = scripted(babble, num_parallel=2)
    begun: list[str] = []
    solver = TreeSearch(model, sandbox, setting)
    searches = solver._searches(TASKS)

    def counted() -> Iterator[TaskSearch]:
        for search in searches:
            begun.append(search.task.id)
            yield search

    engine = Engine(model, sandbox, branching=2, trees_at_once=setting.solver.trees_at_once)
    first = next(engine.run(counted()))
    assert first.is_done and len(begun) == expected
