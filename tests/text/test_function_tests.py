"""Tests of a function run on a reply: which function is meant, what passes, what does not, and what may not be played."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arclab.programs.sandbox.execution import Limits
from arclab.programs.sandbox.pool import Sandbox
from arclab.text.function_tests import TestOutcome, program_of, renamed, run_tests, why_not_usable

TESTS = """
from solution import fact
import pytest
import unittest

def test_small():
    assert fact(3) == 6

@pytest.mark.parametrize("n,found", [(0, 1), (5, 120)])
def test_cases(n, found):
    assert fact(n) == pytest.approx(found)

def test_refuses():
    with pytest.raises(ValueError, match="below"):
        fact(-1)

class TestMore(unittest.TestCase):
    def setUp(self):
        self.n = 4
    def test_four(self):
        self.assertEqual(fact(self.n), 24)
"""
BODY = "(n):\n    if n < 0:\n        raise ValueError('below 0')\n    return 1 if n == 0 else n * {0}(n - 1)\n"
RIGHT = "def fact" + BODY.format("fact")


def fenced(code: str) -> str:
    return f"Here it is.\n```python\n{code}```\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=1, limits=Limits(cpu_s=1, wall_s=2.0)) as pool:
        yield pool


def test_a_function_of_another_name_is_found_and_renamed_with_its_own_calls(sandbox: Sandbox) -> None:
    other = "def mine" + BODY.format("mine")
    helped = "def step(n):\n    return n - 1\n\ndef mine(n):\n    if n < 0:\n        raise ValueError('below 0')\n    return 1 if n == 0 else n * mine(step(n))\n"
    taken = "fact = 3\n" + other
    replies = [fenced(RIGHT), fenced(other), fenced(helped), fenced(taken), RIGHT, "I do not know.", fenced("def fact(n)\n")]
    outcomes = run_tests(sandbox, [(reply, TESTS) for reply in replies])
    assert [(each.num_passed, each.is_right) for each in outcomes] == [(4, True)] * 5 + [(0, False)] * 2
    assert all(each.num_tests == 4 for each in outcomes) and outcomes[5].source is None
    assert program_of(fenced(other), "fact") == RIGHT.strip()
    assert renamed("def f(x):\n    return 'f'\n", "f", "g") == "def g(x):\n    return 'f'"


@pytest.mark.parametrize(("code", "num_passed", "why"), [
    ("def fact(n):\n    return 6\n", 1, "exception"),
    ("import sys\nsys.exit(0)\ndef fact(n):\n    pass\n", 0, "exited"),
    ("def fact(n):\n    while n != 3:\n        pass\n    return 6\n", 1, "timeout_"),
    ("class Same:\n    def __eq__(self, other):\n        return True\n\ndef fact(n):\n    return Same()\n", 0, "it compares itself"),
    ("class Same:\n    def __eq__(self, other):\n        return True\n\ndef fact(n):\n    return [Same()]\n", 0, "it compares itself"),
    ("open('/etc/passwd')\ndef fact(n):\n    return 6\n", 0, "PermissionError"),
])  # fmt: skip
def test_what_is_wrong_crashes_hangs_or_cheats_fails(sandbox: Sandbox, code: str, num_passed: int, why: str) -> None:
    """Each test is a call of its own, so that those before a crash count."""
    (outcome,) = run_tests(sandbox, [(fenced(code), TESTS)])
    assert (outcome.num_passed, outcome.is_right) == (num_passed, False) and why in outcome.message, outcome


def test_a_program_without_tests_is_never_right() -> None:
    assert not TestOutcome("x", 0, 0, "").is_right


def test_which_tests_can_run() -> None:
    assert why_not_usable(TESTS) == ""
    head = "from solution import a\n"
    for tests, why in (
        ("def", "no Python"), ("def test_a():\n    pass", "import no function"), (head, "no test function"),
        (head + "import torch\ndef test_a():\n    a()", "import what the sandbox"), (head + "def test_a(capsys):\n    a()", "parts of pytest"),
        (head + "import pytest\n@pytest.fixture\ndef x():\n    pass\ndef test_a():\n    a()", "parts of pytest"),
    ):  # fmt: skip
        assert why in why_not_usable(tests), tests
