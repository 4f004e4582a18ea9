"""How fast RE-ARC's generators make pairs, how many of these are of use, and how many rows a second a loader makes of them.

    python -m benchmarks.rearc                    # 10 pairs of each task; rows for 20 s of each dataset; minutes
    python -m benchmarks.rearc --pairs 50 --save  # writes benchmarks/results/rearc.json

Pairs at all difficulties with sides up to 30, and up to 10 as dataset.max_side=10 asks for them. Rows on the 10-canvas, of
dataset=rearc and dataset=arc1, in turns. One process on one thread. Prints a few lines and one JSON line. It trains nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arclab.config.compose import run_main
from arclab.data.rearc import PairRule, draw_pair, generators, version
from benchmarks.arguments import at_least_1

_ROWS = 64
_TURNS = 5


def generation(num_pairs: int, max_side: int) -> dict[str, Any]:
    """num_pairs numbers of each task: how many have a usable pair, how many at once, and what they take."""
    seconds: dict[str, float] = {}
    found = at_once = 0
    for task_id in sorted(generators()):
        start = time.process_time()
        for number in range(num_pairs):
            drawn = draw_pair(task_id, number, PairRule(max_side=max_side))
            found += drawn is not None
            at_once += drawn is not None and drawn[1] == 0
        seconds[task_id] = time.process_time() - start
    asked = num_pairs * len(seconds)
    slowest = sorted(seconds, key=lambda task_id: -seconds[task_id])[:5]
    return {
        "max_side": max_side,
        "pairs_asked": asked,
        "pairs_per_s": round(found / sum(seconds.values()), 1),
        "share_usable_at_once": round(at_once / asked, 3),
        "share_skipped": round(1 - found / asked, 3),
        "slowest_ms": {task_id: round(1000 * seconds[task_id] / num_pairs, 1) for task_id in slowest},
    }


def rows(seconds_each: float) -> dict[str, Any]:
    """Rows a second of CPU time of both data sets, measured in turns after a start that fills caches."""
    import torch

    from arclab.config.compose import compose
    from arclab.data.sampler import Cursor, build_training_data
    from arclab.data.splits import load_tasks

    torch.set_num_threads(1)
    groups = ("rearc", "arc1")
    common = ["dataset.canvas=10", "dataset.max_side=10"]
    configs = {group: compose("pretrain_encoder", [f"dataset={group}", *common]).dataset for group in groups}
    data = {group: build_training_data(load_tasks(config).train, (), config, 0) for group, config in configs.items()}
    cursors = {group: Cursor.first(0) for group in groups}
    made, spent = dict.fromkeys(groups, 0), dict.fromkeys(groups, 0.0)
    for turn in range(_TURNS + 1):
        for group in groups:
            start = time.process_time()
            while time.process_time() - start < seconds_each / _TURNS:
                data[group].batch(cursors[group], _ROWS, 0, _ROWS)
                cursors[group] = data[group].next_cursor(cursors[group], _ROWS)
                made[group] += _ROWS if turn else 0
            spent[group] += time.process_time() - start if turn else 0
    return {group: {"tasks": len(data[group].space.tasks), "rows_per_s": round(made[group] / spent[group])} for group in groups}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=at_least_1, default=10)
    parser.add_argument("--seconds", type=at_least_1, default=20)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args(argv)
    from arclab.runs.folder import provenance

    pairs = [generation(arguments.pairs, max_side) for max_side in (30, 10)]
    result = {"package": f"reasoning-gym {version()}", "pairs": pairs, "rows": rows(arguments.seconds), **provenance()}
    for one in pairs:
        print(
            f"sides up to {one['max_side']}: {one['pairs_per_s']} pairs/s, {one['share_usable_at_once']:.1%} usable at once, "
            f"{one['share_skipped']:.1%} numbers skipped, slowest (ms a pair): {one['slowest_ms']}"
        )
    print(
        ", ".join(f"dataset={group}: {of['rows_per_s']} rows/s ({of['tasks']} tasks)" for group, of in result["rows"].items())
    )
    print(json.dumps(result))
    if arguments.save:
        (Path(__file__).parent / "results" / "rearc.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
