"""Completion of the command arclab: its words, the settings of train and evaluate, and their values.

    eval "$(arclab completion bash)"        # in ~/.bashrc
    eval "$(arclab completion zsh)"         # in ~/.zshrc, after compinit

    candidates(["train", "encoder=st"])     # ["encoder=standard", "encoder=standard_tiny"]

The shells ask `arclab completion words WORD ...`, the last of which is being typed. A key is offered up to its next dot. Where
nothing is offered the shell offers files. Nothing here imports torch or Hydra: an answer takes a fraction of a second.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from arclab.cli.commands import COMMANDS
from arclab.config.compose import ConfigError, entry_for, group_options
from arclab.config.help import groups_of, keys_of
from arclab.config.names import closest
from arclab.entries import choice_key, choices_of
from arclab.launch.__main__ import parsers

SHELLS = ("bash", "zsh")
_TEMPLATES = Path(__file__).parent / "templates"
_OF_SCRIPTS = ("--cfg", "--help", "--multirun")
_OF_SCOREBOARD = ("--help", "--markdown")
_OF_COMPARE = ("--help", "--output")


def main(argv: Sequence[str]) -> int:
    if argv and argv[0] == "words":
        sys.stdout.write("".join(f"{word}\n" for word in candidates(argv[1:])))
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write((__doc__ or "").rstrip() + "\n")
        return 0 if argv else 2
    if argv[0] not in SHELLS or len(argv) > 1:
        raise ConfigError(f"completion is there for {' and '.join(SHELLS)}, not for {argv[0]}; {closest(argv[0], SHELLS)}")
    sys.stdout.write((_TEMPLATES / f"completion.{argv[0]}").read_text(encoding="utf-8"))
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """What the last word may become. words: those after arclab; the last one is being typed and may be empty."""
    *before, typed = words or [""]
    if not before:
        return _starting(typed, [*COMMANDS, "--help", "--version"])
    command = before[0]
    script = COMMANDS[command].script if command in COMMANDS else None
    if script is not None:
        return _of_script(script, before[1:], typed)
    if command == "queue":
        return _of_queue(before[1:], typed)
    fixed = {"scoreboard": _OF_SCOREBOARD, "compare": _OF_COMPARE, "completion": SHELLS}
    return _starting(typed, fixed.get(command, ())) if typed or command == "completion" else []


def _starting(typed: str, words: Sequence[str]) -> list[str]:
    """Options only if a dash was typed."""
    return [word for word in words if word.startswith(typed) and (typed.startswith("-") or not word.startswith("-"))]


def _of_queue(before: Sequence[str], typed: str) -> list[str]:
    _, of_commands = parsers()
    if not before:
        return _starting(typed, list(of_commands))
    if before[0] not in of_commands or not typed.startswith("-"):
        return []
    options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", of_commands[before[0]].format_help())
    return _starting(typed, sorted(set(options)))


def _of_script(script: str, before: Sequence[str], typed: str) -> list[str]:
    """Settings of an entry script: the one that solver= (or method=) chooses among what was typed before."""
    if typed.startswith("-"):
        return _starting(typed, _OF_SCRIPTS)
    try:
        entry = entry_for(script, [word for word in before if "=" in word])
    except ConfigError:
        return []
    groups, keys = groups_of(entry), keys_of(entry)
    if "=" in typed:
        return _values(script, typed, groups, keys)
    sign = "" if {"-h", "--help"} & set(before) else "="
    names = [*groups, *([choice_key(script)] if choices_of(script) else []), *keys]
    found = (_to_the_next_dot(name, len(typed)) for name in names if name.startswith(typed))
    return list(dict.fromkeys(name if name.endswith(".") else f"{name}{sign}" for name in found))


def _to_the_next_dot(name: str, start: int) -> str:
    end = name.find(".", start)
    return name if end < 0 else name[: end + 1]


def _values(script: str, typed: str, groups: Sequence[str], keys: dict[str, str]) -> list[str]:
    """KEY=VALUE for every value that can be listed: options of a group, words of a choice, true and false."""
    key, _, value = typed.partition("=")
    given, comma, _ = value.rpartition(",")  # a sweep: the last of several values is being typed
    if key == choice_key(script) and choices_of(script):
        known = choices_of(script)
    elif key in groups:
        known = group_options(key, script)
    else:
        known = [word for word in keys.get(key, "").split("|") if re.fullmatch(r"[a-z]\w*", word)]
        known = known if len(known) > 1 else []
    return _starting(typed, [f"{key}={given}{comma}{option}" for option in known])
