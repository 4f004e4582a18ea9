"""Does latent memory help, and does a trained trigger? Each against its controls, on questions that nobody trained on.

    python -m experiments.memgen                              # a tiny reasoner, three seeds; goes on where it was stopped
    python -m experiments.memgen --lm smollm2_135m --seeds 0 --set trainer.steps=400    # a real small model: make bench-memgen
    python -m experiments.memgen --control trigger            # the trigger, on its constructed task

For each seed, from one frozen reasoner: `weaver` (MemGen), `fast` (the same weaver on the reasoner's own cache), `shuffled`
(taught with the replies of other questions) and `lora` (the adapter in the reasoner itself, no memory, with about as many
parameters). Each is scored on the same test questions; so are the reasoner without memory (`off`) and with a weaver that was
never trained (`random`).

With --control trigger, from one frozen reasoner and one weaver: `head` and `lora` (the two trained triggers) and `shuffled` (a
head, with rewards that are dealt out at random); then the same weights with the triggers always, never, first_k, random and
entropy, and without memory (`off`).

Training and evaluation are lines of a jobs file (experiments/queued.py), an evaluation waits for its run. The table has
accuracies with 95 % intervals, and McNemar's test of the weaver, or of the head, against each of the others.

--save NAME writes experiments/results/NAME.{md,json}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arclab.config.compose import run_main
from arclab.config.memgen_schema import Memory
from arclab.entries import ENTRIES
from arclab.results.paired import PairedTest
from arclab.results.scoring import Share
from arclab.runs.console import setup_logging
from arclab.runs.folder import provenance
from experiments.queued import JobsFile, add_queue_arguments, jobs_path, run_lines
from experiments.saved import save


@dataclass(frozen=True, slots=True)
class Cell:
    """A row of the table before it is scored: which run's model, with which memory, and what else is changed."""

    name: str
    run: str
    memory: Memory
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Control:
    """folder: of its runs. subject: the cell, and the run, that the others are compared with; it makes the reasoner of a seed.
    runs: {run: what it changes}. has_given_weaver: the other runs take the subject's weaver too."""

    folder: str
    title: str
    criterion: str
    experiment: str
    subject: str
    runs: Mapping[str, tuple[str, ...]]
    cells: tuple[Cell, ...]
    has_given_weaver: bool = False


CONTROLS = {
    "weaver": Control(
        "memgen_control",
        "MemGen's weaver and its controls",
        "the weaver is above memory off, random memory and shuffled targets on unseen questions.",
        "memgen_quickstart",
        "weaver",
        {
            "weaver": (),
            "shuffled": ("trainer.shuffle_targets=true",),
            "fast": ("memgen/weaver=fast",),
            "lora": ("memgen/weaver=lora", "memgen.weaver.max_prompt_aug_num=0", "memgen.weaver.max_inference_aug_num=0"),
        },
        (
            Cell("off", "weaver", Memory.off),
            Cell("random", "weaver", Memory.random),
            Cell("shuffled", "shuffled", Memory.trained),
            Cell("lora", "lora", Memory.trained),
            Cell("fast", "fast", Memory.trained),
            Cell("weaver", "weaver", Memory.trained),
        ),
    ),
    "trigger": Control(
        "memgen_trigger_control",
        "MemGen's trigger and its baselines",
        "the trained head is above every baseline on unseen questions, and with shuffled rewards it is not.",
        "memgen_trigger_quickstart",
        "head",
        {
            "head": (),
            "shuffled": ("trainer.shuffle_rewards=true",),
            "lora": ("memgen/trigger=lora", "memgen.trigger.lora.dropout=0.0"),
        },
        (
            Cell("off", "head", Memory.off),
            Cell("always", "head", Memory.trained, ("trigger.kind=always",)),
            Cell("never", "head", Memory.trained, ("trigger.kind=never",)),
            Cell("first_k", "head", Memory.trained, ("trigger.kind=first_k", "trigger.count=1")),
            Cell("random", "head", Memory.trained, ("trigger.kind=random", "trigger.probability=0.5")),
            Cell("entropy", "head", Memory.trained, ("trigger.kind=entropy", "trigger.threshold=0.1")),
            Cell("shuffled", "shuffled", Memory.trained),
            Cell("lora", "lora", Memory.trained),
            Cell("head", "head", Memory.trained),
        ),
        has_given_weaver=True,
    ),
}


def train_lines(arguments: argparse.Namespace, seed: int) -> dict[str, list[str]]:
    """name -> overrides of pretrain_memgen.py. The reasoner of a seed is made once, by its subject's run."""
    lines, control = {}, CONTROLS[arguments.control]
    for run, changes in control.runs.items():
        name = f"{run}_s{seed}"
        line = [f"experiment={control.experiment}", *changes, f"experiment_name={experiment_name(arguments)}", f"name={name}"]
        line += [f"runs_dir={arguments.folder}", f"seed={seed}", "criterion=null", "wandb.mode=disabled"]
        if arguments.lm is not None:
            line += [f"lm={arguments.lm}", "memgen/reasoner=given"]
        elif run != control.subject:
            line += ["memgen/reasoner=given", f"lm.name={run_folder(arguments, control.subject, seed) / 'reasoner'}"]
        if control.has_given_weaver and run != control.subject:
            line += [f"memgen.weaver.start_from={run_folder(arguments, control.subject, seed)}", "trainer.sft_steps=0"]
        if "memgen/weaver=lora" in changes:
            line += [f"memgen.weaver.lora.rank={arguments.lora_rank}", f"memgen.weaver.lora.alpha={2 * arguments.lora_rank}"]
        lines[name] = [*line, *arguments.set]
    return lines


def experiment_name(arguments: argparse.Namespace) -> str:
    """A reasoner of its own has folders of its own."""
    folder = CONTROLS[arguments.control].folder
    return folder if arguments.lm is None else f"{folder}_{arguments.lm}"


def run_folder(arguments: argparse.Namespace, run: str, seed: int) -> Path:
    return arguments.folder / experiment_name(arguments) / f"{run}_s{seed}"


def evaluation_lines(arguments: argparse.Namespace, seed: int) -> dict[str, list[str]]:
    return {
        f"{cell.name}_s{seed}": [
            "solver=memgen", f"checkpoint={run_folder(arguments, cell.run, seed)}", f"memory={cell.memory.value}",
            f"name={cell.name}", f"max_examples={arguments.questions}", f"sampling.max_new_tokens={arguments.max_new_tokens}",
            "split=test", "device=auto", *cell.changes,
        ]
        for cell in CONTROLS[arguments.control].cells
    }  # fmt: skip


def scored(arguments: argparse.Namespace, cell: Cell, seed: int) -> dict[str, bool] | None:
    """{question id: right}, or None if the evaluation is not there."""
    path = run_folder(arguments, cell.run, seed) / "evaluation" / cell.name / "answer.json"
    if not path.is_file():
        return None
    *answers, _ = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {answer["id"]: answer["is_right"] for answer in answers}


def table(results: Mapping[tuple[str, int], dict[str, bool]], seeds: Sequence[int], control: Control) -> list[dict[str, Any]]:
    """A row for each cell: its share for every seed, the mean, and the subject's test against it over all seeds' questions."""
    rows, subject = [], control.subject
    for cell in control.cells:
        each = {seed: results[cell.name, seed] for seed in seeds if (cell.name, seed) in results}
        shares = {seed: Share(sum(right.values()), len(right)) for seed, right in each.items()}
        outcomes = [
            (results[subject, seed][id_], is_right)
            for seed, right in each.items() if (subject, seed) in results
            for id_, is_right in right.items() if id_ in results[subject, seed]
        ]  # fmt: skip
        paired = PairedTest.count("questions", outcomes)
        total = Share(sum(share.n for share in shares.values()), sum(share.total for share in shares.values()))
        rows.append(
            {
                "cell": cell.name, "n": total.n, "N": total.total, "interval95": list(total.interval),
                "seeds": {str(seed): [share.n, share.total] for seed, share in shares.items()},
                f"{subject}_alone_right": paired.only_first, "control_alone_right": paired.only_second,
                "p_value": paired.p_value if cell.name != subject else None,
            }
        )  # fmt: skip
    return rows


def markdown(rows: Sequence[dict[str, Any]], arguments: argparse.Namespace, where: Mapping[str, Any]) -> str:
    control = CONTROLS[arguments.control]
    seeds_head = " | ".join(f"seed {seed}" for seed in arguments.seeds)
    head = f"| | right | {seeds_head} | {control.subject} alone / it alone | p |"
    lines = [head, "|---" * (4 + len(arguments.seeds)) + "|"]
    for row in rows:
        low, high = row["interval95"]
        of_all = f"{row['n']:g}/{row['N']} = {100 * row['n'] / max(row['N'], 1):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        each = (row["seeds"].get(str(seed)) for seed in arguments.seeds)
        seeds = " | ".join(f"{found[0]:g}/{found[1]}" if found else "-" for found in each)
        against = "" if row["p_value"] is None else f"{row[f'{control.subject}_alone_right']} / {row['control_alone_right']}"
        p_value = "" if row["p_value"] is None else f"{row['p_value']:.2g}"
        lines.append(f"| {row['cell']} | {of_all} | {seeds} | {against} | {p_value} |")
    facts = f"Command: `{where['command']}`; commit {where['commit']}; {where['machine']}."
    return "\n".join(
        [f"# {control.title}", "", f"Reasoner: {arguments.lm or 'tiny, made by the run'}. {facts}", "", *lines, ""]
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.memgen", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--control", choices=tuple(CONTROLS), default="weaver", help="what is tested: weaver, or trigger")
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--lm", help="an option of the group lm as reasoner; without it a tiny one is made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--questions", type=int, default=500, help="at most, of the test split, for each seed (500)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--lora-rank", type=int, default=45, help="of the LoRA control: about as many parameters as the weaver has (45)"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of all training runs")
    parser.add_argument("--save", metavar="NAME")
    add_queue_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    setup_logging()
    arguments = parse(argv)
    control = CONTROLS[arguments.control]
    results: dict[tuple[str, int], dict[str, bool]] = {}
    for seed in arguments.seeds:
        for script, lines in (
            (ENTRIES["pretrain_memgen"].script, train_lines(arguments, seed)),
            (ENTRIES["evaluate_memgen"].script, evaluation_lines(arguments, seed)),
        ):
            file = JobsFile(
                jobs_path(arguments.folder / experiment_name(arguments), lines), control.title, control.criterion, script
            )
            for ended in run_lines(file, lines, arguments.cluster, places=arguments.jobs):
                print(f"{ended.name}: {ended.fault or 'done'}", flush=True)
        results |= {(c.name, seed): found for c in control.cells if (found := scored(arguments, c, seed)) is not None}
    rows, where = table(results, arguments.seeds, control), provenance()
    text = markdown(rows, arguments, where)
    print(text)
    if arguments.save:
        record = {"rows": rows, "arguments": {k: str(v) for k, v in vars(arguments).items()}, "provenance": where}
        save(arguments.save, record, text)


if __name__ == "__main__":
    run_main(main)
