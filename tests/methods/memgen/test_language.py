"""A MemGen run as a language model: the same answers as generation, and programs for ARC tasks through the common solver."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from arclab.config.compose import compose_run
from arclab.config.llm_schema import MemGenModelConfig, Memory, TriggerConfig, TriggerKind
from arclab.config.run import DeviceChoice
from arclab.lm.language_model import Message, Sampling
from arclab.lm.models import load_language_model
from arclab.methods.memgen import run as memgen_run
from arclab.methods.program_sampling.run import evaluate_programs
from tests.methods.memgen.test_run import TINY

SAMPLING = Sampling(12, 1.0, 1.0, 0, 0.0, (), 5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("memgen")
    wide = ["memgen.reasoner.scratch.context=4096", "trainer.steps=2", "trainer.eval_every=0", "criterion=null"]
    memgen_run.pretrain(compose_run("pretrain_memgen", [*TINY, "name=a", f"runs_dir={runs}", *wide]))
    return runs / "memgen_quickstart" / "a"


def config_of(run: Path, memory: Memory = Memory.trained) -> MemGenModelConfig:
    return MemGenModelConfig(
        kind="memgen", name=str(run), max_context=None, thinking=None, memory=memory, device=DeviceChoice.cpu, batch_size=3
    )


def test_samples_do_not_depend_on_their_batch_and_memory_counts(trained: Path) -> None:
    model = load_language_model(config_of(trained))
    prompts = [(Message("user", text),) for text in ("Tom has 3 pens.", "Ida has 41 eggs. Ida loses 7 eggs. How many?")]
    told: list[int] = []
    replies = model.generate(prompts, 4, SAMPLING, lambda number, reply: told.append(number))
    (alone,) = model.generate(prompts[1:], 4, SAMPLING)
    assert sorted(told) == [0, 1] and [len(reply.completions) for reply in replies] == [4, 4]
    assert [c.text for c in replies[1].completions] == [c.text for c in alone.completions]
    assert len({c.text for c in alone.completions}) > 1
    ended = next((c for reply in replies for c in reply.completions if c.finish_reason.value == "stop"), None)
    off = load_language_model(config_of(trained, Memory.off))
    assert [c.text for c in off.generate(prompts[1:], 4, SAMPLING)[0].completions] != [c.text for c in alone.completions]
    (scores,), (without,) = (m.logprobs(prompts[1:], ["The answer is 34."]) for m in (model, off))
    assert len(scores) == len(without) and scores != without
    assert ended is None or ended.logprob is not None
    short = load_language_model(replace(config_of(trained), max_context=20))
    assert "latents is more than the context of 20 tokens" in short.generate(prompts, 1, SAMPLING)[0].too_long


def test_a_trigger_decides_in_generation_and_in_scores_alike(trained: Path) -> None:
    prompts, found = [(Message("user", "Tom has 3 pens."),)], {}
    for kind, probability, threshold, count in (
        ("never", None, None, None), ("random", 0.0, None, None), ("random", 1.0, None, None), ("entropy", None, 0.0, None),
        ("first_k", None, None, 0), (None, None, None, None),
    ):  # fmt: skip
        trigger = TriggerConfig(
            kind=None if kind is None else TriggerKind[kind], probability=probability, threshold=threshold, count=count
        )
        model = load_language_model(replace(config_of(trained), trigger=trigger))
        (drawn,) = model.generate(prompts, 1, replace(SAMPLING, max_new_tokens=40))[0].completions
        (scores,) = model.logprobs(prompts, ["Tom, Tom. Tom, Tom. Tom, 3."])
        found[kind, probability] = (drawn.text, drawn.logprob, sum(scores))
    assert found["never", None] == found["random", 0.0] == found["first_k", None]
    assert found["random", 1.0] == found["entropy", None] == found[None, None]
    assert found["never", None][2] != found[None, None][2]


def test_arc_tasks_are_answered_with_memory_by_the_common_solver(trained: Path, tmp_path: Path) -> None:
    toy = "toy:color_map?tasks=2&side=3&colors=3&palette=4&demos=2"
    config = compose_run(
        "evaluate_programs",
        [
            "solver=program_sampling", "lm=memgen", f"lm.name={trained}", "dataset=toy", f'dataset.train_sources=["{toy}"]',
            f'dataset.eval_sources=["{toy}&split=test"]', "dataset.validation_sources=[]", "solver.num_samples=2",
            "solver.sampling.max_new_tokens=8", f"output_dir={tmp_path / 'out'}", "sandbox.num_workers=1",
        ],
    )  # fmt: skip
    assert evaluate_programs(config) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["solver"] == "program_sampling" and (tmp_path / "out/report.html").is_file()
