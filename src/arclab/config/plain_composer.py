"""Composing and typing in about a millisecond, for lists of jobs: the plain part of Hydra's language, without Hydra.

    composer = PlainComposer()
    config = composer.compose("pretrain_encoder", ["experiment=phase1_overfit", "encoder=lpn", "name=a"])
    config = composer.thaw(Path("runs/phase1_overfit/a/config.yaml"))

Hydra needs a quarter of a second for one configuration. What the files in conf/ use of it is little: groups, `_self_`,
`override`, `optional`, `# @package _global_`, `${absolute.key}`, and overrides key=plain_value and key=["text","text"].
Anything else, and anything that is wrong, is given to Hydra and OmegaConf (config/compose.py), so that there is one set of
messages and no second dialect. A test composes every experiment, group option and line of jobs.txt both ways and compares.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml

from arclab.config import compose as slow
from arclab.config import other_kinds
from arclab.config.saved_file import pop_entry, require_plain
from arclab.entries import ENTRIES, load
from arclab.files import hints_of

Node = dict[str, Any]

_PLAIN_OVERRIDE = re.compile(r"""([A-Za-z_][\w/.]*)=([\w./+@-]*|\["[^"\\$]*"(?:,"[^"\\$]*")*\])""")
_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
_INT = re.compile(r"[+-]?(0|[1-9]\d*)")
_FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][+-]?\d+|\.\d+[eE][+-]?\d+)")
# Words and numbers that YAML or Hydra's grammar read in ways of their own.
_SPECIAL = re.compile(r"[+-]?(inf|nan)|[+-]?[\d_]*_\d[\d_.]*|[+-]?0\d+|.*=.*", re.IGNORECASE)


class NotPlain(Exception):
    """Beyond this module's part of the language, or wrong: Hydra decides."""


_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML can be built without libyaml


class _Loader(_FastLoader):
    """YAML as OmegaConf reads it: 1e-4 is a float, dates are text, and no key stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise NotPlain
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(("timestamp", "float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)"
        r"|\.[0-9_]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


@dataclass(frozen=True, slots=True)
class _Source:
    """One file of conf/. body: its keys without `defaults`."""

    is_global: bool
    defaults: tuple[Any, ...]
    body: Node


class PlainComposer:
    """Composes configurations of one conf folder; every file is read once."""

    def __init__(self, conf_dir: Path = slow.CONF_DIR) -> None:
        self._conf_dir = conf_dir
        self._sources: dict[str, _Source | None] = {}

    def compose(self, entry: str, overrides: Sequence[str]) -> Any:
        """As arclab.config.compose.compose_run, which also writes the error messages."""
        row = ENTRIES[entry]
        slow.require_free(load(row.schema), overrides)
        slow.require_of_script(row.script, overrides)
        try:
            if row.conf_dir is not None:
                raise NotPlain
            return type_node(self._compose(row.config, slow.overrides_for(entry, overrides)), load(row.schema))
        except NotPlain:
            return slow.compose_run(entry, overrides)

    def thaw(self, path: Path) -> Any:
        """As arclab.config.compose.thaw_run."""
        try:
            text = path.read_text(encoding="utf-8")
            require_plain(text)  # first: libyaml's tree of 100,000 levels ends the process
            node = yaml.load(text, _Loader)
            entry = pop_entry(node, path) if isinstance(node, dict) else "pretrain_encoder"
            return type_node(node, load(ENTRIES[entry].schema))
        except (NotPlain, OSError, yaml.YAMLError, ValueError):  # UnicodeDecodeError is a ValueError
            return slow.thaw_run(path)

    def overruled(self, entry: str, overrides: Sequence[str]) -> list[str]:
        """Sentences on chosen group options that do not count: the experiment (or conf/local) sets the same keys afterwards;
        and on what an encoder changes beside its kind, where the experiment has one of its own.

        Only values are compared that the override's files set and the overrides do not. Nothing for overrides that are not
        plain.
        """
        config_name, overrides = ENTRIES[entry].config, slow.overrides_for(entry, overrides)
        try:
            final = dict(_leaves(self._merged(config_name, overrides), ""))
            parts = [split_override(override) for override in overrides]
            found = [
                f"{group}={option} says {key}={_text(alone)}, but the run has {key}={_text(final[key])}, set after it by the "
                f"experiment or conf/local; set {key} itself."
                for group, option in parts
                if group != "experiment" and (self._conf_dir / group).is_dir()
                for key, alone in _leaves(self._merged(config_name, [f"{group}={option}"]), "")
                if key.startswith(f"{group.replace('/', '.')}.") and final.get(key, alone) != alone and not _is_set(key, parts)
            ]
            return [*found, *self._replaced(config_name, overrides, parts, final)]
        except NotPlain:
            return []

    def _compose(self, config_name: str, overrides: Sequence[str]) -> Node:
        root = self._merged(config_name, overrides)
        schema = load(next(entry.schema for entry in ENTRIES.values() if entry.config == config_name))
        slow.fit_to_encoder(root, schema, overrides, self._conf_dir)
        return _resolved(root, root)

    def _replaced(
        self, config_name: str, overrides: Sequence[str], parts: Sequence[tuple[str, str]], final: Node
    ) -> Iterator[str]:
        """What the experiment's own encoder has and the one chosen in its place changes: the two differ in more than their
        kind."""
        node = other_kinds.NODE
        option = next((option for group, option in parts if group == node), None)
        kept = [override for override in overrides if not override.startswith((f"{node}=", f"{node}.", f"{node}/"))]
        experiment = self._source(f"experiment/{dict(parts).get('experiment')}")
        if option is None or experiment is None or not any(f"override /{node}" in item for item in experiment.defaults):
            return
        before = dict(_leaves(self._merged(config_name, kept), ""))
        changed = [
            f"{key} from {_text(value)} to {_text(final[key])}"
            for key, value in before.items()
            if key.startswith(f"{node}.") and key in final and final[key] != value
            if key != f"{node}.kind" and not _is_set(key, parts)
        ]
        if changed:
            yield (
                f"{node}={option} changes more than the kind of the experiment's own encoder: {', '.join(changed)}; set these "
                "keys if the runs are to differ in the encoder alone."
            )

    def _merged(self, config_name: str, overrides: Sequence[str]) -> Node:
        """Everything put together; interpolations are still text."""
        choices: dict[str, str] = {}
        values: list[tuple[str, Any]] = []
        for override in overrides:
            key, text = split_override(override)
            if (self._conf_dir / key).is_dir():
                if slow.is_base(text) or text.startswith("["):
                    raise NotPlain
                choices[key] = text
            else:
                values.append((key, parse_plain(text)))
        tree = _Tree(self._source, dict(choices))
        root: Node = {}
        for package, body in tree.expand(config_name, ""):
            _merge(root, _nested(package, body))
        if not choices.keys() <= tree.used:
            raise NotPlain
        for key, value in values:
            _assign(root, key, value)
        return root

    def _source(self, path: str) -> _Source | None:
        if path not in self._sources:
            file = self._conf_dir / f"{path}.yaml"
            self._sources[path] = _read_source(file) if file.is_file() else None
        return self._sources[path]


def _leaves(node: Node, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def _is_set(key: str, parts: Sequence[tuple[str, str]]) -> bool:
    """By an override of its own, or by a group below (encoder/context below encoder)."""
    return any(key == name or key.startswith(f"{name.replace('/', '.')}.") for name, _ in parts if "." in name or "/" in name)


def split_override(override: str) -> tuple[str, str]:
    """key and text of a plain override. NotPlain for sweeps, quotes, other lists, +key, ~key."""
    match = _PLAIN_OVERRIDE.fullmatch(override)
    if match is None:
        raise NotPlain
    return match[1], match[2]


def parse_plain(text: str) -> Any:
    """The value of an unquoted word, or of a list of texts in double quotes, as Hydra's grammar reads it."""
    if text.startswith("["):
        return re.findall(r'"([^"]*)"', text)
    lower = text.lower()
    if lower in ("true", "false"):
        return lower == "true"
    if lower == "null":
        return None
    if _SPECIAL.fullmatch(text):
        raise NotPlain
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _read_source(file: Path) -> _Source:
    text = file.read_text(encoding="utf-8")
    header = re.match(r"\s*#\s*@package\s+(\S+)", text)
    node = yaml.load(text, _Loader) or {}
    if not isinstance(node, dict) or (header and header[1] != "_global_"):
        raise NotPlain
    defaults = tuple(node.pop("defaults", ("_self_",)))
    return _Source(header is not None, defaults, node)


class _Tree:
    """Hydra's defaults tree. choices: group -> option, the command line's first; an override further down the list wins."""

    def __init__(self, source: Any, choices: dict[str, str]) -> None:
        self._source, self._choices, self.used = source, choices, set[str]()

    def expand(self, path: str, package: str, *, is_optional: bool = False) -> list[tuple[str, Node]]:
        """(package, body) of the file and everything it names, in the order of merging."""
        source = self._source(path)
        if source is None and is_optional:
            return []
        if source is None:
            raise NotPlain
        package = "" if source.is_global else package
        items = [item for item in source.defaults if not self._is_override(item)]
        if "_self_" not in items:
            if items:
                raise NotPlain
            items = ["_self_"]
        if source.is_global and items != ["_self_"]:
            raise NotPlain
        parts = [self._item(item, path, package, source) for item in reversed(items)]
        return [part for expanded in reversed(parts) for part in expanded]

    def _is_override(self, item: Any) -> bool:
        key, option = next(iter(item.items())) if isinstance(item, dict) else ("", None)
        if not key.startswith("override "):
            return False
        group = key.removeprefix("override ").strip()
        if not group.startswith("/") or not isinstance(option, str):
            raise NotPlain
        self._choices.setdefault(group[1:], option)
        return True

    def _item(self, item: Any, path: str, package: str, source: _Source) -> list[tuple[str, Node]]:
        folder = path.rpartition("/")[0]
        if item == "_self_":
            return [(package, source.body)]
        if isinstance(item, str) and re.fullmatch(r"\w+", item):
            return self.expand(f"{folder}/{item}" if folder else item, package)
        if not isinstance(item, dict) or len(item) != 1:
            raise NotPlain
        key, default = next(iter(item.items()))
        name = key.removeprefix("optional ").strip()
        if not re.fullmatch(r"\w+", name) or not (default is None or isinstance(default, str)):
            raise NotPlain
        group = f"{folder}/{name}" if folder else name
        self.used.add(group)
        option = self._choices.get(group, default)
        if option is None or option == "null":
            return []
        child = f"{package}.{name}" if package else name
        return self.expand(f"{group}/{option}", child, is_optional=name != key)


def _nested(package: str, body: Node) -> Node:
    for name in reversed(package.split(".") if package else []):
        body = {name: body}
    return body


def _merge(into: Node, other: Node) -> None:
    for key, value in other.items():
        present = into.get(key)
        if isinstance(value, dict):
            target = present if isinstance(present, dict) else {}
            into[key] = target
            _merge(target, value)
        else:
            into[key] = value


def _assign(root: Node, key: str, value: Any) -> None:
    """A key that exists and is no node gets a value; everything else is Hydra's to refuse."""
    *parents, leaf = key.split(".")
    node: Any = root
    for name in parents:
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, dict) or leaf not in node or isinstance(node[leaf], dict):
        raise NotPlain
    node[leaf] = value


def _resolved(node: Any, root: Node, depth: int = 0) -> Any:
    if isinstance(node, dict):
        return {key: _resolved(value, root, depth) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolved(value, root, depth) for value in node]
    if not isinstance(node, str) or "${" not in node:
        return node
    match = _INTERPOLATION.fullmatch(node)
    if match is None or depth > 8:
        raise NotPlain
    value: Any = root
    for name in match[1].split("."):
        if not isinstance(value, dict) or name not in value:
            raise NotPlain
        value = value[name]
    return _resolved(value, root, depth + 1)


def type_node(node: Any, schema: Any) -> Any:
    """The typed configuration of a plain dictionary; NotPlain if a type is off or a rule is broken."""
    config = _convert(node, schema)
    if any(True for _ in slow.broken_rules(config)):
        raise NotPlain
    return config


@cache
def _hints(schema: type) -> dict[str, Any]:
    hints = hints_of(schema)
    return {field.name: hints[field.name] for field in fields(schema)}


def _convert(value: Any, hint: Any) -> Any:
    """Only what needs no judgement: exact types, whole numbers for floats, names for enums."""
    if hint in slow.VARIANTS:
        hint = slow.VARIANTS[hint].get(value.get("kind", "") if isinstance(value, dict) else "")
    if isinstance(hint, type) and is_dataclass(hint):
        hints = _hints(hint)
        if isinstance(value, dict) and (of_the_run := getattr(hint, "OF_THE_RUN", ())):
            value = {key: item for key, item in value.items() if key not in of_the_run}
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise NotPlain
        return hint(**{key: _convert(value[key], hints[key]) for key in hints})
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType) and len(arguments) == 2 and type(None) in arguments:
        return None if value is None else _convert(value, next(a for a in arguments if a is not type(None)))
    if origin in (Union, UnionType) and type(value) in arguments:  # trainer.batch_size: a number or a word
        return value
    if origin is list and isinstance(value, list):
        return [_convert(item, arguments[0]) for item in value]
    if origin is dict and isinstance(value, dict):
        return {_convert(key, arguments[0]): _convert(item, arguments[1]) for key, item in value.items()}
    return _convert_leaf(value, hint)


def _convert_leaf(value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, Enum) and isinstance(value, str) and value in hint.__members__:
        return hint[value]
    if hint is float and not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    if hint in (int, bool, str) and type(value) is hint:
        return value
    raise NotPlain
