"""Edits of start programs: who writes them, and what became of each.

    editor = model_editor(model, sampling)                         # or reference_editor(config, references)
    records = edit_all(editor, sandbox, starts, config, num_samples=8)

An editor answers prompts with replies, whatever writes them. Each reply is read, run, and compared with its parent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import SequenceMatcher
from pathlib import Path
from random import Random
from typing import Any

from arclab.config.program_edit_grpo_schema import ThinkingConfig
from arclab.config.program_edit_schema import EditSettings, ProgramEditConfig
from arclab.config.schema import SplitName
from arclab.files import read_lines
from arclab.lm.language_model import Completion, FinishReason, LanguageModel, Prompt, Reply, Sampling
from arclab.methods.program_edit.budget import think_in_samples, to_budget
from arclab.methods.program_edit.mutants import mutate
from arclab.methods.program_edit.population import program_sha, signature_of
from arclab.methods.program_edit.starts import Start, thinking_tokens_of, with_entry
from arclab.programs.edits import Edit, parse_edit, render_edit_prompt, write_reply
from arclab.programs.outcomes import Outcome, PairOutcome, ProgramRun, run_jobs
from arclab.programs.rewards import Effort, Reward, edit_reward, score_tests
from arclab.programs.sandbox.pool import Sandbox
from arclab.runs.lifecycle import WorkProgress
from arclab.runs.preempt import ToldToEnd
from arclab.runs.worklist import ItemKind, Line, Worklist

log = logging.getLogger(__name__)
EDIT_ITEMS = ItemKind(holds="edits drawn", again="its edits are drawn again", elsewhere="choose another name=")
Editor = Callable[[Sequence[Start], Sequence[Prompt], int], list[Reply]]
Groups = dict[tuple[str, str, int], "list[EditRecord]"]  # by Start.place
_RECORD = {
    "task": str, "root": str, "turn": int, "parent": str, "parent_source": str, "prompt": str, "thinking": str,
    "source": str | None, "problem": str, "is_cut": bool, "statuses": list[str], "solved": list[bool], "shares": list[float],
    "grids": list, "r0": float, "r1": float, "delta": float, "cost": float, "signature": str, "tokens": int | None,
    "thinking_tokens": int, "seed": int, "sample": int, "tests_solved": bool | None, "others": list[str],
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRecord:
    """A line of edits.jsonl. root, turn: the program that its chain of edits began with, and the edits before it. parent: the
    sha of the program that was edited. statuses, solved, shares of right cells, grids (rows of digits; None: there is none): of
    each demonstration. r0, r1: what parent and child are worth, the costs taken off r1. delta: their difference. signature: of
    its answers to the demonstrations. tests_solved: of evaluations alone. others: shas of programs that stood beside the parent
    in the prompt."""

    id: str
    task: str
    root: str
    turn: int
    parent: str
    parent_source: str
    prompt: str
    thinking: str
    source: str | None
    problem: str
    is_cut: bool
    statuses: list[str]
    solved: list[bool]
    shares: list[float]
    grids: list[list[str] | None]
    r0: float
    r1: float
    delta: float
    cost: float
    signature: str
    tokens: int | None
    thinking_tokens: int
    seed: int
    sample: int
    tests_solved: bool | None = None
    others: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        del record["id"]
        return record

    @property
    def is_right(self) -> bool:
        return bool(self.solved) and all(self.solved)


def parse_record(record: dict[str, Any], line: Line) -> EditRecord:
    record = {"others": [], **record}  # earlier versions had one program in a prompt
    line.require(record, _RECORD)
    if record.keys() != _RECORD.keys() | {"id"}:
        raise line.damaged("it has other keys than an edit")
    return EditRecord(**record)


def read_records(path: Path) -> list[EditRecord]:
    """The edits of a finished edits.jsonl, each once, in order. DamagedFile: a line is not what was written."""
    found: dict[str, EditRecord] = {}
    for number, record in enumerate(read_lines(path), start=1):
        if "settings" not in record:
            record.pop("crc32", None)
            edit = parse_record(record, Line(path, number, "make its stage again"))
            found[edit.id] = edit
    return list(found.values())


def model_editor(model: LanguageModel, sampling: Sampling, think: ThinkingConfig | None = None) -> Editor:
    """think: how long it thinks; None: as long as it likes."""

    def draw(_: Sequence[Start], prompts: Sequence[Prompt], num_samples: int) -> list[Reply]:
        if think is None:
            return model.generate(prompts, num_samples, sampling)
        return think_in_samples(model, prompts, num_samples, sampling, to_budget(think))

    return draw


def reference_editor(references: Mapping[str, str], config: ProgramEditConfig) -> Editor:
    """Replies that know the right program, and give it or a variant of it: from 0 to starts.max_changes changes away, drawn by
    the seed, the program and the sample's number. The thinking says which lines are others."""

    def draw(starts: Sequence[Start], _: Sequence[Prompt], num_samples: int) -> list[Reply]:
        return [
            Reply(tuple(_proposed(start, references[start.task.id], sample, config) for sample in range(num_samples)), None)
            for start in starts
        ]

    return draw


def _proposed(start: Start, reference: str, sample: int, config: ProgramEditConfig) -> Completion:
    rng = Random(f"{config.seed}/{config.round}/{start.task.id}/{start.program.sha}/{sample}")
    right = with_entry(reference, config)
    mutant = mutate(right, changes, rng) if (changes := rng.randint(0, config.starts.max_changes)) else None
    source = right if mutant is None else mutant.source
    text = write_reply(describe(start.program.source, source), source)
    return Completion(text, FinishReason.stop, None, None)


def describe(before: str, after: str) -> str:
    """The lines that differ, in words."""
    old, new = before.strip().splitlines(), after.strip().splitlines()
    said = []
    for tag, first, end, start, stop in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        was, becomes = ("; ".join(line.strip() for line in lines) for lines in (old[first:end], new[start:stop]))
        if tag == "replace":
            said.append(f"Line {first + 1}: {was}\nshould be: {becomes}")
        elif tag == "delete":
            said.append(f"Line {first + 1} should go: {was}")
        elif tag == "insert":
            said.append(f"After line {first} there should be: {becomes}")
    return "\n".join(said) or "The program stays as it is."


def edit_all(
    editor: Editor, sandbox: Sandbox, starts: Sequence[Start], config: EditSettings, num_samples: int, *,
    split: SplitName = SplitName.train, skipped: dict[str, str] | None = None,
) -> list[list[EditRecord]]:  # fmt: skip
    """The edits of each start program; none where its prompt could not be answered, and skipped hears why. ValueError: the
    model cannot be used."""
    prompts = [render_edit_prompt(start.task, start.outcome, config.prompt, start.others) for start in starts]
    replies = editor(starts, prompts, num_samples)
    problems = {start.task.id: reply.problem for start, reply in zip(starts, replies, strict=True) if reply.problem}
    if skipped is not None:
        skipped |= problems
    edits = [
        [parse_edit(completion, start.program.source, config.prompt) for completion in reply.completions]
        for start, reply in zip(starts, replies, strict=True)
    ]
    runs = [
        ProgramRun(start.task, edit.source, config.prompt.entry, with_tests=True, seed=config.seed)
        for start, group in zip(starts, edits, strict=True)
        for edit in group
    ]
    outcomes = iter(run_jobs(sandbox, runs))
    return [
        [
            _record(start, prompt, edit, next(outcomes), completion, number, config, split)
            for number, (edit, completion) in enumerate(zip(group, reply.completions, strict=True))
        ]
        for start, prompt, group, reply in zip(starts, prompts, edits, replies, strict=True)
    ]


def known_edits(worklist: Worklist) -> Groups:
    """What the worklist holds, by start program."""
    groups: Groups = {}
    for record in worklist.load(parse_record).values():
        groups.setdefault((record.task, record.root, record.turn), []).append(record)
    return groups


def kept_edits(
    worklist: Worklist, editor: Editor, sandbox: Sandbox, starts: Sequence[Start], config: EditSettings, num_samples: int,
    *, at_once: int, progress: WorkProgress, split: SplitName = SplitName.train, turn: int = 0, turns: int = 1,
    skipped: dict[str, str] | None = None, known: Groups | None = None,
) -> list[EditRecord]:  # fmt: skip
    """The edits of every start program, in order. Those that the worklist has are not drawn again; at_once: start programs that
    the editor works on at once. turn: of so many that there are, for the progress. known: what known_edits() found, for who
    calls this often; it is kept up to date. ToldToEnd: it said so, and what was drawn is kept."""
    groups = known_edits(worklist) if known is None else known
    missing = [start for start in starts if len(groups.get(start.place, ())) < num_samples]
    for first in range(0, len(missing), at_once):
        part = missing[first : first + at_once]
        found = edit_all(editor, sandbox, part, config, num_samples, split=split, skipped=skipped)
        for start, records in zip(part, found, strict=True):
            groups[start.place] = records
            for record in records:
                worklist.add(record.id, record.to_json())
            if not records:
                log.warning("%s: its prompt could not be answered, so it has no edits", start.task.id)
        done = len(starts) - len(missing) + first + len(part)
        progress.report((turn * len(starts) + done) * progress.num_steps // (turns * len(starts)))
        if progress.is_told and (done < len(starts) or turn + 1 < turns):
            raise ToldToEnd(f"the edits of {done} of {len(starts)} programs are kept (turn {turn + 1} of {turns})")
    return [record for start in starts for record in groups[start.place]]


def _record(
    start: Start, prompt: Prompt, edit: Edit, outcome: Outcome, completion: Completion, number: int, config: EditSettings,
    split: SplitName,
) -> EditRecord:  # fmt: skip
    thinking_tokens = thinking_tokens_of(completion, edit.thinking)
    earned = reward_of(start, outcome, thinking_tokens, config, split)
    before = earned.components["edits/parent_value"]
    demos = outcome.demos
    return EditRecord(
        id="/".join(map(str, (*start.place, number))), task=start.task.id, root=start.place[1], turn=start.turn,
        parent=start.program.sha,
        parent_source=start.program.source, prompt=prompt[-1].content, thinking=edit.thinking, source=edit.source,
        problem=edit.problem, is_cut=edit.is_cut, statuses=[demo.status.name for demo in demos],
        solved=[demo.is_right for demo in demos], shares=[demo.cell_share for demo in demos], grids=[_rows(d) for d in demos],
        r0=before, r1=earned.program, delta=earned.value, cost=earned.components["reward/cost"],
        signature=signature_of(outcome), tokens=completion.num_tokens, thinking_tokens=thinking_tokens,
        seed=config.seed, sample=number,
        tests_solved=None if split is SplitName.train else score_tests(start.task, outcome),
        others=[program_sha(other.source or "") for other in start.others],
    )  # fmt: skip


def reward_of(start: Start, outcome: Outcome, thinking_tokens: int, config: EditSettings, split: SplitName) -> Reward:
    """An edit is charged for one execution: the one that its report is from."""
    reward = config.reward if split is SplitName.train else replace(config.reward, use_tests=False)
    return edit_reward(start.task, outcome, start.outcome, reward, Effort(1, thinking_tokens), split=split)


def _rows(demo: PairOutcome) -> list[str] | None:
    return None if demo.grid is None else ["".join(map(str, row)) for row in demo.grid.tolist()]


def chains_of(records: Sequence[EditRecord]) -> dict[tuple[str, str], list[EditRecord]]:
    """(task, sha of the first program) -> its edits, in order."""
    found: dict[tuple[str, str], list[EditRecord]] = {}
    for record in records:
        found.setdefault((record.task, record.root), []).append(record)
    return found


def metrics_of(records: Sequence[EditRecord], num_starts: int) -> dict[str, float]:
    """The edits/* metrics. num_starts: programs that chains of edits begin with. Empty without edits."""
    if not records:
        return {}
    count, by_start = len(records), chains_of(records)
    gain = sum(record.delta for record in records)
    found = {
        "edits/count": float(count),
        "edits/starts": float(num_starts),
        "edits/parent_value": sum(record.r0 for record in records) / count,
        "edits/mean_delta": gain / count,
        "edits/improved_share": sum(record.delta > 0 for record in records) / count,
        "edits/solved_share": sum(any(r.is_right for r in group) for group in by_start.values()) / num_starts,
        "edits/chain_gain": sum(max(0.0, max(r.r1 for r in g) - g[0].r0) for g in by_start.values()) / num_starts,
        "edits/with_program": sum(record.source is not None for record in records) / count,
        "edits/cut_share": sum(record.is_cut for record in records) / count,
    }
    if any(record.tests_solved is not None for record in records):
        found["edits/tests_solved_share"] = sum(any(r.tests_solved for r in g) for g in by_start.values()) / num_starts
    tokens = [record.tokens for record in records if record.tokens is not None]
    if len(tokens) == count:
        found |= {"edits/tokens": sum(tokens) / count, "edits/value_per_1000_tokens": 1000 * gain / max(1, sum(tokens))}
    return found
