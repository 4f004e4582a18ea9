"""Does what a model writes about a passage help it to remember the passage? Closed-book answers on passages nobody can know.

    python -m experiments.seal_knowledge --lm smollm2_135m --save seal_knowledge       # goes on where it was stopped
    python -m experiments.seal_knowledge --items 2 --kinds implications                # a quick look

For each kind the model writes one completion about each invented passage, is trained on it and the passage, and answers the
passage's questions without it (self_improve.py method=seal_knowledge stage=generate, then stage=query). The table has the model
as it is, trained on the passage alone, on the passage as often as the first kind takes steps, on another passage with what was
written about it (unrelated text of about the same length), and on the passage with completions of each kind: questions right
with 95 % intervals, and McNemar's tests over questions against the model as it is and against the passage alone. It does not
train the model to write better.

--save NAME writes experiments/results/NAME.{md,json}.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from arclab.config.compose import run_main
from arclab.config.seal_knowledge_schema import EditKind
from arclab.launch.start import start
from arclab.methods.seal.knowledge.trials import OTHER, PASSAGE, REPEATED, ROWS, Row, read_rows
from arclab.results.paired import PairedTest
from arclab.results.scoring import Share
from arclab.runs.folder import provenance
from benchmarks.arguments import at_least_0, at_least_1
from experiments.saved import save

TITLE = "Closed-book answers about invented passages, after training on what the model wrote about them"
KINDS = (EditKind.implications.value, EditKind.rewrite.value, EditKind.self_qa.value)
Answers = dict[tuple[str, str], bool]  # (item, question): right


def started(overrides: Sequence[str]) -> None:
    """A stage of self_improve.py. SystemExit: it was told to end."""
    if status := start("self_improve.py", overrides):
        raise SystemExit(status)


def query(given: argparse.Namespace, kind: str) -> list[Row]:
    """The rows of a kind, made where they are missing."""
    name, is_first = f"{given.lm}_{kind}_{given.seed}", str(kind == given.kinds[0]).lower()
    common = [
        "method=seal_knowledge", f"lm={given.lm}", f"name={name}", f"runs_dir={given.runs_dir}", f"seed={given.seed}",
        f"data.num_train={given.items}", f"data.seed={given.seed}", f"generate.kind={kind}", "generate.num_completions=1",
        "query.repetitions=1", "style=chat",
        *(f"query.{key}={is_first}" for key in ("passage_alone", "passage_repeated", "other_item")),
        *given.overrides,
    ]  # fmt: skip
    for stage in ("generate", "query"):
        started([*common, f"stage={stage}"])
    return read_rows(Path(given.runs_dir) / "seal_knowledge" / name / "round_0" / "query" / ROWS)


def answers(rows: Sequence[Row], as_it_is: bool = False) -> Answers:
    """Graded ones."""
    found = {}
    for row in rows:
        for question, right in zip(row.questions, row.base if as_it_is else row.right, strict=True):
            found |= {} if right is None else {(row.item, question): right}
    return found


def conditions(by_kind: dict[str, list[Row]]) -> dict[str, Answers]:
    """The first kind has tried what is trained on without a completion of the passage too."""
    first = next(iter(by_kind.values()))
    others = {"passage alone": PASSAGE, "passage alone, as many steps": REPEATED, "unrelated text": OTHER}
    found = {"as it is": answers(first, as_it_is=True)}
    found |= {name: answers([row for row in first if row.edit == edit]) for name, edit in others.items()}
    return found | {f"passage and {kind}": answers([r for r in rows if r.is_completion]) for kind, rows in by_kind.items()}


def tested(own: Answers, other: Answers) -> str:
    test = PairedTest.count("questions", [(own[key], other[key]) for key in own if key in other])
    return f"{test.only_first} to {test.only_second}, p = {test.p_value:.2g}" if test.discordant else "no difference"


def table(found: dict[str, Answers]) -> str:
    lines = [
        "| trained on | questions right | alone right: it to the model as it is | alone right: it to the passage alone |",
        "|---|---|---|---|",
    ]
    for name, own in found.items():
        share = Share(sum(own.values()), len(own))
        lines.append(f"| {name} | {share} | {tested(own, found['as it is'])} | {tested(own, found['passage alone'])} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.seal_knowledge", description=TITLE)
    parser.add_argument("--lm", default="smollm2_135m", help="option of the group lm (smollm2_135m)")
    parser.add_argument("--items", type=at_least_1, default=15, help="passages (15)")
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=[kind.value for kind in EditKind], help="what is written"
    )
    parser.add_argument("--seed", type=at_least_0, default=0, help="of the passages and the draws (0)")
    parser.add_argument("--runs-dir", default="runs", help="where runs lie (runs)")
    parser.add_argument("--save", metavar="NAME", help="write experiments/results/NAME.{md,json}")
    parser.add_argument("overrides", nargs="*", help="further overrides of self_improve.py")
    given = parser.parse_args(argv)
    found = conditions({kind: query(given, kind) for kind in given.kinds})
    text = table(found)
    print(text)
    if given.save:
        shares = {name: {"right": sum(own.values()), "questions": len(own)} for name, own in found.items()}
        record = {"shares": shares, "items": given.items, "lm": given.lm, "seed": given.seed, "provenance": provenance()}
        save(given.save, record, f"# {TITLE}\n\n{text}")


if __name__ == "__main__":
    run_main(main)
