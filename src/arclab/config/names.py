"""What may be the name of a folder of runs: it also stands in commands, in Hydra's grammar, in SLURM's patterns and in
addresses. And which known name a wrong one is nearest to.

list(broken_name("name", "a=b"))        # a sentence
closest("evalute", ["train", "evaluate"])        # "did you mean evaluate?"
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

_MAX_LENGTH = 200  # a file name has at most 255 bytes


def broken_name(key: str, value: str) -> Iterator[str]:
    """A sentence if the value cannot be a name: letters, digits and ._+- only, the first one a letter, a digit or _."""
    if len(value) > _MAX_LENGTH or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", value):
        shown = value if len(value) <= 60 else f"{value[:60]}..."
        yield (
            f"{key}={shown!r} becomes a folder name: it must be letters (a-z), digits, dots and _ + - (the first one a "
            f"letter, a digit or _), at most {_MAX_LENGTH} of them; rename it."
        )


def broken_path(key: str, value: str) -> Iterator[str]:
    """A sentence if a folder's path cannot be handed to sbatch, which replaces %j and others, or on a line of its own."""
    if not value or any(sign in value for sign in "%\n\r\0"):
        yield (
            f"{key}={value!r} must be a path without percent signs (SLURM replaces them) and line breaks, and not empty; "
            "choose another folder."
        )


def closest(word: str, known: Sequence[str]) -> str:
    """The end of a sentence that refuses a word: the known one that it looks like, else all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"choose {', '.join(known)}."
