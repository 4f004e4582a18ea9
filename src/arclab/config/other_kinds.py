"""What an experiment sets for whichever encoder is chosen: keys that this encoder does not have are left out.

    leave_out(node, CONF_DIR, overrides, own=known_keys(schema, "encoder."), known=known_keys(ExperimentConfig))

So an experiment's layout, gain and depth hold for all of its encoders, and its TRM twin, which has none of them, still
composes. Only keys that the experiment's file or conf/local says are left out, and only those that some other kind has: a key
that the command line gives, or that nobody has, is refused later as it always was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

NODE = "encoder"


def leave_out(
    node: MutableMapping[Any, Any], conf_dir: Path, overrides: Sequence[str], *, own: Iterable[str], known: Iterable[str]
) -> None:
    """Removes keys below node's encoder in place. own: the dotted keys of the chosen kind; known: of all kinds."""
    given = {override.lstrip("+").partition("=")[0]: override.partition("=")[2] for override in overrides}
    files = [conf_dir / f"experiment/{given.get('experiment')}.yaml", conf_dir / "local/default.yaml"]
    said = {key for file in files if file.is_file() for key in _keys_in(file, file.stat().st_mtime_ns)}
    for key in said & (set(known) - set(own) - set(given)) if said else ():
        _remove(node, key.split("."))


@cache
def _keys_in(file: Path, changed_ns: int) -> frozenset[str]:
    """The dotted keys of leaves that a file sets below the encoder. changed_ns: when the file was written."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    body = content.get(NODE) if isinstance(content, dict) else None
    return frozenset(_leaves(body, f"{NODE}.")) if isinstance(body, dict) else frozenset()


def _leaves(node: dict[Any, Any], prefix: str) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _remove(node: Any, path: Sequence[str]) -> None:
    """The leaf, and a node that it leaves empty."""
    if len(path) == 1:
        node.pop(path[0], None)
    elif path[0] in node:
        _remove(node[path[0]], path[1:])
        if not node[path[0]]:
            node.pop(path[0])
