"""Small drawings on matplotlib axes, for notebooks: a grid, a whole task, tokens.

    figure, axes = plt.subplots(2, 4); draw_task(axes, task)

It opens no window and saves nothing; the pages of report.py and compare.py draw grids as SVG themselves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from arclab.data.codec import EOS, FIRST_COLOR, PAD
from arclab.data.tasks import COLORS, NUM_COLORS, ArcTask, Grid

_GRIDS = ListedColormap(COLORS)
_TOKENS = ListedColormap(["#f4f4f4", "#c9a6ff", *COLORS])


def draw_grid(axes: Axes, grid: Grid, title: str = "") -> None:
    """An (H, W) grid in the official colours with thin lines between cells."""
    _draw_cells(axes, grid, _GRIDS, NUM_COLORS, title)


def draw_tokens(axes: Axes, tokens: npt.NDArray[np.uint8], canvas: int, title: str = "") -> None:
    """(canvas * canvas,) tokens as the model sees them: PAD nearly white, EOS violet, colours as they are."""
    assert (PAD, EOS, FIRST_COLOR) == (0, 1, 2)
    _draw_cells(axes, tokens.reshape(canvas, canvas), _TOKENS, FIRST_COLOR + NUM_COLORS, title)


def _draw_cells(axes: Axes, cells: npt.NDArray[np.uint8], colors: ListedColormap, num_values: int, title: str) -> None:
    height, width = cells.shape
    axes.imshow(cells, cmap=colors, vmin=-0.5, vmax=num_values - 0.5, interpolation="nearest")
    axes.set_xticks(np.arange(width + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(height + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#6b7078", linewidth=0.5)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    axes.set_title(title, fontsize=9)


def draw_task(axes: npt.NDArray[np.object_], task: ArcTask) -> None:
    """(2, n) axes: inputs above, outputs below, demonstrations first. Axes left over, and hidden outputs, stay empty."""
    for ax in axes.ravel():
        ax.set_axis_off()
    names = [f"demonstration {i + 1}" for i in range(len(task.demos))] + [f"test {i + 1}" for i in range(len(task.tests))]
    for column, name, pair in zip(axes.T, names, task.pairs, strict=False):
        for ax, grid, title in ((column[0], pair.input, name), (column[1], pair.output, "")):
            if grid is not None:
                ax.set_axis_on()
                draw_grid(ax, grid, title)
