"""Help of the entry scripts: complete, in the words of conf/, and what it shows can be typed."""

from __future__ import annotations

import re
import shlex

import pytest

from arclab.config.compose import ConfigError, compose_run, entry_for, group_options, known_keys
from arclab.config.help import groups_of, help_text
from arclab.entries import ENTRIES, load
from arclab.launch import start as start_module
from arclab.launch.start import start


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_group_option_and_key_is_explained(entry: str) -> None:
    overview = help_text(entry, [])
    schema = load(ENTRIES[entry].schema)
    text = help_text(entry, groups_of(entry))
    for group in groups_of(entry):
        assert group in overview and all(
            f"{group}={option} " in text for option in group_options(group, ENTRIES[entry].script)
        ), group
        assert all(line.split(None, 1)[1:] for line in text.splitlines() if line.startswith(f"{group}=")), "without a word"
    keys = [key for key in known_keys(schema) if "." not in key]
    assert all(re.search(rf"\b{key}\b", overview) for key in keys)
    text = help_text(entry, [key for key in keys if key not in groups_of(entry)])
    assert "device" not in keys or re.search(r"^device +auto\|cpu\|cuda +auto$", text, re.MULTILINE)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_example_can_be_typed(entry: str) -> None:
    lines = [line.strip() for line in help_text(entry, []).splitlines() if line.startswith("  ") and ".py " in line]
    assert 3 <= len(lines) <= 8
    for line in lines:
        words = shlex.split(re.split(r" {3,}|(?<=\w)  +", line)[0])
        script = next(word for word in words if word.endswith(".py"))
        given = [re.sub(r"(=[^\[,]*),.*", r"\1", word) for word in words[words.index(script) + 1 :] if "=" in word]
        assert script == ENTRIES[entry].script and entry_for(script, given) == entry
        assert compose_run(entry, given)
    assert compose_run(entry, ENTRIES[entry].example)


def test_topics_that_are_none_and_words_of_other_projects() -> None:
    with pytest.raises(ConfigError, match=r"encodr is no group or key of pretrain_encoder\.py; did you mean encoder\?"):
        help_text("pretrain_encoder", ["encodr"])
    for word, key in (("epochs", "trainer.steps"), ("trainer.learning_rate", "lr"), ("num_steps", "trainer.steps")):
        with pytest.raises(ConfigError, match=rf"unknown key {word}; did you mean [\w.]*{key}\?"):
            compose_run("pretrain_encoder", [f"+{word}=3"])


def test_help_and_cfg_run_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(start_module, "load", lambda _: pytest.fail("something was run"))
    assert start("pretrain_encoder.py", ["--help"]) == 0 and start("pretrain_encoder.py", []) == 2
    assert start("evaluate.py", ["-m"]) == 2
    assert capsys.readouterr().out.count("usage: python ") == 3
    assert start("evaluate.py", ["solver=program_sampling", "-h", "solver.sampling"]) == 0
    assert re.search(r"solver\.sampling\.temperature +number +[\d.]+", capsys.readouterr().out)
    assert start("pretrain_encoder.py", ["--cfg", "job", "experiment=quickstart", "name=a", "seed=7"]) == 0
    assert capsys.readouterr().out.startswith("entry: pretrain_encoder\n")
