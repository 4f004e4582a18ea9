"""The project keeps its own rules: imports go one way, files stay small, the environment files agree, errors are caught by name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from .conftest import ROOT

SOURCES = sorted((ROOT / "src" / "arclab").rglob("*.py"))
# Who may import whom: config and data at the bottom, app on top.
ALLOWED = {
    "config": {"files"},
    "console": set(),
    "files": set(),
    "interrupt": set(),
    "slurm": {"config"},
    "memory": set(),
    "ranks": {"config"},
    "process_id": set(),
    "records": {"files"},
    "rundir": {"config", "files"},
    "runlock": {"config", "files", "process_id", "records", "rundir", "slurm"},
    "launch": {"config", "console", "files", "interrupt", "metrics", "process_id", "records", "rundir", "runlock", "slurm"},
    "metrics": {"config", "data", "files", "rundir"},
    "data": {"config", "files", "interrupt"},
    "models": {"config", "data", "files"},
    "training": {"config", "console", "data", "files", "interrupt", "metrics", "models", "ranks", "rundir", "runlock"},
    "llm": {"config", "console", "data", "files"},
    "solvers": {"config", "console", "data", "files", "llm", "metrics", "models", "ranks"},
    "evaluation": {"config", "console", "data", "files", "metrics", "models", "rundir", "runlock", "solvers", "training"},
    "evaluate_programs": {"config", "data", "evaluation", "files", "llm", "rundir", "runlock", "solvers"},
    "app": {
        "config",
        "console",
        "data",
        "interrupt",
        "memory",
        "models",
        "training",
        "solvers",
        "evaluate_programs",
        "evaluation",
        "files",
        "metrics",
        "ranks",
        "rundir",
        "runlock",
    },
    "worker": {"app", "config", "launch", "rundir"},
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "src" / "arclab").parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return modules


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_source_file(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is"
    assert text.count("\n") <= 500
    if path.parent != ROOT / "src" / "arclab" or path.stem != "__init__":
        part = part_of(path)
        parts = {m.split(".")[1] for m in imports(tree) if m.startswith("arclab.")}
        assert parts - {part} <= ALLOWED[part], f"{part} must not import {parts - {part} - ALLOWED[part]}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None and getattr(node.type, "id", "") not in ("Exception", "BaseException")
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is too long"


# Who may parse JSON or YAML that is in no file, and where it is from. A file is read by arclab.files, which names it if it is damaged.
PARSED_ELSEWHERE = {
    "evaluation/queue_report.py": "standard input",
    "launch/doctor.py": "the output of a process",
    "llm/sandbox.py": "a pipe",
    "files.py": "the reader itself",
    "config/compose.py": "the reader of saved configurations, which are YAML",
    "llm/endpoint_answers.py": "the body of an answer",
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
    script = f"import {', '.join(modules)}, sys; from arclab.rundir import provenance; provenance(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


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
    direct = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.split(r"[<>=[]", d)[0].lower() for d in direct} <= pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


def test_readme_commands_exist() -> None:
    """Every make target and script that README names is there."""
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`make (\w+)`", readme))
    assert {"demo", "test"} <= targets and all(f"\n{t}:" in makefile for t in targets)
    for script in set(re.findall(r"python (\w+\.py)", readme)):
        assert (ROOT / script).is_file()
    for experiment in set(re.findall(r"experiment=(\w+)", readme)):
        assert (ROOT / "conf/experiment" / f"{experiment}.yaml").is_file()
