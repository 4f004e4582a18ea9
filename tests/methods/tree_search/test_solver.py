"""Tree search as a solver, through evaluate.py: results, files, killed and continued, budgets, and what must not be known."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arclab.config.compose import ConfigError
from arclab.config.tree_search_schema import TerminalReward
from arclab.data.tasks import ArcTask, Pair
from arclab.files import DamagedFile
from arclab.launch.start import start
from arclab.lm.endpoint import started
from arclab.lm.language_model import Prompt, Reply, Sampling
from arclab.lm.scripted import ScriptedModel
from arclab.methods.tree_search.archive import terminal_reward
from arclab.methods.tree_search.run import AT_RANDOM, few_finished
from arclab.methods.tree_search.solver import TreeSearch
from arclab.methods.tree_search.trees import Ending, load_tree, tree_path
from arclab.metrics.names import REGISTRY
from arclab.programs.outcomes import Outcome, compare
from arclab.programs.sandbox.execution import GridResult, Status
from arclab.programs.sandbox.pool import Sandbox
from arclab.programs.toy import solution
from arclab.results.attempts import Budget
from arclab.results.scoring import score
from arclab.runs.folder import RunDir, State
from arclab.runs.preempt import ToldToEnd
from arclab.solvers import evaluation

from .common import END, MARK, TASKS, babble, chance, config_of, scripted, setting_of, shape_of, without_tests


def body(task: ArcTask) -> str:
    """The right program of a task, behind the opening."""
    return f"    I = grid\n{solution(task).partition(chr(10))[2]}{END}"


def by_task(*texts: str, tasks: Sequence[ArcTask] = TASKS) -> ScriptedModel:
    """The draws of every task in turn; "right" is its own program."""
    rows = {json.dumps([d.input.tolist() for d in task.demos]): task for task in tasks}

    def say(prompt: Prompt, sample: int, sampling: Sampling) -> str:
        text = texts[sample % len(texts)]
        return text if text != "right" else body(next(task for key, task in rows.items() if shows(prompt, task)))

    def shows(prompt: Prompt, task: ArcTask) -> bool:
        first = "\n".join("".join(map(str, row)) for row in task.demos[0].input.tolist())
        return first in prompt[0].content

    return ScriptedModel(seeded=say)


def test_coverage_passing_programs_and_two_attempts_are_three_numbers(sandbox: Sandbox) -> None:
    """A program that knows the demonstrations by heart passes them and is wrong; two wrong answers that many programs share
    outvote a right one among those that fail the demonstrations."""
    task = TASKS[0]
    table = {str(d.input.tolist()): d.output.tolist() for d in task.demos if d.output is not None}
    cheats = [f"    return {table}.get(str(grid), [[{n // 2}]])  # {n}\n{END}" for n in range(4)]
    setting = setting_of("sampling", "search.branching=5", "search.num_programs=5", "search.stop_groups=null")
    found = TreeSearch(by_task(*cheats, "right", tasks=[task]), sandbox, setting).solve([task], Budget())
    shares = score([task], found)
    statistics = found.statistics
    assert (
        statistics["tree/coverage"] == 1
        and statistics["programs/tasks_with_right"] == 1
        and statistics["tree/programs_passing"] == 5
    )
    assert shares["ARC/pass@2"].value == 0 and len(found.candidates[task.id, 0]) == 3
    cheated = TreeSearch(by_task(cheats[0]), sandbox, setting).solve([task], Budget()).statistics
    assert cheated["tree/coverage"] == 0 and cheated["programs/tasks_with_right"] == 1
    right = TreeSearch(by_task("right"), sandbox, setting).solve(TASKS[:2], Budget())
    assert score(TASKS[:2], right)["ARC/pass@2"].n == 2 and right.statistics.keys() <= REGISTRY.keys()
    hidden = TreeSearch(by_task("right"), sandbox, setting).solve(without_tests(TASKS[:2]), Budget())
    assert "tree/coverage" not in hidden.statistics and str(hidden.candidates) == str(right.candidates)


def test_the_reward_sees_every_demonstration() -> None:
    """Whichever of them is wrong; partial credit never comes near a solution."""
    truth = np.zeros((2, 2), np.uint8)
    wrong = truth.copy()
    wrong[0, 0] = 1

    def outcome(*grids: np.ndarray) -> Outcome:
        return Outcome("x", tuple(compare(GridResult(Status.ok, grid), truth) for grid in grids), (), 0.0)

    share = TerminalReward.percent_correct
    rewards = [terminal_reward(outcome(*grids), True, share) for grids in ((wrong, truth, truth), (truth, truth, wrong))]
    assert rewards == pytest.approx([-1 + (0.75 + 2) / 6] * 2)
    assert terminal_reward(outcome(truth, np.zeros((3, 2), np.uint8)), True, share) == pytest.approx(-0.75)
    assert terminal_reward(outcome(truth, truth), True, share) == 1.0
    assert terminal_reward(outcome(truth, wrong), True, TerminalReward.binary) == -1.0
    assert terminal_reward(outcome(truth, truth), False, share) == -1.0


def test_test_outputs_reach_no_prompt_no_file_and_no_choice(sandbox: Sandbox, tmp_path: Path) -> None:
    """A canary: other test outputs, the same prompts, programs, files and trees."""
    canary = np.array([[9, 8, 7, 9, 8, 7, 9]] * 2, np.uint8)
    marked = [replace(task, tests=tuple(Pair(test.input, canary) for test in task.tests)) for task in TASKS[:2]]
    files, prompts, trees = [], [], []
    for number, tasks in enumerate((TASKS[:2], marked)):
        for search in ("pwmcts", "sample_refine"):
            model = scripted(babble)
            options = ("search.num_first=8",) if search == "sample_refine" else ()
            solver = TreeSearch(model, sandbox, setting_of(search, *options), folder=tmp_path / f"{number}_{search}")
            solver.solve(tasks, Budget())
            trees.append([shape_of(tree) for tree in solver.trees.values()])
            prompts.append(sorted(str(prompt) for call in model.calls for prompt in call))
            texts = [
                (tmp_path / f"{number}_{search}/trees" / path.name).read_text()
                for path in sorted((tmp_path / f"{number}_{search}/trees").iterdir())
            ]
            files.append([re.sub(r'"seconds": [^,]*|"cpu_s": [^,]*|"crc32": \d+', "", text) for text in texts])
    assert files[:2] == files[2:] and prompts[:2] == prompts[2:] and trees[:2] == trees[2:]
    for text in (str(prompts), str(files)):
        assert "9879879" not in text and "9, 8, 7, 9" not in text and "9 8 7 9" not in text


@pytest.mark.parametrize(
    ("override", "reason", "at_most"),
    [("search.num_draws=7", "draws", 7), ("search.num_programs=3", "programs", 12), ("search.max_tokens=30", "tokens", 20),
     ("search.max_s=0.000001", "seconds", 0), ("search.num_rollouts=1", "rollouts", 40), ("search.stop_groups=1", "enough", 4)],
)  # fmt: skip
def test_every_budget_ends_the_search(sandbox: Sandbox, override: str, reason: str, at_most: int) -> None:
    model = (
        by_task("right", f"    x = 1\n    {MARK}")
        if reason == "enough"
        else scripted(lambda _, rng: f"    x = {rng.integers(10**9)}\n    {MARK}")
    )
    solver = TreeSearch(model, sandbox, setting_of("pwmcts", "search.max_depth=3", override))
    solver.solve(TASKS[:1], Budget())
    tree = solver.trees[TASKS[0].id]
    assert tree.end is not None and tree.end.reason == reason and tree.num_attempts <= at_most
    assert model.num_completions == tree.num_attempts and (reason != "draws" or tree.num_attempts == 7)
    assert reason != "programs" or (tree.num_programs == 3 < tree.num_attempts)


def test_a_context_that_overflows_in_mid_tree_ends_the_node(sandbox: Sandbox) -> None:
    """Its program so far is run and counts; a task whose every prompt is too long is skipped, and wrong."""

    def is_long(prompt: Prompt) -> bool:
        return prompt[-1].content.count(MARK) >= 2

    script = lambda _, rng: f"\n    x = {rng.integers(10**9)}\n    return [[{rng.integers(9)}]]\n    {MARK}"  # noqa: E731
    solver = TreeSearch(scripted(script, too_long=is_long), sandbox, setting_of("mcts", "search.num_rollouts=4"))
    attempts = solver.solve(TASKS[:1], Budget())
    tree = solver.trees[TASKS[0].id]
    ended = [node for node in tree.drawn() if node.ending is Ending.context]
    assert ended and attempts.statistics["tree/ended_context"] > 0 and not attempts.skipped
    assert all(n.reward is not None and n.outcome is not None and n.outcome.answers and n.depth == 3 for n in ended)
    assert attempts.candidates[TASKS[0].id, 0]
    skipped = TreeSearch(scripted(script, too_long=lambda _: True), sandbox, setting_of("mcts")).solve(TASKS[:2], Budget())
    assert set(skipped.skipped) == {task.id for task in TASKS[:2]} and "shorten it" in skipped.skipped[TASKS[0].id]
    assert skipped.statistics["programs/tasks_skipped"] == 2 and score(TASKS[:2], skipped)["ARC/pass@2"].n == 0


def test_a_server_that_tells_no_tokens_and_takes_no_seed(sandbox: Sandbox, tmp_path: Path) -> None:
    """Tokens are not called 0; a limit on them is refused; what was not sent is said, also when the tree is read again."""

    class Server(ScriptedModel):
        def generate(self, *args: Any, **options: Any) -> list[Any]:
            on_reply = options.pop("on_reply", None) or args[3]

            def tell(number: int, reply: Reply) -> None:
                drawn = tuple(replace(c, num_tokens=None) for c in reply.completions)
                on_reply(number, replace(reply, completions=drawn, not_sent=("seed",)))

            return super().generate(*args[:3], tell)

    def server() -> ScriptedModel:
        return Server(seeded=lambda prompt, sample, sampling: babble(prompt[-1].content, chance(prompt, sample, sampling)))

    for _ in range(2):
        attempts = TreeSearch(server(), sandbox, setting_of("pwmcts"), folder=tmp_path).solve(TASKS[:2], Budget())
        assert attempts.not_sent == {"seed": 2} and "programs/tokens" not in attempts.statistics
    with pytest.raises(ValueError, match=r"search.max_tokens=50 needs the number of tokens .* set search.max_tokens=null"):
        TreeSearch(server(), sandbox, setting_of("pwmcts", "search.max_tokens=50")).solve(TASKS[:1], Budget())


def test_it_is_told_to_end_and_goes_on(sandbox: Sandbox, tmp_path: Path) -> None:
    """After any call of the model; what was drawn is kept, and the end is the same as without the stop."""
    setting = setting_of("pwmcts", "search.num_draws=24")
    whole = TreeSearch(scripted(babble), sandbox, setting)
    whole.solve(TASKS[:3], Budget())

    class Progress:
        num_steps, num_asked = 3, 0

        @property
        def is_told(self) -> bool:
            self.num_asked += 1
            return self.num_asked > 8

        def report(self, num_done: int) -> None: ...

    stops = 0
    while True:
        solver = TreeSearch(scripted(babble), sandbox, setting, folder=tmp_path, progress=Progress())  # pyright: ignore[reportArgumentType]
        try:
            solver.solve(TASKS[:3], Budget())
            break
        except ToldToEnd as told:
            assert "of 3 tasks are searched" in str(told)
            stops += 1
    assert stops > 1 and {i: shape_of(t) for i, t in solver.trees.items()} == {i: shape_of(t) for i, t in whole.trees.items()}


COMMAND = [
    "solver=tree_search", "search=pwmcts", "lm=tiny", "dataset=toy", "sandbox.min_isolation=limits", "sandbox.num_workers=1", "num_threads=1",
    'dataset.eval_sources=["toy:color_map?tasks=3&side=3&colors=3&palette=4&demos=3&split=test"]', "search.max_step_tokens=8",
    "solver.prompt.instructions=false", "solver.prompt.grid_format=digits", "search.branching=3", "search.num_draws=12",
]  # fmt: skip


def test_evaluate_writes_results_and_goes_on(tmp_path: Path, tiny_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model through the command: files, stamps and settings; a second call draws nothing; other settings are
    refused."""
    out = tmp_path / "out"
    command = [*COMMAND, f"lm.name={tiny_lm}", f"output_dir={out}"]
    start("evaluate.py", [*command, "max_tasks=2"])
    assert RunDir(out).state is State.done and len(list((out / "trees").iterdir())) == 2
    record = json.loads((out / "metrics.json").read_text())
    found = record["statistics"]
    assert record["solver"] == "tree_search" and record["search"] == "pwmcts" and record["scores"]["ARC/pass@2"]["N"] == 2
    assert found["tree/ended_cut"] > 0.5 and found["timing/nodes_per_s"] > 0 and found["programs/count"] <= 24
    assert "had no end within search.max_step_tokens" in capsys.readouterr().err
    page = (out / "report.html").read_text()
    assert "tree/coverage" in page and "draws are steps that had no end" in page
    kept = {path.name: path.read_bytes() for path in (out / "trees").iterdir()}
    start("evaluate.py", command)
    again = json.loads((out / "metrics.json").read_text())["statistics"]
    assert all((out / "trees" / name).read_bytes() == content for name, content in kept.items())
    assert again["programs/count"] > found["programs/count"] and "timing/solve_s" not in again
    start("evaluate.py", command)
    assert "timing/nodes_per_s" not in json.loads((out / "metrics.json").read_text())["statistics"]
    with pytest.raises(ConfigError, match=r"holds nodes drawn with search\.c_puct=1\.5, now search\.c_puct=2.* choose another"):
        start("evaluate.py", [*command, "search.c_puct=2"])
    other = command[7].replace("demos=3", "demos=2")
    with pytest.raises(ConfigError, match=r"task \(content\)"):
        start("evaluate.py", [*command, other])


def test_a_beam_without_a_reward_model_says_that_it_picks_at_random(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside every score, and on the console before the model is loaded."""
    monkeypatch.setattr(started, "load_language_model", lambda config: scripted(babble))
    monkeypatch.setattr(evaluation, "open_sandbox", lambda config: nullcontext(sandbox))
    monkeypatch.setattr("arclab.solvers.evaluation.drawing_settings", lambda *_: {})
    monkeypatch.setattr("arclab.methods.tree_search.run.drawing_settings", lambda *_: {})
    for search, says in (("beam", True), ("mcts", False)):
        start("evaluate.py", [*COMMAND[:1], f"search={search}", *COMMAND[2:], f"output_dir={tmp_path / search}"])
        assert (AT_RANDOM in (tmp_path / search / "report.html").read_text()) is says
        assert (AT_RANDOM in capsys.readouterr().err) is says


def test_a_file_of_another_version_or_of_something_else_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    TreeSearch(scripted(babble), sandbox, setting_of("mcts"), folder=tmp_path).solve(TASKS[:1], Budget())
    path = tree_path(tmp_path, TASKS[0].id)
    lines = path.read_text().splitlines()
    head = {key: value for key, value in json.loads(lines[0]).items() if key != "crc32"}
    head["settings"]["version"] = 0
    path.write_text("\n".join([json.dumps(head), *lines[1:]]) + "\n")
    with pytest.raises(DamagedFile, match="it is a tree of version 0, and this is version 1"):
        load_tree(path)
    with pytest.raises(ConfigError, match=r"holds nodes drawn with version=0, now version=1"):
        TreeSearch(scripted(babble), sandbox, setting_of("mcts"), folder=tmp_path).solve(TASKS[:1], Budget())
    path.write_text('{"settings": {}}\n')
    with pytest.raises(DamagedFile, match="version None"):
        load_tree(path)


def test_damaged_nodes_are_drawn_again(sandbox: Sandbox, tmp_path: Path) -> None:
    """A line that was changed counts for nothing, and neither does what stands below it; the search ends at the same tree."""
    setting = setting_of("pwmcts", "search.num_draws=24")
    TreeSearch(scripted(babble), sandbox, setting, folder=tmp_path).solve(TASKS[:1], Budget())
    path = tree_path(tmp_path, TASKS[0].id)
    whole, lines = load_tree(path), path.read_bytes().splitlines(keepends=True)
    assert len(lines) > 8
    path.write_bytes(b"".join([*lines[:3], lines[3].replace(b'"valid"', b'"vaild"'), *lines[4:-1]]))
    model = scripted(babble)
    solver = TreeSearch(model, sandbox, setting, folder=tmp_path)
    solver.solve(TASKS[:1], Budget())
    assert 0 < model.num_completions < whole.num_attempts and shape_of(solver.trees[TASKS[0].id]) == shape_of(whole)


def test_draws_from_another_prompt_are_not_taken(sandbox: Sandbox, tmp_path: Path) -> None:
    """What is in the file counts only where it was drawn from the prompt that would be asked now."""
    setting = setting_of("pwmcts", "search.num_draws=24")
    TreeSearch(scripted(babble), sandbox, setting, folder=tmp_path).solve(TASKS[:1], Budget())
    path = tree_path(tmp_path, TASKS[0].id)
    lines = [json.loads(line) for line in path.read_text().splitlines()[:-1]]
    for line in lines:
        line.pop("crc32")
        if line.get("parent") == "0.0":
            line["asked"] = "another"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = scripted(babble)
    TreeSearch(model, sandbox, setting, folder=tmp_path).solve(TASKS[:1], Budget())
    assert model.num_completions == sum(line.get("asked") == "another" for line in lines) > 0


def test_any_id_has_a_file_of_its_own(tmp_path: Path) -> None:
    ids = ["a", "a/b", "a%2Fb", "..", ".", "é" * 200, "é" * 199 + "e", "A b"]
    paths = [tree_path(tmp_path, id_) for id_ in ids]
    assert len(set(paths)) == len(ids) and all(p.parent == tmp_path / "trees" and len(p.name.encode()) < 250 for p in paths)
    assert not any(path.name.startswith(".") for path in paths)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.temperature.start=0"], "all draws would be equal"),
        (["solver.steps.step_end=''"], "solver.steps.step_end is empty"),
        (["solver.steps.step_end='```'"], "must not hold each other"),
        (["solver.prompt.entry=transform"], "does not open the function solver.prompt.entry=transform"),
        (["search.branching=0"], "search.branching=0 must be at least 1"),
        (["search.max_s=0"], "search.max_s=0.0 must be above 0"),
        (["solver.examples.sets=[[a]]"], "set solver.examples.file, or solver.examples.sets=null"),
        (["search.beam_width=3"], "search.beam_width"),
        (["search.widening_exponent=2"], "must be between 0 and 1"),
        (["solver.kind=other"], "solver.kind=other is not known"),
        (["search=nothing"], "search=nothing is not an option of the group search"),
        (["search=bootstrap"], "search.hints has no value"),
    ],
)
def test_what_is_wrong_with_the_settings_is_said(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config_of("pwmcts", *overrides) if not overrides[0].startswith("search=") else config_of(overrides[0][7:])
    assert message in str(raised.value)


def test_few_finished_names_what_most_draws_lack() -> None:
    assert few_finished({"tree/draws": 10.0, "tree/ended_cut": 0.4}) == ""
    assert few_finished({"tree/draws": 10.0, "tree/ended_empty": 0.6}).startswith("60 % of 10 draws are steps of nothing")
    assert "use a model that writes Python" in few_finished({"tree/draws": 10.0, "tree/ended_invalid": 0.9})
