"""pretrain_memgen.py and its evaluations as runs: trained, told to end, continued, scored, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arclab.config.compose import ConfigError, compose_run
from arclab.methods.memgen import evaluation, interaction
from arclab.methods.memgen import run as memgen_run
from arclab.methods.memgen.evaluation import evaluate
from arclab.methods.memgen.generation import Answer
from arclab.methods.memgen.saved import load_memgen
from arclab.metrics.logger import read_rows
from arclab.runs.folder import RunDir
from arclab.runs.preempt import ToldToEnd
from arclab.runs.ranks import Ranks
from arclab.text.environments import BoxedAnswers
from arclab.text.load import load_text

TINY = (
    "experiment=memgen_quickstart", "trainer.steps=4", "trainer.eval_every=4", "trainer.log_every=1", "trainer.checkpoint_every=2",
    "trainer.batch_size=4", "trainer.health_every=2", "memgen.reasoner.scratch.steps=3", "memgen.reasoner.scratch.width=16",
    "memgen.reasoner.scratch.batch_size=4", "memgen.reasoner.scratch.vocab_size=300", "dataset.num_train=40",
    "dataset.num_validation=6", "dataset.num_test=6", "evaluation.sampling.max_new_tokens=6", "wandb.mode=disabled",
    "memgen.weaver.prompt_latents_len=2", "memgen.weaver.inference_latents_len=2",
)  # fmt: skip


def _pretrain(runs: Path, name: str, *overrides: str) -> Path:
    memgen_run.pretrain(compose_run("pretrain_memgen", [*TINY, f"name={name}", f"runs_dir={runs}", *overrides]))
    return runs / "memgen_quickstart" / name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _pretrain(tmp_path_factory.mktemp("memgen"), "a")


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step_00000004" / "model.safetensors")


def _status(run: Path) -> dict[str, object]:
    return json.loads((run / "status.json").read_text())


def test_a_run_trains_only_the_weaver_scores_its_controls_and_is_judged(trained: Path) -> None:
    assert _status(trained)["state"] == "DONE" and (trained / "reasoner" / "model.safetensors").is_file()
    weights = _weights(trained)
    assert all(name.startswith(("adapter.", "weaver.")) for name in weights)
    moved = [name for name, value in weights.items() if name.endswith("lora_B.weight") and value.abs().max() > 0]
    assert len(moved) == 8  # two layers, four projections: B begins at zero
    rows = read_rows(trained / "metrics.jsonl")
    assert [row["_step"] for row in rows] == [0, 1, 2, 3, 4]
    last = rows[-1]
    assert {"text/accuracy", "text/off_accuracy", "text/random_accuracy", "text/p_value", "train/token_accuracy"} <= last.keys()
    assert last["text/count"] == 6 and rows[2]["health"] == "HEALTHY"
    assert json.loads((trained / "criterion.json").read_text())["result"] == "FAIL"


def test_told_to_end_it_goes_on_to_the_same_weights(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once while the reasoner is made, once while the weaver is trained."""
    runs = trained.parents[1]
    steps_seen: list[int] = []
    vote = memgen_run.StopRequest.vote

    def told(self, step):
        steps_seen.append(step)
        if len(steps_seen) in (2, 5):
            self._run.preempt.touch()
        return vote(self, step)

    monkeypatch.setattr(memgen_run.StopRequest, "vote", told)
    run = _pretrain(runs, "b")
    assert _status(run)["state"] == "PREEMPTED" and not (run / "reasoner").exists()
    run = _pretrain(runs, "b")
    assert _status(run)["state"] == "PREEMPTED" and _status(run)["step"] == 4 - 2
    run = _pretrain(runs, "b")
    assert _status(run)["state"] == "DONE" and steps_seen == [1, 2, 3, 1, 2, 3, 4]
    mine, whole = _weights(run), _weights(trained)
    assert all(torch.equal(value, whole[name]) for name, value in mine.items())
    assert [row["_step"] for row in read_rows(run / "metrics.jsonl")] == [0, 1, 2, 3, 4]


def test_shuffled_targets_teach_something_else(trained: Path) -> None:
    run = _pretrain(trained.parents[1], "shuffled", "trainer.shuffle_targets=true")
    name = "weaver.prompt_queries"
    assert not torch.equal(_weights(run)[name], _weights(trained)[name])


def _evaluate(run: Path, *overrides: str) -> Path:
    solver = "evaluate_memgen_ltpo" if any(word.startswith("ltpo.") for word in overrides) else "evaluate_memgen"
    config = compose_run(solver, [f"checkpoint={run}", "sampling.max_new_tokens=6", *overrides])
    evaluate(config)
    return config.folder


def test_evaluations_answer_each_question_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    folders = {memory: _evaluate(trained, f"memory={memory}") for memory in ("off", "random", "trained")}
    replies = {}
    for memory, folder in folders.items():
        *lines, summary = [json.loads(line) for line in (folder / "answer.json").read_text().splitlines()]
        assert [line["id"] for line in lines] == sorted({line["id"] for line in lines}, key=lambda id_: id_.rpartition("_")[2])
        assert summary["summary"]["N"] == 6 == len(lines) and summary["summary"]["memory"] == memory
        assert {len(line["inserted"]) > 0 for line in lines} == {memory != "off"}
        replies[memory] = [(line["reply"], line["logprob"]) for line in lines]
        page = (folder / "report.html").read_text()
        assert lines[0]["id"] in page and f"{summary['summary']['n']}/6" in page and "http" not in page.partition("<main")[0]
    assert replies["off"] != replies["random"] != replies["trained"]
    moved = _evaluate(trained, "ltpo.max_steps=2")
    *lines, summary = [json.loads(line) for line in (moved / "answer_ltpo.json").read_text().splitlines()]
    assert all(len(line["reward_before"]) == len(line["reward_after"]) == len(line["inserted"]) for line in lines)
    assert summary["summary"]["metrics"]["ltpo/moved"] > 0
    still = _evaluate(trained, "ltpo.max_steps=0", "name=still")
    *lines, _ = [json.loads(line) for line in (still / "answer_ltpo.json").read_text().splitlines()]
    assert [line["reply"] for line in lines] == [reply for reply, _ in replies["trained"]]
    assert threads == [1] * 5  # null: as the run was configured
    earlier = _evaluate(Path(f"{trained}@2"))
    record = json.loads((earlier / "text_metrics.json").read_text())
    assert earlier.name == f"{folders['trained'].name}-step2" and (record["step"], record["chosen"]) == (2, "asked for")


@pytest.mark.parametrize("wishes", [(), ("ltpo.max_steps=1",)], ids=["memgen", "memgen_ltpo"])
def test_merged_shards_are_what_one_process_answers(
    wishes: tuple[str, ...], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = ("sampling.temperature=1", "batch_size=2", *wishes)
    one = _evaluate(trained, *wishes, f"output_dir={tmp_path}/one")
    counts = []
    for number in (2, 0, 1):
        part = _evaluate(trained, *wishes, f"output_dir={tmp_path}/three", "launch.shards=3", f"launch.shard={number}")
        assert part == tmp_path / "three/shards" / f"{number}_of_3" and not (part / "text_metrics.json").exists()
        measured = json.loads((part / "shard.json").read_text())
        counts.append(measured["tasks"])
        assert measured["tokens"] > 0 and measured["cost"] > 0 and measured["solve_s"] > 0
    with monkeypatch.context() as patch:  # nothing is answered a second time
        patch.setattr(interaction.Player, "play", None)
        three = _evaluate(trained, *wishes, f"output_dir={tmp_path}/three", "launch.shards=3")
    name = "answer_ltpo.json" if len(wishes) > 2 else "answer.json"
    a, b = ((folder / name).read_text().splitlines() for folder in (one, three))
    assert a[:-1] == b[:-1] and len(a) == 1 + sum(counts) == 7 and min(counts) > 0
    a_sum, b_sum = (json.loads(lines[-1])["summary"] for lines in (a, b))
    assert {**a_sum, "tokens_per_s": 0} == {**b_sum, "tokens_per_s": 0}


def test_shards_that_cannot_be_merged_are_refused(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is missing; one was answered by other weights; there are more than questions; questions are not handed on."""
    two = (f"output_dir={tmp_path}/two", "launch.shards=2", "batch_size=3")
    _evaluate(trained, *two, "launch.shard=0")
    with pytest.raises(ConfigError, match=r"shard 1 of 2 was not started"):
        _evaluate(trained, *two)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "digest", lambda path: "trained further")
        _evaluate(trained, *two, "launch.shard=1")
    with pytest.raises(ConfigError, match=r"1_of_2/answers_0_of_1\.jsonl holds .* with weights="):
        _evaluate(trained, *two)
    assert not (tmp_path / "two/answer.json").exists()
    with pytest.raises(
        ValueError, match=r"launch.shards=4 is more than the 3 batches of 2 questions; give at most 3, or lower"
    ):
        _evaluate(trained, f"output_dir={tmp_path}/four", "batch_size=2", "launch.shards=4", "launch.shard=0")
    with pytest.raises(ConfigError, match=r"launch.steal=true is for evaluations whose solver asks a language model"):
        _evaluate(trained, *two, "launch.steal=true")


def test_an_evaluation_may_have_a_trigger_of_its_own(trained: Path, tmp_path: Path) -> None:
    """answer.json says where memory was inserted and where it might have been; the page marks it."""

    def of(name: str, *wishes: str) -> tuple[list[dict[str, Any]], dict[str, float]]:
        wishes = (*wishes, f"output_dir={tmp_path / name}", "sampling.max_new_tokens=48", "sampling.temperature=1.0")
        *lines, last = [json.loads(line) for line in (_evaluate(trained, *wishes) / "answer.json").read_text().splitlines()]
        return lines, last["summary"]["metrics"]

    plain, metrics = of("plain")
    assert metrics["text/insert_share"] == 1.0 and any(len(line["inserted"]) > 1 for line in plain)
    for line in plain:
        assert line["inserted"] == [0, *line["asked"]]
        ends = [line["reply"][at - 1] for at in line["inserted_chars"][1:]]
        assert line["inserted_chars"][0] == 0 and all(end in ",.\n" for end in ends)
        assert len(line["inserted_chars"]) == len(line["inserted"])
    page = (tmp_path / "plain" / "report.html").read_text()
    assert page.count('title="memory was inserted here"') == sum(len(line["inserted"]) for line in plain)
    assert [line["inserted"] for line in of("never", "trigger.kind=never")[0]] == [[0]] * 6
    assert of("never", "trigger.kind=never")[1]["text/insert_share"] == 0.0
    for name, kind, key, low, high in (
        ("random", "random", "probability", 0.0, 1.0), ("unsure", "entropy", "threshold", 1e6, 0.0),
    ):  # fmt: skip
        shares = [
            of(f"{name}{value}", f"trigger.kind={kind}", f"trigger.{key}={value}")[1]["text/insert_share"]
            for value in (low, high)
        ]
        assert shares == [0.0, 1.0]


def test_every_wish_of_an_evaluation_counts(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def generate(model, prompts, rule, sampling, seeds, refine, **_):
        asked.append((len(prompts), sampling, seeds))
        return [Answer(tokens=[5], logprobs=[-1.0]) for _ in prompts]

    monkeypatch.setattr(interaction, "generate", generate)

    def asked_with(number: int, *wishes: str) -> list[object]:
        asked.clear()
        assert _evaluate(trained, f"output_dir={tmp_path / str(number)}", *wishes) == tmp_path / str(number)
        return list(asked)

    base, wishes = asked_with(0), (
        "split=validation", "max_examples=2", "batch_size=2", "seed=5", "sampling.max_new_tokens=5", "sampling.temperature=0.5",
        "sampling.top_p=0.5", "sampling.top_k=3", "sampling.min_p=0.1",
    )  # fmt: skip
    assert asked_with(99) == base
    for number, wish in enumerate(wishes, start=1):
        assert asked_with(number, wish) != base, wish
    assert _evaluate(trained, "name=mine") == trained / "evaluation" / "mine"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda"):
            _evaluate(trained, "device=cuda", "name=gpu")


def test_what_cannot_be_evaluated_is_one_sentence(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ltpo.enabled=false"):
        _evaluate(trained, "ltpo.enabled=false")
    with pytest.raises(ConfigError, match=r"memory=off has no latents"):
        _evaluate(trained, "ltpo.max_steps=1", "memory=off")
    with pytest.raises(ValueError, match=r"has no value of text/memory_wins, by which"):  # they disagree on no question
        _evaluate(Path(f"{trained}@best"))
    with pytest.raises(ValueError, match=r"has no checkpoint of step 3; there are those of steps 2, 4"):
        _evaluate(Path(f"{trained}@3"))
    with pytest.raises(ValueError, match=r"has no checkpoints"):
        _evaluate(tmp_path)
    with pytest.raises(ValueError, match=r"more than the context"):
        _evaluate(trained, "sampling.max_new_tokens=5000", "name=long")
    config = trained / "config.yaml"
    text = config.read_text()
    try:
        config.write_text(text.replace("prompt_latents_len: 2", "prompt_latents_len: 3"))
        with pytest.raises(ValueError, match=r"prompt_queries has the shape \[2, 16\] in the file and \[3, 16\]"):
            _evaluate(trained, "name=other")
        config.write_text(text)
        tokenizer = trained / "reasoner" / "tokenizer_config.json"
        kept = tokenizer.read_text()
        tokenizer.write_text(kept + " ")
        with pytest.raises(ValueError, match=r"its files have changed"):
            _evaluate(trained, "name=other")
        tokenizer.write_text(kept)
    finally:
        config.write_text(text)


def test_a_question_without_an_answer_and_a_run_that_is_not_named_are_refused(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(config, **_):
        splits = load_text(config)
        return replace(splits, test=(*splits.test[:-1], replace(splits.test[-1], answer="")))

    monkeypatch.setattr(evaluation, "load_text", hidden)
    with pytest.raises(ValueError, match=r"split=test has no answer for \w+ \(1 are hidden\).*choose another split"):
        _evaluate(trained, "name=hidden")
    assert not (trained / "evaluation" / "hidden").exists()
    for given, words in (("checkpoint=", "checkpoint is empty; give checkpoint=RUN_FOLDER"), ("checkpoint=null", "checkpoint")):
        with pytest.raises(ConfigError, match=words):
            compose_run("evaluate_memgen", [given])


def test_batches_of_one(trained: Path) -> None:
    run = _pretrain(trained.parents[1], "one", "trainer.batch_size=1", "lm.batch_size=1")
    assert _status(run)["state"] == "DONE" and read_rows(run / "metrics.jsonl")[-1]["text/count"] == 6


def test_a_reasoner_of_another_run_is_waited_for() -> None:
    given = ["experiment=memgen_quickstart", "name=b", "memgen/reasoner=given", "runs_dir=x"]
    assert compose_run("pretrain_memgen", [*given, "lm.name=x/memgen_quickstart/a/reasoner"]).inputs() == {
        "lm.name": Path("x/memgen_quickstart/a/reasoner")
    }
    assert compose_run("pretrain_memgen", [*given, "lm.name=Qwen/Qwen3-0.6B"]).inputs() == {}
    assert compose_run("pretrain_memgen", [*TINY, "name=b", "lm.name=x/y"]).inputs() == {}


def test_what_cannot_be_trained_is_said_before_the_reasoner_is_made(tmp_path: Path) -> None:
    for override, words in (
        ("criterion.metric=text/acuracy", "text/acuracy is not measured here; use text/accuracy"),
        ("trainer.eval_every=0", "trainer.eval_every=0 has none"),
        ("trainer.grad_accumulation=3", "must be divisible by trainer.grad_accumulation=3"),
        ("memgen.reasoner.scratch.context=60", "raise memgen.reasoner.scratch.context"),
        ("lm.adapter=some", "merge it into the model first, or set lm.adapter=null"),
    ):
        with pytest.raises(ValueError, match=words):
            _pretrain(tmp_path, "bad", override)
        assert not (tmp_path / "memgen_quickstart/bad/reasoner").exists()


def test_programs_are_scored_by_running_them(tmp_path: Path) -> None:
    """In the run and after it; and the run keeps which tasks it has learned from."""
    arc = [word for word in TINY if not word.startswith(("experiment=", "dataset."))]
    arc += ["dataset=arc_programs", "dataset@dataset.dataset=toy", "dataset.num_train=4", "memgen/reasoner=scratch", "lm=tiny"]
    arc += ["dataset.num_validation=2", "dataset.num_test=2", "memgen.reasoner.scratch.context=4096", "trainer.steps=1"]
    given = ["name=a", f"runs_dir={tmp_path}", "trainer.eval_every=1", "sandbox.num_workers=1"]
    memgen_run.pretrain(compose_run("pretrain_memgen", [*arc, *given]))
    run = tmp_path / "memgen" / "a"
    last = read_rows(run / "metrics.jsonl")[-1]
    assert last["text/count"] == 2 and last["text/accuracy"] == 0 and last["text/no_answer_share"] == 1
    assert [len(ids) for ids in json.loads((run / "splits.json").read_text()).values()] == [4, 2, 2]
    assert json.loads((_evaluate(run) / "answer.json").read_text().splitlines()[0])["gold"].startswith("[[[")


@pytest.mark.parametrize("mine_is_told", [True, False])
def test_ranks_that_are_told_to_end_do_so_together(trained: Path, tmp_path: Path, mine_is_told: bool) -> None:
    """One that has finished its share does not wait for answers that never come."""
    config = compose_run("evaluate_memgen", [f"checkpoint={trained}", "sampling.max_new_tokens=2", "batch_size=1"])
    saved = load_memgen(trained, config.device, config.memory)
    examples = load_text(saved.config.dataset).test
    other = 1 if not mine_is_told else len(examples) // 2

    class TwoRanks(Ranks):
        def gather_objects(self, item):
            return [item, other]

    class Progress:
        is_told = mine_is_told

        def report(self, num_done: int) -> None: ...

    ranks = TwoRanks(0, 2, torch.device("cpu"))
    (tmp_path / "run").mkdir()
    kept = 1 if mine_is_told else len(examples) // 2
    with pytest.raises(ToldToEnd, match=f"{kept + other} of 6 answers are kept"):
        evaluation._answered(config, saved, BoxedAnswers(), examples, {}, RunDir(tmp_path / "run"), ranks, Progress())  # type: ignore[arg-type]
