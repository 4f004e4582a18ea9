"""What a config of evaluate.py solver=program_sampling says is what runs: each key changes what its row says, and nothing else.

The language model is a recorder: it is built from the model group, and notes the prompts and settings that reach it. What the
model's own keys do is in tests/lm/, what the limits do in tests/programs/sandbox/test_sandbox.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.compose import compose_evaluate, flat
from arclab.config.llm_schema import EvaluateProgramsConfig, Isolation, ModelConfig, SandboxConfig
from arclab.launch.start import start
from arclab.lm.endpoint import started
from arclab.lm.language_model import OnReply, Prompt, Reply, Sampling, ignore
from arclab.lm.scripted import ScriptedModel
from arclab.programs.sandbox import pool as sandbox_module
from arclab.solvers import evaluation

from ..conftest import ROOT
from .table import Parts, Table, differences, effect, leaves, require_a_row_for_each, require_the_named_tests

TOY = "toy:color_map?tasks=4&side=4&colors=4&palette=6&demos=3"
BASE = [
    "solver=program_sampling", "lm=tiny", "dataset=toy", f'dataset.train_sources=["{TOY}"]', f'dataset.eval_sources=["{TOY}&split=test"]',
    f'dataset.validation_sources=["{TOY}&split=validation"]', "sandbox.num_workers=1", "num_threads=1",
]  # fmt: skip
TASK_KEYS = "test_a_task_key_changes_what_its_row_says"
# model: what it is loaded with. prompts, drawing: what it is asked for and how. sandbox: how programs run. threads: of this process.
# files: names of all that is left behind.
TABLE: Table = {
    "solver.num_samples": (2, "drawing"),
    "solver.prompt.grid_format": ("pipes", "prompts"),
    "solver.prompt.instructions": (False, "prompts"),
    "solver.prompt.show_tests": (False, "prompts"),
    "solver.prompt.show_shapes": (False, "prompts"),
    "solver.prompt.entry": ("transform", "prompts"),
    "solver.sampling.max_new_tokens": (7, "drawing"),
    "solver.sampling.temperature": (0.3, "drawing"),
    "solver.sampling.top_p": (0.5, "drawing"),
    "solver.sampling.top_k": (3, "drawing"),
    "solver.sampling.min_p": (0.1, "drawing"),
    "lm.name": ("other", "model files"),
    "lm.max_context": (77, "model"),
    "lm.thinking": (True, "model"),
    "lm.adapter": ("some", "model"),
    "lm.dtype": ("bfloat16", "model"),
    "lm.attention": ("eager", "model"),
    "lm.device": ("cpu", "model"),
    "lm.batch_size": (3, "model"),
    "sandbox.num_workers": (2, "sandbox"),
    "sandbox.cpu_s": (1, "sandbox"),
    "sandbox.wall_s": (1.5, "sandbox"),
    "sandbox.memory_mb": (128, "sandbox"),
    "sandbox.stdout_bytes": (9, "sandbox"),
    "sandbox.min_isolation": ("limits", "sandbox"),
    "dataset.eval_sources": ([f"{TOY}&split=test&seed=3"], "prompts"),
    "dataset.max_eval_tasks": (2, "prompts"),
    "split": ("validation", "prompts files"),
    "max_tasks": (1, "prompts"),
    "output_dir": ("elsewhere", "files"),
    "name": ("other", "files"),
    "runs_dir": ("elsewhere", "files"),
    "seed": (5, "drawing"),
    "num_threads": (2, "threads"),
}
OTHERS: Table = {
    "dataset.max_side": (5, "data/test_splits.py::test_a_size_limit_leaves_out_and_says_how_many"),
    "solver.kind": (None, "every_key/test_programs.py::test_each_solver_has_a_table_of_its_own"),
    **{f"lm.trigger.{key}": (None, "methods/memgen/test_language.py::test_a_trigger_decides_in_generation_and_in_scores_alike") for key in ("kind", "probability", "threshold", "count")},
    "lm.memory": (None, "methods/memgen/test_language.py::test_samples_do_not_depend_on_their_batch_and_memory_counts"),
    "lm.kind": ("endpoint", "config/test_compose.py::test_an_evaluation_of_programs_is_typed"),
    "lm.base_url": (None, "lm/test_endpoint.py::test_every_setting_is_sent"),
    "lm.base_urls": (None, "lm/test_endpoint_http.py::test_several_servers_are_asked_in_turn_and_a_dead_one_is_left_out"),
    "lm.api_key_env": (None, "lm/test_endpoint.py::test_a_key"),
    "lm.timeout_s": (None, "lm/test_endpoint.py::test_a_server_that_hangs"),
    "lm.max_retries": (None, "lm/test_endpoint.py::test_it_gives_up"),
    "lm.backoff_s": (None, "lm/test_endpoint.py::test_it_tries_again_and_waits_longer"),
    "lm.num_parallel": (None, "lm/test_endpoint.py::test_requests_are_made_in_parallel_and_stay_in_order"),
    # The same data code as for runs.
    **{
        key: (None, f"every_key/test_pretrain.py::{test}")
        for key, test in {
            "dataset.name": "test_the_name_of_the_tasks_reaches_the_report",
            "dataset.regime": "test_another_encoder_is_another_run",
            **dict.fromkeys(("dataset.train_sources", "dataset.validation_sources", "dataset.validation_ids", "dataset.train_ids"), TASK_KEYS),
            **dict.fromkeys(("dataset.max_train_tasks", "dataset.query_rule", "dataset.canvas", "dataset.num_augmentations",
                             "dataset.translate", "dataset.max_demos"), "test_a_key_changes_what_its_row_says"),
        }.items()
    },
    **dict.fromkeys(("dataset.train_visits", "dataset.rearc.pairs", "dataset.rearc.min_difficulty", "dataset.rearc.max_difficulty"), (None, "data/test_rearc.py::test_every_key_changes_the_pairs_of_a_batch")),
    "dataset.rearc.timeout_s": (None, "data/test_rearc.py::test_a_generator_that_hangs_is_cut_off"),
    **{
        key: (None, "launch/test_launch.py::test_every_launch_key_changes_what_is_started")
        for key in leaves(EvaluateProgramsConfig)
        if key.startswith("launch.")
    },
}  # fmt: skip


def test_every_key_has_a_row() -> None:
    require_a_row_for_each(leaves(EvaluateProgramsConfig), TABLE, OTHERS)
    require_the_named_tests(OTHERS)


def test_each_solver_has_a_table_of_its_own() -> None:
    """Each has a root and a table of its own, so that no other value of solver.kind can be given."""
    assert sorted(path.stem for path in (ROOT / "conf/solver").glob("*.yaml")) == [
        "program_edit",
        "program_sampling",
        "test_time_training",
        "tree_search",
    ]


@cache
def settings() -> dict[str, Any]:
    return flat(compose_evaluate(BASE))


@pytest.fixture(scope="module")
def shared() -> Iterator[sandbox_module.Sandbox]:
    """The sandbox of the base, for all keys that are not its own."""
    config = compose_evaluate(BASE)
    assert isinstance(config, EvaluateProgramsConfig)
    with sandbox_module.open_sandbox(config.sandbox) as opened:
        yield opened


def asked(overrides: Sequence[str], monkeypatch: pytest.MonkeyPatch, folder: Path, shared: sandbox_module.Sandbox) -> Parts:
    """Everything that an evaluation asks of model and sandbox, and the files it leaves."""
    notes: dict[str, list[Any]] = {"model": [], "prompts": [], "drawing": [], "sandbox": [], "threads": []}

    class Recorder(ScriptedModel):
        def generate(
            self, prompts: Sequence[Prompt], num_samples: int, sampling: Sampling, on_reply: OnReply = ignore
        ) -> list[Reply]:
            notes["prompts"].extend(prompts)
            notes["drawing"] = [num_samples, sampling]
            return super().generate(prompts, num_samples, sampling, on_reply)

    def load(config: ModelConfig) -> Recorder:
        notes["model"].append(flat(config))  # pyright: ignore[reportArgumentType]
        return Recorder(["def solve(I):\n    return I\n\ndef transform(I):\n    return I\n"] * 99)

    def open_sandbox(config: SandboxConfig) -> AbstractContextManager[sandbox_module.Sandbox]:
        notes["sandbox"].append(flat(config))  # pyright: ignore[reportArgumentType]
        return nullcontext(shared)

    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(started, "load_language_model", load)
        patch.setattr(evaluation, "open_sandbox", open_sandbox)
        patch.setattr(torch, "set_num_threads", notes["threads"].append)
        patch.setattr("arclab.pages.report.render_report", lambda result: "")
        start("evaluate.py", [*BASE, *overrides])
    return {**notes, "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, shared: sandbox_module.Sandbox) -> Parts:
    with pytest.MonkeyPatch.context() as patch:
        return asked([], patch, tmp_path_factory.mktemp("base"), shared)


@pytest.mark.parametrize("key", TABLE)
def test_a_key_changes_what_its_row_says(
    key: str, base: Parts, shared: sandbox_module.Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    value, what = TABLE[key]
    text = "[" + ",".join(f'"{item}"' for item in value) + "]" if isinstance(value, list) else str(value)
    assert settings()[key] != value, "the other value is the same"
    assert differences(base, asked([f"{key}={text}"], monkeypatch, tmp_path, shared)) == effect(what, {})


def test_the_same_settings_ask_the_same(
    base: Parts, shared: sandbox_module.Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not differences(base, asked([], monkeypatch, tmp_path, shared))
    assert base["sandbox"][0]["min_isolation"] == Isolation.seccomp.name
