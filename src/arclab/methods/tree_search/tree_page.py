"""Search trees as pages: one for each task, and one that lists them.

    python -m arclab.pages tree FOLDER [--output FOLDER]      # FOLDER: what evaluate.py solver=tree_search wrote

Writes FOLDER/pages/<task>.html and FOLDER/pages/index.html. A page shows the tree with its states by colour, the details of a
node on hover and click, a filter, and a replay of how it grew. It holds all that it shows and fetches nothing. Trees that are
still growing can be looked at, too. Whether a test answer is right is shown where the truth is known; no search sees it.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from arclab.config.compose import ConfigError, thaw_run
from arclab.data.sources import load_source
from arclab.data.tasks import COLORS, ArcTask, Grid, Pair
from arclab.files import sentence_for, write_atomically
from arclab.methods.tree_search.policies import priors
from arclab.methods.tree_search.trees import Ending, Node, NodeKind, Tree, load_tree
from arclab.pages.templating import page
from arclab.programs.outcomes import PairOutcome
from arclab.programs.sandbox.execution import GridResult
from arclab.runs.console import setup_logging

log = logging.getLogger(__name__)
_BY_A_LIMIT = (Ending.cut, Ending.context, Ending.refused, Ending.empty)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m arclab.pages tree", description="A page for each search tree.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="results of evaluate.py solver=tree_search")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: FOLDER/pages)")
    arguments = parser.parse_args(argv)
    setup_logging()
    log.info("wrote %s", write_tree_pages(arguments.folder, arguments.output or arguments.folder / "pages"))
    return 0


def write_tree_pages(folder: Path, output: Path) -> Path:
    """The page that lists the trees. ConfigError: there are none in the folder."""
    files = sorted((folder / "trees").glob("*.jsonl"))
    if not files:
        raise ConfigError(f"{folder} has no trees/*.jsonl; give a folder that a tree search has written.")
    tasks, problem = _tasks_of(folder)
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for file in files:
        tree = load_tree(file)
        name = f"{file.stem}.html"
        text = render_tree(tree, tasks.get(tree.task_id), problem=problem, index="index.html")
        write_atomically(output / name, text)
        rows.append({"address": name, "task": tree.task_id, "facts": facts_of(tree)})
    write_atomically(output / "index.html", page("listing.html.j2", rows=rows, title=folder.name, kicker="Search trees"))
    return output / "index.html"


def _tasks_of(folder: Path) -> tuple[dict[str, ArcTask], str]:
    """The tasks of the run's sources, and why they are not there."""
    try:
        dataset = thaw_run(folder / "config.yaml").dataset
        sources = [*dataset.train_sources, *dataset.eval_sources]
        return {task.id: task for source in sources for task in load_source(source)}, ""
    except (OSError, ValueError, AttributeError) as error:
        return {}, sentence_for(error) or "its configuration names no tasks"


def render_tree(tree: Tree, task: ArcTask | None, *, problem: str = "", index: str = "") -> str:
    """The page of one tree. task None: its grids are missing, for the reason in `problem`. index: the page that lists all
    trees."""
    notes = [f"Inputs and truth are missing: {problem or 'the task is in none of the sources'}."] if task is None else []
    if tree.end is None:
        notes.append("The search of this task has not ended.")
    if tree.duplicates:
        notes.append(f"{len(tree.duplicates)} draws repeated a sibling: they are attempts, and no nodes.")
    return page(
        "tree.html.j2", task_id=tree.task_id, facts=facts_of(tree), notes=notes, index=index, data=data_of(tree, task)
    )  # fmt: skip


def facts_of(tree: Tree) -> dict[str, str]:
    """What a tree took, in words."""
    programs, end = tree.programs(), tree.end
    return {
        "search": str(tree.settings.get("search.kind", "not known")),
        "ended by": "not ended" if end is None else end.skipped or end.reason,
        "draws": f"{tree.num_attempts:,}",
        "nodes": f"{sum(1 for _ in tree.drawn()):,}",
        "finished programs": f"{len(programs):,}",
        "passing": f"{sum(node.passes for node in programs):,}",
        "tokens": f"{tree.num_tokens:,}",
        "seconds": "not known" if end is None else f"{end.seconds:,.1f}",
    }


def data_of(tree: Tree, task: ArcTask | None) -> Markup:
    """What the page's script draws, as JSON that cannot end its element."""
    drawn = [node.tag for node in tree.drawn()]
    order = {tag: place + 1 for place, tag in enumerate(drawn)}
    values = {
        "colors": COLORS,
        "draws": len(drawn),
        "nodes": [_node(tree, node, order.get(node.tag, 0)) for node in tree.nodes.values()],
        "demos": [] if task is None else [_pair(pair) for pair in task.demos],
        "tests": [] if task is None else [_pair(pair) for pair in task.tests],
    }
    text = json.dumps(values, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _node(tree: Tree, node: Node, order: int) -> dict[str, Any]:
    """order: as the how-manieth node it was drawn; 0: not drawn."""
    parent, outcome = node.parent, node.outcome
    is_drawn = node.kind in (NodeKind.step, NodeKind.refinement)
    siblings = parent.children if parent is not None and is_drawn else []
    prior = priors(siblings)[siblings.index(node)] if siblings and node.logprob is not None else None
    goes_on = parent is not None and node.kind is NodeKind.step
    return {
        "id": node.tag, "parent": None if parent is None else parent.tag, "state": state_of(node), "ending": node.ending.value,
        "order": order, "rollout": node.rollout, "text": node.text, "program": tree.source(node) if is_drawn else "",
        "before": tree.source(parent) if goes_on and parent is not None and is_drawn and parent.written else "",
        "tokens": node.num_tokens, "logprob": node.logprob, "prior": prior, "temperature": node.temperature,
        "reward": node.reward, "value": node.value, "examples": list(node.examples), "hinted": node.hinted,
        "demos": None if outcome is None else [_answer(demo) for demo in outcome.demos],
        "answers": None if outcome is None or not outcome.answers else [_answer(answer) for answer in outcome.answers],
    }  # fmt: skip


def state_of(node: Node) -> str:
    """passing, wrong, invalid, cut, open, spent (all below is finished) or prompt."""
    if node.kind in (NodeKind.task, NodeKind.prompt):
        return "prompt"
    if node.passes:
        return "passing"
    if node.ending in _BY_A_LIMIT:
        return "cut"
    if not node.valid:
        return "invalid"
    if node.is_terminal:
        return "wrong"
    return "spent" if node.children and all(_is_spent(child) for child in node.children) else "open"


def _is_spent(node: Node) -> bool:
    return node.is_terminal or (bool(node.children) and all(map(_is_spent, node.children)))


def _answer(answer: PairOutcome | GridResult) -> dict[str, Any]:
    return {"status": answer.status.name.replace("_", " "), "message": answer.message, "grid": _rows(answer.grid)}


def _pair(pair: Pair) -> dict[str, Any]:
    return {"input": _rows(pair.input), "output": _rows(pair.output)}


def _rows(grid: Grid | None) -> list[str] | None:
    return None if grid is None else ["".join(map(str, row)) for row in grid.tolist()]
