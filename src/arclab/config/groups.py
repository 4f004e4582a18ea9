"""The groups of conf/ and what each can be set to. Composes nothing and raises nothing: compose.py turns sentences into errors.

    group_options("dataset", "pretrain_memgen.py")       # ["arc_programs", "arithmetic", "gsm8k"]

A file that goes with some scripts only says so in the comment at its head: "# For: pretrain_memgen.py". One that goes with one
method or solver of its script alone says that, too, and chooses it: "# For: self_improve.py method=seal_fewshot".
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
    return tuple(word for word in _goes_with(group, option) if "=" not in word)


def implied_choices(key: str, overrides: Sequence[str]) -> list[str]:
    """The methods (key: method) or solvers that the options among the overrides go with, where they say one."""
    options = [override.lstrip("+~").partition("=")[::2] for override in overrides]
    words = [word for group, option in options if group and option for word in _goes_with(group, option)]
    return list(dict.fromkeys(word.removeprefix(f"{key}=") for word in words if word.startswith(f"{key}=")))


def _goes_with(group: str, option: str) -> tuple[str, ...]:
    """The words of its line."""
    file = CONF_DIR / group / f"{option}.yaml"
    if not file.is_file():
        return ()
    with file.open(encoding="utf-8") as lines:
        head = next((line for line in itertools.takewhile(lambda line: line.startswith("#"), lines) if "# For: " in line), "")
    return tuple(head.partition("# For: ")[2].replace(",", " ").split())


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
