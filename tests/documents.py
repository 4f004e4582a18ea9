"""Reading the documents: their pages, links, anchors and commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from .conftest import ROOT

RECORDS_OF_THE_PAST = ("LOG.md", "faults.md", "slurm.md", "results.md")  # their commands and names are those of their time
ALL_PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in ALL_PAGES if page.name not in RECORDS_OF_THE_PAST]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STARTS = ("python ", "torchrun ", "make ", "pip ", "conda ", "arclab ", "scancel ", "nohup ")


def prose(text: str) -> str:
    """Without fenced blocks."""
    return _FENCE.sub("", text)


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """(file, anchor or "") of every link into the repository."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            yield (page.parent / file).resolve() if file else page, anchor


def anchors(page: Path) -> set[str]:
    """Those that GitHub and the site give to headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[str]:
    """Every command that a page shows: lines of bash blocks, and code in the text that begins like one. Not those with dots or
    capitals in the place of words."""
    text = page.read_text()
    for language, block in _FENCE.findall(text):
        if language == "bash":
            lines = block.replace("\\\n", " ").splitlines()
            yield from (" ".join(shlex.split(line, comments=True)) for line in lines if line.split("#")[0].strip())
    for code in re.findall(r"`([^`]+)`", prose(text)):
        command = " ".join(code.split())
        if command.startswith(_STARTS) and not re.search(r"\.\.\.|\b(COMMAND|SOMETHING)\b", command):
            yield " ".join(shlex.split(command))


def long_lines(page: Path, width: int) -> list[int]:
    """Numbers of the lines of text that are longer; tables, headings, pictures, blocks and generated parts may be."""
    is_free, found = False, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        is_free ^= line.startswith(("```", "<!-- begin: ", "<!-- end: "))
        if not is_free and len(line) > width and not line.startswith(("|", "#", "![", "<", "```")):
            found.append(number)
    return found
