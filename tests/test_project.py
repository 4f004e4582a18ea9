"""The project keeps its own rules: imports go one way, files stay small, the environment files agree, errors are caught by
name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import yaml

from .conftest import ROOT

SOURCES = sorted((ROOT / "src" / "arclab").rglob("*.py"))
# Who may import whom. methods/* import all that is below, and never each other; nothing below imports a method.
ALLOWED = {
    "entries": set(),
    "files": set(),
    "config": {"entries", "files"},
    "data": {"config", "files"},
    "metrics": {"config", "data", "files"},
    "runs": {"config", "files", "metrics"},
    "lm": {"config", "data", "entries", "files", "metrics", "runs"},
    "programs": {"config", "data", "files", "lm"},
    "text": {"config", "data", "files", "lm", "programs", "runs"},
    "results": {"config", "data", "files", "metrics", "runs"},
    "pages": {"config", "data", "files", "metrics", "results", "runs"},
    "solvers": {"config", "data", "files", "lm", "metrics", "pages", "programs", "results", "runs"},
    "launch": {"config", "entries", "files", "metrics", "runs"},
    "cli": {"config", "entries", "files", "launch", "results", "runs"},
    "__main__": {"cli", "config"},
    "api": {"config", "data", "files", "methods", "results", "runs"},
}
BELOW = ALLOWED.keys() - {"launch", "entries", "cli", "__main__", "api"}
ALLOWED |= {"methods": BELOW}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "src" / "arclab").parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> set[str]:
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return modules


def faults_of(path: Path) -> Iterator[str]:
    text = path.read_text()
    tree = ast.parse(text)
    if not ast.get_docstring(tree):
        yield "has no docstring that says what it is"
    if text.count("\n") > 500:
        yield "is longer than 500 lines"
    if path != ROOT / "src" / "arclab" / "__init__.py":
        part = part_of(path)
        parts = {m.split(".")[1] for m in imports(tree) if m.startswith("arclab.")}
        if forbidden := parts - {part} - ALLOWED[part]:
            yield f"is of {part}, which must not import {forbidden}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and (
            node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException")
        ):
            yield f"line {node.lineno}: catches everything"
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
            yield f"line {node.lineno}: {node.name} is longer than 60 lines"


def test_test_files_are_small() -> None:
    long = [path for path in (ROOT / "tests").rglob("*.py") if path.read_text().count("\n") > 500]
    assert not long, (
        f"split by subject, with what they share in a conftest.py or common.py: {[str(path.relative_to(ROOT)) for path in long]}"
    )


def test_source_files() -> None:
    faults = [f"{path.relative_to(ROOT)} {fault}" for path in SOURCES for fault in faults_of(path)]
    assert not faults, "\n".join(faults)


# Who may parse JSON or YAML that is in no file, and where it is from. A file is read by arclab.files, which names it if it is damaged.
PARSED_ELSEWHERE = {
    "pages/queue_report.py": "standard input",
    "launch/doctor.py": "the output of a process",
    "programs/sandbox/pool.py": "a pipe",
    "text/checker.py": "a pipe",
    "files.py": "the reader itself",
    "config/saved_file.py": "the reader of saved configurations, which are YAML",
    "lm/endpoint/answers.py": "the body of an answer",
    "methods/seal/fewshot/edits.py": "a reply of a model",
}  # fmt: skip


def parses(node: ast.AST) -> bool:
    """A parser is called, but for json.loads(json.dumps(...)), which is how tuples become lists."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("json.load", "json.loads", "OmegaConf.load"):
        return False
    return not ast.unparse(node.args[0]).startswith("json.dumps(")


def test_files_are_read_by_the_one_reader() -> None:
    found = {
        str(path.relative_to(ROOT / "src" / "arclab"))
        for path in SOURCES
        if any(parses(node) for node in ast.walk(ast.parse(path.read_text())))
    }
    assert found == PARSED_ELSEWHERE.keys()


def test_methods_do_not_import_each_other() -> None:
    for path in (ROOT / "src/arclab/methods").glob("*/**/*.py"):
        method = path.relative_to(ROOT / "src/arclab/methods").parts[0]
        others = {m.split(".")[2] for m in imports(ast.parse(path.read_text())) if m.startswith("arclab.methods.")} - {method}
        assert not others, f"{path} imports {others}: what two methods need moves down"


def test_no_imports_go_in_a_circle() -> None:
    """Also inside folders, and also those that are hidden in functions."""
    modules = {module_of(path): path for path in SOURCES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("arclab"):
                targets |= {full if (full := f"{node.module}.{a.name}") in modules else str(node.module) for a in node.names}
            elif isinstance(node, ast.Import):
                targets |= {a.name for a in node.names if a.name.startswith("arclab")}
        graph[name] = targets - {name}
    tuple(TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_configuration_is_typed_without_torch() -> None:
    """A job list is checked in a blink only if the schema does not load torch."""
    for path in (ROOT / "src/arclab/config").glob("*.py"):
        assert not any(m.split(".")[0] == "torch" for m in imports(ast.parse(path.read_text())))


def test_whoever_starts_runs_needs_no_torch() -> None:
    """The parent of a run waits for hours: it must be small and quick to start."""
    modules = [
        "arclab.launch." + path.stem for path in (ROOT / "src/arclab/launch").glob("*.py") if not path.stem.startswith("__")
    ]
    assert len(modules) > 4
    script = f"import {', '.join(modules)}, sys; from arclab.runs.folder import provenance; provenance(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_make_alone_lists_every_target() -> None:
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    said = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert len(targets) > 10 and re.findall(r"^  make ([a-z-]+) +\S.*", said, re.MULTILINE) == targets


def test_the_licence_is_said_once_and_the_same_everywhere() -> None:
    """Also the versions of Python that are promised are those that are admitted."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["license"] == citation["license"] == "Apache-2.0" and project["version"] == citation["version"]
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in (ROOT / "LICENSE").read_text()
    assert [f"Programming Language :: Python :: 3.{minor}" in project["classifiers"] for minor in range(10, 15)] == [
        False, True, True, True, False,
    ]  # fmt: skip


def test_entry_scripts_are_thin() -> None:
    for name in ("pretrain_encoder.py", "evaluate.py"):
        assert (ROOT / name).read_text().count("\n") <= 25


def test_environment_is_in_step_with_pyproject() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert sorted(pip) == sorted([*wanted["dependencies"], "--editable ."])
    assert f"python{wanted['requires-python']}" in environment["dependencies"]


def test_constraints_pin_every_direct_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    extras = project["optional-dependencies"]
    direct = [*project["dependencies"], *extras["dev"], *extras["docs"]]
    assert {re.split(r"[<>=[]", d)[0].lower() for d in direct} <= pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
