"""decoder_init: what is loaded, what is refused, and that a transductive source stamps the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arclab.config.compose import compose_evaluate
from arclab.config.schema import ExperimentConfig
from arclab.methods.recursive.decoder_init import apply_decoder_init, source_stamps
from arclab.methods.recursive.evaluation import evaluate_in_ranks
from arclab.methods.recursive.health import RecursiveRules
from arclab.methods.recursive.model import RecursiveModel, build_model
from arclab.methods.recursive.run import pretrain_in_ranks
from arclab.methods.recursive.setting import build_setting
from arclab.metrics.logger import read_rows
from arclab.runs.checkpoints import newest_checkpoint
from arclab.runs.folder import RunDir, State
from arclab.runs.ranks import Ranks

from ...conftest import TINY, TINY_TRM, compose

Tiny = Callable[..., ExperimentConfig]
CPU = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def trm_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trained TRMs: `clean` never saw a scored task, `leaky` trained on scored demonstrations."""
    root = tmp_path_factory.mktemp("trm")
    small = [
        "dataset.canvas=30",
        "dataset.train_ids=overfit32",
        "dataset.max_train_tasks=2",
        "trainer.batch_size=2",
        "trainer.steps=2",
    ]
    for name, extra in (("clean", []), ("leaky", [*small, "evaluation.split=validation", "evaluation.max_tasks=1"])):
        pretrain_in_ranks(compose("pretrain_encoder", [*TINY_TRM, f"runs_dir={root}", f"name={name}", *extra]), CPU)
    return root / "quickstart"


def initialised(config: ExperimentConfig) -> tuple[RecursiveModel, object]:
    torch.manual_seed(1)
    model = build_model(config, 1)
    return model, apply_decoder_init(config.decoder_init, model, config.encoder)


def test_our_checkpoint_loads_completely(tiny: Tiny, trm_runs: Path) -> None:
    scratch, none = initialised(tiny())
    model, report = initialised(tiny("decoder_init=pretrained", f"decoder_init.path={trm_runs}/clean"))
    assert none is None and report is not None
    assert (len(report.expected), len(report.loaded), report.missing) == (14, 14, ())  # type: ignore[attr-defined]
    assert report.dropped == ("puzzle_table.weight",) and not report.transductive  # type: ignore[attr-defined]
    assert "14 tensors expected, 14 loaded, 0 missing, 1 dropped (puzzle_table.weight)" in str(report)
    source = newest_checkpoint(trm_runs / "clean")
    averaged = load_file(source / "ema.safetensors")
    for name, tensor in model.decoder.state_dict().items():
        if f"decoder.{name}" in averaged:
            assert torch.equal(tensor, averaged[f"decoder.{name}"]), name
        if name not in ("q_head.bias",):
            assert not torch.equal(tensor, scratch.decoder.state_dict()[name]), name
    for name, tensor in model.encoder.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(tensor, scratch.encoder.state_dict()[name]), name  # type: ignore[union-attr]


def test_gain_is_matched_to_the_trained_puzzle_vectors(tiny: Tiny, trm_runs: Path) -> None:
    table = load_file(newest_checkpoint(trm_runs / "clean") / "model.safetensors")["puzzle_table.weight"]
    expected = table[table.abs().sum(1) > 0].square().mean().sqrt()
    overrides = ["decoder_init=pretrained", f"decoder_init.path={trm_runs}/clean", "encoder/context=trm_compat"]
    model, _ = initialised(tiny(*overrides, "encoder.context.match_gain=true"))
    assert model.adapter is not None and torch.isclose(model.adapter.gain, expected) and 0 < expected < 0.1
    unmatched, _ = initialised(tiny(*overrides, "encoder.context.match_gain=false", "encoder.context.gain=0.7"))
    assert unmatched.adapter is not None and unmatched.adapter.gain.item() == pytest.approx(0.7)


def test_a_transductive_source_is_stamped_on_every_result(trm_runs: Path, tmp_path: Path) -> None:
    common = [*TINY, f"runs_dir={tmp_path}", "dataset.canvas=30", "trainer.batch_size=2", "trainer.steps=1", "decoder_init=pretrained", "dataset.max_train_tasks=2", "evaluation.max_tasks=1"]  # fmt: skip
    stamps = {}
    for name in ("clean", "leaky"):
        source = trm_runs / name
        extra = ["dataset.canvas=6"] if name == "clean" else []
        pretrain_in_ranks(compose("pretrain_encoder", [*common, *extra, f"name={name}", f"decoder_init.path={source}"]), CPU)
        evaluate_in_ranks(compose_evaluate([f"checkpoint={tmp_path}/quickstart/{name}"]), CPU)
        folder = tmp_path / "quickstart" / name / "evaluation" / "train"
        stamps[name] = json.loads((folder / "metrics.json").read_text())["stamps"]
        assert all(stamp in (folder / "report.html").read_text() for stamp in stamps[name])
    assert not any("transductive" in s for s in stamps["clean"])
    assert any("decoder initialised from a transductive checkpoint" in s for s in stamps["leaky"])


def test_a_run_continues_when_its_source_is_gone(trm_runs: Path, tmp_path: Path) -> None:
    """Weights, gain and stamps are in its checkpoint: the same end as without the kill, and the same stamps."""
    source, ends = tmp_path / "source", {}
    shutil.copytree(trm_runs / "leaky", source)
    common = [*TINY, f"runs_dir={tmp_path}", "trainer.batch_size=2", "trainer.steps=2", "trainer.checkpoint_every=1",
              "trainer.keep_last=2", "trainer.eval_every=0", "dataset.max_train_tasks=2", "evaluation.max_tasks=1", "name=t",
              "encoder/context=trm_compat", "decoder_init=pretrained", f"decoder_init.path={source}"]  # fmt: skip
    run = RunDir(tmp_path / "quickstart/t")
    last = run.checkpoints / "step_00000002"
    for killed in (False, True):
        if killed:
            shutil.rmtree(source)
            shutil.rmtree(last)
            (run.path / "status.json").unlink()
        assert pretrain_in_ranks(compose("pretrain_encoder", common), CPU) is State.done
        stamps = json.loads((last / "state.json").read_text())["stamps"]
        ends[killed] = (stamps, {name: tensor.tolist() for name, tensor in load_file(last / "model.safetensors").items()})
    assert ends[True] == ends[False] and "transductive" in ends[True][0][0]
    rows = read_rows(run.metrics)
    gain = next(row["context_gain"] for row in rows if "context_gain" in row)
    rules = RecursiveRules.of(compose("pretrain_encoder", common), rows_per_rank=2, rows=rows)
    assert gain == rules.facts.context_gain < 0.1


def test_transductive_trm_says_so(trm_runs: Path, tmp_path: Path) -> None:
    evaluate_in_ranks(compose_evaluate([f"checkpoint={trm_runs}/leaky", f"output_dir={tmp_path}"]), CPU)
    assert any(s.startswith("transductive:") for s in json.loads((tmp_path / "metrics.json").read_text())["stamps"])
    with pytest.raises(ValueError, match="puzzle table has no vectors for"):
        evaluate_in_ranks(compose_evaluate([f"checkpoint={trm_runs}/leaky", "split=evaluation", "max_tasks=2"]), CPU)
    with pytest.raises(ValueError, match="use max_tasks=1, as many as it was trained with"):
        evaluate_in_ranks(compose_evaluate([f"checkpoint={trm_runs}/leaky", "max_tasks=2"]), CPU)
    with pytest.raises(ValueError, match=r"num_augmentations=9 is more than dataset\.num_augmentations=1: a puzzle table"):
        evaluate_in_ranks(compose_evaluate([f"checkpoint={trm_runs}/leaky", "num_augmentations=9"]), CPU)


def test_a_source_with_other_cycles_is_stamped(trm_runs: Path, tmp_path: Path) -> None:
    stamps = {}
    for cycles in (1, 2):
        name = f"c{cycles}"
        common = [*TINY, f"runs_dir={tmp_path}", f"name={name}", f"decoder_init.path={trm_runs}/clean", "decoder_init=pretrained", "trainer.steps=1",
                  "trainer.checkpoint_every=1", f"decoder.l_cycles={cycles}", "dataset.max_train_tasks=2", "evaluation.max_tasks=1"]  # fmt: skip
        pretrain_in_ranks(compose("pretrain_encoder", common), CPU)
        state = json.loads((tmp_path / "quickstart" / name / "checkpoints/step_00000001/state.json").read_text())
        stamps[cycles] = [stamp for stamp in state["stamps"] if "h_cycles x l_cycles" in stamp]
    assert sorted(map(len, stamps.values())) in ([0, 1], [1, 1]) and stamps[1] != stamps[2]
    evaluate_in_ranks(compose_evaluate([f"checkpoint={tmp_path}/quickstart/c1"]), CPU)
    record = json.loads((tmp_path / "quickstart/c1/evaluation/train/metrics.json").read_text())
    assert "the first 1 of the 2 tasks of this split were scored" in record["stamps"]


def test_a_source_that_trained_on_held_out_tasks_is_stamped(trm_runs: Path, tmp_path: Path) -> None:
    """The clean source trained on the quickstart tasks: a run that holds them out has a decoder that knows their answers."""
    common = [
        *TINY,
        f"runs_dir={tmp_path}",
        "name=t",
        f"decoder_init.path={trm_runs}/clean",
        "decoder_init=frozen",
        "trainer.steps=1",
    ]
    config = compose("pretrain_encoder", [*common, "dataset.train_ids=overfit32", "dataset.validation_ids=quickstart",
                                          "dataset.canvas=30", "trainer.batch_size=2", "evaluation.split=validation", "dataset.max_train_tasks=2",
                                          "evaluation.num_augmentations=0", "evaluation.max_tasks=1", "evaluation.health_tasks=0"])  # fmt: skip
    held_out = {"validation": build_setting(config).scored}
    assert len(held_out["validation"]) == 1
    source, decoder = trm_runs / "clean", build_model(config, num_puzzles=1).decoder
    (stamp,) = source_stamps(source, decoder, held_out)
    assert f"was trained on 1 of 1 validation tasks ({source})" in stamp
    (task,) = held_out["validation"]
    renamed, other = replace(task, id="other"), replace(task, demos=task.demos[1:])
    assert "1 of 1 validation" in source_stamps(source, decoder, {"validation": [renamed]})[0]
    assert source_stamps(source, decoder, {"validation": [other]}) == []
    pretrain_in_ranks(config, CPU)
    evaluate_in_ranks(compose_evaluate([f"checkpoint={tmp_path}/quickstart/t"]), CPU)
    stamps = json.loads((tmp_path / "quickstart/t/evaluation/validation/metrics.json").read_text())["stamps"]
    assert any("of 12 validation tasks" in stamp for stamp in stamps)


@pytest.mark.parametrize("other", ["decoder.num_heads=1", "decoder.positions=learned", "decoder.color_embedding=shared"])
def test_the_same_shapes_with_another_attention_are_refused(tiny: Tiny, trm_runs: Path, other: str) -> None:
    key, _, value = other.partition("=")
    with pytest.raises(
        ValueError, match=rf"{key.replace('.', '[.]')}=.*this configuration has {value}.*set {key} as it was trained"
    ):
        initialised(tiny("decoder_init=pretrained", f"decoder_init.path={trm_runs}/clean", other))


def test_another_architecture_is_refused(tiny: Tiny, trm_runs: Path) -> None:
    source = f"decoder_init.path={trm_runs}/clean"
    with pytest.raises(ValueError, match=r"decoder tensor .* has shape .* set decoder\.\* \(width"):
        initialised(tiny("decoder_init=pretrained", source, "decoder.width=32"))
    with pytest.raises(ValueError, match="lacks 4 of 18 decoder tensors"):
        initialised(tiny("decoder_init=pretrained", source, "decoder.num_layers=3"))


def test_bad_paths(tiny: Tiny, tmp_path: Path) -> None:
    """One sentence each that names the file, whatever lies there."""
    no_weights = {
        "notes.txt": b"my notes on this run\n", "empty.pt": b"", "junk.pt": b"not a checkpoint", "cut.zip": b"PK\x03\x04" + bytes(60),
        "pickle.pt": b"\x80\x02cdatetime\ndatetime\n.", "stack.pt": b"\x80\x02.", "memo.pt": b"\x80\x02h\x07.",
        "long.pt": b"\x80\x02\x8a\xff", "empty.safetensors": b"", "junk.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}",
    }  # fmt: skip
    for name, content in no_weights.items():
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({1: torch.ones(2)}, tmp_path / "numbers.pt")
    (tmp_path / "run/checkpoints/step_00000045.bad").mkdir(parents=True)
    words = dict.fromkeys(no_weights, "is truncated or no weights file") | {
        "none": "does not exist", "list.pt": "not a state dict", "numbers.pt": "not a state dict",
        ".": r"has no checkpoints/step_\*", "run": r"has no checkpoints/step_\*",
    }  # fmt: skip
    for name, sentence in words.items():
        with pytest.raises(
            ValueError, match=rf"checkpoint {tmp_path / name}.* {sentence}|checkpoint {tmp_path / name} {sentence}"
        ):
            initialised(tiny("decoder_init=pretrained", f"decoder_init.path={tmp_path}/{name}"))


@pytest.mark.parametrize(
    ("kind", "decoder_moves"), [("pretrained", (True, True)), ("frozen", (False, False)), ("staged", (False, True))]
)
def test_what_trains_in_each_phase(trm_runs: Path, tmp_path: Path, kind: str, decoder_moves: tuple[bool, bool]) -> None:
    """Weights after steps 1 to 4, staged until 2: the encoder moves in every phase, the decoder only where it should."""
    overrides = [
        f"decoder_init={kind}",
        f"decoder_init.path={trm_runs}/clean",
        *(["decoder_init.freeze_steps=2"] if kind == "staged" else []),
    ]
    steps = ["trainer.steps=4", "trainer.checkpoint_every=1", "trainer.keep_last=9"]
    pretrain_in_ranks(compose("pretrain_encoder", [*TINY, *overrides, *steps, f"runs_dir={tmp_path}", "name=p"]), CPU)
    at = {s: load_file(tmp_path / f"quickstart/p/checkpoints/step_{s:08d}/model.safetensors") for s in (1, 2, 3, 4)}
    for (a, b), moves in zip(((1, 2), (3, 4)), decoder_moves, strict=True):
        for name in at[1]:
            same = torch.equal(at[a][name], at[b][name])
            if name.startswith(("encoder.", "adapter.")):
                assert not same, name
            elif "start_" not in name and "q_head" not in name:
                assert same is not moves, name
    source = load_file(newest_checkpoint(trm_runs / "clean") / "ema.safetensors")["decoder.lm_head.weight"]
    assert torch.equal(at[4]["decoder.lm_head.weight"], source) is (kind == "frozen")
