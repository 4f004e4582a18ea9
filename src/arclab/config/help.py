"""What an entry script says of itself: python pretrain_encoder.py --help, and --help TOPIC for a group or a key.

    text = help_text("pretrain_encoder", [])             # what it does, examples, every group with its options
    text = help_text("pretrain_encoder", ["encoder"])    # the options of a group, and the keys below it with type and default

The words are those of conf/: the comment at the head of each file. Examples stand in the root's. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import yaml

from arclab.config.compose import CONF_DIR, VARIANTS, ConfigError, closest_key, compose_run, flat, group_options
from arclab.entries import ENTRIES, choice_key, choices_of, load
from arclab.files import hints_of

_WIDTH = 26


def help_text(entry: str, topics: Sequence[str]) -> str:
    """ConfigError: a topic is neither a group nor a key of the entry."""
    if not topics:
        return _overview(entry) + "\n"
    defaults = flat(compose_run(entry, ENTRIES[entry].example))
    return "\n".join(_about(entry, topic, defaults) for topic in topics) + "\n"


def _overview(entry: str) -> str:
    row = ENTRIES[entry]
    usage = (
        f"usage: python {row.script} KEY=VALUE ...     -m KEY=A,B: a sweep     --cfg: what it would run     --help GROUP|KEY"
    )
    groups = [f"  {group:<{_WIDTH}}{', '.join(group_options(group, row.script))}" for group in groups_of(entry)]
    key, others = choice_key(row.script), [choice for choice in choices_of(row.script) if choice != row.choice]
    more = [f"With another {key}: python {row.script} {key}={f' or {key}='.join(others)} --help"] if others else []
    keys = ", ".join(field.name for field in fields(load(row.schema)) if field.name not in groups_of(entry))
    return "\n".join(
        [usage, "", _head(_root_file(entry)), "", "Groups (GROUP=OPTION):", *groups, "", f"Other keys: {keys}", *more]
    )


def _about(entry: str, topic: str, defaults: Mapping[str, Any]) -> str:
    topic = topic.rstrip(".=").replace("/", ".") if topic not in groups_of(entry) else topic
    options = group_options(topic, ENTRIES[entry].script) if topic in groups_of(entry) else []
    lines = [
        f"{topic}={option:<{_WIDTH - len(topic) - 1}} {_head(CONF_DIR / topic / f'{option}.yaml', 1)}" for option in options
    ]
    dotted = topic.replace("/", ".")
    keys = {key: kind for key, kind in keys_of(entry).items() if key == dotted or key.startswith(f"{dotted}.")}
    if not lines and not keys:
        near = closest_key(topic, entry)
        raise ConfigError(f"{topic} is no group or key of {ENTRIES[entry].script}; {near}")
    lines += [""] if lines and keys else []
    lines += [f"{key:<{_WIDTH + 8}} {kind:<34} {_default(key, defaults)}".rstrip() for key, kind in keys.items()]
    return "\n".join([*lines, *([f"(defaults: of {' '.join(ENTRIES[entry].example)})"] if keys else [])])


def groups_of(entry: str) -> list[str]:
    """The groups that the root of an entry lists, the experiment, and groups below them (encoder/context)."""
    found = [next(iter(item)).removeprefix("optional ") for item in _defaults_list(_root_file(entry)) if isinstance(item, dict)]
    named = [group for group in found if (CONF_DIR / group).is_dir() and group != "local"]
    below = [f"{group}/{path.name}" for group in named for path in sorted((CONF_DIR / group).iterdir()) if path.is_dir()]
    return sorted([*named, *below], key=lambda group: (group != "experiment", group))


def keys_of(entry: str) -> dict[str, str]:
    """Dotted key -> its type in words, of every leaf, of all kinds of encoders and models."""
    found: dict[str, str] = {}
    for key, words in _keys(load(ENTRIES[entry].schema), ""):
        # Kinds may differ in the type of a key: it is all that one of them takes.
        found[key] = "|".join(dict.fromkeys([*found.get(key, words).split("|"), *words.split("|")]))
    return found


def _root_file(entry: str) -> Path:
    row = ENTRIES[entry]
    return (Path(row.conf_dir) if row.conf_dir else CONF_DIR) / f"{row.config}.yaml"


def _defaults_list(file: Path) -> list[Any]:
    return list((yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("defaults", []))


def _head(file: Path, num_lines: int | None = None) -> str:
    """The comment at the beginning of a file, without the word for Hydra."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = re.match(r"(#[^\n]*\n?)*", "\n".join(lines) + "\n")
    assert comment is not None
    words = [line.removeprefix("#").removeprefix(" ") for line in comment[0].splitlines() if "@package" not in line]
    return "\n".join(words[:num_lines])


def _keys(schema: Any, prefix: str) -> Iterator[tuple[str, str]]:
    hints = hints_of(schema)
    for name in (field.name for field in fields(schema)):
        kind = hints[name]
        nodes = [v for v in (VARIANTS[kind].values() if kind in VARIANTS else [kind, *get_args(kind)]) if is_dataclass(v)]
        for node in nodes:
            yield from _keys(node, f"{prefix}{name}.")
        if not nodes:
            yield prefix + name, _words(kind)


def _words(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(member.name for member in kind)
    if arguments := get_args(kind):
        inner = "|".join("null" if argument is type(None) else _words(argument) for argument in arguments)
        return f"list of {inner}" if getattr(kind, "__origin__", None) is list else inner
    return {int: "whole number", float: "number", bool: "true|false", str: "text"}.get(kind, str(kind))


def _default(key: str, defaults: Mapping[str, Any]) -> str:
    if key not in defaults:
        return "(of another option)"
    value = defaults[key]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
