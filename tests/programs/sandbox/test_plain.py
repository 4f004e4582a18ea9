"""An answer of whatever class becomes plain ints, or costs its own input only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from arclab.programs.sandbox.execution import Execution, Isolation, Limits, Status
from arclab.programs.sandbox.plain import BadOutput, plain_rows
from arclab.programs.sandbox.pool import Sandbox

GRID = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
_CLASSES = """
import numpy as np
class List(list):
    asked = 0
    def __getitem__(self, at): List.asked += 1; return [[99]] if List.asked > 1 else list.__getitem__(self, at)
    def __iter__(self): List.asked += 1; return iter([1, 2, "x"] * List.asked)
    def __len__(self): List.asked += 1; return List.asked
class Tuple(tuple):
    __iter__ = lambda self: iter([[99] * 99])
    __len__ = lambda self: 10**9
class Int(int):
    __eq__ = lambda self, other: True
    __ge__ = __gt__ = __le__ = __lt__ = __eq__
    __hash__ = int.__hash__
    __int__ = __index__ = __add__ = __radd__ = lambda self, other=0: 300
class Float(float):
    __int__ = __add__ = __float__ = lambda self, other=0: 300
    __ge__ = __le__ = __eq__ = lambda self, other: True
    __hash__ = float.__hash__
class Array(np.ndarray):
    asked = 0
    shape = property(lambda self: (1, 1))
    ndim = 2
    def tolist(self): Array.asked += 1; return [[99] * Array.asked]
class Number(np.int64):
    __int__ = __index__ = item = lambda self: 300
class Text(str):
    __format__ = __str__ = __getitem__ = encode = lambda self, *_: 1 / 0
class Liar:
    __class__ = list
    __len__ = lambda self: 1
Named = type(Text("Named"), (), {})
"""
# (answer to the second of three inputs, what it really holds; None: it is no grid)
_ANSWERS = {
    "List([[1], [2]])": [[1], [2]],
    "[List([1, 2]), List([3, 4])]": [[1, 2], [3, 4]],
    "Tuple(([1, 2], Tuple((3, 4))))": [[1, 2], [3, 4]],
    "[[Int(4), Int(5)]]": [[4, 5]],
    "[[Int(44)]]": None,
    "[[Float(3.0)]]": [[3]],
    "[[Float(3.5)]]": None,
    "[[Number(7)]]": [[7]],
    "[[Number(77)]]": None,
    "np.array([[1, 2]]).view(Array)": [[1, 2]],
    "[np.array([1, 2]).view(Array)]": [[1, 2]],
    "np.array([[1, 20]]).view(Array)": None,
    "Liar()": None,
    "[Named()]": None,
    "[[Named()]]": None,
}


@pytest.mark.parametrize("answer", _ANSWERS)
def test_an_answer_that_changes_costs_its_own_input_only(sandbox: Sandbox, answer: str) -> None:
    middle = GRID.copy()
    middle[0, 0] = 8
    source = f"{_CLASSES}def solve(I): return {answer} if I[0][0] == 8 else I[::-1]"
    before, odd, after = sandbox.run([Execution(source, (GRID, middle, GRID))])[0].grids
    for honest in (before, after):
        assert honest.grid is not None and np.array_equal(honest.grid, GRID[::-1])
    expected = _ANSWERS[answer]
    if expected is None:
        assert odd.status is Status.bad_output, odd
    else:
        assert odd.grid is not None and odd.grid.tolist() == expected, odd


@pytest.mark.parametrize(
    "odd",
    [
        "class B(BadOutput):\n    def __str__(self): raise SystemExit\n    args = property(lambda self: 1 / 0)\nerror = B()",
        "traceback.walk_tb = None\nerror = ValueError('x')",
        "error = type(Text('E'), (Exception,), {})('x')",
        "print(Text('x'))\nprint(Text('y'))\nerror = ValueError('x')",
    ],
    ids=["our class", "a poisoned module", "a name", "text"],
)
def test_what_is_raised_costs_its_own_input_only(sandbox: Sandbox, odd: str) -> None:
    middle = GRID.copy()
    middle[0, 0] = 8
    body = "".join(f"        {line}\n" for line in odd.splitlines())
    source = f"import traceback\nfrom arclab.programs.sandbox.plain import BadOutput\n{_CLASSES}def solve(I):\n    if I[0][0] == 8:\n{body}        raise error\n    return I"
    grids = sandbox.run([Execution(source, (GRID, middle, GRID))])[0].grids
    assert [grid.status for grid in grids] == [Status.ok, Status.exception, Status.ok], grids


def test_what_is_printed_is_no_longer_than_allowed(sandbox: Sandbox) -> None:
    source = "import sys\nclass T(str):\n    __getitem__ = lambda self, at: self\n    __len__ = lambda self: 1\n    encode = lambda self, **_: B(b'x' * 10**6)\n"
    source += "class B(bytes):\n    __getitem__ = lambda self, at: self\n    __len__ = lambda self: 0\ndef solve(I):\n    for _ in range(9): sys.stdout.write(T('y' * 999))\n    return I"
    result = sandbox.run([Execution(source, (GRID,))])[0]
    assert result.grids[0].status is Status.ok and set(result.stdout) == {"y"} and len(result.stdout) <= 4096


@pytest.fixture(scope="module")
def sandbox() -> Any:
    with Sandbox(num_workers=1, limits=Limits(cpu_s=1, wall_s=3.0), min_isolation=Isolation.limits) as held:
        yield held


def test_kinds_of_numbers() -> None:
    for good in (
        [[np.longdouble(3)]],
        [np.array([3], object)],
        ((3,),),
        np.array([[3.0]], np.float16),
        np.ma.array([[3]]),
        [np.array([3.0])],
    ):
        assert plain_rows(good) == [[3]] and type(plain_rows(good)[0][0]) is int
    for bad, reason in {
        "[[10**5000]]": "a huge number", "[[True]]": "bool", "[[-1]]": "-1", "[[float('inf')]]": "huge", "[[float('nan')]]": "nan",
        "np.ma.masked_equal([[3, 4]], 3)": "NoneType", "np.zeros((0, 3))": "0 rows", "np.zeros((3, 0))": "0 cells", "[[1]] * 40": "40 rows",
        "[[1] * 40]": "40 cells", "[np.zeros(40)]": "40 cells", "[[1], [2, 3]]": "different", "[np.zeros((2, 2))]": "a row is ndarray", "'ab'": "str",
        "np.array([[1 + 2j]])": "complex", "[[1 + 2j]]": "complex",
    }.items():  # fmt: skip
        with pytest.raises(BadOutput, match=reason):
            plain_rows(eval(bad, {"np": np}))
