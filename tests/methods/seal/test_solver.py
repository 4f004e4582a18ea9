"""Test-time training through evaluate.py: it lifts a model that knows nothing, goes on after a kill, and marks what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arclab.config.compose import ConfigError, compose_run
from arclab.config.seal_schema import EvaluateTestTimeTrainingConfig
from arclab.files import read_lines
from arclab.launch.start import start
from arclab.lm.hf import HfModel
from arclab.lm.training.inner import Fitted, InnerAdapter
from arclab.methods.seal.run import CONTROL, evaluate_test_time_training
from arclab.methods.seal.solver import TASKS
from arclab.metrics.names import REGISTRY

ANSWERS = ([[1, 2]], [[3, 3, 3]], [[5]])


def write_tasks(path: Path, answers: tuple[list[list[int]], ...] = ANSWERS, num_demos: int = 3, side: int = 2) -> Path:
    """Tasks whose output is the same grid always, which one task's demonstrations teach at once."""
    rng = np.random.default_rng(0)

    def pair(answer: list[list[int]]) -> dict[str, Any]:
        return {"input": rng.integers(10, size=(side, side)).tolist(), "output": answer}

    path.write_text(json.dumps({f"t{n}": {"train": [pair(a) for _ in range(num_demos)], "test": [pair(a)]} for n, a in enumerate(answers)}))  # fmt: skip
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks") / "same.json")


Command = Callable[..., list[str]]


@pytest.fixture
def command(seal_lm: Path, tasks: Path) -> Command:
    def build(out: Path, *overrides: str, source: Path = tasks) -> list[str]:
        return [
            "solver=test_time_training", "lm=tiny", f"lm.name={seal_lm}", "lm.device=cpu", "dataset=toy", "dataset.validation_sources=[]",
            'dataset.train_sources=["toy:color_map?tasks=2"]', f'dataset.eval_sources=["file:{source}"]', f"output_dir={out}",
            "solver.text.instructions=false", "solver.text.grid_format=digits", "solver.max_new_tokens=8", "solver.decode=greedy",
            "solver.views.count=2", "solver.views.dihedral=false", "solver.views.colors=false", "solver.pseudo_tasks.basic=false",
            "solver.pseudo_tasks.size=false", "solver.pseudo_tasks.chain=false", "solver.pseudo_tasks.repeat=false",
            "solver.pseudo_tasks.permutations=0", "solver.loss=last_output", "solver.adaptation.lr=1e-2", "solver.adaptation.epochs=40",
            "solver.adaptation.batch_size=9", "solver.adaptation.warmup_steps=0", "solver.adaptation.rank=8", "num_threads=1", *overrides,
        ]  # fmt: skip

    return build


def rows(out: Path) -> dict[str, dict[str, Any]]:
    return {row["task"]: row for row in read_lines(out / TASKS) if "settings" not in row}


def metrics(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


def solved(out: Path) -> float:
    return metrics(out)["scores"]["ARC/pass@2"]["n"]


def without_times(out: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key not in ("fit_s", "answer_s", "crc32")} for row in rows(out).values()
    ]


def test_its_own_demonstrations_teach_a_task_and_those_of_another_do_not(command: Command, tmp_path: Path) -> None:
    cells = {
        "none": ["solver.adaptation.kind=none"],
        "lora": ["solver.rescore=votes"],
        "full": ["solver.adaptation.kind=full", "solver.decode=dfs", "solver.threshold=0.2"],
        "other": ["solver.demonstrations=other_task"],
    }
    for name, overrides in cells.items():
        assert start("evaluate.py", command(tmp_path / name, *overrides)) == 0
    assert {name: solved(tmp_path / name) for name in cells} == {"none": 0, "lora": 3, "full": 3, "other": 0}
    for name in ("lora", "full"):
        found = metrics(tmp_path / name)["statistics"]
        assert found.keys() - {"num_params"} <= REGISTRY.keys() and found["ttt/pseudo_tasks"] == 9
        assert found["ttt/loss_last"] < 0.5 * found["ttt/loss_first"] and found["ttt/unadapted_share"] == 0
    likelihoods = [row["tests"][0][0]["log_likelihood"] for row in rows(tmp_path / "full").values()]
    assert all(value > -1.0 for value in likelihoods) and rows(tmp_path / "lora")["t0"]["tests"][0][0]["log_likelihood"] is None
    assert CONTROL in (tmp_path / "other/report.html").read_text() and CONTROL in metrics(tmp_path / "other")["stamps"]
    answers = json.loads((tmp_path / "other/submission.json").read_text())
    assert {cell for row in answers["t0"][0]["attempt_1"] for cell in row} == {3}  # it has learned, but another task
    assert "ttt/fit_s" not in metrics(tmp_path / "none")["statistics"]


def test_the_same_command_goes_on_after_a_kill(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives what a run in one piece gives; other settings are refused, and what is done is not done again."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    calls: list[int] = []
    fit = InnerAdapter.fit

    def counted(self: InnerAdapter, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(InnerAdapter, "fit", counted)
        with pytest.raises(KeyboardInterrupt):
            start("evaluate.py", command(out))
        assert rows(out).keys() == {"t0"}
        start("evaluate.py", command(out))
        assert len(calls) == 4  # one, the killed one, the other two
        start("evaluate.py", command(out, "max_tasks=null"))
        assert len(calls) == 4
    start("evaluate.py", command(whole))
    assert without_times(out) == without_times(whole) and solved(out) == solved(whole) == 3
    with pytest.raises(
        ConfigError, match=r"solver\.adaptation\.lr=0\.01, now solver\.adaptation\.lr=0\.02.* choose another output_dir"
    ):
        start("evaluate.py", command(out, "solver.adaptation.lr=2e-2"))
    path = out / TASKS
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[2].replace('"votes": 2', '"votes": 3'), lines[3]]))
    start("evaluate.py", command(out))
    assert sorted(map(str, without_times(out))) == sorted(map(str, without_times(whole)))


def test_tasks_together_are_the_tasks_one_by_one(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are equal, losses up to rounding; the rows of two tasks were in one batch, and the third one's alone."""
    together: list[int] = []
    fit_together = InnerAdapter.fit_together

    def noting(self: InnerAdapter, jobs: Any, *given: Any) -> Any:
        together.append(len(jobs))
        return fit_together(self, jobs, *given)

    monkeypatch.setattr(InnerAdapter, "fit_together", noting)
    for name, shown in (("own", "own"), ("other", "other_task")):
        alone, both = tmp_path / name, tmp_path / f"{name}_both"
        start("evaluate.py", command(alone, f"solver.demonstrations={shown}"))
        start("evaluate.py", command(both, f"solver.demonstrations={shown}", "tasks_at_once=2"))
        grids = [{id_: [each["grid"] for each in row["tests"][0]] for id_, row in rows(out).items()} for out in (alone, both)]
        assert grids[0] == grids[1] and len(grids[0]) == 3 and solved(alone) == solved(both) == (3 if name == "own" else 0)
        for id_, row in rows(both).items():
            assert row["losses"] == pytest.approx(rows(alone)[id_]["losses"], rel=1e-2, abs=1e-4)
    assert together == [2, 1, 2, 1]
    start("evaluate.py", command(tmp_path / "own", "tasks_at_once=2"))  # may be changed, and nothing is done again
    assert len(together) == 4
    with pytest.raises(ConfigError, match="use tasks_at_once=1"):
        start("evaluate.py", command(tmp_path / "none", "tasks_at_once=2", "solver.adaptation.kind=none"))


def test_shards_answer_as_one_process_does(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each task is trained on another one's demonstrations, which another shard may answer."""
    other, divided = "solver.demonstrations=other_task", "launch.shards=2"
    for number in (0, 1):
        config = compose_run("evaluate_test_time_training", command(tmp_path / "out", other, divided, f"launch.shard={number}"))
        assert isinstance(config, EvaluateTestTimeTrainingConfig) and evaluate_test_time_training(config) == 0
    config = compose_run("evaluate_test_time_training", command(tmp_path / "out", other, divided))
    assert isinstance(config, EvaluateTestTimeTrainingConfig)
    with monkeypatch.context() as patch:
        patch.setattr(InnerAdapter, "fit", None)  # nothing is left to train
        assert evaluate_test_time_training(config) == 0
    start("evaluate.py", command(tmp_path / "whole", other))
    assert sorted(map(str, without_times(tmp_path / "out"))) == sorted(map(str, without_times(tmp_path / "whole")))


def test_another_task_of_the_same_name_is_answered_anew(command: Command, tmp_path: Path) -> None:
    source = write_tasks(tmp_path / "first.json", ANSWERS[:1])
    start("evaluate.py", command(tmp_path / "out", source=source))
    write_tasks(source, ANSWERS[1:2])
    start("evaluate.py", command(tmp_path / "out", source=source))
    assert rows(tmp_path / "out")["t0"]["tests"][0][0]["grid"] == ANSWERS[1]


def test_test_outputs_are_not_known(command: Command, tmp_path: Path) -> None:
    """Other test outputs, the same lines."""
    source = write_tasks(tmp_path / "a.json")
    start("evaluate.py", command(tmp_path / "a", source=source))
    content = json.loads(source.read_text())
    for task in content.values():
        task["test"][0]["output"] = [[9, 9, 9]]
    source.write_text(json.dumps(content))
    start("evaluate.py", command(tmp_path / "b", source=source))
    assert without_times(tmp_path / "a") == without_times(tmp_path / "b") and solved(tmp_path / "b") == 0


def test_a_task_with_nothing_to_train_on_is_answered_by_the_model_as_it_is(command: Command, tmp_path: Path) -> None:
    """One demonstration; with min_demos=0 it is trained on without any shown. Grids too large for the context."""
    one = write_tasks(tmp_path / "one.json", num_demos=1)
    start("evaluate.py", command(tmp_path / "one", source=one))
    assert {row["problem"] for row in rows(tmp_path / "one").values()} == {"1 demonstrations leave no pseudo-task with solver.pseudo_tasks.min_demos shown"}  # fmt: skip
    stamp, *_ = metrics(tmp_path / "one")["stamps"]
    assert stamp.startswith("100 % of the tasks could not be trained on") and solved(tmp_path / "one") == 0
    start(
        "evaluate.py",
        command(tmp_path / "none_shown", "solver.pseudo_tasks.min_demos=0", source=one),
    )
    assert solved(tmp_path / "none_shown") >= 2
    large = write_tasks(tmp_path / "large.json", ANSWERS[:2], side=14)
    content = json.loads(large.read_text())
    content["t1"]["train"] = content["t1"]["train"][:1] * 2
    content["t1"]["train"][1] = {"input": [[1]], "output": ANSWERS[1]}
    content["t1"]["test"][0]["input"] = [[2]]
    large.write_text(json.dumps(content))
    start("evaluate.py", command(tmp_path / "large", "lm.max_context=600", "solver.pseudo_tasks.size=true", source=large))
    found = rows(tmp_path / "large")
    assert "more than the context of 600 tokens" in found["t0"]["skipped"] and found["t0"]["tests"] == []
    assert not found["t1"]["skipped"] and found["t1"]["num_too_long"] > 0 < found["t1"]["num_rows"]
    assert metrics(tmp_path / "large")["statistics"]["ttt/too_long_share"] > 0
    assert any("1 of 2 tasks were not tried" in stamp for stamp in metrics(tmp_path / "large")["stamps"])


def test_a_training_that_is_not_finite_marks_the_row(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is answered by the model as it is, and the next one is trained on as if nothing had been."""
    start("evaluate.py", command(tmp_path / "good"))
    fit = InnerAdapter.fit
    calls: list[int] = []

    @contextmanager
    def broken(self: InnerAdapter, given: Any, config: Any, seed: int, before_step: Any) -> Iterator[Fitted]:
        calls.append(1)
        if len(calls) == 2:
            from dataclasses import replace

            config = replace(config, lr=1e30, clip_norm=None)
        with fit(self, given, config, seed, before_step) as fitted:
            yield fitted

    monkeypatch.setattr(InnerAdapter, "fit", broken)
    start("evaluate.py", command(tmp_path / "bad"))
    good, bad = rows(tmp_path / "good"), rows(tmp_path / "bad")
    assert "finite" in bad["t1"]["problem"] and solved(tmp_path / "bad") == 2
    assert [bad[name]["tests"] == good[name]["tests"] for name in ("t0", "t1", "t2")] == [True, False, True]
    assert metrics(tmp_path / "bad")["statistics"]["ttt/unadapted_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("solver.adaptation.lr=1e3", "lr=1000.0 must be between 1e-07 and 0.1"),
        ("solver.adaptation.lr=-1e-4", "lr=-0.0001 must be between"),
        ("solver.adaptation.epochs=0", "epochs=0 must be between 1 and 1000"),
        ("solver.adaptation.epochs=1000000", "epochs=1000000 must be between"),
        ("solver.adaptation.epochs=false", "epochs"),
        ("solver.adaptation.target_modules=[]", "names no layer"),
        ("solver.adaptation.target_modules=[nothing]", "nothing, which is no linear layer"),
        ("solver.adaptation.clip_norm=0", "must be above 0"),
        ("solver.pseudo_tasks.leave_out=[3]", r"must be \[1\], \[2\] or \[1,2\]"),
        ("solver.pseudo_tasks.leave_out=[]", r"must be \[1\]"),
        ("solver.views.order=false", "they would be equal"),
        ("solver.threshold=0", "threshold=0.0 must be between"),
        ("solver.kind=other", "kind=other is not known"),
        ("lm=endpoint", "cannot be trained here"),
        ("max_tasks=1", "needs another scored task"),
        ("lm.dtype=bfloat16", "use lm.dtype=float32"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_sentence(command: Command, tmp_path: Path, override: str, says: str) -> None:
    extra = {"max_tasks=1": ["solver.demonstrations=other_task"], "lm.dtype=bfloat16": ["solver.adaptation.kind=full"], "lm=endpoint": ["lm.name=a"]}  # fmt: skip
    base = [word for word in command(tmp_path / "out") if not (override == "lm=endpoint" and word.startswith("lm"))]
    with pytest.raises(ValueError, match=says):
        start("evaluate.py", [*base, override, *extra.get(override, [])])
    assert not (tmp_path / "out" / TASKS).exists()


def test_an_adapter_of_another_model_is_refused(command: Command, tmp_path: Path, model: HfModel) -> None:
    """One that was saved from a wider model; and its own is where training begins."""
    from arclab.lm.hf import load_hf
    from arclab.lm.tiny import build_tiny, default_texts

    other = tmp_path / "other"
    build_tiny(other, texts=default_texts(), seed=0, num_layers=1, width=64, num_heads=2, context=256, vocab_size=400)
    for name, source in (("theirs", load_hf(_with(model, other))), ("own", model)):
        with source.new_adapter(rank=2, alpha=4) as trainable:
            trainable.save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match="does not fit this model"):
        start("evaluate.py", command(tmp_path / "out", f"lm.adapter={tmp_path / 'theirs'}"))
    assert start("evaluate.py", command(tmp_path / "out", f"lm.adapter={tmp_path / 'own'}", "max_tasks=1")) == 0


def _with(model: HfModel, folder: Path) -> Any:
    from dataclasses import replace

    return replace(model.config, name=str(folder))
