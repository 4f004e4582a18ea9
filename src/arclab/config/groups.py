"""The groups of conf/ and what each can be set to. Composes nothing and raises nothing: compose.py turns sentences into errors.

    group_options("dataset", "pretrain_memgen.py")       # ["arc_programs", "arithmetic", "gsm8k"]

A file that goes with some scripts only says so in the comment at its head: "# For: pretrain_memgen.py". Of a script with
several methods it may also say which one: "# For: self_improve.py method=program_edit".
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from pathlib import Path

CONF_DIR = Path(__file__).resolve().parents[3] / "conf"


def no_option(group: str, option: str, script: str | None = None) -> str:
    options = group_options(group, script)
    near = difflib.get_close_matches(option, options, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{group}={option} is not an option of the group {group}{hint}; choose {', '.join(options)}."


def group_options(group: str, script: str | None = None) -> list[str]:
    """What a group can be set to: its files, but for those that others start from (_base.yaml). script: those alone that go
    with it."""
    options = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml") if not is_base(path.stem))
    return [option for option in options if script is None or script in (scripts_of(group, option) or (script,))]


def scripts_of(group: str, option: str) -> tuple[str, ...]:
    """The scripts that an option goes with, by a line of the comment at its head: "# For: pretrain_memgen.py". Empty: it does
    not say so, and goes with all that have the group."""
    return tuple(word for word in _for_line(group, option) if "=" not in word)


def value_in(override: str, wanted: str) -> str | None:
    """The value that an override gives the key `wanted`; None: it is of another key."""
    key, equals, value = override.lstrip("+").partition("=")
    return value if key == wanted and equals else None


def meant_by_experiment(overrides: Sequence[str], key: str, chosen: Sequence[str]) -> tuple[str | None, str]:
    """The entry of its script that the experiment of a command line belongs to, by the same line: the value of key (method or
    solver) there, None if it says none; and the sentence if another one is chosen, "" if not."""
    names = [name for override in overrides if (name := value_in(override, "experiment")) is not None]
    words = [(name, word) for name in names for word in _for_line("experiment", name) if word.startswith(f"{key}=")]
    if not words:
        return None, ""
    (name, word), *_ = words
    others = [each for each in chosen if f"{key}={each}" != word]
    fault = f"experiment={name} is for {word}, not for {key}={others[0]}; drop one of them." if others else ""
    return word.partition("=")[2], fault


def _for_line(group: str, option: str) -> list[str]:
    file = CONF_DIR / group / f"{option}.yaml"
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as lines:
        head = next((line for line in itertools.takewhile(lambda line: line.startswith("#"), lines) if "# For: " in line), "")
    return head.partition("# For: ")[2].replace(",", " ").split()


def is_base(option: str) -> bool:
    return option.startswith("_")


def misplaced(script: str, overrides: Sequence[str]) -> str:
    """The sentence for the first option of a group that is for other scripts; "" if there is none."""
    for override in overrides:
        group, _, option = override.lstrip("+~").partition("=")
        others = scripts_of(group, option) if option and group else ()
        if others and script not in others:
            fitting = group_options(group, script)
            choices = f"choose {', '.join(fitting)}" if fitting else f"drop {group}"
            return f"{group}={option} is for {' and '.join(others)}, not for {script}; {choices}."
    return ""
