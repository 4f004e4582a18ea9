"""The evolution tree: who is edited, what stands beside it, when it ends, and that it finds what single programs do not."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from arclab.config.compose import ConfigError, compose_evaluate
from arclab.config.program_edit_schema import EditSearch, EvaluateEditsConfig
from arclab.data.tasks import ArcTask, Pair
from arclab.files import read_lines, read_object
from arclab.lm.language_model import Completion, Prompt, Sampling
from arclab.lm.scripted import ScriptedModel
from arclab.methods.program_edit.editing import read_records
from arclab.methods.program_edit.evolution import Allowance, Spent, pooled, ranked
from arclab.methods.program_edit.measures import read_drawn
from arclab.methods.program_edit.population import Origin, Population, Program
from arclab.programs.sandbox.pool import Sandbox

from .test_solver import TURNED, evaluated

RNG = np.random.default_rng(0)
LINES = (
    "    I = [row[::-1] for row in I]", "    I = I[::-1]", "    I = [list(row) for row in zip(*I)]", "    I = [[max(c, 5) for c in row] for row in I]",
    "    I = [[0 if c == 5 else c for c in row] for row in I]", "    I = I[1:]",
)  # fmt: skip


def step(grid: np.ndarray) -> np.ndarray:
    """Two lines of the six: mirrored, then raised to 5 at least."""
    return np.maximum(grid[:, ::-1], 5).astype(np.uint8)


GRIDS = [RNG.integers(0, 10, (4, 4)).astype(np.uint8) for _ in range(8)]
PAIRS = tuple(Pair(grid, step(grid)) for grid in GRIDS)
TWO_STEPS = (ArcTask("a", PAIRS[:3], PAIRS[3:4], "test"), ArcTask("b", PAIRS[4:7], PAIRS[7:], "test"))


def wanderer(**options: object) -> ScriptedModel:
    """Adds a line of the six to the program that it is shown, or writes one line: which, is drawn by prompt, sample and seed."""

    def say(prompt: Prompt, sample: int, sampling: Sampling) -> str:
        digest = hashlib.sha256(f"{prompt[-1].content}/{sample}/{sampling.seed}".encode()).digest()
        shown = re.search(r"## The program so far\n\n```python\n(.*?)\n```", prompt[-1].content, re.DOTALL)
        body = shown[1].split("\n")[1:-1] if shown else []
        code = "\n".join(["def solve(I):", *body, LINES[digest[0] % len(LINES)], "    return I"])
        return f"<think>\n{'so ' * (digest[1] % 9)}\n</think>\n```python\n{code}\n```"

    return ScriptedModel(seeded=say, **options)  # type: ignore[arg-type]


TREE = ("solver.search=tree", "solver.drafts=4", "solver.levels=[[3,4,1],[2,4,2],[2,2,3]]")
SINGLE = ("solver.search=single", "solver.num_samples=3")


def program(body: str, solved: tuple[bool, ...], value: float) -> Program:
    return Program("t", f"def solve(I):\n    return {body}\n", Origin.draft, 0, (), value, solved, body)


def test_parents_are_the_best_and_what_stands_beside_them_covers_the_examples() -> None:
    programs = [
        program("1", (False, False, False, False), 0.9), program("2", (True, False, False, False), 0.5), program("3", (True, True, False, False), 0.6),
        program("4", (False, False, True, False), 0.3), program("5", (False, False, True, False), 0.4), program("6", (True,) * 4, 1.2),
    ]  # fmt: skip
    assert [each.signature for each in ranked(programs, EditSearch.chains)] == ["1", "3", "2", "5", "4"]
    best_first = ranked(programs, EditSearch.tree)
    assert [each.signature for each in best_first] == ["3", "2", "5", "4", "1"]  # what solves most first, whatever it is worth

    def beside(number: int, pool: int) -> list[str]:
        return [each.signature for each in pooled(best_first[number], best_first, pool)]

    assert beside(0, 1) == [] and beside(0, 2) == ["2", "5"] and beside(4, 2) == ["3", "5"] and beside(2, 2) == ["3"]
    assert beside(0, 3) == ["2", "5"]


def test_programs_that_answer_alike_are_one_parent_or_two() -> None:
    for by_answers, count in ((True, 1), (False, 2)):
        population = Population(by_answers=by_answers)
        for source in ("I", "list(I)", "I"):
            population.add(Program("t", f"def solve(I):\n    return {source}\n", Origin.draft, 0, (), 0.1, (False,), "same"))
        assert len(population) == count


def test_an_allowance_counts_programs_and_tokens() -> None:
    spent = Spent()
    for tokens in (40, 70):
        spent.add(tokens)
    assert Allowance(None, None).left(spent, 9) == 9 and Allowance(5, None).left(spent, 9) == 3
    assert (
        Allowance(2, None).left(spent, 9) == 0
        and Allowance(None, 110).left(spent, 9) == 0
        and Allowance(5, 111).left(spent, 9) == 3
    )
    spent.add(None)
    assert Allowance(5, None).left(spent, 9) == 2
    with pytest.raises(ValueError, match=r"solver.max_tokens=9 needs a model that tells how many tokens"):
        Allowance(None, 9).left(spent, 1)


def test_the_tree_finds_what_needs_two_steps_and_single_programs_do_not(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, tmp_path: Path
) -> None:
    tree = evaluated(monkeypatch, sandbox, tmp_path / "a", wanderer(), *TREE, tasks=TWO_STEPS)
    tokens = tree["programs/tokens"] / 2
    single = evaluated(
        monkeypatch, sandbox, tmp_path / "b", wanderer(), *SINGLE, f"solver.max_tokens={tokens:.0f}", tasks=TWO_STEPS
    )
    assert tree["ARC/pass@2"] == tree["edits/coverage"] == 1.0 and single["ARC/pass@2"] == single["edits/coverage"] == 0.0
    assert tokens * 2 <= single["programs/tokens"] < tokens * 2 * 1.2 and single["programs/pass@2"] == 0.0
    assert "programs/pass@1" not in tree and tree["edits/solved_share"] > 0 and tree["edits/pass@1"] > 0
    records = read_records(tmp_path / "a/edits.jsonl")
    assert all(record.others for record in records if record.turn) and not any(
        record.others for record in records if not record.turn
    )
    pooled_prompt = next(record.prompt for record in records if record.turn == 1)
    assert "## Another program, 1" in pooled_prompt and pooled_prompt.count("examples are right") >= 2
    assert read_object(tmp_path / "a/metrics.json")["levels"] == [[3, 4, 1], [2, 4, 2], [2, 2, 3]]
    page = (tmp_path / "a/report.html").read_text()
    assert "Tasks with a right program, by tokens" in page and "edits, level 1" in page
    chains = (tmp_path / "a/chains.html").read_text()
    assert "2 edits</span>" in chains or "1 edit</span>" in chains
    drawn = read_drawn(tmp_path / "a/drawn.jsonl")
    assert (
        len(drawn) == tree["programs/count"] == len(records) + 8
        and sum(each.tokens or 0 for each in drawn) == tree["programs/tokens"]
    )


def test_it_is_the_same_however_tasks_are_put_together(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Batches of one and of many, each task alone, and a limit that lets a task be asked for one prompt at a time."""

    def drawn(name: str, num_parallel: int, *more: str, tasks: tuple[ArcTask, ...] = TWO_STEPS) -> list[dict[str, object]]:
        evaluated(monkeypatch, sandbox, tmp_path / name, wanderer(num_parallel=num_parallel), *TREE, *more, tasks=tasks)
        rows = {row["id"]: row for row in read_lines(tmp_path / name / "edits.jsonl") if "settings" not in row}
        return [rows[id_] for id_ in sorted(rows)]

    one = drawn("a", 1)
    assert drawn("b", 50) == one and drawn("c", 3, "solver.max_tokens=1000000") == one
    assert (
        sorted(drawn("d", 4, tasks=TWO_STEPS[:1]) + drawn("e", 4, tasks=TWO_STEPS[1:]), key=lambda row: str(row["id"])) == one
    )
    assert read_lines(tmp_path / "a/predictions.jsonl") == read_lines(tmp_path / "b/predictions.jsonl")
    assert drawn("f", 1, "seed=1") != one
    edits = tmp_path / "a/edits.jsonl"
    lines = edits.read_text().splitlines(keepends=True)
    edits.write_text("".join(lines[:30]) + lines[30][:40])  # as a kill leaves it, within a level
    assert drawn("a", 5) == one


def test_budgets_are_kept_and_counted(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, tmp_path: Path) -> None:
    never = "solver.enough_right=99"
    model = wanderer(num_parallel=7)
    few = evaluated(monkeypatch, sandbox, tmp_path / "a", model, *TREE, never, "solver.max_programs=13", tasks=TWO_STEPS)
    assert few["programs/count"] == model.num_completions == 26
    assert [sum(each.task == task for each in read_drawn(tmp_path / "a/drawn.jsonl")) for task in "ab"] == [13, 13]
    whole = evaluated(monkeypatch, sandbox, tmp_path / "b", wanderer(), *TREE, never, tasks=TWO_STEPS)
    assert whole["programs/count"] == 2 * (4 + 12 + 8 + 4)
    limited = evaluated(
        monkeypatch, sandbox, tmp_path / "c", wanderer(), *TREE, never, "solver.max_tokens=200", tasks=TWO_STEPS
    )
    rows = read_drawn(tmp_path / "c/drawn.jsonl")
    for task in "ab":
        sums = np.cumsum([each.tokens or 0 for each in rows if each.task == task])
        assert sums[-1] >= 200 > sums[-5]  # the last prompt, of four programs, was asked for below the limit
    assert limited["programs/count"] < whole["programs/count"]
    same = read_drawn(tmp_path / "b/drawn.jsonl")
    assert all(row in same for row in rows)
    late = wanderer()
    timed = evaluated(monkeypatch, sandbox, tmp_path / "d", late, *TREE, never, "solver.max_s=1e-9", tasks=TWO_STEPS)
    assert timed["programs/count"] == late.num_completions == 0 and timed["ARC/pass@2"] == 0.0
    more = evaluated(monkeypatch, sandbox, tmp_path / "d", wanderer(), *TREE, never, "solver.max_s=1000", tasks=TWO_STEPS)
    assert more["programs/count"] == whole["programs/count"]
    again = wanderer()
    kept = evaluated(monkeypatch, sandbox, tmp_path / "d", again, *TREE, never, "solver.max_s=1e-9", tasks=TWO_STEPS)
    assert again.num_completions == 0 and kept["programs/count"] == whole["programs/count"]  # what is there takes no time


def test_single_programs_go_on_until_the_budget_is_spent_or_the_task_is(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, tmp_path: Path
) -> None:
    model = wanderer()
    found = evaluated(monkeypatch, sandbox, tmp_path / "a", model, *SINGLE, "solver.max_programs=7", tasks=TWO_STEPS)
    assert found["programs/count"] == model.num_completions == 14 and "edits/count" not in found
    assert not (tmp_path / "a/edits.jsonl").exists()
    assert len({prompt for call in model.calls for prompt in call}) == 2  # nothing but the task is shown
    again = wanderer()
    assert evaluated(monkeypatch, sandbox, tmp_path / "a", again, *SINGLE, "solver.max_programs=7", tasks=TWO_STEPS) == found
    assert again.num_completions == 0
    right = ScriptedModel(["def solve(I):\n    return [r[::-1] for r in I[::-1]]"])
    done = evaluated(
        monkeypatch, sandbox, tmp_path / "b", right, *SINGLE, "solver.max_programs=50", "solver.enough_right=1", tasks=(TURNED,)
    )
    assert done["programs/count"] == 3 and done["ARC/pass@1"] == done["programs/pass@1"] == 1.0
    shut = ScriptedModel(["x"], too_long=lambda prompt: True)
    with pytest.raises(ConfigError, match="none of the 1 tasks could be tried"):
        evaluated(monkeypatch, sandbox, tmp_path / "c", shut, *SINGLE, "solver.max_programs=50", tasks=(TURNED,))


def test_tokens_that_are_not_told_cannot_be_limited(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, tmp_path: Path) -> None:
    class Silent(ScriptedModel):
        def _completion(self, prompt: Prompt, sample: int, sampling: Sampling) -> Completion:
            said = super()._completion(prompt, sample, sampling)
            return Completion(said.text, said.finish_reason, None, None)

    with pytest.raises(ValueError, match=r"solver\.max_tokens=50 needs a model that tells"):
        evaluated(monkeypatch, sandbox, tmp_path / "a", Silent(["x"]), *TREE, "solver.max_tokens=50", tasks=(TURNED,))
    found = evaluated(monkeypatch, sandbox, tmp_path / "b", Silent(["x"]), *TREE, "solver.max_programs=5", tasks=(TURNED,))
    assert found["programs/count"] == 5 and "programs/tokens" not in found


def test_searches_have_folders_of_their_own_and_what_makes_none_is_refused() -> None:
    def config(*more: str) -> EvaluateEditsConfig:
        found = compose_evaluate(["solver=program_edit", "lm=tiny", "dataset=toy", *more])
        assert isinstance(found, EvaluateEditsConfig)
        return found

    names = [
        config(*more).run_name
        for more in ((), ("solver.search=tree",), ("prompt.report=false",), ("name=a", "solver.search=tree"))
    ]
    assert names == ["toy_evaluation", "toy_evaluation_tree", "toy_evaluation_no_report", "a"]
    for wrong, said in (
        ("solver.levels=[[1,2]]", "must be lists of three numbers"),
        ("solver.search=single", r"needs an end; set solver\.max_programs"),
        ("solver.max_tokens=0", r"solver\.max_tokens=0 must be at least 1"),
        ("solver.max_s=0", r"solver\.max_s=0\.0 must be above 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            config(wrong)
    with pytest.raises(ConfigError, match="is empty, which is no tree"):
        config("solver.search=tree", "solver.levels=[]")
