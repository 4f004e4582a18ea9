"""Who is ahead, and how sure that is: the first line of the comparison page and its matrix of paired tests.

    lines = standings(runs)                 # a sentence for each split, the split that matters most first
    matrices = paired_matrices(runs)        # one for each split: runs x runs, the better run first

Counting and testing is done in arclab.results.paired; here the results are put in order and in words. Of several evaluations
of one split, the one that the score tables show is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from arclab.pages.compare_pictures import color_of
from arclab.results.paired import Paired, PairedTest, compare_splits
from arclab.results.reading import Run, ScoredSplit
from arclab.results.scoring import Share

LEVEL = 0.05  # a difference counts as decided below this, times the number of pairs (Bonferroni)
SPLITS = ("evaluation", "validation", "train")  # the numbers that matter most first


def splits_of(runs: Sequence[Run]) -> list[str]:
    """The splits that evaluate.py scored of any run, held-out ones first."""
    found = {split.split for run in runs for split in run.splits}
    return sorted(found, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def paired_tests(runs: Sequence[Run]) -> list[Paired]:
    """Every two runs on every split that both were evaluated on; a sentence where there is none."""
    results = []
    for first, second in combinations(runs, 2):
        both = [(a, b) for name in splits_of(runs) if (a := first.split(name)) and (b := second.split(name))]
        results += [compare_splits(first.label, a, second.label, b) for a, b in both]
        if not both:
            problem = "not comparable: evaluate.py has scored no split of both (evaluation/<split>/predictions.jsonl)"
            results.append(Paired(first.label, second.label, "none", problem, (), ()))
    return results


def p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def p_sentence(p: float) -> str:
    """For a sentence: p = 0.0312, p < 0.0001."""
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


@dataclass(frozen=True, slots=True)
class Standing:
    """What won on one split, in a sentence. is_decided: the first is ahead of the second beyond chance, all pairs counted."""

    split: str
    sentence: str
    is_decided: bool


def standings(runs: Sequence[Run]) -> list[Standing]:
    """One for each split that was scored; empty if evaluate.py was run for none."""
    return [_standing(name, [(run.label, split) for run in runs if (split := run.split(name))]) for name in splits_of(runs)]


def _standing(name: str, scored: list[tuple[str, ScoredSplit]]) -> Standing:
    group = _comparable(scored)
    if len(scored) == 1:
        label, split = scored[0]
        return Standing(name, f"{label}: {_solved_text(split)} ({name} split).", is_decided=False)
    if len(group) < 2:
        problem = compare_splits(*scored[0], *scored[1]).problem
        return Standing(name, f"Nothing can be said on the {name} split: {problem}.", is_decided=False)
    ranked = sorted(group, key=lambda entry: -sum(entry[1].solved.values()))
    num_pairs = len(group) * (len(group) - 1) // 2
    tests = [compare_splits(*ranked[0], *other).tests[0] for other in ranked[1:]]
    is_decided = is_sure(tests[0], num_pairs)
    parts = [_lead(name, ranked, tests[0], num_pairs)]
    if len(tests) > 1 and difference(tests[0]):
        num_sure = sum(is_sure(test, num_pairs) for test in tests)
        parts.append(f"It is surely ahead of {num_sure} of the {len(tests)} others (p < {LEVEL} for all {num_pairs} pairs).")
    if len(group) < len(scored):
        parts.append(f"{len(scored) - len(group)} of {len(scored)} runs answered other tasks and are not in this.")
    return Standing(name, " ".join(parts), is_decided)


def _comparable(scored: list[tuple[str, ScoredSplit]]) -> list[tuple[str, ScoredSplit]]:
    """The largest group of runs that can all be compared with one another."""
    groups: list[list[tuple[str, ScoredSplit]]] = []
    for entry in scored:
        home = next((group for group in groups if all(not compare_splits(*entry, *other).problem for other in group)), None)
        groups.append([entry]) if home is None else home.append(entry)
    return max(groups, key=len)


def _solved_text(split: ScoredSplit) -> str:
    share = split.shares["ARC/solved@2"]
    low, high = share.interval
    if not share.total:
        return "answers are hidden"
    return f"{100 * share.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {share.total} tasks solved within two attempts"


def _lead(name: str, ranked: list[tuple[str, ScoredSplit]], test: PairedTest, num_pairs: int) -> str:
    (first, split), (second, _) = ranked[:2]
    lead = difference(test)
    head = f"{first}, {_solved_text(split)} ({name} split)"
    if not lead:
        level = [label for label, other in ranked[1:] if sum(other.solved.values()) == sum(split.solved.values())]
        return f"{head}, level with {level[0] if len(level) == 1 else f'{len(level)} others'}: nothing is decided."
    gap = f"ahead of {second} by {lead} task{'' if lead == 1 else 's'}, {p_sentence(test.p_value)}"
    if test.p_value >= LEVEL:
        return f"{head}, {gap}: nothing is decided between them."
    if not is_sure(test, num_pairs):
        return f"{head}, {gap}: not decided, as {num_pairs} pairs were tested (p times {num_pairs} is not below {LEVEL})."
    return f"{head}, {gap}: decided between these two trainings."


def difference(test: PairedTest) -> int:
    """Items that only the first gets right minus those that only the second does."""
    return test.only_first - test.only_second


def is_sure(test: PairedTest, num_pairs: int) -> bool:
    return test.p_value * num_pairs < LEVEL


@dataclass(frozen=True, slots=True)
class Cell:
    """The run of the row against that of the column. text: +2; sign: up, down or even; certainty: sure, likely or open;
    is_tested False: not comparable, sentence says why."""

    text: str
    p: str
    sign: str
    certainty: str
    sentence: str
    is_tested: bool = True


@dataclass(frozen=True, slots=True)
class Header:
    """A run of the matrix. solved: its share of tasks."""

    label: str
    color: str
    solved: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """Runs x runs on one split, best first; None on the diagonal. leader: the paired tests of the first run with each other,
    in both units. problems and notes: sentence -> the pairs it holds for."""

    split: str
    headers: tuple[Header, ...]
    rows: tuple[tuple[Cell | None, ...], ...]
    leader: tuple[Paired, ...]
    problems: dict[str, int]
    notes: dict[str, int]

    @property
    def num_tests(self) -> int:
        """Pairs that were tested; both units of a pair count."""
        return sum(2 for i, row in enumerate(self.rows) for cell in row[:i] if cell and cell.is_tested)


def paired_matrices(runs: Sequence[Run]) -> list[Matrix]:
    """One for each split that at least two runs were evaluated on."""
    found = []
    for name in splits_of(runs):
        scored = [(i, run, split) for i, run in enumerate(runs) if (split := run.split(name))]
        if len(scored) > 1:
            found.append(_matrix(name, sorted(scored, key=lambda entry: -entry[2].shares["ARC/solved@2"].value)))
    return found


def _matrix(name: str, scored: list[tuple[int, Run, ScoredSplit]]) -> Matrix:
    pairs = {
        (i, j): compare_splits(a.label, ours, b.label, theirs)
        for (i, (_, a, ours)), (j, (_, b, theirs)) in combinations(enumerate(scored), 2)
    }
    num_pairs = sum(not pair.problem for pair in pairs.values())
    size = range(len(scored))
    rows = tuple(tuple(None if i == j else _cell(pairs, i, j, num_pairs) for j in size) for i in size)
    headers = tuple(Header(run.label, color_of(i), _share_text(split.shares["ARC/solved@2"])) for i, run, split in scored)
    problems = [pair.problem for pair in pairs.values() if pair.problem]
    notes = [note.split(":")[0] for pair in pairs.values() for note in pair.notes]
    leader = tuple(pairs[0, j] for j in size[1:])
    return Matrix(name, headers, rows, leader, _counted(problems), _counted(notes))


def _share_text(share: Share) -> str:
    return f"{share.n:g}/{share.total}"


def _counted(sentences: list[str]) -> dict[str, int]:
    return {sentence: sentences.count(sentence) for sentence in dict.fromkeys(sentences)}


def _cell(pairs: dict[tuple[int, int], Paired], row: int, column: int, num_pairs: int) -> Cell:
    is_turned = row > column
    pair = pairs[min(row, column), max(row, column)]
    if pair.problem:
        return Cell("n/a", "", "even", "open", f"{pair.first} and {pair.second}: {pair.problem}", is_tested=False)
    test = pair.tests[0]
    value = -difference(test) if is_turned else difference(test)
    first, second = (pair.second, pair.first) if is_turned else (pair.first, pair.second)
    alone = (test.only_second, test.only_first) if is_turned else (test.only_first, test.only_second)
    sentence = (
        f"{test.total} tasks: both {test.both}, only {first} {alone[0]}, only {second} {alone[1]}; {p_sentence(test.p_value)}"
    )
    certainty = "sure" if is_sure(test, num_pairs) else "likely" if test.p_value < LEVEL else "open"
    sign = "up" if value > 0 else "down" if value < 0 else "even"
    return Cell(f"{value:+d}" if value else "0", _short_p(test.p_value), sign, certainty, sentence)


def _short_p(p: float) -> str:
    """Without the zero before the point: a matrix of 22 runs must fit a screen."""
    return "<.001" if p < 0.001 else "1" if p >= 0.995 else f"{p:.3f}"[1:] if p < 0.1 else f"{p:.2f}"[1:]
