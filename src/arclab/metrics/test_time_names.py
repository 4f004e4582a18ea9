"""The metrics ttt/* of models that are trained on a task before they answer it: what names.py registers. Name: (unit,
direction, meaning)."""

from __future__ import annotations

# Over the scored tasks that were tried.
TEST_TIME = {
    "replies": ("replies", "none", "replies to all views of all test inputs: the N of ttt/no_grid_share"),
    "no_grid_share": ("share", "down", "replies that are no grid, or had no end"),
    "silent_share": ("share", "down", "views of test inputs in which no reply was as likely as solver.threshold"),
    "candidates": ("grids", "none", "different grids among the replies to a test input"),
    "tokens": ("tokens", "none", "tokens that were generated, or computed by a depth-first search"),
    "answer_s": ("s", "down", "time to answer a task, once the model is adapted"),
    "unadapted_share": ("share", "down", "tasks that were to be trained on and were answered by the model as it is"),
    "pseudo_tasks": ("tasks", "none", "pseudo-tasks that a task was trained on"),
    "too_long_share": ("share", "down", "pseudo-tasks that do not fit into the context, of those that were looked at"),
    "loss_first": ("nats", "none", "loss of the first step of a task's training, mean over tasks"),
    "loss_last": ("nats", "down", "loss of its last step"),
    "padding_share": ("share", "down", "padding among the tokens of training"),
    "fit_s": ("s", "down", "time to train on a task"),
    "fit_tokens_per_s": ("tokens/s", "up", "tokens that training reads in a second, padding left out"),
}
