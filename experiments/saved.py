"""Where tables of experiments are kept: experiments/results/NAME.json, and NAME.md for people.

    save("memgen_control", {"rows": rows, "provenance": where}, text)
    lines = [*heading(TITLE, where), "| run | right |"]

docs/records.py makes a page of all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arclab.files import write_atomically

RESULTS = Path(__file__).parent / "results"


def save(name: str, record: Mapping[str, Any], text: str) -> None:
    """Replaces what was there. text: Markdown."""
    write_atomically(RESULTS / f"{name}.json", json.dumps(record, indent=1) + "\n")
    write_atomically(RESULTS / f"{name}.md", text)


def heading(title: str, where: Mapping[str, Any]) -> list[str]:
    """The first lines of a table. where: see arclab.runs.folder.provenance."""
    return [f"# {title}", "", f"Command: `{where['command']}`; commit {where['commit']}; {where['machine']}.", ""]
