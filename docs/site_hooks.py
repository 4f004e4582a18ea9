"""Hooks of the site (mkdocs.yml): what pages link to outside docs/ comes along, so that links work there as on GitHub.

README.md, the records in benchmarks/results and experiments/results and what they link to become files below repository/. A
link that leads to no file is left as it is, and mkdocs, which is strict, ends with its name. It changes no file in docs/.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files  # pyright: ignore[reportMissingImports]  # of the extra [docs]

ROOT = Path(__file__).parents[1]
PREFIX = "repository"
_LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add every file outside docs/ that a page, or such a file, links to."""
    waiting = [(file.src_uri, _read(Path(str(file.abs_src_path)))) for file in files if file.src_uri.endswith(".md")]
    while waiting:
        uri, text = waiting.pop()
        for target in {_target(uri, match[2]) for match in _LINK.finditer(text)}:
            if target is not None and files.get_file_from_path(f"{PREFIX}/{target}") is None:
                path = ROOT / target
                files.append(File.generated(config, f"{PREFIX}/{target}", abs_src_path=str(path)))
                if path.suffix == ".md":
                    waiting.append((f"{PREFIX}/{target}", _read(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files outside docs/ lead to the copies of these; links from the copies into docs/ lead there."""
    uri = page.file.src_uri
    here = posixpath.dirname(uri)

    def replaced(match: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(_folder(uri), match[2]))
        target = place.removeprefix("docs/") if place.startswith("docs/") else f"{PREFIX}/{place}"
        if files.get_file_from_path(target) is None:
            return match[0]
        return f"{match[1]}{posixpath.relpath(target, here or '.')}{match[3] or ''}{match[4]}"

    return _LINK.sub(replaced, markdown)


def _folder(uri: str) -> str:
    """The folder of a page in the repository."""
    return posixpath.dirname(uri.removeprefix(f"{PREFIX}/") if uri.startswith(f"{PREFIX}/") else f"docs/{uri}")


def _target(uri: str, link: str) -> str | None:
    """The file outside docs/, relative to the repository, that a link of a page means; None: there is none."""
    place = posixpath.normpath(posixpath.join(_folder(uri), link))
    is_outside = not place.startswith(("docs/", "../"))
    return place if is_outside and (ROOT / place).is_file() else None


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
