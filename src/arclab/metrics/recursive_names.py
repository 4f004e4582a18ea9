"""Metrics of the recursive models that evaluations measure: {name: (unit, direction, meaning)}. arclab.metrics.names registers
them."""

from __future__ import annotations

# Of evaluations in which the model is trained on the scored tasks' demonstrations (methods/recursive/adaptation).
_OWN = "cross-entropy of a cell of the task's demonstrations, each asked with the others shown"
ADAPT = {
    "loss_before": ("nats", "none", f"{_OWN}, before the model is trained on them"),
    "loss_after": ("nats", "down", f"{_OWN}, when the task is answered"),
    "shared": ("share", "none", "tasks with one demonstration, whose question shows it"),
    "seconds": ("s", "down", "seconds of training before a task is answered (jointly: before all of them)"),
}

# Measured by methods/recursive/probes/encoder_health.py as encoder/... on scored tasks and train_encoder/... on training tasks.
ENCODER = {
    "tasks": ("tasks", "none", "tasks in the sample: the N of the others"),
    "between_task_share": ("share", "up", "variance of the context between tasks, as a share of its mean square (scale-free)"),
    "effective_rank": ("dimensions", "up", "exp of the entropy of the variance spectrum of pooled contexts; at most tasks - 1"),
    "augmentation_spread": (
        "ratio",
        "none",
        "squared distance to another view of the same task, relative to that of another task",
    ),
    "subset_spread": (
        "ratio",
        "down",
        "squared distance between two halves of a task's demonstrations, relative to other tasks",
    ),
    "retrieval_accuracy": (
        "share",
        "up",
        "tasks whose halves of demonstrations are nearest neighbours among all tasks' halves",
    ),
    "retrieval_chance": (
        "share",
        "none",
        "retrieval_accuracy of a context that says nothing: 1 / tasks with two demonstrations",
    ),
    "exact_accuracy": ("share", "up", "first test inputs predicted exactly right with their own demonstrations, no voting"),
    "accuracy": ("share", "up", "cells of first test inputs predicted right with their own demonstrations"),
    "swap_drop": ("share", "up", "exact_accuracy lost with another task's demonstrations; 0: the decoder does not use them"),
    "swap_drop_cells": ("share", "up", "accuracy lost with another task's demonstrations"),
    "zero_context_drop": ("share", "up", "exact_accuracy lost with context tokens of zero"),
    "zero_context_drop_cells": ("share", "up", "accuracy lost with context tokens of zero"),
}

# Measured by methods/recursive/probes/table_ablations.py on scored tasks, for a puzzle table.
PUZZLE = {
    "tasks": ("tasks", "none", "tasks whose vector was examined"),
    "exact_accuracy": ("share", "up", "first test inputs predicted exactly right with their own vector, no voting"),
    "accuracy": ("share", "up", "cells of first test inputs predicted right with their own vector"),
    "wrong_id_drop": ("share", "up", "exact_accuracy lost with another task's vector; 0: the table says nothing"),
    "wrong_id_drop_cells": ("share", "up", "accuracy lost with another task's vector"),
    "blank_id_drop": ("share", "up", "exact_accuracy lost with a vector of zeros"),
    "blank_id_drop_cells": ("share", "up", "accuracy lost with a vector of zeros"),
}
