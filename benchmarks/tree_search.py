"""Tree search: many trees at once against one after the other, and what running programs costs the model. One run, ratios.

    python -m benchmarks.tree_search                      # a minute or two on two cores
    python -m benchmarks.tree_search --repeats 3 --save

A tiny random language model draws real tokens, of which no program would come: its replies are replaced by steps of a script
that run, as many tokens long, so that model and sandbox have the work that they would have. The same searches are made with
--trees trees at once and one at a time, in turns; both grow the same trees (checked). waiting: share of the time in which the
model waits for programs. The last line compares the sandbox with a fresh interpreter for each program (benchmarks.sandbox).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from arclab.config.compose import compose_run, run_main
from arclab.config.tree_search_schema import EvaluateTreeSearchConfig
from arclab.data.sources import load_source
from arclab.files import write_atomically
from arclab.lm.hf import HfModel, load_hf
from arclab.lm.language_model import Completion, FinishReason, OnReply, Prompt, Reply, Samplings, ignore
from arclab.lm.tiny import build_tiny, default_texts
from arclab.methods.tree_search.archive import Setting
from arclab.methods.tree_search.engine import Engine
from arclab.methods.tree_search.prompts import shown_prompts
from arclab.methods.tree_search.search import TaskSearch
from arclab.methods.tree_search.trees import Tree
from arclab.programs.sandbox.pool import Sandbox, open_sandbox
from arclab.runs.console import setup_logging
from arclab.runs.folder import provenance
from benchmarks.arguments import at_least_1
from benchmarks.sandbox import speed as sandbox_speed

RESULTS = Path(__file__).parent / "results"
STEP_END, PROGRAM_END = "# next step", "```"
SOURCE = "toy:color_map?tasks={}&side=4&colors=4&palette=6&demos=3&tests=1"


class Writer:
    """The tiny model, with steps that run in place of what it says. Every fourth step ends its program."""

    def __init__(self, model: HfModel) -> None:
        self._model = model
        self.name, self.logprobs = model.name, model.logprobs

    def num_prompts(self, num_samples: int) -> int:
        return self._model.num_prompts(num_samples)

    def generate(
        self, prompts: Sequence[Prompt], num_samples: int, sampling: Samplings, on_reply: OnReply = ignore
    ) -> list[Reply]:
        written: dict[int, Reply] = {}

        def tell(number: int, reply: Reply) -> None:
            steps = prompts[number][-1].content.count(STEP_END)
            drawn = tuple(self._step(completion, steps) for completion in reply.completions)
            written[number] = replace(reply, completions=drawn)
            on_reply(number, written[number])

        self._model.generate(prompts, num_samples, sampling, tell)
        return [written[number] for number in range(len(prompts))]

    def _step(self, completion: Completion, steps: int) -> Completion:
        number = sum(map(ord, completion.text)) % 1000
        text = f"\n    grid = [[(cell + {number}) % 10 for cell in row] for row in grid]\n"
        ends = f"    return grid\n{PROGRAM_END}" if steps >= 3 else f"    {STEP_END}"
        return replace(completion, text=text + ends, finish_reason=FinishReason.stop)


def searched(
    model: Writer, sandbox: Sandbox, setting: Setting, num_trees: int, at_once: int
) -> tuple[dict[str, float], list[Tree]]:
    """Speed of growing the trees, so many at once."""
    engine = Engine(model, sandbox, branching=setting.search.branching, trees_at_once=at_once)
    tasks = load_source(SOURCE.format(num_trees))
    begun_s = time.monotonic()
    searches = [TaskSearch(task, setting, shown_prompts(task, setting.solver, (), None)) for task in tasks]
    found = {search.task.id: search for search in engine.run(searches)}
    seconds = time.monotonic() - begun_s
    return {
        "nodes_per_s": sum(search.num_drawn for search in found.values()) / seconds,
        "tokens_per_s": sum(search.num_tokens for search in found.values()) / seconds,
        "waiting": engine.waiting_s / seconds,
        "seconds": seconds,
    }, [found[task.id].tree for task in tasks]


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    config = compose_run(
        "evaluate_tree_search",
        ["solver=tree_search", "search=pwmcts", "lm=tiny", "dataset=toy", "solver.prompt.instructions=false", "lm.device=cpu",
         "solver.prompt.grid_format=digits", "search.branching=4", f"search.num_draws={chosen.programs}",
         f"search.max_step_tokens={chosen.tokens}", "sandbox.min_isolation=limits", f"lm.batch_size={2 * chosen.trees}"],
    )  # fmt: skip
    assert isinstance(config, EvaluateTreeSearchConfig)
    rows: dict[str, list[dict[str, float]]] = {"at once": [], "one at a time": []}
    with tempfile.TemporaryDirectory() as folder, open_sandbox(config.sandbox) as sandbox:
        path = Path(folder) / "tiny"
        build_tiny(path, texts=default_texts(), seed=0, num_layers=2, width=64, num_heads=4, context=4096, vocab_size=512)
        model = Writer(load_hf(replace(config.lm, name=str(path))))  # pyright: ignore[reportArgumentType]
        searched(model, sandbox, Setting(config.solver, config.search, 99), 2, 2)  # warm
        for repeat in range(chosen.repeats):
            setting = Setting(config.solver, config.search, repeat)
            batched, trees = searched(model, sandbox, setting, chosen.trees, chosen.trees)
            single, others = searched(model, sandbox, setting, chosen.trees, 1)
            rows["at once"].append(batched)
            rows["one at a time"].append(single)
            assert [list(tree.nodes) for tree in trees] == [list(tree.nodes) for tree in others]
    return {"rows": rows, "ratio": _ratio(rows), "sandbox": sandbox_speed(chosen.executions, 10)}


def _ratio(rows: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """At once against one at a time: of all repeats together."""
    seconds = {name: sum(row["seconds"] for row in found) for name, found in rows.items()}
    return {
        key: sum(row[key] * row["seconds"] for row in rows["at once"]) / seconds["at once"]
        / (sum(row[key] * row["seconds"] for row in rows["one at a time"]) / seconds["one at a time"])
        for key in ("nodes_per_s", "tokens_per_s")
    }  # fmt: skip


def markdown(found: dict[str, Any], chosen: argparse.Namespace) -> str:
    where, sandbox = provenance(), found["sandbox"]
    lines = [
        f"`{where['command']}`, commit {where['commit']}, {where['machine']}, {where['started']}; a tiny model, {chosen.trees}",
        f"trees, at most {chosen.programs} draws a tree, {chosen.tokens} tokens a step, {torch.get_num_threads()} threads.",
        "",
        "| trees | draws/s | tokens/s | waiting for programs |",
        "|---|---|---|---|",
    ]
    for name, rows in found["rows"].items():
        lines += [
            f"| {name} | {row['nodes_per_s']:.0f} | {row['tokens_per_s']:.0f} | {100 * row['waiting']:.1f} % |" for row in rows
        ]
    ratio = found["ratio"]
    lines += [
        "",
        f"At once against one at a time: {ratio['nodes_per_s']:.2f} times the draws/s, {ratio['tokens_per_s']:.2f} times the "
        "tokens/s.",
        f"Sandbox: {sandbox['programs_per_s']:.0f} programs/s in one worker, a fresh interpreter each "
        f"{sandbox['fresh_programs_per_s']:.1f}/s, ratio {sandbox['ratio']:.1f}.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    setup_logging()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tree_search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trees", type=at_least_1, default=16)
    parser.add_argument("--programs", type=at_least_1, default=32, help="draws of a tree")
    parser.add_argument("--tokens", type=at_least_1, default=24, help="of a step")
    parser.add_argument("--repeats", type=at_least_1, default=1)
    parser.add_argument("--executions", type=at_least_1, default=400, help="programs for the sandbox's own speed")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/tree_search.{md,json}")
    chosen = parser.parse_args(argv)
    found = measure(chosen)
    text = markdown(found, chosen)
    print(text)
    if chosen.save:
        record = {**found, "arguments": vars(chosen), "provenance": provenance()}
        write_atomically(RESULTS / "tree_search.json", json.dumps(record, indent=1) + "\n")
        write_atomically(RESULTS / "tree_search.md", text)


if __name__ == "__main__":
    run_main(main)
