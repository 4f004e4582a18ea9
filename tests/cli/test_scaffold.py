"""What arclab new-encoder and new-method write works as it stands, is registered once, and is all there or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arclab.cli import scaffold
from arclab.cli.scaffold import new_encoder, new_method, with_row, write_files
from arclab.config.compose import ConfigError
from arclab.config.encoders import ENCODERS
from arclab.entries import ENTRIES

from ..conftest import ROOT, script_env

Make = Callable[[list[str]], int]


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root that has the two files with the tables, and nothing else."""
    for kind in (scaffold._ENCODER, scaffold._METHOD):
        path = tmp_path / kind.table[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / kind.table[0], path)
    monkeypatch.setattr(scaffold, "ROOT", tmp_path)
    return tmp_path


def files_of(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() if path.is_file() else "" for path in root.rglob("*")}


@pytest.mark.parametrize("make", [new_encoder, new_method])
@pytest.mark.parametrize("name", ["Mine", "1st", "my-own", "class", "a__b", "_a", "a" * 31, "", "../a", "é"])
def test_a_name_that_is_none_is_refused(tables: Path, make: Make, name: str) -> None:
    before = files_of(tables)
    with pytest.raises(ConfigError, match=r"name .* becomes the name of a module: .*; choose another name\."):
        make([name])
    assert files_of(tables) == before


@pytest.mark.parametrize(
    "make, names",
    [
        (new_encoder, ["standard", "puzzle_table", "standard_tiny"]),
        (new_method, ["evaluate", "pretrain_encoder", "random", "torch"]),
    ],
)
def test_a_name_that_is_taken_is_refused(tables: Path, make: Make, names: list[str]) -> None:
    """Also a YAML without a kind of its own, and any module that a script of that name would hide."""
    before = files_of(tables)
    for name in names:
        with pytest.raises(ConfigError, match=rf"name '{name}' is .*; choose another name\."):
            make([name])
    with pytest.raises(ConfigError, match="takes one name, not a b"):
        make(["a", "b"])
    assert files_of(tables) == before


@pytest.mark.parametrize("kind", [scaffold._ENCODER, scaffold._METHOD], ids=lambda kind: kind.what)
def test_an_error_leaves_everything_as_it_was(tables: Path, kind: scaffold.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is there already, a full disk at each of the writes, and a table that has been changed."""
    before = files_of(tables)
    there = tables / list(kind.files.values())[-1].format(name="mine")
    there.parent.mkdir(parents=True)
    there.write_text("my own\n")
    with_mine = files_of(tables)
    with pytest.raises(ConfigError, match="is there already"):
        write_files(kind, "mine", tables)
    assert files_of(tables) == with_mine
    shutil.rmtree(there.parent)
    before = files_of(tables)
    write = scaffold.write_atomically
    for place in range(len(kind.files) + 1):
        calls: list[Path] = []

        def full(path: Path, text: str, calls: list[Path] = calls, place: int = place) -> None:
            calls.append(path)
            if len(calls) > place:
                raise OSError(28, os.strerror(28), str(path))
            write(path, text)

        monkeypatch.setattr(scaffold, "write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            write_files(kind, "mine", tables)
        assert files_of(tables) == before, place
    monkeypatch.setattr(scaffold, "write_atomically", write)
    (tables / kind.table[0]).write_text("OTHER = {}\n")
    with pytest.raises(ConfigError, match=f"has no dictionary {kind.table[1]} over several lines"):
        write_files(kind, "mine", tables)


def test_a_row_goes_to_the_end_of_its_dictionary() -> None:
    text = "A = {\n    1: 2,\n}\nB: dict[int, int] = {\n    1: 2,\n}  # fmt: skip\n"
    assert with_row(text, "A", "    3: 4,\n", Path("a")) == text.replace("}\nB", "    3: 4,\n}\nB")
    assert with_row(text, "B", "    3: 4,\n", Path("a")) == text.replace("}  #", "    3: 4,\n}  #")


def in_copy(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**script_env(), "PYTHONPATH": str(copy / "src"), "WANDB_MODE": "disabled"}
    return subprocess.run([sys.executable, *words], cwd=copy, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree with a new encoder and a new method in it."""
    folder = tmp_path_factory.mktemp("tree") / "copy"
    folder.mkdir()
    for name in ("conf", "src", "tests", "benchmarks", "experiments", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.nb[ic]"))
    for file in (path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"):
        shutil.copy(file, folder)
    for words in (["new-encoder", "mine_too"], ["new-method", "line_fit"]):
        done = in_copy(folder, "-m", "arclab", *words)
        assert done.returncode == 0 and "registered in src/arclab/" in done.stdout, done.stderr
    return folder


@pytest.mark.slow
def test_what_is_written_is_formatted_and_typed(copy: Path) -> None:
    (copy / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text().replace('venvPath = "."\nvenv = ".venv"\n', ""))
    new = [path for path in copy.rglob("*.py") if not (ROOT / path.relative_to(copy)).exists()]
    changed = [copy / kind.table[0] for kind in (scaffold._ENCODER, scaffold._METHOD)]
    assert len(new) == 9  # three of the encoder, six of the method
    for words in (["ruff", "format", "--check"], ["ruff", "check"]):
        done = in_copy(copy, "-m", *words, *map(str, [*new, *changed]))
        assert done.returncode == 0, done.stdout
    sources = [str(path) for path in [*new, *changed] if "tests" not in path.parts]
    done = in_copy(copy, "-m", "basedpyright", "--pythonpath", sys.executable, *sources)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_new_encoder_trains_is_counted_and_passes_what_every_encoder_must(copy: Path) -> None:
    tiny = ["experiment=quickstart", "encoder=mine_too", "name=m", "trainer.steps=2", "trainer.device=cpu", "decoder.width=32"]
    done = in_copy(copy, "pretrain_encoder.py", *tiny)
    assert done.returncode == 0, done.stderr
    typo = in_copy(copy, "pretrain_encoder.py", "experiment=quickstart", "name=n", "encoder=mine_to")
    assert typo.returncode == 2 and "mine_too" in typo.stderr
    assert "encoder=mine_too" in in_copy(copy, "-m", "arclab", "completion", "words", "train", "encoder=m").stdout
    tests = [
        "tests/methods/recursive",
        "tests/every_key/test_encoders.py",
        "tests/launch/test_sizes.py",
        "tests/test_project.py",
    ]
    done = in_copy(
        copy,
        "-m",
        "pytest",
        "-q",
        "-x",
        *tests,
        "-k",
        "mine_too or has_a_row or source_files or circle",
        "-p",
        "no:cacheprovider",
    )
    assert done.returncode == 0 and "mine_too" not in ENCODERS, done.stdout[-3000:]


@pytest.mark.slow
def test_a_new_method_has_the_life_of_a_run(copy: Path) -> None:
    done = in_copy(copy, "-m", "pytest", "-q", "-x", "tests/methods/line_fit", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-3000:]
    for words, says in (
        (["line_fit.py", "--help", "trainer.lr"], "0.1"),
        (["line_fit.py", "name=a", "launch.cpus=2"], "done: "),
    ):
        done = in_copy(copy, *words)
        assert done.returncode == 0 and says in done.stdout + done.stderr, done.stderr
    (copy / "jobs_of_it.txt").write_text("line_fit.py name=b trainer.lr=0.05,0.1\n")
    done = in_copy(copy, "-m", "arclab", "queue", "check", "jobs_of_it.txt")
    assert done.returncode == 0 and "line_fit" in done.stdout, done.stderr
    done = in_copy(
        copy,
        "-m",
        "pytest",
        "-q",
        "-x",
        "tests/config/test_help.py",
        "tests/cli/test_completion.py",
        "tests/test_project.py",
        "-p",
        "no:cacheprovider",
    )
    assert done.returncode == 0 and "line_fit" not in ENTRIES, done.stdout[-3000:]
