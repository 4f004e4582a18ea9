"""What a config of self_improve.py method=program_edit says is what runs: each key changes what its row says, and nothing else.

The language model is a recorder, and training is: what they are asked for is compared. What the keys of a model, of the sandbox and of the data
do is said where those are tested.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import compose_run, flat
from arclab.config.llm_schema import ModelConfig, SandboxConfig
from arclab.config.program_edit_schema import EvaluateEditsConfig, ProgramEditConfig
from arclab.files import read_lines
from arclab.launch.start import start
from arclab.lm.endpoint import started
from arclab.lm.hf import HfModel
from arclab.lm.language_model import OnReply, Prompt, Reply, Sampling, ignore
from arclab.lm.models import load_language_model
from arclab.lm.scripted import ScriptedModel
from arclab.methods.program_edit import evaluate as evaluate_module
from arclab.methods.program_edit import sample as sample_module
from arclab.methods.program_edit import sft as sft_module
from arclab.programs.sandbox import pool as sandbox_module
from arclab.solvers import evaluation

from .table import Parts, Table, differences, leaves, require_a_row_for_each, require_the_named_tests
from .test_program_edit_grpo import GRPO

TOY = "toy:dihedral_color?tasks=3&side=4&colors=4&palette=6&demos=3"
BASE = [
    "method=program_edit", "lm=tiny", "dataset=toy", f'dataset.train_sources=["{TOY}&split=train"]', f'dataset.eval_sources=["{TOY}&split=test"]',
    f'dataset.validation_sources=["{TOY}&split=validation"]', "sandbox.num_workers=1", "num_threads=1", "name=a", "device=cpu", "max_tasks=2",
    "starts.mutants=2", "starts.per_task=2", "sample.num_samples=2", "prompt.instructions=false", "evaluate.max_tasks=2", "evaluate.num_samples=1",
]  # fmt: skip
# prompts, drawing: what the model is asked for and how. edits: what comes of it. model: what is loaded. files: names of what is left.
SAMPLE: Table = {
    "prompt.grid_format": ("pipes", "prompts edits"),
    "prompt.instructions": (True, "prompts edits"),
    "prompt.show_tests": (False, "prompts edits"),
    "prompt.show_shapes": (False, "prompts edits"),
    "prompt.report": (False, "prompts edits"),
    "prompt.entry": ("transform", "prompts edits"),
    "prompt.edit_format": ("blocks", "edits"),
    "starts.mutants": (0, "prompts edits"),
    "starts.max_changes": (1, "prompts edits"),
    "starts.per_task": (1, "prompts edits"),
    "starts.drafts": (1, "prompts files drawing"),
    "sample.num_samples": (1, "drawing edits"),
    "sample.proposer": ("reference", "prompts drawing model edits"),
    "sample.sampling.max_new_tokens": (7, "drawing"),
    "sample.sampling.temperature": (0.3, "drawing"),
    "sample.sampling.top_p": (0.5, "drawing"),
    "sample.sampling.top_k": (3, "drawing"),
    "sample.sampling.min_p": (0.1, "drawing"),
    "reward.per_execution": (0.05, "edits"),
    "reward.per_thinking_token": (0.01, "edits"),
    "reward.cells": ("changed", "edits"),
    "reward.use_tests": (True, "edits"),
    "lm.name": ("other", "model"),
    "max_tasks": (1, "prompts edits"),
    "seed": (5, "prompts drawing edits"),
    "runs_dir": ("elsewhere", "files"),
    "experiment_name": ("other", "files"),
    "name": ("other", "files"),
}
# settings: of the training. cadence: of its run. lora: the adapter. rows: what is learned.
SFT: Table = {
    "sft.steps": (7, "cadence"),
    "sft.log_every": (3, "cadence"),
    "sft.checkpoint_every": (3, "cadence"),
    "num_threads": (2, "cadence"),
    "sft.batch_size": (2, "settings"),
    "sft.lr": (0.5, "settings"),
    "sft.warmup_steps": (3, "settings"),
    "sft.weight_decay": (0.5, "settings"),
    "sft.lora": ("{rank: 4, alpha: 8, dropout: 0.0, target_modules: [q_proj]}", "lora"),
    "sft.weight_beta": (0.3, "rows"),
}
EVALUATE: Table = {
    "evaluate.model": ("given", "model"),
    "evaluate.split": ("validation", "prompts edits"),
    "evaluate.max_tasks": (1, "prompts edits"),
    "evaluate.num_samples": (2, "drawing edits"),
    "evaluate.turns": (2, "prompts drawing edits"),
}
# Of evaluate.py solver=program_edit, asked in the same way; stands: what is scored.
SOLVER: Table = {
    "solver.search": ("tree", "prompts drawing edits files"),
    "solver.max_programs": (3, "prompts drawing edits"),
    "solver.max_tokens": (30, "prompts drawing edits"),
    "solver.drafts": (1, "prompts drawing edits"),
    "solver.turns": (1, "prompts drawing edits"),
    "solver.num_kept": (1, "prompts edits"),
    "solver.num_samples": (1, "drawing edits"),
    "solver.sampling.max_new_tokens": (7, "drawing"),
    "solver.sampling.temperature": (0.3, "drawing"),
    "solver.sampling.top_p": (0.5, "drawing"),
    "solver.sampling.top_k": (3, "drawing"),
    "solver.sampling.min_p": (0.1, "drawing"),
    "prompt.grid_format": ("pipes", "prompts edits"),
    "prompt.instructions": (True, "prompts edits"),
    "prompt.show_tests": (False, "prompts edits"),
    "prompt.show_shapes": (False, "prompts edits"),
    "prompt.report": (False, "prompts edits files"),
    "prompt.entry": ("transform", "prompts edits"),
    "prompt.edit_format": ("blocks", "edits"),
    "reward.per_execution": (0.05, "edits"),
    "reward.per_thinking_token": (0.01, "edits"),
    "reward.cells": ("changed", "prompts edits"),
    "lm.name": ("other", "model files"),
    "max_tasks": (1, "prompts edits"),
    "split": ("validation", "prompts edits files"),
    "seed": (5, "drawing"),
    "name": ("other", "files"),
    "runs_dir": ("elsewhere", "files"),
    "output_dir": ("elsewhere", "files"),
}
SOLVER_NAME = "evaluate.py"
SOLVER_BASE = [
    "solver=program_edit", *BASE[1:7], "num_threads=1", "max_tasks=2", "prompt.instructions=false", "solver.drafts=2", "solver.turns=2",
    "solver.num_samples=2", "solver.num_kept=2", "solver.enough_right=9",
]  # fmt: skip
TABLES = {"sample": SAMPLE, "evaluate": EVALUATE, SOLVER_NAME: SOLVER}
STAGES = "methods/program_edit/test_stages.py"
SELECTION = "methods/program_edit/test_selection.py"


def _elsewhere(schema: type) -> Table:
    """Keys of groups that others have too."""
    known = leaves(schema)
    of = {
        "dataset.": "every_key/test_programs.py::test_every_key_has_a_row",
        "sandbox.": "every_key/test_programs.py::test_every_key_has_a_row",
        "lm.": "every_key/test_programs.py::test_every_key_has_a_row",
        "launch.": "launch/test_launch.py::test_every_launch_key_changes_what_is_started",
    }
    return {key: (None, what) for prefix, what in of.items() for key in known if key.startswith(prefix) and key != "lm.name"}


def _others() -> Table:
    return _elsewhere(ProgramEditConfig) | {
        "stage": (None, f"{STAGES}::test_selected_edits_are_shown_and_what_is_rejected_is_not_learned"),
        "round": (None, f"{STAGES}::test_a_round_trains_a_model_and_scores_it"),
        "rounds": (None, f"{STAGES}::test_a_round_trains_a_model_and_scores_it"),
        **{f"criterion.{key}": (None, f"{STAGES}::test_a_round_trains_a_model_and_scores_it") for key in ("metric", "threshold", "phase")},
        "device": (None, "every_key/test_program_edit.py::test_the_device_is_that_of_the_model_that_learns"),
        **{
            f"{stage}.lora.{key}": (None, "methods/program_edit/test_grpo.py::test_an_adapter_alone_learns_and_is_merged")
            for stage in ("sft", "grpo")
            for key in ("rank", "alpha", "dropout", "target_modules")
        },
        "sft.max_weight": (None, "every_key/test_program_edit.py::test_the_largest_weight_is_a_setting"),
        "select.rule": (None, f"{SELECTION}::test_the_control_keeps_as_many_whatever_they_do"),
        "select.top_k": (None, f"{SELECTION}::test_top_k_of_each_start_program_and_no_more_than_the_task_may_have"),
        "select.max_per_task": (None, f"{SELECTION}::test_top_k_of_each_start_program_and_no_more_than_the_task_may_have"),
        "select.epsilon": (None, f"{SELECTION}::test_one_that_solves_1_and_2_and_one_that_solves_3_go_before_two_that_solve_1_and_2"),
    }  # fmt: skip


def test_every_key_has_a_row() -> None:
    others = _others()
    require_a_row_for_each(leaves(ProgramEditConfig) | {"sft.lora", "grpo.lora"}, SAMPLE, SFT, EVALUATE, others, GRPO)
    require_the_named_tests(others)


def test_every_key_of_the_solver_has_a_row() -> None:
    solver, evolution = "methods/program_edit/test_solver.py", "methods/program_edit/test_evolution.py"
    others = _elsewhere(EvaluateEditsConfig) | {
        **{
            f"think.{key}": (None, f"{solver}::test_a_budget_of_thinking_holds_for_edits")
            for key in ("min_tokens", "max_tokens", "num_waits")
        },
        "solver.kind": (None, f"{solver}::test_what_cannot_be_tried_or_asked_for_is_said"),
        "solver.levels": (None, f"{evolution}::test_the_tree_finds_what_needs_two_steps_and_single_programs_do_not"),
        "solver.max_s": (None, f"{evolution}::test_budgets_are_kept_and_counted"),
        "solver.distinct": (None, f"{evolution}::test_programs_that_answer_alike_are_one_parent_or_two"),
        "solver.enough_right": (None, f"{solver}::test_the_best_programs_are_edited_until_two_answers_are_right"),
        "reward.use_tests": (None, f"{solver}::test_what_cannot_be_tried_or_asked_for_is_said"),
        "num_threads": (None, "every_key/test_programs.py::test_a_key_changes_what_its_row_says"),
    }
    require_a_row_for_each(leaves(EvaluateEditsConfig), SOLVER, others)
    require_the_named_tests(others)


@cache
def settings() -> dict[str, Any]:
    return flat(compose_run("self_improve_program_edit", BASE))


@pytest.fixture(scope="module")
def shared() -> Iterator[sandbox_module.Sandbox]:
    config = compose_run("self_improve_program_edit", BASE)
    assert isinstance(config, ProgramEditConfig)
    with sandbox_module.open_sandbox(config.sandbox) as opened:
        yield opened


class Notes(dict[str, list[Any]]):
    """What was asked for."""

    def recorder(self, config: ModelConfig) -> ScriptedModel:
        notes = self

        class Recorder(ScriptedModel):
            def generate(
                self, prompts: Sequence[Prompt], num_samples: int, sampling: Sampling, on_reply: OnReply = ignore
            ) -> list[Reply]:
                notes["prompts"].extend(prompts)
                notes["drawing"].append((num_samples, sampling))
                return super().generate(prompts, num_samples, sampling, on_reply)

            def num_prompts(self, num_samples: int) -> int:
                return 100

        self["model"].append(config.name)
        return Recorder(
            [
                "<think>\none two\n</think>\ndef solve(I):\n    return I\n\ndef transform(I):\n    return I\n",
                "def solve(I):\n    return I[::-1]\n",
            ]
        )


Asked = Callable[..., Parts]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: sandbox_module.Sandbox) -> Asked:
    """Everything that a stage asks of the model, the edits that come of it, and the files it leaves."""

    def ask(stage: str, *overrides: str) -> Parts:
        notes = Notes(model=[], prompts=[], drawing=[])
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()

        def open_sandbox(config: SandboxConfig) -> AbstractContextManager[sandbox_module.Sandbox]:
            return nullcontext(shared)

        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(started, "load_language_model", notes.recorder)
            for module in (sample_module, evaluate_module, evaluation):
                patch.setattr(module, "open_sandbox", open_sandbox)
            if stage == "evaluate":
                trained = Path("runs/program_edit/a/round_0/sft/trained.json")
                trained.parent.mkdir(parents=True)
                trained.write_text("{}")
                (trained.parent / "manifest.json").write_text("{}")
            if stage == SOLVER_NAME:
                patch.setattr("arclab.pages.report.render_report", lambda result: "")
                start("evaluate.py", [*SOLVER_BASE, *overrides])
            else:
                start("self_improve.py", [*BASE, f"stage={stage}", *overrides])
        (edits,) = folder.rglob("edits.jsonl")
        of_edits = ("task", "parent", "source", "problem", "r1", "delta", "prompt")
        rows = [{key: row[key] for key in of_edits} for row in read_lines(edits) if "settings" not in row]
        return {**notes, "edits": rows, "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))}

    return ask


def as_text(key: str, value: object) -> str:
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"


@pytest.fixture(scope="module")
def bases() -> dict[str, Parts]:
    """What each stage asks for with the base, by its name, once somebody has asked."""
    return {}


@pytest.mark.parametrize(("stage", "key"), [(name, key) for name, table in TABLES.items() for key in table])
def test_a_key_of_a_stage_changes_what_its_row_says(stage: str, key: str, asked: Asked, bases: dict[str, Parts]) -> None:
    value, what = TABLES[stage][key]
    base = flat(compose_run("evaluate_program_edit", SOLVER_BASE)) if stage == SOLVER_NAME else settings()
    assert base[key] != value, "the other value is the same"
    if stage not in bases:
        bases[stage] = asked(stage)
    assert differences(bases[stage], asked(stage, as_text(key, value))) == set(what.split())


def learned(folder: Path, model: HfModel, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Parts:
    """What training is asked for."""
    found: Parts = {}

    def note(given: Any, run: Any, which: str, wished: Any, rows_of: Any, **_: Any) -> None:
        (run.path / which).mkdir()
        found.update(
            rows=rows_of(model),
            settings=asdict(wished.settings),
            cadence={
                key: str(getattr(wished.cadence, key)) for key in ("steps", "num_threads", "log_every", "checkpoint_every")
            },
            lora=wished.lora,
            device=given.device.value,
        )

    selected = folder / "runs/program_edit/a/round_0/select"
    selected.mkdir(parents=True)
    rows = [{"id": str(n), "task": "t", "prompt": "2 1", "reply": "3", "delta": n / 3} for n in range(4)]
    (selected / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (selected / "review.json").write_text('{"decisions": {}}')
    (selected / "manifest.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sft_module, "train_folder", note)
        start("self_improve.py", [*BASE, "stage=sft", *overrides])
    return found


@pytest.fixture(scope="module")
def model(tiny_lm: Path) -> HfModel:
    config = compose_run("self_improve_program_edit", [*BASE, f"lm.name={tiny_lm}", "lm.device=cpu"])
    assert isinstance(config, ProgramEditConfig)
    loaded = load_language_model(config.lm)
    assert isinstance(loaded, HfModel)
    return loaded


@pytest.mark.parametrize("key", SFT)
def test_a_key_of_training_changes_what_its_row_says(
    key: str, model: HfModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, what = SFT[key]
    assert settings()[key] != value
    base, other = (
        learned(tmp_path / name, model, monkeypatch, *given) for name, given in (("a", []), ("b", [as_text(key, value)]))
    )
    assert differences(base, other) == set(what.split())


def test_the_largest_weight_is_a_setting(model: HfModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [
        [row["row_weight"][0] for row in learned(tmp_path / most, model, monkeypatch, "sft.weight_beta=0.1", f"sft.max_weight={most}")["rows"]] for most in ("2", "1000000")
    ]  # fmt: skip
    assert weights[0][1] == weights[0][2] == weights[0][3] == 2 * weights[0][0] and weights[1][3] > 10 * weights[1][2]


def test_the_device_is_that_of_the_model_that_learns(model: HfModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert learned(tmp_path / "a", model, monkeypatch, "device=cpu")["device"] == "cpu"
    assert learned(tmp_path / "b", model, monkeypatch, "device=auto")["device"] == "auto"
