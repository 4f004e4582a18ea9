"""README and docs/: short enough, up to date, and every link, name and command in them is good."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import arclab
from arclab.config.compose import entry_for
from arclab.config.help import help_text
from arclab.config.plain_composer import PlainComposer
from arclab.launch.__main__ import parsers as launch_parsers
from docs.records import RECORDS, record_files
from docs.tables import PARTS, outdated

from .conftest import ROOT
from .documents import ALL_PAGES, PAGES, anchors, commands, links, long_lines, prose

README = ROOT / "README.md"
COMPOSER = PlainComposer()


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_readme_is_one_page() -> None:
    text = README.read_text()
    assert text.count("\n") <= 120 and len(text.split()) <= 1000
    wanted = [
        "Install",
        "The first ten minutes",
        "Systems",
        "Results",
        "Where things are",
        "How scores",
        "Documentation",
        "Limits",
    ]
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert all(heading.startswith(word) for heading, word in zip(headings, wanted, strict=True))


def test_readme_shows_few_results_and_each_record() -> None:
    section = README.read_text().partition("## Results")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "|---" not in line][1:]
    assert 1 <= len(rows) <= 10
    assert all(re.search(r"\]\((benchmarks|experiments)/results/", row) for row in rows)


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file, and to a heading of it."""
    for file, anchor in links(page):
        assert file.exists(), f"{name_of(page)} links to {file}"
        assert not anchor or anchor in anchors(file), f"{name_of(page)} links to #{anchor} of {file.name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_documents_name_is_there(page: Path) -> None:
    """Source files, and modules that are started with -m or named. A worked change brings its own."""
    text = re.sub(r"^```diff\n.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    files = {ROOT / path for path in re.findall(r"`((?:src/arclab|tests)/[\w/.]+)`", text)}
    files |= {
        ROOT / "src/arclab" / path for path in re.findall(r"`((?:config|data|runs|metrics|results|methods)/[\w/]+\.py)`", text)
    }
    assert not {str(path) for path in files if not path.exists() and "NAME" not in path.name}
    for name in set(re.findall(r"\barclab(?:\.[a-z_]+)+", text)):
        if name.removeprefix("arclab.") in arclab.__all__:
            continue
        place = ROOT / "src" / name.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), name
    for name in set(re.findall(r"\b(?:benchmarks|experiments)\.[a-z_0-9]+", text)):
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_compose(page: Path) -> None:
    """Each is what its program takes: keys and options exist, values have the right types, make targets are there."""
    for command in commands(page):
        try:
            check(command)
        except (ValueError, SystemExit) as error:
            pytest.fail(f"{name_of(page)} shows {command!r}: {error}")


def test_the_check_of_commands_sees_mistakes() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 40
    for wrong in (
        "python pretrain_encoder.py experiment=quikstart",
        "python pretrain_encoder.py trainer.stpes=3",
        "torchrun --nproc-per-node 4 pretrain_encoder.py trainer.steps=many",
        "python pretrain_encoder.py -m encoder=standard,lnp",
        "python pretrain_encoder.py --help enkoder",
        "python evaluate.py num_augmentation=3",
        "python train.py",
        "python -m arclab.launch sumbit",
        "python -m benchmarks.train_step --tokns 3",
        "python -m arclab.nothing",
        "make dmeo",
        "python -c pass",
    ):
        with pytest.raises((ValueError, SystemExit)):
            check(wrong)


def check(command: str) -> None:
    """ValueError or SystemExit: it is not one that its program takes."""
    program, *words = command.split()
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        require(all(f"\n{word}:" in makefile for word in words if "=" not in word), "there is no such target")
    elif program == "arclab":
        require("arclab" in project().get("scripts", {}), "there is no such program")
    elif program in ("python", "torchrun"):
        while program == "torchrun" and words[0].startswith("-"):
            words = words[2:]
        check_module(words[1], words[2:]) if words[0] == "-m" else check_script(words[0], words[1:])
    elif program in ("pip", "conda"):
        extras = re.findall(r"\.\[(\w+)\]", command)
        require(set(extras) <= project()["optional-dependencies"].keys(), "there is no such extra")
    else:
        require(program in (".", "scancel"), "no rule of this test knows it")


def check_script(script: str, words: list[str]) -> None:
    overrides = [word for word in words if not word.startswith("-") and "=" in word and not word.startswith("hydra/")]
    entry = entry_for(script, overrides)
    if "--help" in words or "-h" in words:
        help_text(entry, [word for word in words if not word.startswith("-") and "=" not in word])
        return
    unknown = {word for word in words if word not in overrides} - {"-m", "--cfg"}
    require(not {word for word in unknown if not word.startswith("hydra/")}, f"{unknown}")
    choices = [sweep_of(word) if "-m" in words else [word] for word in overrides]
    for chosen in product(*choices):
        COMPOSER.compose(entry, list(chosen))


def sweep_of(override: str) -> list[str]:
    key, _, values = override.partition("=")
    return [override] if values.startswith("[") else [f"{key}={value}" for value in values.split(",")]


def check_module(module: str, words: list[str]) -> None:
    if module == "arclab.launch":
        launch_parsers()[0].parse_args(words)
        return
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    if module in ("pytest", "venv"):
        return
    parts = module.split(".")
    places = [ROOT / base / "/".join(parts) for base in ("src", ".")]
    files = [file for place in places for file in (place.with_suffix(".py"), *place.glob("*.py")) if file.is_file()]
    require(bool(files), "there is no such module")
    source = "".join(file.read_text() for file in [*files, *(ROOT / "experiments").glob("queued.py")])
    require(all(f'"{flag}"' in source for flag in flags), f"not all of {sorted(flags)} are options of it")


def require(is_right: bool, why: str) -> None:
    if not is_right:
        raise ValueError(why)


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_generated_parts_are_up_to_date() -> None:
    assert not outdated(), "run python -m docs.tables"
    text = "".join(page.read_text() for page in ALL_PAGES)
    assert all(text.count(f"<!-- begin: {part} ") == 1 for part in PARTS)


def test_every_record_is_shown() -> None:
    kept = {path for folder in ("benchmarks", "experiments") for path in (ROOT / folder / "results").rglob("*.json")}
    assert set(record_files()) == kept
    assert all(any(path.stem.startswith(kind) for kind in RECORDS) for path in kept)


@pytest.mark.parametrize("page", [page for page in ALL_PAGES if page != README], ids=name_of)
def test_lines_are_wrapped(page: Path) -> None:
    assert not long_lines(page, 100)


def test_every_page_is_in_the_navigation() -> None:
    navigation = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert navigation == {page.relative_to(ROOT / "docs").as_posix() for page in ALL_PAGES if page != README}


def test_log_has_an_index_and_one_form() -> None:
    """Newest first; each entry has a question and what follows, and a row of the index leads to it."""
    text = (ROOT / "docs/LOG.md").read_text()
    index = re.findall(r"^\| (\d{4}-\d\d-\d\d) \| \[.+\]\((?:faults\.md)?#([\w-]+)\) \| (\w+) \| .+ \|$", text, re.MULTILINE)
    assert [date for date, _, _ in index] == sorted((date for date, _, _ in index), reverse=True)
    assert {kind for _, _, kind in index} == {"finding", "decision", "fault"}
    headings = anchors(ROOT / "docs/LOG.md") - {"log"} | anchors(ROOT / "docs/faults.md") - {"faults"}
    assert {anchor for _, anchor, _ in index} == headings
    entries = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    for entry in entries:
        found = re.findall(r"^\*\*(Question|Setup|Result|So)\.\*\*", entry, re.MULTILINE)
        assert found in (["Question", "Setup", "Result", "So"], ["Question", "Result", "So"]), entry.splitlines()[0]
    assert "`python -m benchmarks.control" not in "".join(line for line in prose(text).splitlines() if len(line) > 100)


def test_worked_changes_apply(tmp_path: Path) -> None:
    """The changes of docs/extending.md, one after the other: the new encoder composes, the new rows are there."""
    for name in ("src", "conf", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("fixtures", "__pycache__", "*.egg-info"))
    changes = re.findall(r"^```diff\n(.*?)^```$", (ROOT / "docs/extending.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(changes) == 4
    for change in changes:
        command = ["git", "apply", "--unsafe-paths", "--directory", str(tmp_path)]
        done = subprocess.run(command, input=change, cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, f"docs/extending.md is not up to date: {done.stderr}"
    program = """
from arclab.config.plain_composer import PlainComposer
from arclab.entries import ENTRIES
from arclab.metrics.names import REGISTRY
assert "train/first_step_share" in REGISTRY and {"line", "evaluate_line"} <= ENTRIES.keys()
config = PlainComposer().compose("pretrain_encoder", ["experiment=quickstart", "name=a", "encoder=gated"])
assert config.encoder.gate_start == 0.0
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, timeout=60)
