"""Does a model that learns from its best completions write better ones? Against learning from completions dealt out at random.

    python -m experiments.seal_rest_em --seeds 0 1 2 --save seal_rest_em      # goes on where it was stopped; minutes a seed
    python -m experiments.seal_rest_em --seeds 0 --rounds 1                   # a quick look

Of each seed a tiny model is made (self_improve.py experiment=seal_knowledge_quickstart), and goes through the rounds twice:
with select.rule=best, and with select.rule=shuffled, which deals the gains out at random. Each round has items of its own, so
that what a model writes and answers in the next round is measured on items it has not learned from. The table has the answers
right after training on a completion, over all completions, and McNemar's test between the two on the first completions'
questions.

--save NAME writes experiments/results/NAME.{md,json}.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from arclab.config.compose import run_main
from arclab.methods.seal.knowledge.trials import ROWS, Row, read_rows
from arclab.results.scoring import Share
from arclab.runs.folder import provenance
from benchmarks.arguments import at_least_0, at_least_1
from experiments.saved import save
from experiments.seal_knowledge import answers, started, tested

TITLE = "Rounds of learning from the best completions, against completions at random"
RULES = ("best", "shuffled")


def rounds(given: argparse.Namespace, seed: int, rule: str) -> list[list[Row]]:
    """The completions' rows of each round, and of the one after the last, made where they are missing."""
    name = f"{rule}_{seed}"
    common = [
        "experiment=seal_knowledge_quickstart", f"name={name}", f"runs_dir={given.runs_dir}", f"seed={seed}",
        "experiment_name=seal_rest_em", f"data.seed={seed}", f"select.rule={rule}", "criterion=null", "query.server=none",
        f"rounds={given.rounds + 1}", *given.overrides,
    ]  # fmt: skip
    if rule == RULES[0]:
        started([*common, "stage=start"])
    else:  # from the same model
        model = Path(given.runs_dir) / "seal_rest_em" / f"{RULES[0]}_{seed}" / "round_0" / "start" / "model"
        common += [f"lm.name={model}", "scratch=null"]
    found = []
    for number in range(given.rounds + 1):
        for stage in ("generate", "query", *(("select", "sft") if number < given.rounds else ())):
            started([*common, f"stage={stage}", f"round={number}"])
        folder = Path(given.runs_dir) / "seal_rest_em" / name / f"round_{number}" / "query"
        found.append([row for row in read_rows(folder / ROWS) if row.is_completion])
    return found


def share(rows: Sequence[Row]) -> Share:
    graded = [right for row in rows for right in row.right if right is not None]
    return Share(sum(graded), len(graded))


def first(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.edit == "0" and row.repetition == 0]


def table(found: dict[int, dict[str, list[list[Row]]]]) -> str:
    lines = ["| seed | rounds learned | best | shuffled | alone right: best to shuffled |", "|---|---|---|---|---|"]
    for seed, by_rule in found.items():
        for number, (best, shuffled) in enumerate(zip(*(by_rule[rule] for rule in RULES), strict=True)):
            test = tested(answers(first(best)), answers(first(shuffled)))
            lines.append(f"| {seed} | {number} | {share(best)} | {share(shuffled)} | {test} |")
    note = "All completions and repetitions together count a question more than once: their intervals are too narrow."
    return "\n".join(lines) + f"\n\n{note}\n"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.seal_rest_em", description=TITLE)
    parser.add_argument("--seeds", nargs="+", type=at_least_0, default=[0, 1, 2], help="of models, passages and draws (0 1 2)")
    parser.add_argument("--rounds", type=at_least_1, default=2, help="of learning (2)")
    parser.add_argument("--runs-dir", default="runs", help="where runs lie (runs)")
    parser.add_argument("--save", metavar="NAME", help="write experiments/results/NAME.{md,json}")
    parser.add_argument("overrides", nargs="*", help="further overrides of self_improve.py")
    given = parser.parse_args(argv)
    found = {seed: {rule: rounds(given, seed, rule) for rule in RULES} for seed in given.seeds}
    text = table(found)
    print(text)
    if given.save:
        shares = {
            f"{seed}": {rule: [[share(rows).n, share(rows).total] for rows in each] for rule, each in by_rule.items()}
            for seed, by_rule in found.items()
        }
        record = {"shares": shares, "rounds": given.rounds, "provenance": provenance()}
        save(given.save, record, f"# {TITLE}\n\n{text}")


if __name__ == "__main__":
    run_main(main)
