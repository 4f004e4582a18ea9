"""The scripted model says what it was told to, and whoever needs no model loads none of the libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

from arclab.lm.language_model import FinishReason, LanguageModel
from arclab.lm.scripted import ScriptedModel

from .conftest import sampling, user


def test_scripts() -> None:
    prompts = [user("solve task_1"), user("solve task_2")]

    def said(model: LanguageModel, **changes: object) -> list[list[str]]:
        return [[c.text for c in reply.completions] for reply in model.generate(prompts, 2, sampling(**changes))]

    assert said(ScriptedModel(lambda prompt, sample: f"{prompt[0].content[-1]}.{sample}")) == [["1.0", "1.1"], ["2.0", "2.1"]]
    assert said(ScriptedModel({"task_1": "a", "task_2": ["b", "c"]})) == [["a", "a"], ["b", "c"]]
    assert said(ScriptedModel(["x END y", "z"]), stop=("END",)) == [["x END", "z"]] * 2
    with pytest.raises(AssertionError, match="no reply for 'solve task_2'"):
        said(ScriptedModel({"task_1": "a"}))


def test_what_it_counts_and_how_replies_end() -> None:
    model = ScriptedModel(
        ["a b"],
        finish_reason=lambda prompt, sample: FinishReason.length if sample else FinishReason.stop,
        too_long=lambda prompt: len(prompt[0].content) > 5,
        logprobs=lambda prompt, text: [-1.0] * len(text),
    )
    first, second = model.generate([user("short"), user("too long")], 2, sampling())
    assert [c.finish_reason for c in first.completions] == [FinishReason.stop, FinishReason.length]
    assert first.completions[0].num_tokens == 3 and second.completions == () and second.too_long
    assert (model.num_calls, model.num_completions, model.calls) == (1, 2, [(user("short"), user("too long"))])
    assert model.logprobs([user("x")], ["ab"]) == [[-1.0, -1.0]]


def test_what_needs_no_model_loads_no_model() -> None:
    script = "import sys, arclab.programs.sandbox.pool, arclab.lm.models, arclab.lm.scripted, arclab.lm.tiny\n"
    script += "sys.exit(str({'torch', 'transformers', 'peft', 'httpx'} & set(sys.modules) or ''))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60).stderr.strip() == ""
