"""Runs the notebooks and stores them with what they print and draw, small enough to ship.

    pip install -e '.[notebooks]'
    python -m docs.notebooks notebooks/*.ipynb        # about a minute each on a CPU

Progress bars and log lines (standard error) are left out, pictures get a palette of 128 colours. It changes no code in them;
tests/test_notebooks.py runs the same code without storing anything.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

_TIMEOUT_S = 900
_COLORS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    for path in parser.parse_args().notebooks:
        execute(path)


def execute(path: Path) -> None:
    """Run it in its folder and store it with its outputs. nbclient.exceptions.CellExecutionError: a cell failed; the file is as
    it was."""
    import nbformat  # pyright: ignore[reportMissingImports]  # of the extra [notebooks]
    from nbclient import NotebookClient  # pyright: ignore[reportMissingImports]

    notebook = nbformat.read(path, 4)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=_TIMEOUT_S, kernel_name="python3", resources=place, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = list(kept(cell.outputs))
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, path)


def kept(outputs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What is worth storing: all but standard error."""
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if picture := output.get("data", {}).get("image/png"):
            output["data"]["image/png"] = smaller(picture)
        yield output


def smaller(png: str) -> str:
    """A picture in base64 with a palette."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    main()
