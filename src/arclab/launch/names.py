"""What a run of a sweep is called, and with it its folder: the same for python -m and for a line of jobs.txt.

run_name("retest", {"encoder": "lpn", "halting.halt_max_steps": "8"})     # retest_encoder-lpn_halt-max-steps-8
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

_MAX_NAME = 100


def run_name(base: str, values: dict[str, str]) -> str:
    """A folder name that says what was swept: base, then key-value for each, keys as short as they can be told apart."""
    leaf = {key: re.split(r"[./]", key)[-1] for key in values}
    shared = Counter(leaf.values())
    short = {key: leaf[key] if shared[leaf[key]] == 1 else key for key in values}
    parts = [base] if base else []
    parts += [f"{short[key]}-{value}" for key, value in values.items()]
    name = "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", part).strip("-.") for part in parts)
    if len(name) > _MAX_NAME:
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{name[: _MAX_NAME - 9]}-{digest}"
    return name
