"""Context vectors as points coloured by task or rule, on matplotlib axes, for notebooks.

    scatter_tasks(plt.gca(), pca(contexts.vectors)[0], contexts)

It opens no window and saves nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes

from arclab.methods.recursive.probes.representations import Contexts


def scatter_tasks(
    axes: Axes, points: npt.NDArray[np.float64], contexts: Contexts, title: str = "", *, by_rule: bool = False
) -> None:
    """(V, 2) points, one colour a task or a rule; large: all demonstrations of the task as it is; small: augmented or one left
    out."""
    names = sorted(set(contexts.rules)) if by_rule else contexts.task_ids
    group_V = contexts.rule_V if by_rule else contexts.task_V
    colors = colormaps["tab20"](np.arange(len(names)) % 20)
    is_plain = (contexts.augmentation_V == 0) & (contexts.left_out_V < 0)
    for group, name in enumerate(names):
        mine = group_V == group
        for chosen, size, label in ((mine & ~is_plain, 14, None), (mine & is_plain, 70, name)):
            axes.scatter(*points[chosen].T, s=size, color=colors[group], alpha=0.85, linewidths=0, label=label)
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
