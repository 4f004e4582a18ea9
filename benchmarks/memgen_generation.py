"""Generation with memory: one growing cache against encoding everything again for each token, same tokens, in one run.

    python -m benchmarks.memgen_generation                                      # a tiny random reasoner: a minute
    python -m benchmarks.memgen_generation --lm models/smollm2_135m --tokens 64 --rows 1 --save smollm2
    python -m benchmarks.memgen_generation --rollouts 8 --rows 4 --tokens 128 --save rollouts      # groups of 8

`cached` is arclab.methods.memgen.generation. `again` runs the model's forward pass over prompt, answer so far and memory for
every token, as the published code does once all insertions are used up. `off` is cached generation without memory. `fast` is
the weaver that reads through the reasoner's cache, with weights of its own. Times are wall seconds; the ratio is what counts.
With --rollouts, what reinforcement learning draws: groups of samples for every row, all at once, against one prompt at a time
with everything encoded again; in rollouts per second. The tokens of cached and again are compared; in float32 they are equal
but where two candidates are nearly the same."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from arclab.config.llm_schema import Dtype, HfModelConfig, LmAttention
from arclab.config.run import DeviceChoice
from arclab.files import write_atomically
from arclab.lm.language_model import Sampling
from arclab.lm.switched import LoraSettings
from arclab.lm.tiny import build_tiny, default_texts
from arclab.methods.memgen.generation import Answer, InsertionRule, generate
from arclab.methods.memgen.insertions import InsertionLimits, delimiter_table, plan_of
from arclab.methods.memgen.model import MemGenModel, MemGenSettings
from arclab.methods.memgen.setting import Language, load_reasoner
from arclab.methods.memgen.weaver import WeaverSizes
from arclab.runs.folder import provenance
from benchmarks.arguments import at_least_1

RESULTS = Path(__file__).parent / "results"
QUESTION = "A box holds seven pens. How many pens are in four boxes, and how many are left if nine are given away?"


def config_of(name: str) -> HfModelConfig:
    return HfModelConfig(
        kind="hf", name=name, max_context=None, thinking=None, adapter=None, dtype=Dtype.float32, attention=LmAttention.sdpa,
        device=DeviceChoice.cpu, batch_size=1,
    )  # fmt: skip


def build(language: Language, fast: bool) -> MemGenModel:
    lora = LoraSettings(rank=16, alpha=32.0, dropout=0.0, target_modules=("q_proj", "v_proj"))
    reasoner = language.model if not fast else load_reasoner(language.config).model
    return MemGenModel(reasoner, MemGenSettings(WeaverSizes(8, 8), lora, fast), seed=0)


@torch.no_grad()
def again(model: MemGenModel, prompts: Sequence[Sequence[int]], rule: InsertionRule, num_tokens: int) -> list[list[int]]:
    """Greedy answers, everything encoded again for each token; every row to num_tokens."""
    rows = [list(prompt) for prompt in prompts]
    for _ in range(num_tokens):
        longest = max(map(len, rows))
        # A token behind the last one, so that the plan may insert before it; nothing looks at it.
        plans = [
            plan_of([*ids, rule.pad_id], len(prompt), rule.delimiters_V, rule.limits)
            for ids, prompt in zip(rows, prompts, strict=True)
        ]
        gaps = [longest - len(ids) for ids in rows]
        ids_BL = torch.tensor([[rule.pad_id] * gap + ids + [rule.pad_id] for gap, ids in zip(gaps, rows, strict=True)])
        mask_BL = torch.tensor([[0] * gap + [1] * (len(ids) + 1) for gap, ids in zip(gaps, rows, strict=True)])
        plan_BL = torch.tensor([[0] * gap + plan for gap, plan in zip(gaps, plans, strict=True)])
        hidden_BLD = model.backbone(ids_BL, mask_BL, plan_BL=plan_BL).last_hidden_state
        for ids, token in zip(rows, model.get_output_embeddings()(hidden_BLD[:, -2]).argmax(-1).tolist(), strict=True):
            ids.append(token)
    return [ids[len(prompt) :] for ids, prompt in zip(rows, prompts, strict=True)]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = run()
    return time.perf_counter() - begun, found


def measure(language: Language, num_rows: int, num_tokens: int) -> dict[str, Any]:
    model, fast = build(language, fast=False), build(language, fast=True)
    vocab_size = language.model.get_input_embeddings().weight.shape[0]
    table_V = delimiter_table(language.tokenizer, vocab_size, language.ends)
    rule = InsertionRule(table_V, InsertionLimits(1, 5), frozenset(), language.pad_id)  # nobody ends: equal work
    prompts = [language.prompt_ids(f"{QUESTION} ({number})") for number in range(num_rows)]
    sampling, seeds = Sampling(num_tokens, 0.0, 1.0, 0, 0.0, (), 0), [0] * num_rows
    generate(model, prompts, rule, Sampling(2, 0.0, 1.0, 0, 0.0, (), 0), seeds)  # warm
    cached_s, answers = timed(lambda: generate(model, prompts, rule, sampling, seeds))
    fast_s, _ = timed(lambda: generate(fast, prompts, rule, sampling, seeds))
    with model.memory_off():
        off_s, _ = timed(lambda: generate(model, prompts, rule, sampling, seeds))
    again_s, tokens = timed(lambda: again(model, prompts, rule, num_tokens))
    return {
        "rows": num_rows, "tokens": num_tokens, "cached_s": cached_s, "fast_s": fast_s, "off_s": off_s, "again_s": again_s,
        "again_over_cached": again_s / cached_s, "cached_over_off": cached_s / off_s, "fast_over_off": fast_s / off_s,
        "insertions": sum(len(answer.inserted) for answer in answers),
        "same_tokens": sum(same_until(answer, row) for answer, row in zip(answers, tokens, strict=True)),
        "all_tokens": num_rows * num_tokens,
    }  # fmt: skip


def measure_rollouts(language: Language, num_rows: int, group_size: int, num_tokens: int) -> dict[str, Any]:
    """Nobody ends, so that both do the same work. The naive way draws one of a group: the others would take as long."""
    model = build(language, fast=False)
    table_V = delimiter_table(language.tokenizer, language.model.get_input_embeddings().weight.shape[0], language.ends)
    rule = InsertionRule(table_V, InsertionLimits(1, 5), frozenset(), language.pad_id)
    prompts = [language.prompt_ids(f"{QUESTION} ({number})") for number in range(num_rows)]
    drawn = [prompt for prompt in prompts for _ in range(group_size)]
    sampling = Sampling(num_tokens, 1.0, 1.0, 0, 0.0, (), 0)
    generate(model, drawn, rule, Sampling(2, 1.0, 1.0, 0, 0.0, (), 0), range(len(drawn)))  # warm
    ours_s, _ = timed(lambda: generate(model, drawn, rule, sampling, range(len(drawn)), is_tempered=True))
    naive_s, _ = timed(lambda: [again(model, [prompt], rule, num_tokens) for prompt in prompts])
    ours, naive = len(drawn) / ours_s, num_rows / naive_s
    return {
        "rows": num_rows, "group_size": group_size, "tokens": num_tokens, "rollouts_per_s": ours,
        "naive_rollouts_per_s": naive, "ratio": ours / naive,
    }  # fmt: skip


def same_until(answer: Answer, tokens: Sequence[int]) -> int:
    """How many tokens are equal from the beginning."""
    return next((n for n, (a, b) in enumerate(zip(answer.tokens, tokens, strict=True)) if a != b), len(tokens))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memgen_generation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lm", default="models/tiny", help="a model folder; models/tiny is made if it is not there")
    parser.add_argument("--rows", type=at_least_1, default=4)
    parser.add_argument("--tokens", type=at_least_1, default=512)
    parser.add_argument("--rollouts", type=at_least_1, metavar="GROUP", help="time groups of so many samples for each row")
    parser.add_argument("--threads", type=at_least_1, default=1)
    parser.add_argument("--save", metavar="NAME", help="benchmarks/results/memgen_generation_NAME.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folder = Path(given.lm)
    if given.lm == "models/tiny" and not folder.exists():
        build_tiny(folder, texts=default_texts(), seed=0, num_layers=2, width=64, num_heads=4, context=8192, vocab_size=512)
    language = load_reasoner(config_of(given.lm))
    if given.rollouts is None:
        measured = measure(language, given.rows, given.tokens)
    else:
        measured = measure_rollouts(language, given.rows, given.rollouts, given.tokens)
    found = {"lm": given.lm, **measured, "provenance": provenance()}
    print(json.dumps(found, indent=1))
    if given.save:
        write_atomically(RESULTS / f"memgen_generation_{given.save}.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
