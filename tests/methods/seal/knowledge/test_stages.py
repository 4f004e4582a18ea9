"""The stages: what they leave, that a kill loses nothing, and that a server makes the same of the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arclab.config.compose import ConfigError
from arclab.files import read_lines, read_object
from arclab.launch.start import start
from arclab.lm.endpoint import started
from arclab.methods.seal.knowledge import query as query_module
from arclab.methods.seal.knowledge import sft as sft_module
from arclab.methods.seal.knowledge.engine import Engine, Outcome, Request

from ....lm.endpoint_server import FakeServer, said

SMALL = [
    "method=seal_knowledge", "name=a", "device=cpu", "data.num_train=2", "data.num_facts=2", "generate.num_completions=2",
    "generate.sampling.max_new_tokens=12", "query.repetitions=1", "query.adaptation.epochs=1", "query.adaptation.rank=2", "query.max_new_tokens=4",
    "select.min_gain=-1", "sft.steps=2", "sft.batch_size=1",
]  # fmt: skip
Run = Callable[..., None]


@pytest.fixture
def run(seal_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def go(*overrides: str) -> None:
        local = ["lm=tiny", "lm.device=cpu", f"lm.name={seal_lm}"]
        start("self_improve.py", [*SMALL, *([] if "lm=endpoint" in overrides else local), *overrides])

    return go


def rows(folder: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "train_s"} for row in read_lines(Path(folder) / "results.jsonl")]


def test_a_round_leaves_its_files_and_a_server_makes_the_same_trials(run: Run) -> None:
    two = ("query.repetitions=2", "query.adaptation.epochs=2", "query.adaptation.batch_size=8")  # all in one batch
    run("criterion={metric: knowledge/wins, threshold: 0.0, phase: p}", *two)
    root = Path("runs/seal_knowledge/a")
    splits = read_object(root / "round_0/generate/splits.json")
    own = rows(f"{root}/round_0/query")
    assert {row["item"] for row in own} == set(splits["train"]) and {row["edit"] for row in own} == {"0", "1", "passage"}
    assert read_object(root / "criterion.json")["phase"] == "p" and (root / "round_0/sft/model/config.json").is_file()
    assert "passage alone" in (root / "round_0/query/report.html").read_text()
    conditions = read_object(root / "round_0/query/results.json")["conditions"]
    assert [each["name"] for each in conditions] == ["model as it is", "passage alone", "first completion", "all completions"]
    run("stage=generate", "name=b")
    run("stage=query", "name=b", "query.server=start", "num_threads=1", "query.num_retained=1", *two)
    others = rows("runs/seal_knowledge/b/round_0/query")
    retained = [row.pop("retained") + row.pop("retained_base") for row in others]
    assert all(row.pop("retained") == row.pop("retained_base") == [] for row in own) and others == own
    assert [len(each) for each in retained] == [4] * len(own), "the two questions of the other item, twice"
    assert (Path("runs/seal_knowledge/b/round_0/query") / "endpoint.json").is_file()
    for first, second in zip(own[::2], own[1::2], strict=True):
        assert first["edit"] == second["edit"] and first["loss"] != second["loss"], "each begins with numbers of its own"


def test_what_is_made_is_not_made_again_after_a_kill(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(KeyboardInterrupt):
        pass

    asked: list[str] = []

    class Watched(Engine):
        def answer(self, request: Request, before_step: Callable[[], None] = lambda: None) -> Outcome:
            if len(asked) == 4:
                raise Killed
            asked.append(request.id)
            return super().answer(request, before_step)

    run("stage=generate")
    monkeypatch.setattr(query_module, "Engine", Watched)
    with pytest.raises(Killed):
        run("stage=query")
    made, asked[:] = list(asked), []
    run("stage=query")
    assert not set(made) & set(asked) and len(made) == len(asked) == 4, "two items as they are, and three trials of each"


def test_learning_hears_a_request_to_end_and_goes_on_as_if_undisturbed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("generate", "query", "select"):
        run(f"stage={stage}")
    shutil.copytree("runs/seal_knowledge/a", "runs/seal_knowledge/b")
    run("stage=sft")
    folder, finetune = Path("runs/seal_knowledge/b/round_0/sft"), sft_module.finetune

    def told(*given: Any) -> None:
        (folder / "PREEMPT").touch()
        finetune(*given)

    with monkeypatch.context() as patch:
        patch.setattr(sft_module, "finetune", told)
        run("stage=sft", "name=b")
    status = read_object(folder / "status.json")
    assert status["state"] == "PREEMPTED" and "the same command continues" in status["message"]
    assert not (folder / "model").exists()
    run("stage=sft", "name=b")
    weights = [(Path(f"runs/seal_knowledge/{n}/round_0/sft/model") / "model.safetensors").read_bytes() for n in "ab"]
    assert weights[0] == weights[1]


def test_empty_completions_are_drawn_again_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from arclab.lm.scripted import ScriptedModel

    model = ScriptedModel(
        seeded=lambda prompt, sample, sampling: "" if sample == 1 or sampling.seed == 1_000_004 else f"s{sample}"
    )
    monkeypatch.setattr(started, "load_language_model", lambda config: model)
    run("stage=generate", "data.num_train=1", "generate.retries=2")
    record = read_lines(Path("runs/seal_knowledge/a/round_0/generate/completions.jsonl"))[1]
    assert record["texts"] == ["s0", "s0"] and model.num_completions == 4, "two, and one again twice"
    empty = ScriptedModel([" "])
    monkeypatch.setattr(started, "load_language_model", lambda config: empty)
    with pytest.raises(ConfigError, match="all 2 completions are empty"):
        run("stage=generate", "name=c", "data.num_train=1")


def test_what_does_not_fit_together_is_a_sentence(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"stage=query needs .*completions\.jsonl, which does not exist; run stage=generate"):
        run("stage=query")
    with pytest.raises(
        ConfigError, match=r"the passage of passages_0_00000 cannot be written about: the prompt has \d+ tokens"
    ):
        run("stage=generate", "lm.max_context=20")
    with pytest.raises(ConfigError, match="is not measured here; use knowledge/wins"):
        run("criterion={metric: knowledge/gain, threshold: 0.0, phase: p}")
    run("stage=generate")
    with pytest.raises(ValueError, match=r"query\.server=nowhere has no endpoint\.json: no server runs there"):
        run("stage=query", "query.server=nowhere")


def test_a_server_writes_and_the_model_of_this_process_learns(run: Run) -> None:
    server = FakeServer()
    server.answer = lambda number, body: said(body, text=f"line {number}")
    try:
        run("lm=endpoint", "lm.name=one", f"lm.base_url={server.url}", "style=chat", "stage=generate")
    finally:
        server.close()
    assert all(body["messages"][-1]["content"].startswith("Here is a passage.") for body in server.bodies)
    assert {body["temperature"] for body in server.bodies} == {1.0} and {body["model"] for body in server.bodies} == {"one"}
    run("stage=query", "style=chat")
    assert {row["edit"] for row in rows("runs/seal_knowledge/a/round_0/query")} == {"0", "1", "passage"}
