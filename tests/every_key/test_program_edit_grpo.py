"""Every key of stage=grpo of self_improve.py method=program_edit changes what its row says, and nothing else of what is looked at.

Training is a recorder here; what these keys do in one is tested in methods/program_edit/test_grpo.py and test_practice.py.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import compose_run, flat
from arclab.launch.start import start
from arclab.methods.program_edit import grpo as grpo_module
from arclab.methods.program_edit import held_out, rollouts

from .table import Parts, Table, differences, require_the_named_tests, shown_here

TOY = "toy:dihedral_color?tasks=4&side=4&colors=4&palette=6&demos=3"
BASE = [
    "method=program_edit", "lm=tiny", "dataset=toy", f'dataset.train_sources=["{TOY}&split=train"]', f'dataset.eval_sources=["{TOY}&split=test"]',
    f'dataset.validation_sources=["{TOY}&split=validation"]', "sandbox.num_workers=1", "num_threads=1", "name=a", "device=cpu", "max_tasks=2",
    "grpo.steps=2", "grpo.eval_tasks=2",
]  # fmt: skip
HERE = "methods/program_edit/"
# settings: of the steps. groups: how edits become a step. cadence: of the run. scored: which tasks, how often, and how they are
# drawn. best: by what. lora: the adapter.
GRPO: Table = {
    "grpo.steps": (3, "cadence"),
    "grpo.prompts_per_step": (8, "settings"),
    "grpo.group_size": (16, "groups"),
    "grpo.updates_per_rollout": (1, "settings"),
    "grpo.grad_accumulation": (2, "settings"),
    "grpo.lr": (0.5, "settings"),
    "grpo.schedule": ("cosine", "settings"),
    "grpo.warmup_steps": (3, "settings"),
    "grpo.weight_decay": (0.5, "settings"),
    "grpo.clip_norm": (3.0, "settings"),
    "grpo.lora": ("{rank: 4, alpha: 8, dropout: 0.0, target_modules: [q_proj]}", "lora"),
    "grpo.loss": ("grpo", "settings"),
    "grpo.scale_rewards": ("none", "settings"),
    "grpo.clip_low": (0.5, "settings"),
    "grpo.clip_high": (0.5, "settings"),
    "grpo.beta": (0.5, "settings"),
    "grpo.temperature": (0.5, "settings scored"),
    "grpo.max_new_tokens": (64, "settings scored"),
    "grpo.vllm_url": ("http://localhost:8000", "settings server"),
    "grpo.mask_truncated": (False, "groups"),
    "grpo.refills": (0, "groups"),
    "grpo.shuffle_rewards": (True, "groups"),
    "grpo.eval_every": (7, "cadence"),
    "grpo.eval_split": ("evaluation", "scored"),
    "grpo.eval_tasks": (1, "scored"),
    "grpo.eval_samples": (2, "scored"),
    "grpo.best_by": ("mean_delta", "best"),
    "grpo.checkpoint_every": (7, "cadence"),
    "grpo.keep_last": (7, "cadence"),
    "grpo.log_every": (7, "cadence"),
    "grpo.health_every": (7, "cadence"),
    "grpo.stop_when_unhealthy": (False, "cadence"),
    "curriculum.kind": (None, f"{HERE}test_practice.py::test_the_curriculum_decides_what_is_drawn"),
    "curriculum.augment": (None, f"{HERE}test_practice.py::test_the_curriculum_decides_what_is_drawn"),
    "curriculum.rounds": (None, f"{HERE}test_practice.py::test_rounds_go_from_easy_to_hard_with_pairs_in_other_roles"),
    "curriculum.start_from": (None, f"{HERE}test_grpo.py::test_all_tasks_saturated_ends_well_and_says_so"),
    "think.min_tokens": (None, f"{HERE}test_budget.py::test_what_was_put_in_is_no_part_of_the_policy"),
    "think.max_tokens": (None, f"{HERE}test_budget.py::test_what_was_put_in_is_no_part_of_the_policy"),
    "think.num_waits": (None, f"{HERE}test_budget.py::test_wait_is_put_in_as_often_as_asked_where_it_stops_early"),
    "controls": (None, f"{HERE}test_start.py::test_a_round_with_a_start_and_a_twin"),
    **{
        f"scratch.{key}": (None, f"{HERE}test_start.py::test_a_key_of_the_start_changes_what_it_says")
        for key in (
            "source", "wrong_share", "num_layers", "width", "num_heads", "context", "vocab_size", "steps", "mistake_steps",
            "batch_size", "lr", "warmup_steps",
        )
    },
}  # fmt: skip


class Stub:
    """In the place of the model, of its copy and of the curriculum."""

    pad_id, tokenizer, in_place, curriculum = 0, None, None, None

    def __init__(self, *_: Any) -> None: ...

    def is_enough(self) -> bool:
        return False

    def states(self) -> dict[str, float]:
        return {}

    def named_parameters(self) -> list[Any]:
        return []

    def measure_baseline(self, *_: Any) -> None: ...
    def restore(self, *_: Any) -> None: ...
    def write(self, *_: Any) -> None: ...
    def noted(self, *_: Any) -> None: ...
    def told(self, *_: Any) -> None: ...
    def choose(self, *_: Any) -> None: ...


def asked(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Parts:
    found: Parts = {"scored": [], "server": None}

    def train(network: Any, drawer: Any, settings: Any, where: Any, **given: Any) -> int:
        groups = asdict(drawer.settings)
        found.update(settings=asdict(settings), groups=groups, best=where.selection_metric)
        found["cadence"] = {key: str(getattr(where.cadence, key)) for key in where.cadence.__slots__} | {
            "keep_last": where.keep_last
        }
        return where.cadence.steps

    def edit_all(editor: Any, sandbox: Any, starts: Any, config: Any, count: int, *, split: Any) -> list[Any]:
        found["scored"].append((starts, count, split))
        return []

    def editor(model: Any, sampling: Any, think: Any) -> None:
        found["scored"].append(sampling)

    def opened(model: Any, lora: Any, seed: int) -> Any:
        found["lora"] = lora
        return nullcontext(Stub())

    made = folder / "runs/program_edit/a/round_0"
    for stage, name in (("sample", "programs.jsonl"), ("sft", "trained.json")):
        (made / stage).mkdir(parents=True)
        (made / stage / name).write_text("")
        (made / stage / "manifest.json").write_text("{}")
    scores = {"edits/solved_share": 0.5, "edits/mean_delta": 0.5, "edits/starts": 4.0}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(grpo_module, "grpo", train)
        patch.setattr(grpo_module, "load_hf", Stub)
        patch.setattr(grpo_module, "require_float32", lambda model: None)
        patch.setattr(grpo_module, "opened", opened)
        patch.setattr(grpo_module, "FrozenCopy", Stub)
        patch.setattr(grpo_module, "Practice", Stub)
        patch.setattr(rollouts, "open_server", lambda key, url, timeout_s: found.update(server=url))
        patch.setattr(grpo_module, "save_opened", lambda *_: None)
        patch.setattr(grpo_module, "write_trained", lambda run: (run.path / "trained.json").write_text("{}"))
        patch.setattr(held_out, "fresh_starts", lambda config, sandbox, tasks: [task.id for task in tasks])
        patch.setattr(held_out, "edit_all", edit_all)
        patch.setattr(held_out, "model_editor", editor)
        patch.setattr(held_out, "metrics_of", lambda records, count: dict(scores))
        assert start("self_improve.py", [*BASE, "stage=grpo", *overrides]) == 0
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    with pytest.MonkeyPatch.context() as patch:
        return asked(tmp_path_factory.mktemp("base"), patch)


@pytest.mark.parametrize("key", shown_here(GRPO))
def test_a_key_changes_what_its_row_says(key: str, base: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value, what = GRPO[key]
    assert flat(compose_run("self_improve_program_edit", BASE))[key] != value
    text = str(value).lower() if isinstance(value, bool) else value
    assert differences(base, asked(tmp_path, monkeypatch, f"{key}={text}")) == set(what.split())


def test_the_named_tests_are_there() -> None:
    require_the_named_tests(GRPO)
