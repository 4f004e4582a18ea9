"""The end of every evaluation: its files and its page in one folder, and the scores in words.

    message = publish(result, folder)        # "ARC/pass@2 3/12 = 25.0 % [8.9, 53.2]"

The files are metrics.json, predictions.jsonl, submission.json and report.html; all of them or none: see
arclab.results.writing.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from arclab.metrics.names import REGISTRY
from arclab.pages import report
from arclab.results.writing import Evaluation, write_results

log = logging.getLogger(__name__)
_SAID = ("ARC/pass@1", "ARC/pass@2", "ARC/solved@2")
_DROPS = ("encoder/swap_drop", "puzzle/wrong_id_drop")


def publish(result: Evaluation, folder: Path) -> str:
    """Write the results and say the scores; returns the sentence of a finished evaluation. OSError names a file."""
    result = replace(
        result, stamps=tuple(dict.fromkeys((*result.stamps, *_hidden(result))))
    )  # an ensemble's members say it too
    write_results(result, folder, {"report.html": report.render_report(result)})
    scored = len(result.tasks) - result.num_hidden
    for name in _SAID if scored else ():
        log.info("%s %s", name, result.shares[name])
    for name in _DROPS:
        if scored and name in result.attempts.statistics:
            log.info("%s %.3g: %s", name, result.attempts.statistics[name], REGISTRY[name].meaning)
    for note in _hidden(result):
        log.info("note: %s", note)
    log.info("report: %s", folder / "report.html")
    log.info("submission: %s (two attempts for each test input, in the form that Kaggle wants)", folder / "submission.json")
    return f"ARC/pass@2 {result.shares['ARC/pass@2']}" if scored else "all answers are hidden: predictions, and no score"


def _hidden(result: Evaluation) -> tuple[str, ...]:
    """What stands beside the scores if some answers are not known."""
    count, total = result.num_hidden, len(result.tasks)
    return (f"the answers of {count} of the {total} tasks are hidden: these are predicted and not scored",) if count else ()
