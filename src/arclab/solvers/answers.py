"""From votes of programs to the answers that are submitted.

    ranked = candidates(groups, num_tests=2)         # for each test input, best first
    programs = written_programs(groups)              # for the page

The votes themselves: arclab.programs.voting.
"""

from __future__ import annotations

from collections.abc import Sequence

from arclab.programs.voting import Group
from arclab.results.attempts import Candidate, WrittenProgram

_KEPT_PROGRAMS = 10


def candidates(groups: Sequence[Group], num_tests: int) -> list[list[Candidate]]:
    """For each test input the answers of the groups in their order. An answer that groups share stands once, with the votes of
    all of them, so that the second attempt is another grid."""
    found: list[list[Candidate]] = []
    for number in range(num_tests):
        ranked: dict[tuple[tuple[int, ...], bytes], Candidate] = {}
        for group in groups:
            grid = group.answers[number]
            if grid is None:
                continue
            key = (grid.shape, grid.tobytes())
            before = ranked.get(key)
            votes = group.num_programs + (before.votes if before else 0)
            ranked[key] = Candidate(grid, votes, before.confidence if before else group.demo_share)
        found.append(list(ranked.values()))
    return found


def written_programs(groups: Sequence[Group]) -> list[WrittenProgram]:
    """The best ones, one of each group."""
    return [WrittenProgram(group.source, group.num_programs, group.demo_share) for group in groups[:_KEPT_PROGRAMS]]
