"""The language arc_dsl: programs that begin with `from arc_dsl import *`, and a reference program for each training task.

    require_dsl()                                 # ValueError, in one sentence, where the package is not installed
    PRIMITIVES["fill"].says                       # what each of the 160 primitives does
    reference_programs()["007bbfb7"]              # "from arc_dsl import *\n\n\ndef solve(I):\n    x0 = palette(I)\n ..."

The primitives and the programs are of the package reasoning-gym (make rearc); nothing of it is copied here. In the sandbox a
program that imports arc_dsl gets its grid as the language has it, a tuple of tuples, and may return one. The reference
programs are the package's verifiers of the 400 ARC-AGI-1 training tasks: they tell the answers of these tasks, so they are for
tasks that are trained on. A few disagree with a pair of their task.
"""

from __future__ import annotations

import ast
from functools import cache

from arclab.data.rearc_package import INSTALL, PACKAGE, package_folder
from arclab.files import naming
from arclab.programs.dsl_primitives import PRIMITIVES, Primitive

__all__ = ["IMPORT", "MODULE", "PRIMITIVES", "Primitive", "has_dsl", "reference_programs", "require_dsl"]

MODULE = "arc_dsl"
IMPORT = f"from {MODULE} import *"
_VERIFIER = "verify_"


def has_dsl() -> bool:
    """Is the package of the language installed?"""
    folder = package_folder()
    return folder is not None and (folder / "dsl.py").is_file()


def require_dsl() -> None:
    """ValueError, in one sentence: the package is not installed."""
    if not has_dsl():
        raise ValueError(f"the language {MODULE} needs the package {PACKAGE}, which is not installed; run {INSTALL}.")


@cache
def reference_programs() -> dict[str, str]:
    """Task id -> a program with the function solve. ValueError: the package is not installed."""
    require_dsl()
    folder = package_folder()
    assert folder is not None
    path = folder / "verifiers.py"
    with naming(path):
        tree = ast.parse(path.read_text())
    return {
        node.name.removeprefix(_VERIFIER): _program(node)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith(_VERIFIER)
    }


def _program(verifier: ast.FunctionDef) -> str:
    arguments = ", ".join(argument.arg for argument in verifier.args.args)
    body = "\n".join(f"    {ast.unparse(statement)}" for statement in verifier.body)
    return f"{IMPORT}\n\n\ndef solve({arguments}):\n{body}\n"
