r"""The process that compares answers by math-verify. Started by answers.py, by its path; not for use by hand.

A line of standard input is a JSON list [answer, gold, seconds]; the line that it writes back is 1 or 0. It ends when its input
does. math-verify can get stuck in a number that never ends being computed, where no exception reaches it: an alarm that nobody
handles ends the whole process then, also if whoever started it is gone. It imports nothing of arclab.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import signal
import sys
from typing import Any

_MEMORY_BYTES = 4 << 30
_GRACE_S = 5  # after the limit of the one who asks, who is to be first


def is_equal(answer: str, gold: str) -> bool:
    """Whether two texts of boxes mean the same, as math-verify sees it."""
    from math_verify import LatexExtractionConfig, parse, verify

    def parsed(text: str) -> list[Any]:
        # The timeouts of math-verify are off: they take the alarm.
        return parse(f"\\boxed{{{text}}}", extraction_config=[LatexExtractionConfig(boxed_match_priority=0)], parsing_timeout=0)

    return bool(verify(parsed(gold), parsed(answer), timeout_seconds=0))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C belongs to the one who asked
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        sys.stdout.write(f"{' '.join(str(error).split())}\n")
        return
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        answer, gold, limit_s = json.loads(line)
        signal.alarm(math.ceil(limit_s) + _GRACE_S)
        equal = is_equal(answer, gold)
        signal.alarm(0)
        sys.stdout.write(f"{int(equal)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
