"""The metrics seal/* of models that propose how they are trained on a task: what names.py registers. Name: (unit, direction,
meaning)."""

from __future__ import annotations

_SUCCESS = "proposals for unseen tasks that let their task be solved"
# Over the tasks of an evaluation.
SEAL = {
    "proposals": ("proposals", "none", "replies to unseen tasks: the N of seal/successful_share"),
    "ok_share": ("share", "up", "replies that are self-edits within the budget"),
    "successful_share": ("share", "up", f"{_SUCCESS}, of all replies of the trained model"),
    "start_share": ("share", "none", f"{_SUCCESS}, of the model that the first round began with"),
    "twin_share": ("share", "none", f"{_SUCCESS}, of the twin that learned with shuffled rewards"),
    "solved_share": ("share", "up", "unseen tasks solved by the votes of all self-edits together, of the trained model"),
    "plain_share": ("share", "none", "unseen tasks solved without training on them"),
    "default_share": ("share", "none", "unseen tasks solved after training with the hand-made self-edit"),
    "random_share": ("share", "none", "tasks x self-edits of the grid that solve the task: a random one, on average"),
    "constant_share": ("share", "none", "unseen tasks solved with the self-edit of the grid that solves most training tasks"),
    "oracle_share": ("share", "none", "unseen tasks that some self-edit of the grid solves"),
    "wins": (
        "share",
        "up",
        "of the unseen tasks for which the trained model and its best control have another share of successful proposals, "
        "those for which it has the larger one; 0.5: chance; 0 if the twin has gained as well (p < 0.05)",
    ),
    "discordant": ("tasks", "none", "tasks for which they differ: the N of seal/wins"),
    "p_value": ("probability", "down", "of such a difference by chance (sign test over tasks, two-sided)"),
    "twin_p_value": ("probability", "none", "of the twin's difference from the start by chance"),
    "modal_share": ("share", "none", "self-edits for unseen tasks that are the one proposed most often; near 1: one for all"),
    "constant_wins": ("tasks", "none", "unseen tasks for which proposals succeed more often than the constant best self-edit"),
    "constant_losses": ("tasks", "none", "unseen tasks for which they succeed less often than it"),
}
