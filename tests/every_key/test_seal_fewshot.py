"""What a config of self_improve.py method=seal_fewshot says is what happens: each key changes what its row says, and nothing else.

The model that proposes is a recorder, and so are training on tasks and on self-edits: what they are asked for is compared. Keys
of the solver, the model and the data are the same code as in evaluations, and are tried there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import compose_run, flat
from arclab.config.seal_fewshot_schema import SealFewshotConfig
from arclab.config.seal_schema import AdaptingSolverConfig, EvaluateTestTimeTrainingConfig
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask
from arclab.files import read_lines
from arclab.launch.start import start
from arclab.lm.endpoint import started
from arclab.lm.language_model import OnReply, Prompt, Reply, Sampling, ignore
from arclab.lm.scripted import ScriptedModel
from arclab.lm.training import model_folder
from arclab.methods.seal.fewshot import evaluate as evaluate_module
from arclab.methods.seal.fewshot import restem as restem_module
from arclab.methods.seal.fewshot import trials as trials_module
from arclab.methods.seal.fewshot.restem import random_edits
from arclab.methods.seal.solver import TaskRecord, digest_of
from arclab.results.attempts import Candidate

from ..methods.seal.fewshot.conftest import edit
from .table import Parts, Table, differences, leaves, require_a_row_for_each, require_the_named_tests

TOY = "toy:color_map?tasks=3&side=3&colors=2&palette=5&demos=2"
GRID = "{augmentations: [none, basic], strategies: [train_using_output_tokens], learning_rates: [1e-3], num_train_epochs: [2]}"
BASE = [
    "method=seal_fewshot", "lm=tiny", "dataset=toy", f'dataset.train_sources=["{TOY}&split=train"]', f'dataset.eval_sources=["{TOY}&split=test"]',
    f'dataset.validation_sources=["{TOY}&split=validation"]', "num_threads=1", "name=a", "device=cpu", "max_tasks=2", "solver.text.instructions=false",
    "solver.text.grid_format=digits", "propose.num_edits=2", "propose.max_draws=3", "evaluate.max_tasks=2", "evaluate.num_edits=1", f"grid={GRID}", "restem.lora=null",
]  # fmt: skip
REPLIES = [edit(1e-5, 2, ("size",)), "no"]  # so that one more is drawn of each task
# prompts, drawing: what the model is asked for and how. verdicts: what its replies are. tried: what is trained on, how. model: what is loaded.
# files: names of what is left.
PROPOSE: Table = {
    "propose.num_edits": (1, "prompts drawing verdicts"),
    "propose.max_draws": (2, "prompts drawing verdicts"),
    "propose.min_lr": (1e-4, "verdicts tried files model"),
    "propose.max_lr": (5e-6, "verdicts tried files model"),
    "propose.max_steps": (1, "verdicts tried files model"),
    "propose.sampling.max_new_tokens": (7, "drawing"),
    "propose.sampling.temperature": (0.3, "drawing"),
    "propose.sampling.top_p": (0.5, "drawing"),
    "propose.sampling.top_k": (3, "drawing"),
    "propose.sampling.min_p": (0.1, "drawing"),
    "solver.pseudo_tasks.max_count": (3, "tried"),
    "solver.adaptation.rank": (3, "tried"),
    "solver.decode": ("greedy", "tried"),
    "lm.name": ("other", "model"),
    "max_tasks": (1, "prompts verdicts tried"),
    "seed": (5, "drawing"),
    "runs_dir": ("elsewhere", "files"),
    "experiment_name": ("other", "files"),
    "name": ("other", "files"),
}
EVALUATE: Table = {
    "evaluate.split": ("validation", "prompts verdicts tried"),
    "evaluate.max_tasks": (1, "prompts verdicts tried"),
    "evaluate.num_edits": (2, "prompts drawing verdicts"),
    "default_edit.augmentations": ("size", "tried"),
    "default_edit.strategy": ("all_tokens", "tried"),
    "default_edit.learning_rate": (2e-3, "tried"),
    "default_edit.num_train_epochs": (7, "tried"),
    "grid.augmentations": ("[none,chain]", "tried"),
    "grid.strategies": ("[train_using_all_tokens]", "tried"),
    "grid.learning_rates": ("[2e-3]", "tried"),
    "grid.num_train_epochs": ("[2,3]", "tried"),
    "adapted": ("first", "model tried files"),
}
# settings: of the training. cadence: of its run. network: what is trained.
RESTEM: Table = {
    "restem.steps": (7, "cadence"),
    "restem.log_every": (3, "cadence"),
    "restem.checkpoint_every": (3, "cadence"),
    "num_threads": (2, "cadence"),
    "restem.batch_size": (2, "settings"),
    "restem.grad_accumulation": (5, "settings"),
    "restem.lr": (0.5, "settings"),
    "restem.warmup_steps": (3, "settings"),
    "restem.weight_decay": (0.5, "settings"),
    "restem.clip_norm": (0.5, "settings"),
    "restem.lora": ("{rank: 2, alpha: 4.0, dropout: 0.0, target_modules: [q_proj]}", "network"),
}
SCRATCH: Table = {
    "scratch.source": (f"{TOY}&split=train&seed=2".replace("tasks=3", "tasks=9"), "tasks further"),
    "scratch.num_layers": (1, "sizes"),
    "scratch.width": (32, "sizes"),
    "scratch.num_heads": (2, "sizes"),
    "scratch.context": (300, "sizes"),
    "scratch.vocab_size": (300, "sizes"),
    "scratch.steps": (9, "sizes"),
    "scratch.batch_size": (9, "sizes"),
    "scratch.lr": (0.5, "sizes"),
    "scratch.broken_share": (1.0, "further"),
}
CONSTRAINED = "methods/seal/fewshot/test_constrained.py"
STAGES = "methods/seal/fewshot/test_stages.py"
ROUNDS = f"{STAGES}::test_two_rounds_are_compared_with_everything_that_is_to_be_had_without_them"
SELECTED = "methods/seal/fewshot/test_baselines.py::test_all_positives_are_kept_once_capped_and_every_task_counts_alike"
OTHERS: Table = {
    **dict.fromkeys(("round", "rounds", "restem.twin", "criterion.metric", "criterion.threshold", "criterion.phase"), (None, ROUNDS)),
    **dict.fromkeys(("select.max_per_task", "select.even_tasks"), (None, SELECTED)),
    **{f"restem.lora.{key}": (None, "methods/tree_search/learning/test_rounds.py::test_an_adapter_is_merged_at_the_end")
       for key in ("rank", "alpha", "dropout", "target_modules")},
    "propose.decoding": (None, f"{CONSTRAINED}::test_a_real_model_writes_valid_self_edits_and_the_records_say_how"),
    "compat": (None, f"{STAGES}::test_a_replication_says_so_in_every_file_of_numbers"),
    "trials_at_once": (None, f"{STAGES}::test_trials_together_are_the_trials_one_by_one"),
    "stage": (None, f"{STAGES}::test_good_self_edits_are_found_selected_and_learned"),
    "device": (None, "every_key/test_seal_fewshot.py::test_a_key_of_training_changes_what_its_row_says"),
    "launch.gpus": (None, "launch/test_launch.py::test_every_launch_key_changes_what_is_started"),
}  # fmt: skip


def test_every_key_has_a_row() -> None:
    """Of the keys that evaluations do not have."""
    tried_here = {
        "seed",
        "num_threads",
        "name",
        "runs_dir",
        "max_tasks",
        "lm.name",
        *(key for key in PROPOSE if key.startswith("solver.")),
    }
    shared = leaves(EvaluateTestTimeTrainingConfig) - tried_here
    own = {key for key in leaves(SealFewshotConfig) if key not in shared and not key.startswith(("launch.", "dataset."))}
    require_a_row_for_each(own | {"launch.gpus", "restem.lora"}, PROPOSE, EVALUATE, RESTEM, SCRATCH, OTHERS)
    require_the_named_tests(OTHERS)


@cache
def settings() -> dict[str, Any]:
    return flat(compose_run("self_improve_seal_fewshot", BASE))


class Notes(dict[str, list[Any]]):
    """What was asked for."""

    def proposer(self, config: Any) -> ScriptedModel:
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
        return Recorder(REPLIES)

    def trainer(self, loaded: str, seed: int, **more: Any) -> Any:
        notes = self

        class Trainer:
            def answered(self, task: ArcTask, trained: ArcTask, wanted: AdaptingSolverConfig, before_step: Any) -> TaskRecord:
                notes["tried"].append((task.id, flat(wanted)))
                output = task.tests[0].output
                return TaskRecord(digest_of(task, trained), tests=((Candidate(output, 1, 1.0),),), losses=(1.0, 0.5))

        self["model"].append(loaded)
        return Trainer()


Asked = Callable[..., Parts]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    def ask(stage: str, *overrides: str) -> Parts:
        notes = Notes(model=[], prompts=[], drawing=[], tried=[])
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            for module in (started, evaluate_module):
                patch.setattr(module, "load_language_model", notes.proposer)
            patch.setattr(trials_module, "load_hf", lambda config: config.name)
            patch.setattr(trials_module, "TaskTrainer", notes.trainer)
            if stage == "evaluate":
                trained = Path("runs/seal_fewshot/a/round_0/restem/trained.json")
                trained.parent.mkdir(parents=True)
                trained.write_text("{}")
                (trained.parent / "manifest.json").write_text("{}")
            for name in ["propose", "adapt"] if stage == "propose" else [stage]:
                start("self_improve.py", [*BASE, f"stage={name}", *overrides])
        rows = [row for path in sorted(folder.rglob("proposals.jsonl")) for row in read_lines(path) if "settings" not in row]
        verdicts = [(row["id"], row["verdict"]) for row in rows]
        return {**notes, "verdicts": verdicts, "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))}

    return ask


def as_text(key: str, value: object) -> str:
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"


@pytest.fixture(scope="module")
def bases() -> dict[str, Parts]:
    """What each stage asks for with the base, by its name, once somebody has asked."""
    return {}


@pytest.mark.parametrize(
    ("stage", "key"), [(stage, key) for stage, table in (("propose", PROPOSE), ("evaluate", EVALUATE)) for key in table]
)
def test_a_key_of_a_stage_changes_what_its_row_says(stage: str, key: str, asked: Asked, bases: dict[str, Parts]) -> None:
    value, what = (PROPOSE if stage == "propose" else EVALUATE)[key]
    assert str(settings()[key]) != str(value), "the other value is the same"
    if stage not in bases:
        bases[stage] = asked(stage)
    assert differences(bases[stage], asked(stage, as_text(key, value))) == set(what.split())


class Stopped(RuntimeError):
    pass


@pytest.fixture(scope="module")
def roomy_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for a self-edit."""
    from arclab.lm.tiny import build_tiny

    folder = tmp_path_factory.mktemp("lm") / "roomy"
    build_tiny(folder, texts=["0 1"], seed=0, num_layers=1, width=8, num_heads=1, context=1024, vocab_size=270)
    return folder


def learned(folder: Path, lm: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Parts:
    """What training on self-edits is asked for."""
    found: Parts = {}

    def note(network: Any, rows: list[Any], settings: Any, where: Any, **given: Any) -> int:
        cadence = {key: str(value) for key, value in asdict(where.cadence).items()}
        found.update(
            settings=asdict(settings),
            cadence=cadence,
            network=sorted(n for n, p in network.named_parameters() if p.requires_grad),
        )
        raise Stopped

    config = compose_run("self_improve_seal_fewshot", BASE)
    assert isinstance(config, SealFewshotConfig)
    selected = folder / "runs/seal_fewshot/a/round_0/select"
    selected.mkdir(parents=True)
    rows = [
        {"id": task.id, "task": task.id, "key": "k", "reply": REPLIES[0], "weight": 1.0}
        for task in load_source(f"{TOY}&split=train")[:2]
    ]
    (selected / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (selected / "manifest.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(model_folder, "sft", note)
        with pytest.raises(Stopped):
            start("self_improve.py", [*BASE, f"lm.name={lm}", "stage=restem", *overrides])
    return found


@pytest.mark.parametrize("key", RESTEM)
def test_a_key_of_training_changes_what_its_row_says(
    key: str, roomy_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bases: dict[str, Parts]
) -> None:
    value, what = RESTEM[key]
    assert settings()[key] != value
    if "restem" not in bases:
        bases["restem"] = learned(tmp_path / "base", roomy_lm, monkeypatch)
        assert bases["restem"]["cadence"]["device"] == "DeviceChoice.cpu"
    assert differences(bases["restem"], learned(tmp_path / "other", roomy_lm, monkeypatch, as_text(key, value))) == set(
        what.split()
    )


def made(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> Parts:
    """What the first model is made of."""
    found: Parts = {}

    def note(making: Path, tasks: Sequence[ArcTask], text: Any, seed: int, sizes: Any, further: Any) -> None:
        found.update(tasks=[task.id for task in tasks], sizes=asdict(sizes), further=further)
        raise Stopped

    scratch = f'scratch={{source: "{TOY}&split=train&seed=1", broken_share: 0.0, num_layers: 2, width: 64, num_heads: 4, context: 400, vocab_size: 320, steps: 5, batch_size: 2, lr: 1e-3}}'  # fmt: skip
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(restem_module, "train_transduction", note)
        with pytest.raises(Stopped):
            start("self_improve.py", [*BASE, scratch, "stage=start", *overrides])
    return found


@pytest.mark.parametrize("key", SCRATCH)
def test_a_key_of_the_first_model_changes_what_its_row_says(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value, what = SCRATCH[key]
    written = f'{key}="{value}"' if key == "scratch.source" else as_text(key, value)
    assert differences(made(monkeypatch, tmp_path / "a"), made(monkeypatch, tmp_path / "b", written)) == set(what.split())


def test_broken_self_edits_are_as_many_as_it_says() -> None:
    from arclab.methods.seal.fewshot.edits import Verdict, parse_edit

    source = f'scratch={{source: "{TOY}&split=train", broken_share: 0.3, num_layers: 2, width: 64, num_heads: 4, context: 400, vocab_size: 320, steps: 5, batch_size: 2, lr: 1e-3}}'  # fmt: skip
    config = compose_run("self_improve_seal_fewshot", [*BASE, source])
    assert isinstance(config, SealFewshotConfig)
    tasks = load_source(f"{TOY}&split=train".replace("tasks=3", "tasks=300"))
    verdicts = [parse_edit(text, config.propose)[0] for _, text in random_edits(config, tasks)]
    assert 0.2 < sum(verdict is not Verdict.ok for verdict in verdicts) / len(verdicts) < 0.4
    assert {Verdict.bad_json, Verdict.bad_schema, Verdict.ok} == set(verdicts)
