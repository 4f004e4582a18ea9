"""The keys in a config.yaml, before they are typed.

    node = read_config(Path("runs/quickstart/a/config.yaml"))     # DictConfig
    entry = pop_entry(node, path)                                 # "pretrain_encoder"
    entry, settings = saved_entry(path)                           # both, and the settings plain
    split = saved_key(path, "evaluation.split")                   # one key; None: it has none

Typing them is arclab.config.compose.thaw_run.
"""

from __future__ import annotations

import io
from collections.abc import MutableMapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arclab.entries import ENTRIES
from arclab.files import DamagedFile, read_text, short

ENTRY = "entry"  # the key of a saved configuration that says which entry it is of
_MAX_DEPTH = 20  # of a saved configuration; the deepest key has 4 parts


def pop_entry(node: MutableMapping[Any, Any], path: Path) -> str:
    """Take the entry script out of a saved configuration. Older ones have none: they are of pretrain_encoder.py."""
    entry = node.pop(ENTRY, "pretrain_encoder")
    if not isinstance(entry, str) or entry not in ENTRIES:
        raise DamagedFile(path, f"entry={short(entry)} is no entry script of this version: {', '.join(ENTRIES)}")
    return entry


def read_config(path: Path) -> DictConfig:
    """The keys of a saved configuration, not typed. DamagedFile if it has none."""
    remedy = "restore it, or remove the run folder"
    text = read_text(path, remedy=remedy)
    try:
        require_plain(text)
        node = OmegaConf.load(io.StringIO(text))
    except OSError as error:  # OmegaConf's word for a number or a sentence where keys belong
        raise DamagedFile(path, "no keys", remedy=remedy) from error
    except (ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise DamagedFile(path, str(error).splitlines()[0], remedy=remedy) from error
    if not isinstance(node, DictConfig):
        raise DamagedFile(path, "no keys", remedy=remedy)
    return node


def saved_entry(path: Path) -> tuple[str, dict[str, Any]]:
    """(entry, plain settings) of a saved configuration, parsed once for all who ask of a run. DamagedFile, OSError as of
    read_config."""
    written = path.stat()
    entry, settings = _parsed(path, written.st_mtime_ns, written.st_size)
    return entry, dict(settings)


@lru_cache(maxsize=64)
def _parsed(path: Path, changed_ns: int, num_bytes: int) -> tuple[str, dict[str, Any]]:
    """changed_ns, num_bytes: of the file."""
    node = read_config(path)
    entry = pop_entry(node, path)
    try:
        plain = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise DamagedFile(path, str(error).splitlines()[0]) from error
    assert isinstance(plain, dict)
    return entry, {str(key): value for key, value in plain.items()}


def require_plain(text: str) -> None:
    """ValueError for what freeze() never writes and what would cost minutes or all memory to read: aliases, each of which
    OmegaConf replaces by a copy of what it stands for, and endless nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has aliases (*name), which no saved configuration has")
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deep")


def saved_key(path: Path, key: str) -> Any:
    """One dotted key of a saved configuration; None if it has none. DamagedFile, OSError as of read_config."""
    return OmegaConf.select(read_config(path), key)
