"""The metrics knowledge/* of passages that a model takes into its weights: what names.py registers. Name: (unit, direction,
meaning)."""

from __future__ import annotations

# Over the questions of all items, asked without their passages.
KNOWLEDGE = {
    "questions": ("questions", "none", "questions that are graded: the N of the shares of questions"),
    "base_accuracy": ("share", "none", "questions that the model answers right as it is"),
    "accuracy": (
        "share",
        "up",
        "questions answered right after training on a completion, over all completions and repetitions",
    ),
    "first_accuracy": ("share", "up", "the same of the first completion of each item, once"),
    "macro_accuracy": ("share", "up", "knowledge/accuracy as the mean of the items' own shares"),
    "passage_accuracy": ("share", "none", "questions answered right after training on the passage alone"),
    "other_accuracy": ("share", "none", "questions answered right after training on another item's completion: the control"),
    "gain": ("", "up", "what a completion adds to the share of right answers; mean over completions"),
    "wins": (
        "share",
        "up",
        "of the questions that the adapted model or the model as it is alone answers right, those of the adapted one; 0.5: "
        "chance; 0 if another item's completion helps as well (p < 0.05)",
    ),
    "discordant": ("questions", "none", "questions that one of the two alone answers right: the N of wins"),
    "p_value": ("probability", "down", "of such a difference by chance (McNemar's exact test, two-sided)"),
    "ungraded_share": ("share", "down", "answers that the grader said neither yes nor no to; they count in no share"),
    "unadapted_share": ("share", "down", "trials whose training was not finite, so that the model answered as it is"),
    "train_s": ("s", "down", "seconds of training on a completion"),
    "tokens": ("tokens", "none", "tokens that training on a completion passes through the model"),
    "padding_share": ("share", "down", "of these tokens, padding"),
    "published_padding": ("ratio", "none", "tokens if every sequence were padded to 2048, by tokens as they are padded here"),
}
