"""Programs as answers: voting, skipped tasks, resuming, statistics and what reaches the model, end to end through
evaluate.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arclab.config.compose import ConfigError, compose_evaluate, thaw_run
from arclab.config.llm_schema import EvaluateProgramsConfig, GridFormat, Isolation, PromptConfig
from arclab.data.sources import load_source
from arclab.data.tasks import ArcTask, Pair
from arclab.launch.start import start
from arclab.lm.endpoint import started
from arclab.lm.hf_loading import folder_digest
from arclab.lm.language_model import Completion, FinishReason, Message, OnReply, Prompt, Reply, Sampling, ignore
from arclab.lm.scripted import ScriptedModel
from arclab.methods.program_sampling import run as evaluate_programs
from arclab.methods.program_sampling.samples import SampleStore
from arclab.methods.program_sampling.solver import ProgramSampling, few_programs, few_programs_remedy
from arclab.metrics.names import REGISTRY
from arclab.programs.prompts import ParseProblem
from arclab.programs.sandbox.pool import Sandbox
from arclab.programs.toy import solution
from arclab.results.attempts import Attempts, Budget
from arclab.results.scoring import score
from arclab.runs.folder import RunDir, State
from arclab.runs.lock import locked
from arclab.solvers import evaluation

from ...lm.endpoint_server import Answer, FakeServer, refuse, said

PROMPT = PromptConfig(grid_format=GridFormat.digits, instructions=False, show_tests=True, show_shapes=False, entry="solve")
SAMPLING = Sampling(max_new_tokens=64, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, stop=(), seed=0)
TASKS = load_source("toy:color_map?tasks=4&side=4&colors=4&palette=6&demos=3&tests=2")
WRONG = "def solve(I):\n    return [[0]]\n"
CRASH = "def solve(I):\n    return I[99]\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=1, min_isolation=Isolation.limits) as shared:
        yield shared


def prompt_of(task: ArcTask) -> str:
    from arclab.programs.prompts import render_prompt

    return render_prompt(task, PROMPT)[0].content


BY_PROMPT = {prompt_of(task): task for task in TASKS}


def scripted(*kinds: str, **options: object) -> ScriptedModel:
    """Every task gets a reply of each kind: right (its own program), wrong, crash, or text."""
    text = {"wrong": WRONG, "crash": CRASH, "text": "I do not know."}

    def reply(prompt: Prompt, sample: int) -> str:
        kind = kinds[sample]
        return solution(BY_PROMPT[prompt[0].content]) if kind == "right" else text.get(kind, kind)

    return ScriptedModel(reply, **options)  # pyright: ignore[reportArgumentType]


def solve(
    model: ScriptedModel, sandbox: Sandbox, num_samples: int, tasks: list[ArcTask] = TASKS, store: SampleStore | None = None
) -> Attempts:
    return ProgramSampling(model, sandbox, prompt=PROMPT, sampling=SAMPLING, store=store).solve(
        tasks, Budget(num_samples=num_samples)
    )


def test_one_right_program_beats_a_crowd_that_fails_on_the_demonstrations(sandbox: Sandbox) -> None:
    attempts = solve(scripted("wrong", "wrong", "crash", "text", "right"), sandbox, 5)
    assert score(TASKS, attempts)["ARC/solved@2"].n == len(TASKS) and score(TASKS, attempts)["ARC/pass@1"].n == len(TASKS)
    first, second = attempts.candidates[TASKS[0].id, 0][:2]
    assert (first.votes, first.confidence, second.votes, second.confidence) == (1, 1.0, 2, 0.0)
    best = attempts.programs[TASKS[0].id][0]
    assert best.source == solution(TASKS[0]).rstrip() and best.demo_share == 1.0
    found = attempts.statistics
    assert found["programs/count"] == 20 and found["reward/code"] == 0.8 and found["reward/runs"] == pytest.approx(0.6)
    assert found["reward/solved"] == 0.2 and found["programs/tasks_with_right"] == 1.0 and found["programs/cut_share"] == 0
    assert found["programs/pass@1"] == pytest.approx(0.2) and found["programs/pass@2"] == pytest.approx(0.4)
    assert found["programs/pass@5"] == 1.0 and "programs/pass@10" not in found


def test_without_a_right_program_nothing_is_solved(sandbox: Sandbox) -> None:
    """The control: the demonstrations of another task give the program of another task."""
    shifted = {prompt_of(task): TASKS[i - 1] for i, task in enumerate(TASKS)}
    model = ScriptedModel(lambda prompt, sample: solution(shifted[prompt[0].content]))
    attempts = solve(model, sandbox, 1)
    assert score(TASKS, attempts)["ARC/pass@2"].n == 0 and attempts.statistics["programs/tasks_with_right"] == 0


def test_hard_coded_demonstrations_do_not_count_as_solved(sandbox: Sandbox) -> None:
    """A program that knows the demonstrations by heart is right about them, and wrong."""
    task = TASKS[0]
    table = {json.dumps(d.input.tolist()): d.output.tolist() for d in task.demos if d.output is not None}
    cheat = f"import json\ndef solve(I):\n    return {table!r}.get(json.dumps(I), [[0]])\n"
    attempts = solve(scripted(cheat), sandbox, 1, [task])
    assert attempts.statistics["reward/solved"] == 1.0 and attempts.statistics["programs/pass@1"] == 0.0
    assert score([task], attempts)["ARC/pass@2"].n == 0


def test_a_long_prompt_is_skipped_counted_and_wrong(sandbox: Sandbox) -> None:
    long = prompt_of(TASKS[1])
    attempts = solve(scripted("right", too_long=lambda prompt: prompt[0].content == long), sandbox, 1)
    assert list(attempts.skipped) == [TASKS[1].id] and attempts.statistics["programs/tasks_skipped"] == 1
    assert score(TASKS, attempts)["ARC/solved@2"].n == 3 and attempts.statistics["programs/pass@1"] == 0.75
    assert attempts.statistics["programs/count"] == 3


def test_what_was_cut_is_counted(sandbox: Sandbox) -> None:
    model = scripted("right", "text", finish_reason=lambda prompt, sample: FinishReason.length if sample else FinishReason.stop)
    assert solve(model, sandbox, 2).statistics["programs/cut_share"] == 0.5


def test_what_became_of_every_reply_is_counted(sandbox: Sandbox) -> None:
    """Shares of all replies that sum to 1, each kind registered; a sentence only where most hold no program."""
    replies = (
        "right",
        "```python\ndef solve(I):\n    return I\n",
        "text",
        "",
        "def flip(I):\n    return I",
        "<think>hm",
        "```python\ndef solve(I):\n    return (",
        "The rule is",
    )
    model = scripted(*replies, finish_reason=lambda _, sample: FinishReason.length if sample == 7 else FinishReason.stop)
    found = solve(model, sandbox, 8, TASKS[:2]).statistics
    lacking = {f"programs/without_program_{kind.value}" for kind in ParseProblem} - {"programs/without_program_none"}
    assert {name: found[name] for name in lacking} == dict.fromkeys(lacking, 1 / 8)
    assert found["programs/with_program"] == 2 / 8 and found["programs/with_unfinished_program"] == 1 / 8
    assert {name for name in found if name.startswith("programs/with")} <= REGISTRY.keys()
    assert few_programs(found).startswith("12 of 16 replies hold no program (") and "cut 2" in few_programs(found)
    half = solve(scripted("right", "text"), sandbox, 2).statistics
    assert few_programs(half) == ""
    most = solve(scripted("right", "text", "text", ""), sandbox, 4).statistics
    assert few_programs(most) == "12 of 16 replies hold no program (no_code 8, empty 4)"


@pytest.mark.parametrize(
    ("reply", "finish", "words"),
    [
        ("The rule is", "length", "raise solver.sampling.max_new_tokens=64"),
        ("<think>hm", "length", "max_new_tokens=64, or set lm.thinking=false"),
        ("", "stop", "chat template"),
        ("I do not know.", "stop", "solver.prompt"),
    ],
)
def test_the_remedy_is_that_of_what_most_replies_lack(sandbox: Sandbox, reply: str, finish: str, words: str) -> None:
    model = scripted(reply, reply, "```python\nx = 1\n```", finish_reason=lambda *_: FinishReason(finish))
    assert words in few_programs_remedy(solve(model, sandbox, 3).statistics, SAMPLING.max_new_tokens)


def test_a_reply_that_ends_while_thinking_is_no_program(sandbox: Sandbox) -> None:
    """Where the chat template opens the thinking, a fenced draft in it is no answer."""
    draft = f"Maybe\n```python\n{solution(TASKS[0])}```\nbut wait"

    class Thinking(ScriptedModel):
        def _completion(self, prompt: Prompt, sample: int, sampling: Sampling) -> Completion:
            return replace(super()._completion(prompt, sample, sampling), opened="<think>\n")

    assert solve(Thinking([draft]), sandbox, 1, TASKS[:1]).statistics["reward/code"] == 0
    assert solve(ScriptedModel([draft]), sandbox, 1, TASKS[:1]).statistics["reward/code"] == 1
    assert (
        solve(Thinking([draft + "</think>\n" + solution(TASKS[0])]), sandbox, 1, TASKS[:1]).statistics["programs/pass@1"] == 1
    )


def test_as_many_tasks_at_once_as_keep_the_model_busy(sandbox: Sandbox) -> None:
    class Wide(ScriptedModel):
        def num_prompts(self, num_samples: int) -> int:
            return 6 // num_samples

    model = Wide(["text"] * 9)
    solve(model, sandbox, 2)
    assert [len(call) for call in model.calls] == [3, 1]
    narrow = ScriptedModel(["text"] * 9)
    solve(narrow, sandbox, 2)
    assert [len(call) for call in narrow.calls] == [1] * 4


def test_the_function_asked_for_is_the_one_called(sandbox: Sandbox) -> None:
    """A second function of the usual name is a helper, and nothing else."""
    both = solution(TASKS[0]).replace("solve", "transform") + "\ndef solve(I):\n    return [[0]]\n"
    prompt = replace(PROMPT, entry="transform")
    solver = ProgramSampling(ScriptedModel([both]), sandbox, prompt=prompt, sampling=SAMPLING)
    assert solver.solve(TASKS[:1], Budget(num_samples=1)).statistics["programs/pass@1"] == 1


def test_tokens_and_their_log_probability_are_means(sandbox: Sandbox) -> None:
    """Over replies, and over tokens: 4 and 2 tokens with -6 and -3 nats."""

    class Told(ScriptedModel):
        def _completion(self, prompt: Prompt, sample: int, sampling: Sampling) -> Completion:
            tokens = (4, 2, None)[sample]
            return Completion("text", FinishReason.stop, tokens, None if tokens is None else -1.5 * tokens)

    found = solve(Told([]), sandbox, 3).statistics
    assert found["programs/tokens_per_reply"] == 3 and found["programs/logprob_per_token"] == pytest.approx(-1.5)
    assert "programs/logprob_per_token" not in solve(scripted("text"), sandbox, 1).statistics


def test_no_test_output_reaches_the_model_or_the_sandbox(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = np.array([[9, 8, 9], [8, 9, 8]], dtype=np.uint8)
    task = replace(TASKS[0], tests=(Pair(TASKS[0].tests[0].input, canary),))
    hidden = replace(task, tests=(Pair(task.tests[0].input, None),))
    asked, model = [], scripted("def solve(I):\n    print(I)\n    return I\n")
    run = Sandbox.run
    monkeypatch.setattr(Sandbox, "run", lambda self, executions: asked.extend(executions) or run(self, executions))
    open_, closed = (
        solve(model, sandbox, 1, [task]),
        solve(scripted("def solve(I):\n    print(I)\n    return I\n"), sandbox, 1, [hidden]),
    )
    assert str(open_.candidates) == str(closed.candidates) and "programs/pass@1" not in closed.statistics
    assert all(not np.array_equal(grid, canary) for execution in asked for grid in execution.inputs)
    assert "989" not in model.calls[0][0][0].content


def test_finished_tasks_are_kept_and_not_drawn_again(sandbox: Sandbox, tmp_path: Path) -> None:
    class Lost(ValueError):
        pass

    def reply(prompt: Prompt, sample: int) -> str:
        if prompt[0].content == prompt_of(TASKS[2]):
            raise Lost
        return solution(BY_PROMPT[prompt[0].content])

    store = SampleStore(tmp_path, {"seed": 0})
    with pytest.raises(Lost):
        solve(ScriptedModel(reply), sandbox, 1, store=store)
    with store.path.open("a") as file:
        file.write('{"task": "torn')  # a kill in the middle of a line
    again = SampleStore(tmp_path, {"seed": 0})
    assert again.load() == 2
    model = scripted("right")
    attempts = solve(model, sandbox, 1, store=again)
    drawn = [prompt[0].content for call in model.calls for prompt in call]
    assert drawn == [prompt_of(task) for task in TASKS[2:]] and score(TASKS, attempts)["ARC/pass@1"].n == 4
    last = SampleStore(tmp_path, {"seed": 0})
    assert last.load() == 4
    with pytest.raises(
        ConfigError, match=r"holds replies drawn with seed=0, now seed=1 \(1 keys differ\); choose another output_dir"
    ):
        SampleStore(tmp_path, {"seed": 1}).load()


COMMAND = [
    "solver=program_sampling", "lm=tiny", "dataset=toy", "solver.num_samples=2", "sandbox.min_isolation=limits", "sandbox.num_workers=1",
    'dataset.eval_sources=["toy:color_map?tasks=3&side=4&colors=4&palette=6&demos=3&split=test"]', "solver.sampling.max_new_tokens=8",
    "solver.prompt.instructions=false", "solver.prompt.grid_format=digits", "solver.prompt.show_shapes=false",
]  # fmt: skip


def composed(*overrides: str) -> EvaluateProgramsConfig:
    config = compose_evaluate([*COMMAND, *overrides])
    assert isinstance(config, EvaluateProgramsConfig)
    return config


def test_evaluate_writes_results_and_goes_on(tmp_path: Path, tiny_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model through the command: files, stamps and settings; a second call draws nothing."""
    command = [*COMMAND, f"lm.name={tiny_lm}", f"output_dir={tmp_path / 'out'}", "max_tasks=2"]
    start("evaluate.py", command)
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("."))
    results = {"metrics.json", "predictions.jsonl", "report.html", "samples.jsonl", "submission.json"}
    assert set(names) == results | {"config.yaml", "provenance.json", "status.json"}
    run = RunDir(tmp_path / "out")
    assert run.state is State.done and run.read_status() == run.read_status() | {"step": 2, "num_steps": 2}
    assert thaw_run(run.config) == composed(*command[len(COMMAND) :])
    record = json.loads((tmp_path / "out/metrics.json").read_text())
    assert record["scores"]["ARC/pass@2"]["N"] == 2 and record["statistics"]["programs/count"] == 4
    assert record["solver"] == "program_sampling" and record["isolation"] in ("limits", "seccomp")
    assert record["config"]["solver.sampling.max_new_tokens"] == 8 and record["statistics"]["programs/cut_share"] == 1.0
    assert record["statistics"]["programs/without_program_cut"] == 1.0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "hold no program" in line]
    assert "4 of 4 replies hold no program (cut 4); raise solver.sampling.max_new_tokens=8." in warning
    samples = (tmp_path / "out/samples.jsonl").read_text()
    start("evaluate.py", [*command[:-1], "max_tasks=3"])
    grown = (tmp_path / "out/samples.jsonl").read_text()
    assert grown.startswith(samples) and grown.count("\n") == samples.count("\n") + 1
    page = (tmp_path / "out/report.html").read_text()
    assert (
        "program_sampling" in page
        and "reward/code" in page
        and "without_program_no_entry" in page
        and "6 of 6 replies hold no program (cut 6)" in page
        and not re.search(r'id="curves"', page)
    )
    start("evaluate.py", [*command[:-1], "max_tasks=3"])
    assert "timing/replies_per_s" not in json.loads((tmp_path / "out/metrics.json").read_text())["statistics"]
    with locked(RunDir(tmp_path / "out")), pytest.raises(ConfigError, match="is in use by pid"):
        start("evaluate.py", [*command[:-1], "max_tasks=3"])
    with pytest.raises(
        ValueError,
        match=r"out holds the results of 3 tasks .* which these of 2 tasks .* would replace; give another output_dir=",
    ):
        start("evaluate.py", command)
    with pytest.raises(ConfigError, match=r"solver\.sampling\.temperature=0\.8, now solver\.sampling\.temperature=0\.5"):
        start("evaluate.py", [*command, "solver.sampling.temperature=0.5"])


def test_which_settings_make_other_replies(tmp_path: Path, tiny_lm: Path) -> None:
    """Where and how fast replies are drawn does not matter, what is drawn does; other weights in the same folder do."""

    def settings(*overrides: str) -> dict[str, object]:
        return evaluate_programs.reply_settings(composed(f"lm.name={tmp_path / 'model'}", *overrides))

    import shutil

    shutil.copytree(tiny_lm, tmp_path / "model")
    base = settings()
    assert base == settings(
        "lm.batch_size=1", "max_tasks=1", "sandbox.cpu_s=1", "output_dir=x", "solver.prompt.show_tests=false"
    )
    for other in ("seed=1", "solver.num_samples=3", "solver.sampling.top_k=1", "lm.dtype=bfloat16", "lm.max_context=99"):
        assert settings(other) != base
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    assert settings() != base


def test_it_is_told_to_end_and_goes_on(tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first reply; what is kept is not drawn again, and the end is that of an evaluation left alone."""
    command = [*COMMAND, f"lm.name={tiny_lm}", "lm.batch_size=2"]
    drawn: list[str] = []
    add = SampleStore.add

    def noting(store: SampleStore, task_id: str, prompt: Prompt, reply: Reply) -> None:
        add(store, task_id, prompt, reply)
        drawn.append(task_id)
        if len(drawn) == 1:
            (tmp_path / "told/PREEMPT").touch()

    monkeypatch.setattr(SampleStore, "add", noting)
    monkeypatch.setattr("arclab.runs.preempt._SECONDS_BETWEEN_LOOKS", 0)
    assert start("evaluate.py", [*command, f"output_dir={tmp_path / 'told'}"]) == 143
    status = RunDir(tmp_path / "told").read_status()
    assert status is not None and status["state"] == "PREEMPTED" and status["message"].startswith("the replies of 1 of 3 tasks")
    assert start("evaluate.py", [*command, f"output_dir={tmp_path / 'told'}"]) == 0
    assert start("evaluate.py", [*command, f"output_dir={tmp_path / 'whole'}"]) == 0
    assert len(drawn) == 6
    for name in ("samples.jsonl", "predictions.jsonl"):
        assert (tmp_path / "told" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_what_cannot_be_done_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not a folder; give the folder of a model"):
        evaluate_programs.evaluate_programs(composed(f"lm.name={tmp_path / 'none'}", f"output_dir={tmp_path / 'o'}"))
    with pytest.raises(ConfigError, match="split=validation has no tasks in dataset=toy"):
        evaluation.scored_tasks(composed("split=validation", "dataset.validation_sources=[]"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="runs in one process, but WORLD_SIZE=2"):
        evaluate_programs.evaluate_programs(composed())
    assert not (tmp_path / "o").exists()


def test_other_settings_are_refused_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SampleStore(tmp_path, {"seed": 9}).add("t", (Message("user", "a"),), Reply((), 1))
    monkeypatch.setattr(started, "load_language_model", lambda config: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match=r"holds replies drawn with .* choose another output_dir="):
        evaluate_programs.evaluate_programs(composed(f"output_dir={tmp_path}"))


def test_a_change_anywhere_in_large_weights_is_another_model(tmp_path: Path) -> None:
    """Every byte counts, also of a file of many megabytes."""
    data = bytearray(8 * 2**20)
    (tmp_path / "model.safetensors").write_bytes(data)
    before = folder_digest(tmp_path)
    for place in (0, 1234567, 4 * 2**20 + 1, len(data) - 1):
        changed = bytearray(data)
        changed[place] = 1
        (tmp_path / "model.safetensors").write_bytes(changed)
        assert folder_digest(tmp_path) != before


def test_no_result_where_no_task_could_be_tried(tmp_path: Path, tiny_lm: Path) -> None:
    """A setting that leaves no room for any prompt is no score of zero, and nothing of it is remembered."""
    command = [*COMMAND, f"lm.name={tiny_lm}", f"output_dir={tmp_path / 'out'}", "max_tasks=2"]
    with pytest.raises(
        ConfigError,
        match=r"none of the 2 tasks could be tried, so there is no result; the first one: the prompt has \d+ tokens",
    ):
        start("evaluate.py", [*command, "solver.sampling.max_new_tokens=100000"])
    assert not (tmp_path / "out/metrics.json").exists() and not (tmp_path / "out/samples.jsonl").exists()


def test_stamps_say_what_weakens_a_number(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts({}, skipped={"a": "too long"}, not_sent={"seed": 3})
    monkeypatch.setattr(sandbox, "isolation", Isolation.limits)
    found = evaluation.stamps(composed("split=train"), sandbox, attempts, 4)
    assert len(found) == 4 and "isolation=limits" in found[1] and found[2].startswith("1 of 4 tasks were not tried")
    assert found[3].endswith(": seed (3 tasks)")


def test_replies_are_kept_although_a_later_one_fails(sandbox: Sandbox, tmp_path: Path) -> None:
    """All four tasks are asked for at once; the third has no server any more."""

    class Lost(ScriptedModel):
        lost = True

        def num_prompts(self, num_samples: int) -> int:
            return 9

        def generate(
            self, prompts: Sequence[Prompt], num_samples: int, sampling: Sampling, on_reply: OnReply = ignore
        ) -> list[Reply]:
            if self.lost:
                super().generate(prompts[:2], num_samples, sampling, on_reply)
                raise ValueError("the server is lost")
            return super().generate(prompts, num_samples, sampling, on_reply)

    model, store = Lost(["text"] * 9), SampleStore(tmp_path, {})
    with pytest.raises(ValueError, match="lost"):
        solve(model, sandbox, 1, store=store)
    model.lost = False
    again = SampleStore(tmp_path, {})
    assert again.load() == 2
    solve(model, sandbox, 1, store=again)
    assert [len(call) for call in model.calls] == [2, 2] and SampleStore(tmp_path, {}).load() == 4


def test_what_a_server_does_not_do_is_said_of_the_result(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command: a server without a seed whose filter refuses one task. A second call asks for that task alone."""
    server, command = FakeServer(), [part for part in COMMAND if part != "lm=tiny"]
    refused: list[str] = []

    def answer(number: int, body: dict[str, Any]) -> Answer:
        content = body["messages"][-1]["content"]
        refused[:] = refused or [content]
        if content == refused[0]:
            return refuse(400, "it was filtered", code="content_filter")
        return (
            refuse(400, "Unknown parameter: 'seed'.")
            if "seed" in body
            else said(body, message={"content": [{"type": "text", "text": WRONG}]})
        )

    server.answer = answer
    monkeypatch.setattr(evaluation, "open_sandbox", lambda config: nullcontext(sandbox))
    command += ["lm=endpoint", "lm.name=m", f"lm.base_url={server.url}", f"output_dir={tmp_path}"]
    try:
        start("evaluate.py", command)
        record, page = json.loads((tmp_path / "metrics.json").read_text()), (tmp_path / "report.html").read_text()
        seeds = ["seed" in body for body in server.bodies]
        start("evaluate.py", command)
    finally:
        server.close()
    assert {body["messages"][-1]["content"] for body in server.bodies[len(seeds) :]} == set(refused)
    assert record["statistics"]["programs/tasks_skipped"] == 1 and record["statistics"]["programs/count"] == 4
    stamps = " ".join(record["stamps"])
    assert "1 of 3 tasks were not tried" in stamps and "so that its own apply: seed (2 tasks)" in stamps
    assert "it was filtered" in page and "so that its own apply: seed" in page
    assert not any(seeds[-1:]) and json.loads((tmp_path / "metrics.json").read_text())["stamps"] == record["stamps"]
    console = " ".join(capsys.readouterr().err.split())
    assert "takes no seed" in console and re.search(r"\w+ was not tried: the filter of the server", console)
