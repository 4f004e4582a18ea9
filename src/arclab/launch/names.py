"""What a run of a sweep is called, and with it its folder: the same for python -m and for a line of jobs.txt.

run_name("retest", {"encoder": "lpn", "halting.halt_max_steps": "8"})     # retest_encoder-lpn_halt_max_steps-8
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

_MAX_NAME = 100


def run_name(base: str, values: dict[str, str]) -> str:
    """A folder name that says what was swept: base, then key-value for each, keys as short as they can be told apart."""
    leaves = {key: key.split(".")[-1] for key in values}
    uses = Counter(leaves.values())
    parts = [f"{_clean(leaf if uses[leaf] == 1 else key)}-{_clean(values[key])}" for key, leaf in leaves.items()]
    name = "_".join([base, *parts] if base else parts)
    if len(name) > _MAX_NAME:
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{name[: _MAX_NAME - 9]}-{digest}"
    return name


def _clean(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-.")
