"""Is a short answer one of the right names? Exact match, and the words in common, after both are written the same way.

    exact("the  Seine.", ["Seine", "River Seine"])      # True
    f1("River Seine", ["Seine"])                         # 0.67
    told = tagged(reply, "answer")                       # what the last <answer>...</answer> holds; None: there is none

An answer that lists several names, or is much longer than the name it is compared with, is right for none of them: a model that
is paid for containing the right name would list many.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

_ARTICLES = frozenset({"a", "an", "the"})
_BETWEEN = re.compile(r"[,;/|\n]|\bor\b|\band\b", re.IGNORECASE)
_LONGEST = 2  # times as many words as the right name


def normalised(text: str) -> str:
    """Lower case, without accents, punctuation, articles and double spaces."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    plain = "".join(" " if character in string.punctuation else character for character in plain)
    return " ".join(word for word in plain.split() if word not in _ARTICLES)


def exact(answer: str, names: Sequence[str]) -> bool:
    own = normalised(answer)
    return own != "" and any(own == normalised(name) for name in names)


def f1(answer: str, names: Sequence[str]) -> float:
    """Of the name that it is nearest to: the harmonic mean of the shares of words in common."""
    return max((_f1(answer, name) for name in names), default=0.0)


def _f1(answer: str, name: str) -> float:
    mine, right = normalised(answer).split(), normalised(name).split()
    common = sum((Counter(mine) & Counter(right)).values())
    if not common or len(mine) > _LONGEST * len(right) or _num_names(answer) > _num_names(name):
        return 0.0
    return 2 * common / (len(mine) + len(right))


def _num_names(text: str) -> int:
    return sum(bool(normalised(part)) for part in _BETWEEN.split(text))


def tagged(reply: str, tag: str) -> str | None:
    """What stands in the last closed pair of tags, without white space around it."""
    _, opened, rest = reply.rpartition(f"<{tag}>")
    inner, closed, _ = rest.partition(f"</{tag}>")
    return inner.strip() if opened and closed else None
