"""What records of language models say, as tables: memory, programs, tree search, edits, SEAL. docs/records.py makes the page.

    title, columns, rows, made = LM_RECORDS["tree_search"](record)

It reads no file: a record is what the JSON holds. made: where its numbers came about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from arclab.results.scoring import Share

Record = dict[str, Any]
Rows = Iterator[tuple[str, ...]]
Section = tuple[str, tuple[str, ...], Rows, list[Record]]


def share_of(record: Record) -> str:
    """Its n of N, with the interval."""
    return str(Share(record["n"], record["N"]))


def _toy_programs(record: Record) -> Section:
    rows = (
        (row["twin"], row["family"], *(share_of(row["scores"][name]) for name in ("ARC/pass@1", "ARC/solved@2")))
        for row in record["rows"]
    )
    made = {**record["provenance"], "seed": record["settings"]["seed"]}
    return "Programs for toy tasks", ("twin", "family", "ARC/pass@1", "ARC/solved@2"), rows, [made]


def _memgen_generation(record: Record) -> Section:
    if "group_size" in record:
        return _memgen_rollouts(record)
    cached = record["cached_s"]
    rows = (
        (how, f"{record[key]:.2f}", f"{record[key] / cached:.2f}")
        for how, key in (
            ("one growing cache", "cached_s"), ("everything again for each token", "again_s"),
            ("weaver on the reasoner's cache (fast)", "fast_s"), ("no memory", "off_s"),
        )
    )  # fmt: skip
    same = f"{record['same_tokens']}/{record['all_tokens']} tokens equal, {record['insertions']} insertions"
    title = f"Generation with memory, {record['lm']}: {record['rows']} rows of {record['tokens']} tokens, {same}"
    return title, ("how", "seconds", "times"), rows, [record["provenance"] | {"seed": 0}]


def _memgen_rollouts(record: Record) -> Section:
    rows = (
        (how, f"{record[key]:.2f}", f"{record[key] / record['naive_rollouts_per_s']:.1f}")
        for how, key in (
            ("all at once, one growing cache", "rollouts_per_s"),
            ("one prompt at a time, everything again for each token", "naive_rollouts_per_s"),
        )
    )  # fmt: skip
    title = (
        f"Rollouts with memory, {record['lm']}: {record['rows']} groups of {record['group_size']}, {record['tokens']} tokens"
    )
    return title, ("how", "rollouts/s", "times"), rows, [record["provenance"] | {"seed": 0}]


def _memgen_control(record: Record) -> Section:
    return _memgen(record, "weaver", "MemGen's weaver and its controls", "memory")


def _memgen_trigger_control(record: Record) -> Section:
    return _memgen(record, "head", "MemGen's trigger and its baselines", "trigger")


def _memgen(record: Record, subject: str, title: str, what: str) -> Section:
    rows = (
        (
            row["cell"],
            share_of(row),
            ", ".join(f"seed {seed}: {n:g}/{total}" for seed, (n, total) in row["seeds"].items()),
            "" if row["p_value"] is None else f"{row[f'{subject}_alone_right']} / {row['control_alone_right']}",
            "" if row["p_value"] is None else f"{row['p_value']:.2g}",
        )
        for row in record["rows"]
    )
    columns = (what, "right", "by seed", f"{subject} alone right / it alone", "p (McNemar)")
    return title, columns, rows, [record["provenance"] | {"seed": "of the columns"}]


def _test_time_training(record: Record) -> Section:
    def paired(row: Record, name: str) -> str:
        test = row.get(f"against_{name}")
        return "" if test is None else f"{test['alone']} / {test['other_alone']}, p = {test['p']:.2g}"

    rows = (
        (row["adaptation"], row["decode"], row["ranking"], share_of(row), paired(row, "none"), paired(row, "votes"))
        for row in record["rows"]
    )
    columns = ("trained", "answers", "ranked by", "solved in two attempts", "alone / none alone", "alone / votes alone")
    return "Test-time training on unseen toy rules", columns, rows, [record["provenance"] | {"seed": "of the table"}]


def _program_edit_control(record: Record) -> Section:
    def tested(row: Record) -> str:
        if row["p_value"] is None:
            return ""
        return f"{row['against']}: {row['it_alone']} / {row['other_alone']}, p = {row['p_value']:.2g}"

    rows = ((row["run"], str(Share(row["n"], row["N"])), tested(row)) for row in record["rows"] if row["N"])
    columns = ("run", "start programs of unseen rules put right", "it alone / other alone")
    return "Models that edit programs, and their controls", columns, rows, [record["provenance"]]


def _program_edit_curriculum(record: Record) -> Section:
    def needed(row: Record, run: str) -> str:
        best = max(value for _, value in row["curves"][run])
        return f"{'never' if row[run] is None else row[run]}; best {100 * best:.1f} %"

    def rows() -> Rows:
        for row in record["curricula"]:
            yield str(row["seed"]), f"{100 * row['score']:.1f} %", needed(row, "adaptive"), needed(row, "uniform")
        found = {row["run"]: row for row in record["rows"]}
        if "adaptive" in found and "uniform" in found:
            test = f"alone right {found['adaptive']['it_alone']} / {found['adaptive']['other_alone']}"
            shares = (str(Share(found[run]["n"], found[run]["N"])) for run in ("adaptive", "uniform"))
            yield f"all, at the end; {test}, p = {found['adaptive']['p_value']:.2g}", "", *shares

    columns = ("seed", "score of held-out tasks", "rollouts to it, adaptive", "rollouts to it, uniform")
    return "Program edits: adaptive curriculum against uniform drawing", columns, rows(), [record["provenance"]]


def _seal_knowledge(record: Record) -> Section:
    rows = ((name, str(Share(own["right"], own["questions"]))) for name, own in record["shares"].items())
    title = f"Closed-book answers of {record['lm']} about {record['items']} invented passages"
    return title, ("trained on", "questions right"), rows, [record["provenance"] | {"seed": record["seed"]}]


def _seal_rest_em(record: Record) -> Section:
    rows = (
        (seed, str(number), *(str(Share(*by_rule[rule][number])) for rule in ("best", "shuffled")))
        for seed, by_rule in record["shares"].items()
        for number in range(record["rounds"] + 1)
    )
    columns = ("seed", "rounds learned", "best completions", "shuffled")
    return "Rounds of learning from the best completions", columns, rows, [record["provenance"] | {"seed": "of the table"}]


def _seal_fewshot(record: Record) -> Section:
    def tested(row: Record) -> str:
        if row["p_value"] is None:
            return ""
        return f"{row['trained_more']} / {row['trained_fewer']}, p = {row['p_value']:.2g}"

    rows = (
        (
            row["name"],
            f"{row['num_successes']:g}/{row['num_trials']}",
            f"{100 * row['interval'][0]:.1f} to {100 * row['interval'][1]:.1f} %",
            tested(row),
        )
        for row in record["rows"]
    )
    columns = ("self-edits of", "successful", "95 % over tasks", "tasks: trained more / less often")
    return "Self-edits on unseen toy rules", columns, rows, [record["provenance"] | {"seed": "of the table"}]


def _tree_search_control(record: Record) -> Section:
    def rows() -> Rows:
        for row in record["rates"]:
            yield row["search"], row["cell"], row["solved"], f"{100 * row['expected']:.1f} % by arithmetic"
        for row in record["pairs"]:
            against = f"against {row['second']}; alone right {row['only_first']} / {row['only_second']}, p = {row['p']:.2g}"
            yield row["pair"], "", row["first"], against

    columns = ("search", "cell", "solved", "expected, or the other one")
    return "Controls of tree search", columns, rows(), [record["provenance"] | {"seed": "of the table"}]


def _tree_search(record: Record) -> Section:
    rows = (
        (name, f"{row['nodes_per_s']:.0f}", f"{row['tokens_per_s']:.0f}", f"{100 * row['waiting']:.1f} %")
        for name, found in record["rows"].items()
        for row in found
    )
    ratio, sandbox = record["ratio"]["nodes_per_s"], record["sandbox"]["ratio"]
    title = f"Tree search: {ratio:.1f} times as fast at once, sandbox {sandbox:.0f} times a fresh interpreter"
    columns = ("trees", "draws/s", "tokens/s", "waiting for programs")
    return title, columns, rows, [record["provenance"] | {"seed": "of the table"}]


def _seal(record: Record) -> Section:
    ways = {way: found for way, found in record["adapters"].items() if isinstance(found, dict)}
    first, dfs, scored = next(iter(ways.values())), record["dfs"], record["rescoring"]

    def rows() -> Rows:
        for way, found in ways.items():
            ratio = first["adapters_per_min"] / found["adapters_per_min"]
            yield (
                f"adapters, {way}",
                f"{found['adapters_per_min']:.1f} a minute",
                f"{found['tokens_per_s']:.0f}",
                f"{ratio:.2f}",
            )
        yield f"depth-first search, {dfs['candidates']:.0f} replies", f"{dfs['dfs_s']:.2f} s", "", "1.00"
        draws = f"{dfs['draws']:.0f} draws a view, {dfs['drawn']:.0f} different replies"
        yield draws, f"{dfs['sample_s']:.2f} s", "", f"{dfs['sample_s'] / dfs['dfs_s']:.2f}"
        yield "rescoring, prompts computed once", f"{scored['shared']:.2f} s", "", "1.00"
        yield "rescoring, prompts with each candidate", f"{scored['apart']:.2f} s", "", f"{scored['ratio']:.2f}"

    columns = ("what", "speed", "tokens/s", "times the first of its kind")
    return "Test-time training: speed", columns, rows(), [record["provenance"] | {"seed": 0}]


def _tree_learning(record: Record) -> Section:
    def rows() -> Rows:
        for row in record["scores"]:
            by_seed = ", ".join(f"{n}/{of}" for n, of in row["seeds"].values())
            yield row["run"], row["what"], share_of(row), by_seed
        for row in record["tests"]:
            alone = f"alone right {row['first_alone']} / {row['second_alone']}"
            yield row["question"], f"{row['first']} / {row['second']}", alone, f"p = {row['p_value']:.2g}"
        for model in record["reward_models"]:
            yield model["run"], "reward model, held-out pairs", str(Share(model["right"], model["pairs"])), ""

    columns = ("run, or question", "scored, or compared", "unseen tasks solved", "by seed, or p")
    return "Tree search that learns from itself", columns, rows(), [record["provenance"] | {"seed": "of the table"}]


LM_RECORDS: Mapping[str, Callable[[Record], Section]] = {
    "memgen_generation": _memgen_generation,
    "memgen_control": _memgen_control,
    "memgen_trigger_control": _memgen_trigger_control,
    "toy_programs": _toy_programs,
    "program_edit_control": _program_edit_control,
    "program_edit_curriculum": _program_edit_curriculum,
    "seal_knowledge": _seal_knowledge,
    "seal_rest_em": _seal_rest_em,
    "seal_fewshot": _seal_fewshot,
    "test_time_training": _test_time_training,
    "seal": _seal,
    "tree_search": _tree_search,
    "tree_search_control": _tree_search_control,
    "tree_learning": _tree_learning,
}
