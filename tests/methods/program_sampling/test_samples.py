"""samples.jsonl: replies come back as they were, or not at all, whatever happened to the file; other settings are refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from arclab.config.compose import ConfigError
from arclab.lm.language_model import Completion, FinishReason, Message, Reply
from arclab.methods.program_sampling.samples import SampleStore

from ...damage import REPEATED, damaged_bytes, damaged_value, outcome_or_sentence

SETTINGS = {"seed": 0, "lm.name": "m"}
TASKS = {
    name: (
        (Message("user", name),),
        Reply((Completion(f"text {name}", FinishReason.stop, 7, None), Completion("\u00e9", FinishReason.length, None, -1.5, "<think>\n")), 11),
    )
    for name in ("a", "b", "c")
}  # fmt: skip


def written(folder: Path) -> list[str]:
    """The lines of a store that holds TASKS."""
    store = SampleStore(folder, SETTINGS)
    for name, (prompt, reply) in TASKS.items():
        store.add(name, prompt, reply)
    return store.path.read_text().splitlines()


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return written(tmp_path_factory.mktemp("whole"))


def loaded(path: Path, content: bytes) -> dict[str, Reply] | None:
    """What a store makes of a file, read twice; None if it refuses it with a sentence. Another reply can be added to it."""

    def read() -> dict[str, Reply]:
        store = SampleStore(path.parent, SETTINGS)
        store.check()
        store.load()
        return {name: reply for name, (prompt, _) in TASKS.items() if (reply := store.get(name, prompt)) is not None}

    path.write_bytes(content)
    found = outcome_or_sentence(read, path)
    if found is not None:
        store = SampleStore(path.parent, SETTINGS)
        store.load()
        store.add("a", *TASKS["a"])
        assert read() == {**found, "a": TASKS["a"][1]}
    return found


@hypothesis.given(data=hypothesis.strategies.data())
@hypothesis.settings(REPEATED, max_examples=60)
def test_damage_costs_no_more_than_the_lines_it_is_in(
    data: hypothesis.strategies.DataObject, lines: list[str], tmp_path: Path
) -> None:
    """Each reply is the one that was drawn, or none. With a whole first line, every line that is untouched counts."""
    first, *rest = lines
    whole = "\n".join(rest).encode() + b"\n"
    damaged = data.draw(damaged_bytes(whole))
    found = loaded(tmp_path / "samples.jsonl", first.encode() + b"\n" + damaged)
    assert found is not None and all(reply == TASKS[name][1] for name, reply in found.items())
    untouched = set(damaged.split(b"\n")[:-1]) & set(whole.splitlines())
    assert {json.loads(line)["task"] for line in untouched} <= set(found)
    everywhere = loaded(tmp_path / "samples.jsonl", data.draw(damaged_bytes(first.encode() + b"\n" + whole)))
    assert everywhere is None or all(reply == TASKS[name][1] for name, reply in everywhere.items())


@hypothesis.given(data=hypothesis.strategies.data())
@hypothesis.settings(REPEATED, max_examples=100)
def test_values_of_other_kinds_are_drawn_again(
    data: hypothesis.strategies.DataObject, lines: list[str], tmp_path: Path
) -> None:
    """Also in a line of an earlier version, which has no checksum: what comes back is of the right kinds."""
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for record in records:
        del record["crc32"]
    number = data.draw(hypothesis.strategies.integers(0, 3))
    records[number] = data.draw(damaged_value(records[number]))
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    found = loaded(tmp_path / "samples.jsonl", content)
    assert found is not None or number == 0
    for name, reply in (found or {}).items():
        assert reply == TASKS[name][1] or number == " abc".index(name)
        for completion in reply.completions:
            assert isinstance(completion.finish_reason, FinishReason) and type(completion.num_tokens) in (int, type(None))
            completion.whole.encode("utf-8")
    assert set(found or TASKS) >= set(TASKS) - {" abc"[number]}


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        '{"task": "a", "completions": []}',
        '{"task": "a", "prompt": "p", "num_prompt_tokens": 1, "too_long": "", "completions": [{"text": ["parts"], "finish_reason": "stop", "num_tokens": 1, "logprob": null}]}',
        '{"task": "a", "prompt": "p", "num_prompt_tokens": 1, "too_long": "", "completions": [{"text": "a", "finish_reason": "odd", "num_tokens": 1, "logprob": null}]}',
        '{"task": "a", "prompt": "p", "num_prompt_tokens": 1, "too_long": "", "completions": ["text"]}',
    ],
)  # fmt: skip
def test_a_damaged_line_is_named_and_left(
    line: str, lines: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join([lines[0], lines[1], line, *lines[2:]]) + "\n")
    before = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        assert SampleStore(tmp_path, SETTINGS).load() == 3
    assert f"{path} is damaged in line 3 (" in caplog.text and "its task is drawn again" in caplog.text
    assert len(caplog.records) == 1 and path.read_bytes() == before


@pytest.mark.parametrize("text", ['{"settings": null}', '{"task": "a"}', "[]", '{"settings": {"seed": 0}, "crc32": 5}'])
def test_a_damaged_first_line_is_a_sentence(text: str, tmp_path: Path) -> None:
    """Without the settings nobody knows what the replies are of."""
    path = tmp_path / "samples.jsonl"
    path.write_text(text + "\n")
    for read in (SampleStore(tmp_path, SETTINGS).load, SampleStore(tmp_path, SETTINGS).check):
        with pytest.raises(
            ValueError, match=r"is damaged in line 1 .*remove the file, or choose another output_dir="
        ) as raised:
            read()
        assert str(path) in str(raised.value)
    assert path.read_text() == text + "\n"


def test_a_reply_to_another_prompt_is_drawn_again(tmp_path: Path) -> None:
    store, prompt = SampleStore(tmp_path, {}), (Message("user", "a"),)
    store.add("t", prompt, Reply((), 3, "too long"))
    assert store.get("t", prompt) == Reply((), 3, "too long")
    reply = Reply((Completion("a", FinishReason.stop, None, None, opened="<think>"),), 3, not_sent=("seed",))
    store.add("t", prompt, reply)
    again = SampleStore(tmp_path, {})
    assert again.load() == 1 and again.get("t", prompt) == reply
    settings, *_, newest = store.path.read_text().splitlines()
    record = json.loads(newest)
    del record["crc32"], record["not_sent"]
    record["opened"] = record["completions"][0].pop("opened")  # as an earlier version wrote it
    store.path.write_text(f"{settings}\n{json.dumps(record)}\n")
    assert again.load() == 1 and again.get("t", prompt) == replace(reply, not_sent=())
    assert store.get("t", prompt) == reply and store.get("t", (Message("user", "b"),)) is None


def test_a_second_start_does_not_touch_what_the_first_is_writing(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, {"seed": 1})
    store.add("t", (Message("user", "a"),), Reply((), 3))
    with store.path.open("a") as file:
        file.write('{"task": "half')
    before = store.path.read_bytes()
    SampleStore(tmp_path, {"seed": 1}).check()
    assert store.path.read_bytes() == before
    with pytest.raises(ConfigError, match="seed=1, now seed=2"):
        SampleStore(tmp_path, {"seed": 2}).check()
    assert SampleStore(tmp_path, {"seed": 1}).load() == 1 and len(store.path.read_bytes()) < len(before)
