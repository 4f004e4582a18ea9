"""The end of every evaluation: its files and its page in one folder, and the scores in words.

    message = publish(result, folder)        # "ARC/pass@2 3/12 = 25.0 % [8.9, 53.2]"

The files are metrics.json, predictions.jsonl, submission.json and report.html; all of them or none: see
arclab.results.writing.
"""

from __future__ import annotations

import logging
from pathlib import Path

from arclab.pages import report
from arclab.results.writing import Evaluation, write_results

log = logging.getLogger(__name__)
_SAID = ("ARC/pass@1", "ARC/pass@2", "ARC/solved@2")


def publish(result: Evaluation, folder: Path) -> str:
    """Write the results and say the scores; returns the sentence of a finished evaluation. OSError names a file."""
    write_results(result, folder, {"report.html": report.render_report(result)})
    for name in _SAID:
        log.info("%s %s", name, result.shares[name])
    log.info("report: %s", folder / "report.html")
    return f"ARC/pass@2 {result.shares['ARC/pass@2']}"
