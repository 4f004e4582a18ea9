"""The page of a search tree: it holds what the tree holds, and nothing of a program's text can get out of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arclab.config.compose import ConfigError
from arclab.methods.tree_search.solver import TreeSearch
from arclab.methods.tree_search.tree_page import render_tree, state_of, write_tree_pages
from arclab.methods.tree_search.trees import Tree, load_tree
from arclab.pages.analyse import main
from arclab.programs.sandbox.pool import Sandbox
from arclab.results.attempts import Budget

from .common import TASKS, babble, scripted, setting_of

HOSTILE = '    "</script><script>alert(1)</script>&<b>"\n'


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=1) as pool:
        yield pool


def script(written: str, rng: np.random.Generator) -> str:
    return HOSTILE + babble(written, rng)


@pytest.fixture(scope="module")
def folder(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("searched")
    solver = TreeSearch(scripted(script), sandbox, setting_of("pwmcts", "search.num_draws=30"), folder=path, settings={})
    solver.solve(TASKS[:2], Budget())
    return path


def data_in(html: str) -> dict[str, list[dict[str, object]]]:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def grown(folder: Path) -> Tree:
    return load_tree(sorted((folder / "trees").glob("*.jsonl"))[0])


def test_the_page_holds_every_node_and_fetches_nothing(folder: Path) -> None:
    tree = grown(folder)
    html = render_tree(tree, TASKS[0])
    data = data_in(html)
    assert [node["id"] for node in data["nodes"]] == list(tree.nodes)
    assert [node["state"] for node in data["nodes"]] == [state_of(node) for node in tree.nodes.values()]
    assert len({node["state"] for node in data["nodes"]}) >= 4
    for node in data["nodes"]:
        program, before = str(node["program"]), str(node["before"])
        assert program.startswith(before) and (HOSTILE in program) == (node["state"] != "prompt")
    assert len(data["demos"]) == len(TASKS[0].demos) and data["demos"][0]["output"] is not None
    assert "alert(1)</script>" not in html and html.count("</script>") == 2
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", html)


def test_a_folder_becomes_pages_and_a_wrong_one_is_refused(folder: Path, tmp_path: Path) -> None:
    index = write_tree_pages(folder, tmp_path / "pages")
    pages = sorted(page.name for page in index.parent.glob("*.html"))
    assert len(pages) == 3 and all(name in index.read_text() for name in pages if name != "index.html")
    assert "Inputs and truth are missing" in (index.parent / pages[1]).read_text()  # no config.yaml says what the tasks are
    with pytest.raises(ConfigError, match=r"has no trees/\*\.jsonl"):
        main(["tree", str(tmp_path)])
