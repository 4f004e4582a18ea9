"""Test-time training: adapters in a minute, tokens of the inner loop, depth-first search, rescoring. One run, ratios.

    python -m benchmarks.seal                                  # a minute or two on two cores
    python -m benchmarks.seal --lm models/smollm2_135m --tasks 2 --epochs 1 --save

A tiny random language model (or --lm) is adapted to toy tasks whose pseudo-tasks are of very different lengths: in place, with
batches of like lengths; in place, with every row as long as the longest of its task (as SEAL's published code pads); and with
the model loaded anew for each adapter as well. The ways take turns. Then all tasks are trained on in one batch, each with an
adapter of its own. Then one adapter stays, and replies are found by depth-first search and by drawing as many until as many
different ones are there; candidates are scored under all views with and without a prompt that is computed once. Nothing is said
here of how good answers are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from arclab.config.compose import compose_run, run_main
from arclab.config.llm_schema import HfModelConfig
from arclab.config.seal_schema import AdaptingSolverConfig, EvaluateTestTimeTrainingConfig
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask
from arclab.files import write_atomically
from arclab.lm.hf import HfModel, load_hf
from arclab.lm.language_model import Prompt, Sampling
from arclab.lm.tiny import build_tiny, default_texts
from arclab.lm.training.inner import InnerAdapter, Job
from arclab.lm.training.rows import IGNORED, Row
from arclab.methods.seal.answering import views_of
from arclab.methods.seal.pseudo_tasks import chosen_rows
from arclab.methods.seal.replication import padded_rows
from arclab.methods.seal.task_text import question, training_row
from arclab.programs.prompts import format_grid
from arclab.runs.console import setup_logging
from arclab.runs.folder import provenance
from benchmarks.arguments import above_0, at_least_1

RESULTS = Path(__file__).parent / "results"
SOURCE = "toy:color_map+crop?tasks={}&side=4&colors=4&palette=6&demos=3&tests=1"
IN_PLACE, PADDED, FRESH = "in place, like lengths", "in place, padded", "model loaded anew, padded"
TOGETHER = "in place, like lengths, all tasks in one batch"
_MOST_DRAWS = 64
_SURE_EPOCHS = 30  # on few rows, after which a model has replies that it thinks likely


def padded(rows: Sequence[Row], pad_id: int) -> list[Row]:
    """As long as the longest; padding carries no loss here, so that all ways learn the same."""
    found = padded_rows(rows, pad_id)
    return [
        {
            **row,
            "labels": [label if seen else IGNORED for label, seen in zip(row["labels"], row["attention_mask"], strict=True)],
        }
        for row in found
    ]


def adapters(
    load: Callable[[], HfModel], tasks: Sequence[ArcTask], solver: AdaptingSolverConfig, repeats: int
) -> dict[str, Any]:
    """{way: adapters a minute, real tokens a second of the inner loop, share of padding}."""
    model = load()
    inner = InnerAdapter(model, seed=0)
    rows = [
        chosen_rows(
            task, solver.pseudo_tasks, 0, lambda made: training_row(model, made, solver.text, solver.loss)
        ).rows
        for task in tasks
    ]  # fmt: skip
    wide = [padded(each, model.pad_id) for each in rows]

    def fit(adapter: InnerAdapter, given: list[Row]) -> tuple[int, int, float]:
        with adapter.fit(given, solver.adaptation, 0) as fitted:
            assert not fitted.problem
            return fitted.num_tokens, fitted.num_padding, fitted.seconds

    ways: dict[str, Callable[[int], tuple[int, int, float]]] = {
        IN_PLACE: lambda n: fit(inner, rows[n]),
        PADDED: lambda n: fit(inner, wide[n]),
        FRESH: lambda n: fit(InnerAdapter(load(), seed=0), wide[n]),
    }
    for way in (IN_PLACE, PADDED):
        ways[way](0)  # warm
    spent: dict[str, list[tuple[float, int, int, float]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for number in range(len(tasks)):
            for way, run in ways.items():
                began_s = time.monotonic()
                counted = run(number)
                spent[way].append((time.monotonic() - began_s, *counted))
        jobs = [Job(each, solver.adaptation, 0) for each in rows]
        began_s = time.monotonic()
        with inner.fit_together(jobs) as adapted:
            seconds = (time.monotonic() - began_s) / len(jobs)
            for each in adapted:
                assert not each.fitted.problem
                fitted = each.fitted
                spent.setdefault(TOGETHER, []).append((seconds, fitted.num_tokens, fitted.num_padding, fitted.seconds))
    return {way: _speed(each) for way, each in spent.items()} | {"rows": [len(each) for each in rows]}


def _speed(spent: Sequence[tuple[float, int, int, float]]) -> dict[str, float]:
    seconds, tokens, padding, fit_s = (sum(column) for column in zip(*spent, strict=True))
    return {
        "adapters_per_min": 60 * len(spent) / seconds,
        "tokens_per_s": (tokens - padding) / fit_s,
        "padding": padding / tokens,
    }


def _num_output_cells(task: ArcTask) -> int:
    return sum(demo.output.size for demo in task.demos if demo.output is not None)


def searching(model: HfModel, prompts: Sequence[Prompt], threshold: float, max_new_tokens: int) -> dict[str, float]:
    """Depth-first search, and the fewest draws (doubled each time) that find as many different replies."""
    model.replies_above(prompts[:1], threshold, max_new_tokens)  # warm
    began_s = time.monotonic()
    likely = model.replies_above(prompts, threshold, max_new_tokens)
    found = {"candidates": float(sum(len(each.replies) for each in likely)), "dfs_s": time.monotonic() - began_s}
    found["dfs_tokens"] = float(sum(each.num_tokens for each in likely))
    draws = 1
    while True:
        sampling = Sampling(max_new_tokens, 1.0, 1.0, 0, 0.0, (), 0)
        began_s = time.monotonic()
        drawn = model.generate(prompts, draws, sampling)
        seconds = time.monotonic() - began_s
        known = sum(len({completion.text for completion in reply.completions}) for reply in drawn)
        if known >= found["candidates"] or draws >= _MOST_DRAWS:
            tokens = sum(completion.num_tokens or 0 for reply in drawn for completion in reply.completions)
            return found | {"draws": float(draws), "drawn": float(known), "sample_s": seconds, "sample_tokens": float(tokens)}
        draws *= 2


def rescoring(model: HfModel, prompts: Sequence[Prompt], texts: Sequence[str], repeats: int) -> dict[str, float]:
    """Seconds for every text under every prompt."""
    asked = [prompt for prompt in prompts for _ in texts]
    given = list(texts) * len(prompts)
    seconds = {"apart": 0.0, "shared": 0.0}
    gap = 0.0
    for _ in range(repeats):
        values = []
        for name, score in (("apart", model.logprobs), ("shared", model.shared_logprobs)):
            began_s = time.monotonic()
            values.append([sum(each) for each in score(asked, given)])
            seconds[name] += time.monotonic() - began_s
        gap = max(gap, *(abs(a - b) for a, b in zip(*values, strict=True)))
    return {**seconds, "ratio": seconds["apart"] / seconds["shared"], "largest_gap": gap, "scores": float(len(given) * repeats)}


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    config = compose_run(
        "evaluate_test_time_training",
        ["solver=test_time_training", "lm=tiny", "dataset=toy", "lm.device=cpu", "solver.text.instructions=false",
         f"solver.adaptation.epochs={chosen.epochs}", f"solver.pseudo_tasks.max_count={chosen.rows}",
         f"solver.views.count={chosen.views}", "solver.text.grid_format=digits", "solver.adaptation.lr=3e-3"],
    )  # fmt: skip
    assert isinstance(config, EvaluateTestTimeTrainingConfig) and isinstance(config.lm, HfModelConfig)
    tasks = load_source(SOURCE.format(chosen.tasks))
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.lm or Path(folder) / "tiny"
        if chosen.lm is None:
            build_tiny(path, texts=default_texts(), seed=0, num_layers=4, width=128, num_heads=4, context=4096, vocab_size=512)
        lm = replace(config.lm, name=str(path), batch_size=chosen.batch)
        found = {"adapters": adapters(lambda: load_hf(lm), tasks, config.solver, chosen.repeats)}
        model, solver, task = load_hf(lm), config.solver, min(tasks, key=_num_output_cells)
        views = views_of(task, solver.views, 0)
        shown = [view.of(task) for view in views]
        prompts = [question(each.demos, each.tests[0].input, solver.text) for each in shown]
        rows = chosen_rows(task, solver.pseudo_tasks, 0, lambda made: training_row(model, made, solver.text, solver.loss)).rows
        with InnerAdapter(model, seed=0).fit(rows[:8], replace(solver.adaptation, epochs=_SURE_EPOCHS), 0) as fitted:
            assert not fitted.problem
            found["dfs"] = searching(model, prompts, chosen.threshold, chosen.tokens)
            texts = [format_grid(each.tests[0].input, solver.text.grid_format) for each in shown][: chosen.candidates]
            found["rescoring"] = rescoring(model, prompts, texts, chosen.repeats)
    return found


def markdown(found: dict[str, Any], chosen: argparse.Namespace) -> str:
    where, ways, dfs, scored = provenance(), found["adapters"], found["dfs"], found["rescoring"]
    lines = [
        f"`{where['command']}`, commit {where['commit']}, {where['machine']}, {where['started']}, seed 0;",
        f"{chosen.lm or 'a tiny model'}, {chosen.tasks} toy tasks x {chosen.repeats}, at most {chosen.rows} rows, "
        f"{chosen.epochs} epochs, {torch.get_num_threads()} threads.",
        "",
        "| adapters | a minute | ratio | tokens/s of the inner loop | padding |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    best = ways[IN_PLACE]["adapters_per_min"]
    for way in (IN_PLACE, PADDED, FRESH, TOGETHER):
        each = ways[way]
        lines.append(
            f"| {way} | {each['adapters_per_min']:.1f} | {best / each['adapters_per_min']:.2f} | {each['tokens_per_s']:.0f} | "
            f"{100 * each['padding']:.0f} % |"
        )
    lines += [
        "",
        f"Depth-first search: {dfs['candidates']:.0f} replies of {chosen.views} views above {chosen.threshold:g} in "
        f"{dfs['dfs_s']:.2f} s; {dfs['draws']:.0f} draws a view find {dfs['drawn']:.0f} different ones in "
        f"{dfs['sample_s']:.2f} s, {dfs['sample_s'] / max(1e-9, dfs['dfs_s']):.1f} times as long.",
        f"Rescoring, {chosen.candidates} candidates in {chosen.views} views: {scored['ratio']:.2f} times as fast with each "
        f"prompt computed once; no score differs by more than {scored['largest_gap']:.1g} nats.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    setup_logging()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lm", type=Path, default=None, help="a model folder; else a tiny random one")
    parser.add_argument("--tasks", type=at_least_1, default=4)
    parser.add_argument("--rows", type=at_least_1, default=40, help="of a task, at most")
    parser.add_argument("--epochs", type=at_least_1, default=2)
    parser.add_argument("--views", type=at_least_1, default=8)
    parser.add_argument("--candidates", type=at_least_1, default=8)
    parser.add_argument("--batch", type=at_least_1, default=16, help="sequences at once where it answers")
    parser.add_argument("--threshold", type=above_0, default=0.05, help="of depth-first search")
    parser.add_argument("--tokens", type=at_least_1, default=30, help="of a reply, at most")
    parser.add_argument("--repeats", type=at_least_1, default=2)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/seal.{md,json}")
    chosen = parser.parse_args(argv)
    found = measure(chosen)
    text = markdown(found, chosen)
    print(text)
    if chosen.save:
        record = {**found, "arguments": {key: str(value) for key, value in vars(chosen).items()}, "provenance": provenance()}
        write_atomically(RESULTS / "seal.json", json.dumps(record, indent=1) + "\n")
        write_atomically(RESULTS / "seal.md", text)


if __name__ == "__main__":
    run_main(main)
