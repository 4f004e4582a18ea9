r"""Is the answer of a reply the right one? Numbers are compared here, everything else by math-verify in processes of their own.

    checked = check_answers([("3 + 4 = 7.\nThe answer is \boxed{7}", "7"), ...])      # in order; checked[0].is_right
    answer = extract(r"so \boxed{\frac{1}{2}}")                                       # "\frac{1}{2}"

The answer is what the last closed \boxed{...} of the reply holds; a reply without one has no answer, which is wrong. 1,000 is
1000, $5 is 5, 0.5 is 1/2, and an answer may end with a full stop. math-verify also knows units, roots, sets and more. What it
cannot decide within timeout_s, or dies of twice, is wrong, and says so. A process is started only where one is needed. It
does not judge ARC grids: see arclab.programs and arclab.results.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from itertools import chain
from pathlib import Path
from queue import SimpleQueue

_CHECKER = Path(__file__).with_name("checker.py")
_START_S = 120.0  # it imports sympy, perhaps from a slow file system
_MAX_CHARS = 2000  # of an answer that math-verify gets to see; longer ones are no results
_MAX_DIGITS = 1000
_PIECES = re.compile(r"\\boxed\s*\{|\\[\\{}]|[{}]")
_NUMBER = re.compile(r"(-?)(\d+|\d{1,3}(?:,\d{3})+)(?:\.(\d+)|/(\d+))?", re.ASCII)
log = logging.getLogger(__name__)


class AnswerProblem(Enum):
    """Why an answer was not compared. no_answer: the reply has no box. timeout: too long a computation. died: it ended the
    process that compares, twice."""

    none = "none"
    no_answer = "no_answer"
    timeout = "timeout"
    died = "died"


@dataclass(frozen=True, slots=True)
class Checked:
    """answer: as the reply writes it, without white space around it; None where there is none. With a problem it is wrong."""

    answer: str | None
    is_right: bool
    problem: AnswerProblem = AnswerProblem.none


def check_answers(pairs: Sequence[tuple[str, str]], *, timeout_s: float = 10.0, num_workers: int = 2) -> list[Checked]:
    """pairs: (reply, right answer). ValueError: a right answer is empty, or math-verify cannot be started."""
    if blank := [number for number, (_, gold) in enumerate(pairs) if not gold.strip()]:
        raise ValueError(f"the right answer of reply {blank[0]} is empty; leave out what has no known answer.")
    answers = [extract(reply) for reply, _ in pairs]
    found: list[Checked | None] = [_decided(answer, gold.strip()) for answer, (_, gold) in zip(answers, pairs, strict=True)]
    # The same question is asked once.
    open_pairs = {
        (answer, gold.strip()): None
        for answer, (_, gold), decided in zip(answers, pairs, found, strict=True)
        if decided is None and answer is not None
    }
    if open_pairs:
        compared = _compared(list(open_pairs), timeout_s, num_workers)
        found = [
            compared[answer, gold.strip()] if decided is None and answer is not None else decided
            for answer, (_, gold), decided in zip(answers, pairs, found, strict=True)
        ]
        for problem in (AnswerProblem.timeout, AnswerProblem.died):
            if count := sum(checked.problem is problem for checked in compared.values()):
                log.warning("%d answers could not be compared (%s) and count as wrong", count, problem.value)
    checked = [each for each in found if each is not None]
    assert len(checked) == len(pairs)
    return checked


def is_right(reply: str, gold: str) -> bool:
    """check_answers of one reply."""
    return check_answers([(reply, gold)])[0].is_right


def extract(reply: str) -> str | None:
    r"""What the last closed \boxed{...} holds, without white space around it; None if there is none or it is empty. Time grows
    with the length of the reply alone, whatever is in it."""
    opened: list[int | None] = []  # where the text of each open brace begins; None for braces that are no box
    best: tuple[int, int] | None = None
    for piece in _PIECES.finditer(reply):
        text = piece.group()
        if text.startswith("\\boxed"):
            opened.append(piece.end())
        elif text == "{":
            opened.append(None)
        elif text == "}" and opened:
            start = opened.pop()
            if start is not None and (best is None or start > best[0]):
                best = (start, piece.start())
    answer = "" if best is None else reply[best[0] : best[1]].strip()
    return answer or None


def _decided(answer: str | None, gold: str) -> Checked | None:
    """None: math-verify is to say it."""
    if answer is None:
        return Checked(None, False, AnswerProblem.no_answer)
    if _plain(answer) == _plain(gold):
        return Checked(answer, True)
    if len(answer) > _MAX_CHARS or len(gold) > _MAX_CHARS:
        return Checked(answer, False)
    mine, right = _number(answer), _number(gold)
    if mine is not None and mine == right:
        return Checked(answer, True)
    # Of two whole numbers that differ there is nothing to say; 0.333333 and 1/3 are the same to math-verify.
    if mine is not None and right is not None and mine.denominator == right.denominator == 1:
        return Checked(answer, False)
    return None


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip()


def _number(text: str) -> Fraction | None:
    """A number as it is written in prose; None for everything else."""
    plain = _plain(text).removeprefix("\\").removeprefix("$").strip()
    match = _NUMBER.fullmatch(plain)
    if match is None or len(plain) > _MAX_DIGITS:
        return None
    sign, whole, decimals, divisor = match.groups()
    if divisor is not None and not int(divisor):
        return None
    value = Fraction(int(whole.replace(",", "")), int(divisor or 1))
    value += Fraction(int(decimals), 10 ** len(decimals)) if decimals else 0
    return -value if sign else value


def _compared(pairs: Sequence[tuple[str, str]], timeout_s: float, num_workers: int) -> dict[tuple[str, str], Checked]:
    waiting: SimpleQueue[tuple[str, str] | None] = SimpleQueue()
    num_workers = max(1, min(num_workers, len(pairs)))
    for pair in chain(pairs, [None] * num_workers):
        waiting.put(pair)

    def work() -> list[tuple[tuple[str, str], Checked]]:
        with _Comparer(timeout_s) as comparer:
            return [(pair, comparer.checked(*pair)) for pair in iter(waiting.get, None)]

    with ThreadPoolExecutor(num_workers) as pool:
        futures = [pool.submit(work) for _ in range(num_workers)]
        return dict(chain.from_iterable(future.result() for future in futures))


class _Comparer:
    """A checker process, started again when it has died or was killed. Used by one thread. Every wait has an end."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Comparer:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def checked(self, answer: str, gold: str) -> Checked:
        for _ in range(2):  # what it dies of may have been something else: memory that another process took
            said = self._ask(json.dumps([answer, gold, self._timeout_s]).encode() + b"\n")
            if said in (b"0", b"1"):
                return Checked(answer, said == b"1")
            self._end()
            if said is None:
                return Checked(answer, False, AnswerProblem.timeout)
        return Checked(answer, False, AnswerProblem.died)

    def _ask(self, line: bytes) -> bytes | None:
        """The line that comes back: empty if the process has ended, None if nothing comes in time."""
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            return b""
        return self._read_line(self._timeout_s)

    def _start(self) -> None:
        # -P: the folder of checker.py is not searched for modules.
        command = (sys.executable, "-P", str(_CHECKER))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        said = self._read_line(_START_S)
        if said != b"ready":
            self._end()
            why = f"no answer in {_START_S:g} s" if said is None else said.decode(errors="replace") or "it ended"
            raise ValueError(
                f"answers cannot be compared: math-verify does not start ({why}); install it with: pip install "
                "'math-verify[antlr4-9-3]'"
            )

    def _read_line(self, within_s: float) -> bytes | None:
        assert self._process is not None and self._process.stdout is not None
        descriptor, deadline, said = self._process.stdout.fileno(), time.monotonic() + within_s, b""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not said.endswith(b"\n"):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                return None
            piece = os.read(descriptor, 4096)
            if not piece:
                return b""
            said += piece
        return said.strip()

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what was not written any more
                pipe.close()
        self._process = None
