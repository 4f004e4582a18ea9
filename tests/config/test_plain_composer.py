"""The quick composer says what Hydra says, or leaves it to Hydra."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arclab.config import compose as slow
from arclab.config.compose import ConfigError, freeze
from arclab.config.plain_composer import NotPlain, PlainComposer, parse_plain, split_override, type_node
from arclab.entries import ENTRIES, load
from arclab.launch.queue.jobsfile import read_jobs

from ..conftest import ROOT

PHASE = "experiment=phase1_overfit"
GROUPS = ("encoder", "halting", "decoder", "dataset", "launch", "encoder/context")
OVERRIDES = [
    [PHASE, "encoder.num_layers=3", "decoder.optim.lr=1e-3", "name=5a"], ["encoder.width=128", "trainer.num_threads=null"],
    ["decoder_init=pretrained", "decoder_init.path=runs/a/b", "trainer.compile=TRUE"], [PHASE, "encoder=hybrid_variational", "seed=+7"],
    ["encoder=lpn_variational", "encoder/context=trm_compat", "trainer.clip_norm=2"], ["encoder.optim.lr=3e-4", "dataset=arc2", PHASE],
    ["evaluation.max_tasks=10", "trainer.beta1=.5", "halting.halt_loss_weight=1."],
    [PHASE, "trainer.batch_size=auto"],
    ['dataset.train_sources=["toy:color_map?tasks=7&side=4","conceptarc:, it\'s [1] {x}=a"]', 'dataset.eval_sources=[""]'],
]  # fmt: skip


def quickly(overrides: list[str], entry: str = "pretrain_encoder") -> Any:
    """By the quick path alone."""
    row = ENTRIES[entry]
    return type_node(PlainComposer()._compose(row.config, slow.overrides_for(entry, overrides)), load(row.schema))


def options() -> Iterator[list[str]]:
    yield from ([f"experiment={option}", "name=x"] for option in slow.group_options("experiment", "pretrain_encoder.py"))
    for group in GROUPS:
        yield from ([PHASE, f"{group}={option}"] for option in slow.group_options(group, "pretrain_encoder.py"))


@pytest.mark.parametrize("overrides", [*options(), *OVERRIDES], ids=" ".join)
def test_quick_is_what_hydra_says(overrides: list[str]) -> None:
    overrides = [*overrides, "dataset.regime=puzzle_id"] if "encoder=puzzle_table" in overrides else overrides
    assert quickly(overrides) == slow.compose("pretrain_encoder", overrides)


def test_evaluations_too() -> None:
    wanted = ["checkpoint=runs/a/b", "split=evaluation", "evaluation.votes=all"]
    assert quickly(wanted, "evaluate") == slow.compose_evaluate(wanted) == quickly(["solver=recursive", *wanted], "evaluate")
    programs = ["solver=program_sampling", "lm=tiny", "dataset=toy", "split=train", "solver.num_samples=2"]
    assert quickly(programs, "evaluate_programs") == slow.compose_evaluate(programs)
    search = ["solver=tree_search", "search=beam", "lm=tiny", "dataset=toy", "search.beam_width=2"]
    assert quickly(search, "evaluate_tree_search") == slow.compose_evaluate(search)


def test_a_key_that_stands_twice_is_refused_by_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML would take the second half and drop the first without a word."""
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf)
    (conf / "experiment/mine.yaml").write_text("# @package _global_\ntrainer:\n  steps: 7\ntrainer:\n  warmup_steps: 3\n")
    monkeypatch.setattr(slow, "CONF_DIR", conf)
    for composer in (PlainComposer(conf).compose, slow.compose):
        with pytest.raises(ConfigError, match=r"duplicate key trainer .*mine\.yaml.*; correct that file of conf/"):
            composer("pretrain_encoder", ["experiment=mine"])


def test_every_line_of_the_shipped_queue_is_quick_and_right() -> None:
    """One run of each line against Hydra; the others of a sweep must be quick, too."""
    lines: set[int] = set()
    for job in read_jobs(ROOT / "jobs.txt"):
        config = quickly(list(job.overrides), job.entry)
        if job.line not in lines:
            assert config == slow.compose_run(job.entry, job.overrides)
        lines.add(job.line)


@pytest.mark.parametrize("override", [
    "name=a,b", "+new=1", "~criterion", "name='a b'", "criterion={a:1}", "dataset.train_sources=[conceptarc]", "name=${seed}",
    "name=1_000", "seed=007", "trainer.clip_norm=inf", "seed=five", "encoder.widht=3", "encoder=nothing", "encoder.layer_scale=true",
    "trainer=default2", "decoder=null", "encoder.kind=lpn", "seed=-1", "launch.setup=null",
    'dataset.train_sources=["$a"]', 'dataset.train_sources=["a\\\\"]', 'encoder=["lpn"]', 'dataset.train_sources=[["a"]]',
])  # fmt: skip
def test_the_rest_is_left_to_hydra(override: str) -> None:
    with pytest.raises(NotPlain):
        quickly([PHASE, override])


def test_hydra_writes_the_message() -> None:
    for override, message in (("encoder.widht=3", "did you mean encoder.width"), ("seed=-1", "must be at least 0"),
                              ("halting=papr", "choose deterministic")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            PlainComposer().compose("pretrain_encoder", [override])
    assert PlainComposer().compose("pretrain_encoder", ["name='a'"]).name == "a"


@pytest.mark.parametrize(("text", "value"), [
    ("3", 3), ("-3", -3), ("3.", 3.0), (".5", 0.5), ("1e-3", 1e-3), ("1E5", 1e5), ("True", True), ("NULL", None), ("", ""), ("1a", "1a"),
    ("a/b.c-d", "a/b.c-d"), ("-", "-"),
])  # fmt: skip
def test_plain_values_are_read_as_hydra_reads_them(text: str, value: object) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert split_override(f"key={text}") == ("key", text)
    parsed = parse_plain(text)
    assert parsed == value and type(parsed) is type(value)
    assert OverridesParser.create().parse_override(f"key={text}").value() == value


def test_frozen_configurations_come_back(tmp_path: Path) -> None:
    config = quickly([PHASE, "encoder=variational", "encoder.kl.weight=0.5", "trainer.lr_min_ratio=1"])
    path = tmp_path / "config.yaml"
    path.write_text(freeze(config))
    assert PlainComposer().thaw(path) == config == slow.thaw(path)
    with pytest.raises(ConfigError, match="does not exist"):
        PlainComposer().thaw(tmp_path / "none.yaml")
    for text, why in (
        ("[" * 100_000, "nested too deep"),
        ("a: &a [*a]", "it has aliases"),
        ("- " * 100_000, "nested too deep"),
    ):
        path.write_text(text)
        for thaw in (slow.thaw, PlainComposer().thaw):  # not a segmentation fault, which would end every command on the queue
            with pytest.raises(ConfigError, match=re.escape(f"{path} is damaged ({why}")):
                thaw(path)


def test_settings_of_one_machine_count_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """conf/local/default.yaml comes last: it overrides groups and values of experiments, but not the command line."""
    shutil.copytree(slow.CONF_DIR, tmp_path / "conf")
    (tmp_path / "conf/local").mkdir(exist_ok=True)
    local = "# @package _global_\ndefaults:\n  - override /halting: explore07\n\nlaunch:\n  gpus: 1\n  partition: night\ntrainer:\n  log_every: 3\n"
    (tmp_path / "conf/local/default.yaml").write_text(local)
    monkeypatch.setattr(slow, "CONF_DIR", tmp_path / "conf")
    for overrides in ([PHASE, "launch=slurm_gpu"], [PHASE, "halting=short8", "trainer.log_every=5"]):
        config = type_node(PlainComposer(tmp_path / "conf")._compose("pretrain_encoder", overrides), slow.ExperimentConfig)
        assert config == slow.compose("pretrain_encoder", overrides)
        assert (config.launch.gpus, config.launch.partition) == (1, "night")
    assert (config.halting.halt_max_steps, config.trainer.log_every) == (8, 5)
