"""Does memory help? The trained weaver against its controls, question by question.

    metrics = compared(trained, {"off": off, "random": random})

The control that counts is the stronger one. Of the questions on which the two disagree, text/memory_wins is the share that the
trained weaver answers right: one half is a coin, and text/p_value is McNemar's exact test of that. It needs the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arclab.methods.memgen.answering import Answered, accuracy
from arclab.results.paired import PairedTest


def compared(trained: Sequence[Answered], controls: Mapping[str, Sequence[Answered]]) -> dict[str, float]:
    """Registered metrics. controls: by name (off, random, start). All sequences answer the same examples in the same order."""
    metrics: dict[str, float] = {}
    strongest, best = None, -1.0
    for name, answered in controls.items():
        assert [each.id for each in answered] == [each.id for each in trained]
        value = accuracy(answered).value
        metrics[f"text/{name}_accuracy"] = value
        if value > best:
            strongest, best = answered, value
    assert strongest is not None
    outcomes = [(mine.is_right, other.is_right) for mine, other in zip(trained, strongest, strict=True)]
    paired = PairedTest.count("questions", outcomes)
    metrics["text/discordant"] = float(paired.discordant)
    metrics["text/p_value"] = paired.p_value
    if paired.discordant:
        metrics["text/memory_wins"] = paired.only_first / paired.discordant
    return metrics
