"""The metrics edits/* of models that edit programs: what names.py registers. Name: (unit, direction, meaning)."""

from __future__ import annotations

# Of models that edit programs: over all edits of the start programs of a stage.
EDITS = {
    "count": ("edits", "none", "edits that were drawn: the N of the shares of edits"),
    "starts": ("programs", "none", "start programs that were edited: the N of edits/solved_share"),
    "tasks": ("tasks", "none", "tasks of a search, or of an evaluation of start programs: the N of the shares of tasks"),
    "parent_value": ("", "none", "what the program that an edit was made from is worth"),
    "changed_cells": ("share", "up", "right cells of those that change from input to output, or that the program changed"),
    "mean_delta": ("", "up", "what an edit adds to the worth of its program, costs taken off"),
    "chain_gain": ("", "up", "what the best edit of a start program, in any turn, adds to it; mean over start programs"),
    "improved_share": ("share", "up", "edits that make their program worth more"),
    "solved_share": ("share", "up", "start programs of which some edit reproduces every demonstration"),
    "tests_solved_share": ("share", "up", "start programs of which some edit answers every test input right"),
    "coverage": ("share", "up", "tasks of which any program that was drawn answers every test input right"),
    "two_attempts": ("share", "up", "tasks whose every test input is right in two attempts: all programs vote by answers"),
    "cell_share": ("share", "up", "right cells of a start program's best edit, over demonstrations"),
    "steep_cell_share": ("share", "up", "the same to the power of ten, as in what a program is worth"),
    "with_program": ("share", "up", "edits that hold a new program"),
    "cut_share": ("share", "down", "edits that ended at sampling.max_new_tokens"),
    "tokens": ("tokens", "none", "tokens of an edit, its end mark included; missing where a server does not tell"),
    "start_solved_share": ("share", "none", "start programs that the model of the first round's start puts right"),
    "twin_solved_share": ("share", "none", "start programs that the twin puts right"),
    "wins": (
        "share",
        "up",
        "of the start programs that the trained model or that of the start alone puts right, those of the trained one; 0 where "
        "the difference may be chance (p of 0.05 or more), and where the twin has gained",
    ),
    "discordant": ("programs", "none", "start programs that one of the two alone puts right: the N of edits/wins"),
    "p_value": ("probability", "down", "of such a difference by chance (McNemar's exact test, two-sided)"),
    "twin_p_value": ("probability", "none", "the same of the twin against the model of the start"),
    "thinking_tokens": ("tokens", "none", "tokens of an edit's thinking, estimated by its part of the characters"),
    "solved_per_1000_tokens": ("1/1000 tokens", "up", "start programs put right, by thousand tokens of edits"),
    "value_per_1000_tokens": ("1/1000 tokens", "up", "worth that edits add, by thousand tokens"),
}
