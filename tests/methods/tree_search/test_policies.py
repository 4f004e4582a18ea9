"""What tells the kinds of search apart: each mechanism by what it does to a tree, with scripts that make it show."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from arclab.config.compose import ConfigError
from arclab.config.tree_search_schema import MctsConfig, Schedule, TemperatureConfig
from arclab.lm.language_model import Prompt
from arclab.methods.tree_search.archive import Archive
from arclab.methods.tree_search.policies import SampleRefine, grower_for, priors, puct
from arclab.methods.tree_search.prompts import load_examples, load_hints
from arclab.methods.tree_search.schedules import temperature
from arclab.methods.tree_search.solver import TreeSearch
from arclab.methods.tree_search.trees import Ending, Node, NodeKind, Tree
from arclab.programs.sandbox.pool import Sandbox
from arclab.programs.toy import solution
from arclab.results.attempts import Budget

from .common import END, MARK, TASKS, babble, config_of, grown, scripted, setting_of, steps_of, tree_of

STEP = f"    grid = [row[:] for row in grid]\n    {MARK}"
FINISH = f"\n    return grid\n{END}"


def step(rng: np.random.Generator) -> str:
    """One that no sibling has."""
    return f"\n    x = {rng.integers(10**9)}\n    {MARK}"


def right(rng: np.random.Generator | None = None) -> str:
    """The rest of a program of the first task, its function named anew within it."""
    body = solution(TASKS[0]).partition("\n")[2]
    return f"\n    I = grid\n{body}{END}"


def child(parent: Node, number: int, *, visits: int = 0, value_sum: float = 0.0, logprob: float | None = None) -> Node:
    node = Node(
        tag=f"{parent.tag}.{number}", parent=parent, kind=NodeKind.step, depth=1, num_tokens=4, logprob=logprob, visits=visits,
        value_sum=value_sum,
    )  # fmt: skip
    parent.children.append(node)
    return node


def test_the_score_of_a_child_is_puct(sandbox: Sandbox) -> None:
    """By hand: Q + c P sqrt(N) / (1 + n), P by log-probability per token; an unvisited child has its parent's Q less a
    reduction; walks under way are losses; a reward model's value is one more outcome."""
    search = config_of("mcts", "search.c_puct=2", "search.fpu_reduction=0.25", "search.virtual_loss=1").search
    assert isinstance(search, MctsConfig)
    parent = Node(tag="0.0", parent=None, kind=NodeKind.prompt, depth=0, visits=4, value_sum=-2.0)
    first = child(parent, 0, visits=4, value_sum=-2.0, logprob=-4.0)
    second = child(parent, 1, logprob=-8.0)
    chances = np.exp([-1.0, -2.0]) / np.exp([-1.0, -2.0]).sum()
    assert priors(parent.children) == pytest.approx(chances.tolist())
    assert puct(parent, search) == pytest.approx([-0.5 + 2 * chances[0] * 2 / 5, -0.75 + 2 * chances[1] * 2])
    second.virtual = parent.virtual = 1
    lost = (-0.75 - 1) / 2
    assert puct(parent, search)[1] == pytest.approx(lost + 2 * chances[1] * math.sqrt(5) / 2)
    second.value = 0.8
    assert second.q == 0.8 and puct(parent, search)[1] == pytest.approx((0.8 - 1) / 2 + 2 * chances[1] * math.sqrt(5) / 2)
    first.logprob = None
    assert priors(parent.children) == [0.5, 0.5]


@pytest.mark.parametrize(("loss", "spread"), [(1.0, True), (0.0, False)])
def test_walks_of_one_tree_spread(sandbox: Sandbox, loss: float, spread: bool) -> None:
    """Three walks are under way, two of them below the first child: the fourth takes the second one, where the others count as
    lost."""
    setting = setting_of("mcts", f"search.virtual_loss={loss}", "search.parallel_leaves=4", "search.num_draws=14")
    tree = tree_of(setting, sandbox, lambda _, rng: step(rng))
    first, second = tree.root.children[0].children
    assert all(child.children for child in first.children) and second.children[0].children
    assert bool(second.children[1].children) is spread


def test_exhausted_nodes_are_left_and_end_the_search(sandbox: Sandbox) -> None:
    """Each rollout draws something, until everything is drawn: a tree of two steps a node, three deep, is drawn whole."""
    names = iter(range(10**6))

    def script(written: str, rng: np.random.Generator) -> str:
        return f"\n    x = {rng.integers(10**9)}\n    {MARK}" if written.count(MARK) < 2 else f"\n    return [[{rng.integers(9)}]]  # {next(names)}\n{END}"  # fmt: skip

    tree = tree_of(setting_of("mcts", "search.num_rollouts=30", "search.num_draws=200"), sandbox, script)
    assert tree.end is not None and tree.end.reason == "exhausted" and tree.num_attempts == 2 + 4 + 8
    rollouts = {node.rollout for node in tree.drawn()}
    assert rollouts == set(range(tree.end.num_rollouts)), "a rollout that drew nothing"


def test_widening_gives_bad_first_draws_another_chance(sandbox: Sandbox) -> None:
    """The first draws of a node fail: without widening the search is over, with it it goes on to right programs. Exactly as
    many draws as ceil(k N^a) allows, duplicates included."""
    drawn = Counter[str]()

    def script(written: str, rng: np.random.Generator) -> str:
        drawn[written] += 1
        return f"\n    return nothing_{rng.integers(10**9)}\n{END}" if drawn[written] <= 6 else right()

    options = ("search.num_draws=40", "search.branching=3", "search.num_rollouts=40", "search.stop_groups=1")
    narrow = tree_of(setting_of("mcts", *options), sandbox, script, num_parallel=1)
    assert narrow.end is not None and narrow.end.reason == "exhausted" and narrow.root.num_passing == 0
    drawn.clear()
    wide = tree_of(setting_of("pwmcts", *options), sandbox, script, num_parallel=1)
    assert wide.end is not None and wide.end.reason == "enough" and wide.root.num_passing > 0

    same = tree_of(
        setting_of("pwmcts", "search.num_draws=500", "search.branching=3"), sandbox, lambda *_: "\n    return 1 / 0\n" + END
    )
    assert same.end is not None and same.end.reason == "exhausted" and same.num_attempts == 3
    assert len(list(same.drawn())) == 1 and len(same.duplicates) == 2
    failing = tree_of(setting_of("pwmcts", "search.num_draws=500", "search.branching=3", "search.num_rollouts=99"), sandbox, lambda _, rng: f"\n    return nothing_{rng.integers(10**9)}\n{END}")  # fmt: skip
    assert failing.end is not None and failing.end.reason == "exhausted" and failing.num_attempts == 9  # 3 sqrt(9)


def test_custom_draws_at_every_visit_until_there_are_enough_successes(sandbox: Sandbox) -> None:
    def script(written: str, rng: np.random.Generator) -> str:
        return right().replace(END, f"    # {rng.integers(10**9)}\n{END}")

    setting = setting_of("custom", "search.max_successes=5", "search.stop_groups=null", "search.num_rollouts=50")
    tree = tree_of(setting, sandbox, script)
    assert tree.root.num_passing == 6 and tree.end is not None and tree.end.reason == "exhausted"


def values_by_length(seen: list[tuple[Prompt, str]], pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
    seen += pairs
    return [math.tanh(len(code) / 1000) for _, code in pairs]


@pytest.mark.parametrize("kind", ["beam", "pwmcts"])
def test_a_reward_model_sees_open_nodes_only_and_decides(kind: str, sandbox: Sandbox) -> None:
    """Siblings side by side; neither finished nor wrong nodes. A beam keeps the best; with the values turned round it keeps
    others."""
    seen: list[tuple[Prompt, str]] = []
    setting = setting_of(kind, "search.num_draws=60", "search.branching=4", "search.parallel_leaves=2", has_values=True)
    tree = tree_of(setting, sandbox, babble, values=lambda pairs: values_by_length(seen, pairs))
    nodes = {tree.source(node): node for node in tree.drawn()}
    assert seen and all(prompt[-1].role == "user" for prompt, _ in seen)
    assert all(nodes[code].value is not None and nodes[code].valid and not nodes[code].is_terminal for _, code in seen)
    valued = [node for node in tree.drawn() if node.value is not None]
    assert len(valued) == len(seen) and all((n.value is None) == n.is_terminal for n in tree.drawn())
    if kind == "beam":
        expanded = {node.tag for node in tree.drawn() if node.children}
        for node in tree.nodes.values():
            kept = [c.value for c in node.children if c.tag in expanded and c.value is not None]
            left = [c.value for c in node.children if c.tag not in expanded and c.value is not None]
            if node.kind is NodeKind.prompt and kept and left:
                assert min(kept) >= max(left)
    plain = tree_of(setting_of(kind, "search.num_draws=60", "search.branching=4", "search.parallel_leaves=2"), sandbox, babble)
    assert [n.tag for n in plain.drawn()] != [n.tag for n in tree.drawn()] and all(n.value is None for n in plain.drawn())


def test_temperatures_reach_both_ends_and_prompts_take_turns() -> None:
    def ways(schedule: Schedule, num_rollouts: int, period: int = 1) -> list[float]:
        config = TemperatureConfig(schedule=schedule, start=0.7, end=1.1, target_fraction=0.5, concentration=0.75)
        found = [temperature(config, rollout=r, num_rollouts=num_rollouts, period=period) for r in range(num_rollouts)]
        return [round(value, 3) for value in found]

    assert ways(Schedule.beta_cdf, 8) == [0.7, 0.815, 0.854, 0.885, 0.915, 0.946, 0.985, 1.1]
    assert ways(Schedule.lerp, 5) == [0.7, 0.8, 0.9, 1.0, 1.1] and ways(Schedule.constant, 3) == [0.7] * 3
    assert ways(Schedule.lerp, 6, period=2) == [0.7, 0.7, 0.9, 0.9, 1.1, 1.1]
    assert ways(Schedule.lerp, 5, period=2) == [0.7, 0.7, 0.9, 0.9, 1.1] and ways(Schedule.lerp, 1) == [0.9]


def example_file(folder: Path, *names: str) -> Path:
    path = folder / "examples.json"
    entries = [
        {"name": name, "task": {"train": [{"input": [[number]], "output": [[number]]}], "test": [{"input": [[number]], "output": [[7]]}]},
         "program": f"def solve(grid):\n    # of {name}\n    {MARK}\n    return grid\n"}
        for number, name in enumerate(names)
    ]  # fmt: skip
    path.write_text(json.dumps(entries))
    return path


def test_each_set_of_examples_is_a_prompt_of_its_own(sandbox: Sandbox, tmp_path: Path) -> None:
    """In turn over the rollouts, in one tree; a node's prompt shows the examples of its root and nothing of the others."""
    file = example_file(tmp_path, "a", "b", "c")
    setting = setting_of(
        "sampling",
        f"solver.examples.file={file}",
        "solver.examples.sets=[[a,b],[c]]",
        "search.num_draws=8",
        "search.branching=2",
    )
    sets = load_examples(setting.solver.examples, steps_of(setting))
    model = scripted(lambda written, rng: f"\n    return {rng.integers(10**9)}\n{END}")
    solver = TreeSearch(model, sandbox, setting, examples=sets)
    solver.solve(TASKS[:1], Budget())
    tree = solver.trees[TASKS[0].id]
    assert [(n.prompt_id, n.examples) for n in tree.root.children] == [("a+b", ("a", "b")), ("c", ("c",))]
    by_rollout = {node.rollout: node.prompt_id for node in tree.drawn()}
    assert by_rollout == {0: "a+b", 1: "c", 2: "a+b", 3: "c"}
    shown = [
        ["".join(m.content for m in prompt).count(f"# of {name}") for name in "abc"] for call in model.calls for prompt in call
    ]
    assert shown == [[1, 1, 0], [0, 0, 1]] * 2
    assert [m.role for m in model.calls[0][0]] == ["user", "assistant", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("content", "override", "message"),
    [
        ("[]", "", "is no list of worked examples"),
        ('[{"name": "a"}]', "", "example 0 has no name or no program"),
        ('[{"name": "a", "program": "def f(x): pass"}]', "", "has no task"),
        ('[{"name": "a", "program": "x", "task": {"train": [], "test": []}}]', "", "does not begin with solver.steps.root"),
        (None, "solver.examples.sets=[[z]]", "solver.examples.sets names .*z.*, which .* does not hold; choose among"),
    ],
)
def test_examples_that_are_none_are_one_sentence(tmp_path: Path, content: str | None, override: str, message: str) -> None:
    file = example_file(tmp_path, "a")
    if content is not None:
        file.write_text(content)
    setting = setting_of("mcts", f"solver.examples.file={file}", *([override] if override else []))
    with pytest.raises(ValueError, match=message):
        load_examples(setting.solver.examples, steps_of(setting))
    with pytest.raises(ConfigError, match="is no file; give the path"):
        load_examples(setting_of("mcts", "solver.examples.file=nowhere").solver.examples, steps_of(setting))


def test_hints_are_shown_in_some_rollouts_of_one_tree(sandbox: Sandbox, tmp_path: Path) -> None:
    """By their schedule: the first ones all, then a part, at last none; the nodes say which."""
    setting = setting_of(
        "bootstrap", "search.hints=x", "search.hinted_rollouts=3", "search.unhinted_share=0.5", "search.last_hinted=10",
        "search.num_rollouts=14", "search.num_draws=400", "search.stop_groups=null",
    )  # fmt: skip

    def script(written: str, rng: np.random.Generator) -> str:
        return f"\n    return [[{rng.integers(10**6)}]]\n{END}"

    model = scripted(script)
    solver = TreeSearch(model, sandbox, setting, hints={TASKS[0].id: "Swap the colours."})
    solver.solve(TASKS[:1], Budget())
    tree = solver.trees[TASKS[0].id]
    assert [(n.prompt_id, n.hinted) for n in tree.root.children] == [("plain:hinted", True), ("plain", False)]
    hinted = {node.rollout: node.prompt_id == "plain:hinted" for node in tree.drawn()}
    assert all(hinted[r] for r in range(3)) and not any(hinted[r] for r in range(10, 14))
    assert {hinted[r] for r in range(3, 10)} == {True, False}
    texts = ["".join(m.content for m in prompt) for call in model.calls for prompt in call]
    assert {"Swap the colours." in text for text in texts} == {True, False}


def test_a_missing_hint_is_an_error_and_keys_may_be_file_names(tmp_path: Path) -> None:
    path = tmp_path / "hints.json"
    path.write_text(json.dumps({"a.json": "x", "b": " y ", "c": ""}))
    assert load_hints(path, ["a", "b"]) == {"a": "x", "b": "y"}
    with pytest.raises(ConfigError, match=r"has no description of 2 of the 3 tasks \(first: .*c.*\); add them"):
        load_hints(path, ["a", "c", "d"])
    with pytest.raises(ConfigError, match="is no file"):
        load_hints(tmp_path / "none.json", ["a"])


def test_corrections_are_asked_for_where_they_promise_most(sandbox: Sandbox) -> None:
    """The model is shown a program that ran with what was wrong; one that fails is never corrected; half-right ones are
    corrected more often than wrong ones, and no program all the time, since corrections are counted."""
    demos = TASKS[0].demos
    assert demos[0].output is not None
    half = f"\n    if grid == {demos[0].input.tolist()}:\n        return {demos[0].output.tolist()}\n    return [[0]]\n{END}"

    def script(written: str, rng: np.random.Generator) -> str:
        kind = rng.integers(3)
        return half.replace(END, f"# {rng.integers(4)}\n{END}") if kind == 0 else f"\n    return [[{rng.integers(9)}]]\n{END}" if kind == 1 else f"\n    return none\n{END}"  # fmt: skip

    setting = setting_of(
        "sample_refine", "search.num_first=24", "search.branching=2", "search.num_draws=160", "search.parallel_leaves=3"
    )
    model = scripted(script)
    solver = TreeSearch(model, sandbox, setting)
    solver.solve(TASKS[:1], Budget())
    tree = solver.trees[TASKS[0].id]
    corrected = [node for node in tree.programs() if node.children]
    assert corrected and all(node.valid and not node.passes for node in corrected)
    refined = [node for node in tree.drawn() if node.kind is NodeKind.refinement]
    assert len(refined) + len([d for d in tree.duplicates if tree.nodes[d.parent].kind is not NodeKind.prompt]) == 160 - 24
    assert all(tree.source(node) == tree.steps.source(tree.steps.opening + node.text) for node in refined)
    asked = [prompt for call in model.calls for prompt in call if len(prompt) == 4]
    assert asked and all("of 3 examples are right" in p[2].content and p[1].content.endswith(END) for p in asked)
    assert all(p[3].content == tree.steps.opening for p in asked)

    def attempts(share: float) -> float:
        nodes = [
            n
            for n in tree.programs()
            if n.valid and n.outcome is not None and round(n.outcome.demo_share, 3) == round(share, 3)
        ]
        return sum(node.num_attempts for node in nodes) / max(1, len(nodes))

    assert attempts(1 / 3) > 2 * attempts(0.0) and max(node.num_attempts for node in corrected) < 100


def test_a_program_that_was_corrected_often_is_drawn_lower(sandbox: Sandbox) -> None:
    """Its corrections count against it, as the share of demonstrations counts for it."""
    setting = setting_of("sample_refine", "search.num_first=4", "search.num_programs=4")
    tree = tree_of(setting, sandbox, lambda _, rng: f"\n    return [[{rng.integers(9)}]]\n{END}")
    grower = grower_for(Archive(TASKS[0], setting, (), tree))
    assert isinstance(grower, SampleRefine)
    node, means = tree.programs()[0], []
    for node.num_attempts in (0, 20, 200):
        means.append(float(np.mean([grower._draw(node) for _ in range(200)])))
    assert means[0] > 1.5 * means[1] > 1.5 * means[2]


@pytest.mark.parametrize("islands", [1, 3])
def test_islands_take_turns_so_that_one_early_success_does_not_draw_all_corrections(sandbox: Sandbox, islands: int) -> None:
    """Three first programs, one of which is right on a demonstration; corrections are not better."""
    demo, drawn = TASKS[0].demos[0], itertools.count()
    assert demo.output is not None
    half = f"\n    if grid == {demo.input.tolist()}:\n        return {demo.output.tolist()}\n    return [[0]]\n{END}"

    def script(written: str, rng: np.random.Generator) -> str:
        if next(drawn) == 0:
            return half
        return f"\n    return [[{rng.integers(9)}]]  # {rng.integers(10**9)}\n{END}"

    setting = setting_of(
        "sample_refine", "search.num_first=3", "search.branching=1", "search.num_draws=63", "search.parallel_leaves=1",
        f"search.num_islands={islands}", "search.thompson_c=99",
    )  # fmt: skip
    tree = tree_of(setting, sandbox, script)
    firsts = [node for node in tree.drawn() if node.kind is NodeKind.step]
    assert sorted(round(node.outcome.demo_share, 1) for node in firsts if node.outcome is not None) == [0.0, 0.0, 0.3]
    corrections = [sum(first in node.path() for node in tree.drawn()) - 1 for first in firsts]
    assert sum(corrections) == 60 and (corrections == [20, 20, 20]) == (islands == 3)


def test_a_step_without_end_or_of_nothing_is_given_up_and_counted(sandbox: Sandbox) -> None:
    from arclab.lm.language_model import FinishReason

    endless = grown(setting_of("mcts"), sandbox, lambda *_: "\n    x = 1" * 40)
    (tree,) = endless.values()
    assert {node.ending for node in tree.drawn()} == {Ending.turn_end}
    model = scripted(lambda *_: "\n    x = 1" * 40, finish_reason=FinishReason.length)
    solver = TreeSearch(model, sandbox, setting_of("mcts"))
    attempts = solver.solve(TASKS[:1], Budget())
    assert attempts.statistics["tree/ended_cut"] == 0.5 and attempts.statistics["tree/duplicate_share"] == 0.5
    (node,) = solver.trees[TASKS[0].id].drawn()
    assert node.ending is Ending.cut and not node.valid and node.reward == -1 and node.outcome is None
    empty = grown(setting_of("mcts"), sandbox, lambda *_: f"\n  {MARK}")
    assert {n.ending for tree in empty.values() for n in tree.drawn()} == {Ending.empty}


def test_a_comment_is_a_first_step_and_a_dangling_loop_is_none() -> None:
    steps = steps_of(setting_of("mcts"))
    for body, runs in (
        ("    # think\n    ", True),
        ("", True),
        ("    for x in grid:\n    ", False),
        ("  y = 2\n  # two\n", True),
    ):
        source = steps.prefix(f"def solve(grid):\n{body}")
        try:
            compile(source, "x", "exec")
        except SyntaxError:
            assert not runs, source
        else:
            assert runs, source


def test_what_rotates_can_be_drawn(sandbox: Sandbox, tmp_path: Path) -> None:
    """rotate=false: sets are drawn at random, by the seed."""
    file = example_file(tmp_path, "a", "b")
    options = (f"solver.examples.file={file}", "solver.examples.rotate=false", "search.num_draws=24", "search.branching=1")

    def order(seed: int) -> list[str]:
        setting = setting_of("sampling", *options)
        setting = type(setting)(setting.solver, setting.search, seed)
        sets = load_examples(setting.solver.examples, steps_of(setting))
        tree: Tree = tree_of(setting, sandbox, lambda _, rng: f"\n    return {rng.integers(10**9)}\n{END}", examples=sets)
        return [node.prompt_id for node in tree.drawn()]

    assert order(0) == order(0) != order(1) and set(order(0)) == {"a", "b"} and order(0) != ["a", "b"] * 12
