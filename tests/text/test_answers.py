"""Answers of replies: found, compared by fixed rules, and nothing that a model writes can stop the comparison."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from arclab.text import answers
from arclab.text.answers import AnswerProblem, Checked, check_answers, extract, is_right
from arclab.text.checker import is_equal

NONE = AnswerProblem.none


def box(answer: str) -> str:
    return f"so it is \\boxed{{{answer}}}"


@pytest.mark.parametrize(("reply", "answer"), [
    (r"\boxed{1} no, \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
    (r"\boxed {  7 }", "7"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{a \} b}", r"a \} b"),
    (r"\boxed{1} then {x and \boxed{2", "1"),
    (r"\boxed{2", None), (r"\boxed{}", None), (r"\boxed 5", None), ("5", None), ("", None), ("}}}{{{", None),
    (r"\boxed{1} \boxed{ }", None),
    (r"{\boxed{3}", "3"), (r"}\boxed{3}}", "3"),
    ("\\boxed{\n12\n}", "12"), ("\\boxed{数}", "数"),
])  # fmt: skip
def test_the_answer_is_the_last_closed_box(reply: str, answer: str | None) -> None:
    assert extract(reply) == answer


RULES = [
    ("1,000", "1000", True), ("1000", "1,000", True), ("$5", "5", True), (r"\$5", "5", True), ("0.5", "1/2", True), ("5.00", "5", True),
    ("5.", "5", True), ("-7", "-7", True), ("-7", "7", False), ("2/4", "0.5", True), ("$1,234.50", "1234.5", True),
    ("10,00", "1000", False), ("12", "13", False), ("007", "7", True),
    (r"\frac{1}{2}", "0.5", True), (r"\dfrac{3}{4}", "3/4", True), (r"5\text{ apples}", "5", True), ("0.333333", "1/3", True),
    ("0.33", "1/3", False), (r"2\sqrt{3}", r"\sqrt{12}", True), ("x=5", "5", True), ("five", "5", False), (r"\text{no}", "5", False),
    ("1/0", "5", False), ("\uff15", "5", False), ("", "5", False),
]  # fmt: skip


def test_fixed_rules() -> None:
    found = check_answers([(box(answer), gold) for answer, gold, _ in RULES])
    wrong = [rule for rule, checked in zip(RULES, found, strict=True) if checked.is_right is not rule[2]]
    assert not wrong
    assert is_right(box("1,000"), "1000") and not is_right("1000", "1000")


def test_what_is_decided_here_is_what_math_verify_says() -> None:
    numbers = ["1", "1.0", "0.5", "1/2", "2/4", "-3", "3", "1000", "1,000", "12.25", "0", "0.250", "1/4", "49/4"]
    for mine in numbers:
        for gold in numbers:
            decided = answers._decided(mine, gold)
            assert decided is None or decided.is_right is is_equal(mine, gold), (mine, gold)


def test_a_batch_keeps_its_order_and_counts_what_has_no_answer() -> None:
    found = check_answers([(box("3"), "3"), ("none", "3"), (box("4"), "3"), (box(r"\frac{6}{2}"), "3"), (box("3"), "03")])
    assert [each.is_right for each in found] == [True, False, False, True, True]
    assert found[1] == Checked(None, False, AnswerProblem.no_answer) and found[2] == Checked("4", False)
    assert check_answers([]) == []
    with pytest.raises(ValueError, match=r"the right answer of reply 1 is empty; leave out"):
        check_answers([("a", "1"), ("b", " ")])


def test_numbers_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    assert [c.is_right for c in check_answers([(box("7"), "7"), (box("8"), "7"), ("", "7"), (box("x" * 3000), "7")])] == [
        True, False, False, False,
    ]  # fmt: skip


ATTACKS = [
    box("9**9**9"), box("9^{9^{9^{9}}}"), box("10000000000!"), box("{" * 300 + "5" + "}" * 300), box("\\frac{" * 200), box("9" * 1900 + "^2"),
    "\\boxed{" * 150_000, "{" * 500_000 + "}" * 500_000, box("7" + " " * 1_000_000), box("\ud800"), box("\x00"), box("\u202e7\u202c"), box("7\n1"),
    box("0 if 1 else 2"), box("\\input{/etc/passwd}"),
]  # fmt: skip


def test_no_reply_stops_the_rest(tmp_path: Path) -> None:
    """Powers that never end being computed, unclosed boxes by the hundred thousand, half a surrogate pair, code."""
    started = time.monotonic()
    code = box(f"__import__('os').mkdir('{tmp_path}/made')")
    pairs = [pair for reply in (*ATTACKS, code) for pair in ((reply, "41"), (box(r"\frac{82}{2}"), "41"))]
    found = check_answers(pairs, timeout_s=1.5, num_workers=2)
    assert not any(each.is_right for each in found[::2]) and all(each.is_right for each in found[1::2])
    assert found[2].problem is AnswerProblem.timeout and found[12].problem is AnswerProblem.no_answer
    assert time.monotonic() - started < 60 and not (tmp_path / "made").exists()


def test_a_checker_that_dies_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time it dies of the same answer, that answer is wrong; the next one is compared."""
    flaky = tmp_path / "flaky.py"
    flaky.write_text(
        "import json, os, sys\nprint('ready', flush=True)\nfor line in sys.stdin:\n    answer, gold, _ = json.loads(line)\n"
        f"    first = not os.path.exists({str(tmp_path / 'once')!r})\n"
        "    if answer == 'die' or (answer == 'once' and first):\n"
        f"        open({str(tmp_path / 'once')!r}, 'w').close()\n        os.kill(os.getpid(), 9)\n"
        "    print(int(answer != 'other'), flush=True)\n"
    )
    monkeypatch.setattr(answers, "_CHECKER", flaky)
    found = check_answers([(box(text), "41") for text in ("once", "die", "other", "same")], num_workers=1)
    assert [each.is_right for each in found] == [True, False, False, True]
    assert [each.problem for each in found] == [NONE, AnswerProblem.died, NONE, NONE]


def test_a_checker_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("print(\"No module named 'math_verify'\")\n")
    monkeypatch.setattr(answers, "_CHECKER", broken)
    with pytest.raises(ValueError, match=r"does not start \(No module named 'math_verify'\); install it with: pip install"):
        check_answers([(box("x"), "41")])


def test_a_stuck_checker_ends_though_nobody_is_left(tmp_path: Path) -> None:
    """Its own alarm ends it, without the one who asked."""
    import subprocess

    script = f"import sys; sys.argv = ['checker']; sys.path.insert(0, {str(Path(answers._CHECKER).parent)!r})\nimport checker\nchecker._GRACE_S = 0\nchecker.main()"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdin.write(b'["9^{9^{9^{9}}}", "3", 1]\n')
    process.stdin.flush()
    assert process.wait(timeout=30) == -signal.SIGALRM
    process.stdin.close()
    process.stdout.close()
    assert not os.path.exists(f"/proc/{process.pid}")
