"""The page of conversations: what stands on it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arclab.config.compose import run_main
from arclab.pages.analyse import main
from arclab.pages.transcripts import ShownTurn, render_transcripts
from arclab.results.transcripts import TRANSCRIPTS, Said, Transcript, append_transcripts, read_transcripts


def talk(step: int, source: str = "training", reward: float | None = 1.0, **changes: object) -> Transcript:
    turns = [
        {"reply": "<search>a & b</search>", "inserted_chars": [0, 8], "num_tokens": 4, "is_ended": True, "observation": "found <b>"},
        {"reply": "never", "inserted_chars": [], "num_tokens": 9, "is_ended": False, "observation": ""},
    ]  # fmt: skip
    given = {
        "step": step, "source": source, "id": "q1", "sample": 0, "question": "Who?", "gold": '["Ann"]', "turns": turns, "is_over": True,
        "reward": reward, "parts": {"right": 1.0, "f1": 0.5}, "failure": "", "is_counted": True,
    }  # fmt: skip
    return Transcript(**{**given, **changes})  # type: ignore[arg-type]


def test_what_stands_on_the_page() -> None:
    page = render_transcripts("exp / a", [
        talk(1), talk(5), talk(3, "evaluation", is_over=False), talk(2, reward=None, failure="the tool is down", is_counted=False),
    ])  # fmt: skip
    assert page.index("evaluation, step 3") < page.index("training, step 5") < page.index("training, step 1"), "newest first"
    assert "a &amp; b" in page and "found &lt;b&gt;" in page and "<b>" not in page
    assert page.count('title="memory was inserted here"') == 8 and "turn 2: 9 tokens, cut" in page
    assert "reward 1 (right 1; f1 0.5)" in page and "no reward: the tool is down" in page
    assert "not over after 2 turns" in page and "no part of the loss" in page
    assert ShownTurn(1, Said("abcd", [0, 2], 1, True, "")).pieces == ["", "ab", "cd"]


def test_a_file_is_read_once_for_each_conversation(tmp_path: Path) -> None:
    """A continued run draws some again; a line that a kill cut short is left out."""
    file = tmp_path / TRANSCRIPTS
    append_transcripts(file, [talk(2, reward=0.0), talk(1)])
    append_transcripts(file, [talk(2, reward=1.0), talk(2, sample=1)])
    with file.open("a") as out:
        out.write('{"step": 3')
    assert [(each.step, each.sample, each.reward) for each in read_transcripts(file)] == [(1, 0, 1.0), (2, 0, 1.0), (2, 1, 1.0)]
    file.write_text(json.dumps({"step": 1}) + "\n")
    with pytest.raises(ValueError, match=r"transcripts\.jsonl is damaged .*it has no"):
        read_transcripts(file)


def test_the_command_writes_the_page_and_refuses_a_run_without_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "exp" / "a"
    run.mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["arclab.pages", "transcripts", str(run)])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.splitlines()[-1].endswith(
        "has no transcripts.jsonl; give the folder of a run whose data set has several turns."
    )
    append_transcripts(run / TRANSCRIPTS, [talk(1)])
    assert main(["transcripts", str(run)]) is None and "exp / a" in (run / "transcripts.html").read_text()
