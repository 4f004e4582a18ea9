"""Does tree search do what its arithmetic says? Controls with scripted models whose chances are known exactly.

    python -m experiments.tree_search --save tree_search_control       # two minutes on two cores
    python -m experiments.tree_search --tasks 50 --seeds 0             # a quick look

A script writes the right program of a toy task in `depth` steps; each step is wrong with probability p, and a wrong step cannot
be repaired. So every cell has a rate that can be written down:

- sampling: n whole programs solve a task with 1 - (1 - (1 - p)^d)^n.
- mcts, with a budget for the whole tree: each right node is drawn from once, b times, so (1 - p^b)^d.
- pwmcts against mcts at an equal budget where first steps are mostly wrong: what widening is for. Paired, McNemar.
- beam without a reward model (which nodes it keeps is drawn at random) against a reward model that knows the right steps.

Solved: some program reproduces every demonstration. It says nothing about a real model: it checks the search.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arclab.config.compose import compose_run, run_main
from arclab.config.tree_search_schema import EvaluateTreeSearchConfig
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask
from arclab.files import write_atomically
from arclab.lm.language_model import Prompt, Sampling
from arclab.lm.scripted import ScriptedModel
from arclab.methods.tree_search.archive import Setting
from arclab.methods.tree_search.engine import Values
from arclab.methods.tree_search.solver import TreeSearch
from arclab.methods.tree_search.trees import Tree
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.programs.toy import solution
from arclab.results.attempts import Budget
from arclab.results.paired import PairedTest
from arclab.results.scoring import Share
from arclab.runs.console import setup_logging
from arclab.runs.folder import provenance
from benchmarks.arguments import at_least_0, at_least_1

RESULTS = Path(__file__).parent / "results"
TITLE = "Controls of tree search: scripted models with known chances"
SOURCE = "toy:color_map?tasks={}&side=3&colors=3&palette=6&demos=3&tests=1&seed=7"
STEP_END, PROGRAM_END = "# next step", "```"
BASE = [
    "solver=tree_search", "lm=tiny", "dataset=toy", "solver.prompt.instructions=false", "solver.prompt.grid_format=digits",
    "search.stop_groups=null", "search.temperature.schedule=constant",
]  # fmt: skip
_SAMPLING = [(0.2, 3, 1), (0.2, 3, 4), (0.4, 4, 8), (0.6, 3, 8)]  # p, depth, number of programs
_MCTS = [(0.4, 3, 2), (0.6, 3, 3), (0.3, 4, 2)]  # p, depth, branching


@dataclass(frozen=True, slots=True)
class Stepper:
    """Writes the programs of tasks in `depth` steps. first_p: of the first step, p: of later ones. Its steps depend on prompt,
    sample and seed, as a model's do. Wrong steps differ; right ones are equal."""

    tasks: Sequence[ArcTask]
    depth: int
    p: float
    first_p: float

    def model(self, num_parallel: int = 16) -> ScriptedModel:
        return ScriptedModel(seeded=self.say, num_parallel=num_parallel)

    def say(self, prompt: Prompt, sample: int, sampling: Sampling) -> str:
        """One step, or the whole program where steps are no stops."""
        told = repr((sampling.seed, sample, [(m.role, m.content) for m in prompt])).encode()
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(told).digest()[:8], "little"))
        number, text = prompt[-1].content.count(STEP_END), ""
        while True:
            text += self._step(prompt[0].content, number, rng)
            number += 1
            if STEP_END in sampling.stop or number == self.depth:
                return text

    def _step(self, asked: str, number: int, rng: np.random.Generator) -> str:
        is_wrong = rng.random() < (self.first_p if number == 0 else self.p)
        is_last = number + 1 == self.depth
        ruin = f"    grid = [[9, {rng.integers(10**9)} % 9]]\n" if is_wrong else ""
        if not is_last:
            return f"\n{ruin or f'    step_{number} = 0{chr(10)}'}    {STEP_END}"
        body = solution(self._task(asked)).partition("\n")[2]
        return f"\n{ruin}    I = grid\n{body}    {PROGRAM_END}"

    def _task(self, asked: str) -> ArcTask:
        return next(task for task in self.tasks if asked.startswith(_shown(task)))

    def values(self) -> Values:
        """A reward model that knows whether a program has a wrong step."""
        return lambda pairs: [-1.0 if "grid = [[9," in code else 1.0 for _, code in pairs]


def _shown(task: ArcTask) -> str:
    """How the prompt of a task begins."""
    demo, side = task.demos[0], "x".join(map(str, task.demos[0].input.shape))
    assert demo.output is not None
    grids = ["\n".join("".join(map(str, row)) for row in grid.tolist()) for grid in (demo.input, demo.output)]
    return f"{side}\n{grids[0]}\n>\n{side}\n{grids[1]}"


def setting_of(search: str, seed: int, *overrides: str, has_values: bool = False) -> Setting:
    config = compose_run("evaluate_tree_search", [*BASE, f"search={search}", *overrides])
    assert isinstance(config, EvaluateTreeSearchConfig)
    return Setting(config.solver, config.search, seed, has_values)


def grow(stepper: Stepper, setting: Setting, sandbox: Sandbox) -> list[Tree]:
    values = stepper.values() if setting.has_values else None
    solver = TreeSearch(stepper.model(), sandbox, setting, values=values)
    solver.solve(stepper.tasks, Budget())
    return [solver.trees[task.id] for task in stepper.tasks]


def solved(trees: Sequence[Tree]) -> list[bool]:
    return [tree.root.num_passing > 0 for tree in trees]


def sampling_rows(tasks: Sequence[ArcTask], seeds: Sequence[int], sandbox: Sandbox) -> list[dict[str, Any]]:
    rows = []
    for p, depth, count in _SAMPLING:
        found: list[bool] = []
        for seed in seeds:
            setting = setting_of("sampling", seed, f"search.num_programs={count}", f"search.branching={count}")
            found += solved(grow(Stepper(tasks, depth, p, p), setting, sandbox))
        rows.append(_row("sampling", f"p={p}, d={depth}, n={count}", found, 1 - (1 - (1 - p) ** depth) ** count))
    return rows


def mcts_rows(tasks: Sequence[ArcTask], seeds: Sequence[int], sandbox: Sandbox) -> list[dict[str, Any]]:
    rows = []
    for p, depth, branching in _MCTS:
        found: list[bool] = []
        for seed in seeds:
            setting = setting_of(
                "mcts", seed, f"search.branching={branching}", "search.num_draws=1000", "search.num_rollouts=1000"
            )
            found += solved(grow(Stepper(tasks, depth, p, p), setting, sandbox))
        rows.append(_row("mcts, whole tree", f"p={p}, d={depth}, b={branching}", found, (1 - p**branching) ** depth))
    return rows


def _row(search: str, cell: str, found: Sequence[bool], expected: float) -> dict[str, Any]:
    share = Share(float(sum(found)), len(found))
    low, high = share.interval
    return {
        "search": search, "cell": cell, "solved": str(share), "n": int(share.n), "N": share.total, "expected": expected,
        "inside": bool(low <= expected <= high),
    }  # fmt: skip


def paired_rows(tasks: Sequence[ArcTask], seeds: Sequence[int], sandbox: Sandbox) -> list[dict[str, Any]]:
    """Pairs of searches on the same tasks and seeds, at the same budget."""
    budget = ["search.num_draws=48", "search.branching=2", "search.num_rollouts=64"]
    bad_first = Stepper(tasks, 3, 0.2, 0.8)
    beam = ["search.num_draws=48", "search.branching=4", "search.beam_width=1", "search.num_rollouts=1"]
    even = Stepper(tasks, 4, 0.5, 0.5)
    cases = [
        ("pwmcts / mcts, first steps wrong (0.8, then 0.2)", bad_first, ("pwmcts", budget, False), ("mcts", budget, False)),
        ("beam of 1: reward model / at random", even, ("beam", beam, True), ("beam", beam, False)),
    ]
    rows = []
    for name, stepper, *both in cases:
        found: list[list[bool]] = [[], []]
        drawn = [0, 0]
        for seed in seeds:
            for number, (search, overrides, has_values) in enumerate(both):
                trees = grow(stepper, setting_of(search, seed, *overrides, has_values=has_values), sandbox)
                found[number] += solved(trees)
                drawn[number] += sum(tree.num_attempts for tree in trees)
        test = PairedTest.count("tasks", list(zip(*found, strict=True)))
        shares = [Share(float(sum(each)), len(each)) for each in found]
        rows.append({
            "pair": name, "first": str(shares[0]), "second": str(shares[1]), "only_first": test.only_first,
            "only_second": test.only_second, "p": test.p_value,
            "draws_per_task": [count / shares[0].total for count in drawn], "better": shares[0].n > shares[1].n,
        })  # fmt: skip
    return rows


def markdown(record: dict[str, Any]) -> str:
    lines = ["| search | cell | solved (95 % interval) | expected | inside |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['search']} | {r['cell']} | {r['solved']} | {100 * r['expected']:.1f} % | {'yes' if r['inside'] else 'no'} |"
        for r in record["rates"]
    ]
    lines += ["", "| pair | first | second | first alone / second alone | draws a task |", "|---|---|---|---|---|"]
    for row in record["pairs"]:
        test = f"{row['only_first']} / {row['only_second']}, p = {row['p']:.2g}"
        draws = " / ".join(f"{count:.1f}" for count in row["draws_per_task"])
        lines.append(f"| {row['pair']} | {row['first']} | {row['second']} | {test} | {draws} |")
    return f"# {TITLE}\n\n{record['where']}\n\n" + "\n".join(lines) + "\n"


def run(num_tasks: int, seeds: Sequence[int]) -> dict[str, Any]:
    """The rates beside what arithmetic says, and the pairs."""
    begun_s = time.monotonic()
    tasks = load_source(SOURCE.format(num_tasks))
    config = compose_run("evaluate_tree_search", BASE)
    with open_sandbox(config.sandbox) as sandbox:
        rates = [*sampling_rows(tasks, seeds, sandbox), *mcts_rows(tasks, seeds, sandbox)]
        pairs = paired_rows(tasks, seeds, sandbox)
    where = provenance()
    sentence = (
        f"{num_tasks} tasks of {SOURCE.format(num_tasks)}, seeds {' '.join(map(str, seeds))}; "
        f"{time.monotonic() - begun_s:.0f} s; "
        f"commit {where['commit']}; {where['machine']}."
    )
    return {"where": sentence, "provenance": where, "rates": rates, "pairs": pairs}


def main(argv: Sequence[str]) -> None:
    setup_logging()
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tree_search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=at_least_1, default=100)
    parser.add_argument("--seeds", type=at_least_0, nargs="+", default=[0, 1, 2])
    parser.add_argument("--save", metavar="NAME", help="write experiments/results/NAME.{md,json}")
    chosen = parser.parse_args(argv)
    record = run(chosen.tasks, chosen.seeds)
    text = markdown(record)
    print(text)
    if chosen.save:
        write_atomically(RESULTS / f"{chosen.save}.json", json.dumps(record, indent=1) + "\n")
        write_atomically(RESULTS / f"{chosen.save}.md", text)


if __name__ == "__main__":
    run_main(main)
