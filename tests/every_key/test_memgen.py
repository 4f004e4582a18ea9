"""Every key of pretrain_memgen.py and of its evaluations changes what its row says, and nothing else of what is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from arclab.config.compose import compose_run
from arclab.config.llm_schema import HfModelConfig
from arclab.config.memgen_schema import EvaluateMemGenConfig, EvaluateMemGenLtpoConfig, PretrainMemGenConfig
from arclab.lm.switched import adapter_layers
from arclab.lm.tiny import build_tiny
from arclab.lm.training import sft as sft_module
from arclab.methods.memgen import interaction, reasoner, run, setting
from arclab.methods.memgen.generation import Answer
from arclab.methods.memgen.saved import MemoryWeights
from arclab.methods.memgen.setting import load_reasoner
from arclab.methods.memgen.trigger import Asked

from .table import Parts, Table, differences, effect, leaves, require_a_row_for_each, require_the_named_tests, shown_here
from .test_memgen_grpo import OF_GRPO

SMALL = [
    "wandb.mode=disabled", "name=a", "dataset=arithmetic", "dataset.num_train=12", "dataset.num_validation=4", "dataset.num_test=4",
    "trainer.steps=2", "trainer.batch_size=4", "trainer.device=cpu", "lm.device=cpu", "evaluation.max_examples=3",
    "dataset.max_steps=1", "evaluation.sampling.max_new_tokens=8",
]  # fmt: skip
SCRATCH = ["memgen/reasoner=scratch", "memgen.reasoner.scratch.width=16", "memgen.reasoner.scratch.vocab_size=300"]
RUN = "methods/memgen/test_run.py::"
SFT = "lm/training/test_sft.py::"
# loading: what is asked of transformers. model: weaver and adapter as built, which begin with the size of the embeddings. rows: what is learned. answers: what is drawn and how.
# training: what trl is told. place: the folder. scratch: the reasoner that the run makes.
TABLE: Table = {
    "experiment_name": ("other", "place"),
    "name": ("b", "place"),
    "seed": (7, "model training answers"),
    "lm.name": ("another", "loading model"),
    "lm.max_context": (500, "loading"),
    "lm.thinking": (True, "rows answers"),
    "lm.dtype": ("bfloat16", "loading model"),
    "lm.attention": ("eager", "loading"),
    "lm.batch_size": (2, "answers"),
    "memgen.weaver.prompt_latents_len": (3, "model"),
    "memgen.weaver.inference_latents_len": (3, "model"),
    "memgen.weaver.max_prompt_aug_num": (0, "rows answers"),
    "memgen.weaver.max_inference_aug_num": (1, "rows answers"),
    "memgen.weaver.fast": (True, "model"),
    "memgen.weaver.model": ("another", "loading model"),
    "memgen.weaver.lora.rank": (3, "model"),
    "memgen.weaver.lora.alpha": (5.0, "model"),
    "memgen.weaver.lora.dropout": (0.4, "model"),
    "memgen.weaver.lora.target_modules": ("[k_proj]", "model"),
    "memgen.trigger.kind": ("never", "answers"),
    "dataset.seed": (3, "rows answers"),
    "dataset.num_train": (8, "rows"),
    "trainer.steps": (3, "training"),
    "trainer.batch_size": (2, "training"),
    "trainer.grad_accumulation": (2, "training"),
    "trainer.lr": (0.5, "training"),
    "trainer.schedule": ("linear", "training"),
    "trainer.warmup_steps": (1, "training"),
    "trainer.weight_decay": (0.2, "training"),
    "trainer.clip_norm": (0.5, "training"),
    "trainer.shuffle_targets": (True, "rows"),
    "evaluation.split": ("test", "answers"),
    "evaluation.max_examples": (2, "answers"),
    "evaluation.sampling.max_new_tokens": (5, "answers"),
    "evaluation.sampling.temperature": (0.5, "answers"),
    "evaluation.sampling.top_p": (0.5, "answers"),
    "evaluation.sampling.top_k": (3, "answers"),
    "evaluation.sampling.min_p": (0.1, "answers"),
}
OF_TRIGGER: Table = {
    "memgen.trigger.probability": (0.1, "answers"),
    "memgen.trigger.threshold": (0.6, "answers"),
    "memgen.trigger.count": (3, "answers"),
}
TRIGGER_TRAINING = "methods/memgen/test_trigger_training.py::"
OF_SCRATCH: Table = {
    f"memgen.reasoner.scratch.{key}": (value, "scratch")
    for key, value in {
        "position_gaps": False, "steps": 9, "width": 32, "num_layers": 1, "num_heads": 2, "context": 600, "vocab_size": 280,
        "batch_size": 3, "lr": 0.5, "warmup_steps": 3,
    }.items()
}  # fmt: skip
CADENCE = f"{SFT}test_the_cadence_says_when_to_log_judge_score_and_save"
ARITHMETIC = "text/test_examples.py::test_every_key_of_arithmetic_counts"
PRETRAIN = "every_key/test_pretrain.py::"
LTPO = "methods/memgen/test_ltpo.py::test_every_key_changes_what_becomes_of_latents"
ANSWERED = f"{RUN}test_evaluations_answer_each_question_once"
# The same data code as for tasks, and as for every other script.
DATA = {
    "dataset.kind": "text/test_examples.py::test_kinds_and_families_that_are_none",
    "dataset.name": "text/test_gsm8k.py::test_a_row_becomes_question_reply_and_answer",
    "dataset.sample": "text/test_examples.py::test_every_option_has_a_sample",
    **{
        f"dataset.{key}": ARITHMETIC
        for key in (
            "families",
            "digits",
            "min_steps",
            "max_steps",
            "instruction",
            "guessed_share",
            "num_validation",
            "num_test",
        )
    },
    "dataset.words": "text/test_recall.py::test_every_key_counts",
    "dataset.calculator_marks": "text/test_gsm8k.py::test_a_row_becomes_question_reply_and_answer",
    **{
        f"dataset.{key}": "text/test_gsm8k.py::test_the_hub_is_read_by_the_datasets_library"
        for key in ("hub_name", "hub_config", "folder")
    },
    "dataset.hub_diamond": "text/test_hub_datasets.py::test_the_hub_is_read_by_name",
    **{
        f"dataset.search.{key}": f"text/test_environments.py::{name}"
        for key, name in (
            ("server", "test_a_server_that_runs_is_asked"),
            ("documents", "test_documents_of_ones_own_are_searched"),
            ("top_k", "test_documents_of_ones_own_are_searched"),
        )
    },
    "dataset.reward": "text/test_environments.py::test_what_a_search_earns",
    "dataset.max_turns": "methods/memgen/test_interaction.py::test_an_episode_that_is_never_over_is_cut_and_counted",
    "dataset.observation_tokens": "methods/memgen/test_interaction.py::test_a_long_observation_is_cut",
    "dataset.programs": "text/test_examples.py::test_programs_of_real_tasks_come_from_a_file",
    **{
        key: "text/test_examples.py::test_arc_tasks_are_questions_for_a_program"
        for key in leaves(PretrainMemGenConfig)
        if key.startswith(("dataset.dataset.", "dataset.prompt."))
    },
}
OTHERS: Table = {
    "runs_dir": (None, f"{RUN}test_a_run_trains_only_the_weaver_scores_its_controls_and_is_judged"),
    **{f"memgen.trigger.{key}": (None, f"{TRIGGER_TRAINING}test_every_key_of_a_trained_trigger_builds_another_one") for key in ("width", "lora.rank", "lora.alpha", "lora.dropout", "lora.target_modules")},
    "lm.kind": (None, "config/test_compose.py::test_an_option_of_another_script_is_refused_with_those_that_fit"),
    "lm.adapter": (None, f"{RUN}test_what_cannot_be_trained_is_said_before_the_reasoner_is_made"),
    "lm.device": (None, "lm/test_hf_loading.py::test_what_this_machine_does_not_have"),
    "memgen.weaver.adapt_reasoner": (None, "methods/memgen/test_model.py::test_the_lora_control_adapts_the_reasoner_and_has_no_memory"),
    "trainer.deepspeed": (None, f"{SFT}test_a_file_for_deepspeed_is_needed_and_the_package"),
    "trainer.stop_when_unhealthy": (None, f"{SFT}test_a_run_that_no_gradient_reaches_is_stopped_if_it_may_be"),
    "trainer.num_threads": (None, ANSWERED),
    "trainer.device": (None, "test_cli.py::test_no_cuda"),
    **{f"sandbox.{key}": (None, "text/test_environments.py::test_the_sandbox_is_as_configured") for key in ("num_workers", "cpu_s", "wall_s", "memory_mb", "stdout_bytes", "min_isolation")},
    **{f"trainer.{key}": (None, CADENCE) for key in ("eval_every", "checkpoint_every", "log_every", "health_every", "keep_last")},
    **{f"criterion.{key}": (None, "methods/memgen/test_control.py::test_the_criterion_counts_discordant_questions") for key in ("metric", "threshold", "phase")},
    **{f"wandb.{key}": (None, f"{PRETRAIN}test_wandb_settings_reach_the_run") for key in ("mode", "project", "group", "tags")},
    **{key: (None, what) for key, what in DATA.items()},
}  # fmt: skip
EVALUATION: Table = {
    **{f"ltpo.{key}": (None, LTPO) for key in ("reward", "lr", "sigma", "sigma_decay", "max_steps", "reward_threshold", "top_k", "lookahead_tokens", "use_auto_grad", "verbose")},
    "ltpo.enabled": (None, f"{RUN}test_what_cannot_be_evaluated_is_one_sentence"),
    **{f"sampling.{key}": (None, f"{RUN}test_every_wish_of_an_evaluation_counts") for key in ("max_new_tokens", "temperature", "top_p", "top_k", "min_p")},
    **dict.fromkeys(("split", "max_examples", "batch_size", "seed", "output_dir", "name", "device"), (None, f"{RUN}test_every_wish_of_an_evaluation_counts")),
    **dict.fromkeys(("checkpoint", "memory", "num_threads"), (None, ANSWERED)),
    **{f"trigger.{key}": (None, f"{RUN}test_an_evaluation_may_have_a_trigger_of_its_own") for key in ("kind", "probability", "threshold")},
    "trigger.count": (None, f"{TRIGGER_TRAINING}test_an_evaluation_takes_the_trained_trigger_or_a_baseline_on_the_same_weights"),
    "runs_dir": (None, "launch/test_sweep.py::test_hydra_gets_numbers_and_no_settings"),
}  # fmt: skip
LAUNCH = "launch/test_launch.py::test_every_launch_key_changes_what_is_started"


def launch_rows(schema: type) -> Table:
    return {key: (None, LAUNCH) for key in leaves(schema) if key.startswith("launch.")}


def test_every_key_has_a_row() -> None:
    require_a_row_for_each(
        leaves(PretrainMemGenConfig), TABLE, OF_TRIGGER, OF_SCRATCH, OTHERS, OF_GRPO, launch_rows(PretrainMemGenConfig)
    )
    ltpo = {key: row for key, row in EVALUATION.items() if key.startswith("ltpo.")}
    rest = {key: row for key, row in EVALUATION.items() if key not in ltpo}
    require_a_row_for_each(leaves(EvaluateMemGenConfig), rest, launch_rows(EvaluateMemGenConfig))
    require_a_row_for_each(leaves(EvaluateMemGenLtpoConfig), EVALUATION, launch_rows(EvaluateMemGenLtpoConfig))
    for table in (OTHERS, EVALUATION, launch_rows(PretrainMemGenConfig)):
        require_the_named_tests(table)


def looked_at(overrides: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """What a run asks for, builds and is told, up to where trl would train."""
    config: Any = compose_run("pretrain_memgen", [*SMALL, f"runs_dir={folder}", *overrides])
    loaded: list[Any] = []
    found: Parts = {"loading": loaded, "answers": [], "scratch": [], "place": str(config.folder.relative_to(folder))}

    def load_model(asked: HfModelConfig) -> Any:
        loaded.append((Path(asked.name).name if config.memgen.reasoner.scratch is None else "", asked.dtype, asked.attention))
        return load(asked)

    def sft(model: Any, rows: Any, settings: Any, where: Any, **given: Any) -> int:
        arguments = sft_module._arguments(settings, where, settings.batch_size // settings.grad_accumulation).to_dict()
        told = {key: value for key, value in arguments.items() if not key.endswith("dir")}
        if where.cadence is not config.trainer:
            found["scratch"] = [digest(dict(model.named_parameters())), model.config.to_dict(), rows, told]
            return where.cadence.steps
        layers = adapter_layers(model.backbone.written_by)
        built = [
            (layer.scaling, {name: getattr(part, "p", 0) for name, part in layer.lora_dropout.items()}) for layer in layers
        ]
        found.update(
            model=[digest(MemoryWeights(model).tensors()), built, model.backbone.settings.fast], rows=rows, training=told
        )
        given["evaluate"](where.cadence.steps - 1, None)
        return where.cadence.steps

    def generate(model: Any, prompts: Any, rule: Any, sampling: Any, seeds: Any, refine: Any, **_: Any) -> list[Answer]:
        logits_BV = torch.tensor([[0.0, number / 8] for number in range(16)])
        asked = Asked(list(range(16)), [number // 4 for number in range(16)], 1, logits_BV, logits_BV)
        decisions = [decision.inserts for decision in rule.trigger.decide(asked)]
        found["answers"].append([[list(prompt) for prompt in prompts], rule.limits, sampling, list(seeds), decisions])
        return [Answer(tokens=[5], logprobs=[-1.0]) for _ in prompts]

    load = setting.load_model
    with monkeypatch.context() as patch:
        patch.setattr(setting, "load_model", load_model)
        patch.setattr(run, "sft", sft)
        patch.setattr(reasoner, "sft", sft)
        patch.setattr(interaction, "generate", generate)
        limits = []
        patch.setattr(run, "load_reasoner", lambda asked: limits.append((language := load_reasoner(asked)).limit) or language)
        run.pretrain(config)
    found["loading"] = [loaded, limits if config.memgen.reasoner.scratch is None else []]
    return found


def digest(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: (tuple(value.shape), float(value.detach().double().sum())) for name, value in tensors.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two random models of one size."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "another")):
        sizes = {"num_layers": 1, "width": 16, "num_heads": 2, "context": 1024, "vocab_size": 300}
        build_tiny(folder / name, texts=["a, b. c"], seed=seed, **sizes)
    return folder


@pytest.fixture(scope="module")
def base(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with pytest.MonkeyPatch.context() as patch:
        yield looked_at(given(models), tmp_path_factory.mktemp("base"), patch)


@pytest.fixture(scope="module")
def base_of_scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with pytest.MonkeyPatch.context() as patch:
        yield looked_at(["lm=tiny", *SCRATCH], tmp_path_factory.mktemp("base"), patch)


def given(models: Path) -> list[str]:
    return ["lm=tiny", f"lm.name={models / 'base'}"]


def written(value: Any, models: Path) -> Any:
    return models / "another" if value == "another" else value


@pytest.mark.parametrize("key", shown_here(TABLE))
def test_a_key_changes_what_its_row_says(
    key: str, base: Parts, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, what = TABLE[key]
    changed = looked_at([*given(models), f"{key}={written(value, models)}"], tmp_path, monkeypatch)
    assert differences(base, changed) == effect(what, {})


@pytest.mark.parametrize(("key", "kind"), zip(OF_TRIGGER, ("random", "entropy", "first_k"), strict=True))
def test_a_key_of_a_trigger_changes_what_is_decided(
    key: str, kind: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, what = OF_TRIGGER[key]
    chosen = [*given(models), f"memgen/trigger={kind}"]
    of_its_option, changed = (
        looked_at([*chosen, *more], tmp_path / str(len(more)), monkeypatch) for more in ([], [f"{key}={value}"])
    )
    assert differences(of_its_option, changed) == effect(what, {})


@pytest.mark.parametrize("key", shown_here(OF_SCRATCH))
def test_a_key_of_the_reasoner_that_is_made_changes_it(
    key: str, base_of_scratch: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, _ = OF_SCRATCH[key]
    changed = looked_at(["lm=tiny", *SCRATCH, f"{key}={value}"], tmp_path, monkeypatch)
    assert "scratch" in differences(base_of_scratch, changed)
