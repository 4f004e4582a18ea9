"""jobs.txt: one line per run, valid after the word `python`, below sections that say what the runs are to show.

    jobs = read_jobs(Path("jobs.txt"))              # JobsError lists every mistake with its line and column

    ## Halting: does exploration help the encoder to learn?
    ## Criterion: all.exact_accuracy of at least 90 % in phase 1.
    # a comment
    pretrain_encoder.py experiment=phase1_overfit name=explore halting.halt_exploration_prob=0.0,0.3,0.7
    evaluate.py checkpoint=runs/phase1_overfit/explore_halt_exploration_prob-0.3 split=evaluation

A block of `##` lines starts a section: its first line is the title (and the W&B group), `Criterion:` is required, other lines
are the hypothesis in more words. Commas are Hydra sweeps: the line above is three runs, named
explore-halt_exploration_prob0.0 and so on. This module knows lines and words, not configurations (plan.py does), and never
writes the file: the state of a run is in its folder.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arclab.config.compose import ConfigError, entry_for
from arclab.entries import ENTRIES, choice_key, scripts
from arclab.launch.combinations import require_countable, require_few
from arclab.launch.names import run_name

_WORD = re.compile(r"""(?:[^\s'"\\]|'[^']*'|"(?:[^"\\]|\\.)*"|\\.)+""")
_QUOTED = re.compile(r"""'[^']*'|"(?:[^"\\]|\\.)*"|\\.""")
_SHELL = re.compile(r"[;|&<>$`(){}]")
_PLAIN_LIST = re.compile(r"[\w./+-]+(,[\w./+-]+)*")
_CRITERION = "criterion:"


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake in the file: line and column count from 1."""

    line: int
    column: int
    message: str

    def at(self, path: Path) -> str:
        return f"{path}:{self.line}:{self.column}: {self.message}"


class JobsError(ConfigError):
    """Everything that is wrong with a job file, one sentence a line."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        ordered = sorted(problems, key=lambda p: (p.line, p.column))
        super().__init__("\n".join(problem.at(path) for problem in ordered))
        self.problems = ordered


@dataclass(frozen=True, slots=True)
class Section:
    """A hypothesis. title "": runs before the first heading."""

    title: str
    text: str
    criterion: str
    line: int


@dataclass(frozen=True, slots=True)
class Word:
    """One override as the shell hands it over, and where it stands."""

    text: str
    column: int

    @property
    def key(self) -> str:
        return self.text.split("=", 1)[0].lstrip("+~")


@dataclass(frozen=True, slots=True)
class JobLine:
    """One run: a line, or one combination of a line's sweeps. entry: what the script and solver= start. name: "" if the line
    gives none. words: what the line says, overrides: what this run gets."""

    line: int
    column: int
    section: Section
    script: str
    entry: str
    name: str
    words: tuple[Word, ...]
    overrides: tuple[str, ...]

    @property
    def command(self) -> str:
        """What makes this run, after the word python, quoted for the shell."""
        return shlex.join([self.script, *self.overrides])

    def column_of(self, message: str) -> int:
        """The column of the override that a message is about; that of the line's script if it is about none."""
        named = [word for word in self.words if re.search(rf"(?<![\w.]){re.escape(word.key)}(?![\w.])", message)]
        return max(named, key=lambda word: len(word.key)).column if named else self.column


def read_jobs(path: Path) -> list[JobLine]:
    """Every run of the file, in its order. JobsError if anything is wrong."""
    jobs, problems = parse_jobs(path)
    if problems:
        raise JobsError(path, problems)
    return jobs


def parse_jobs(path: Path) -> tuple[list[JobLine], list[Problem]]:
    """(runs, mistakes): the runs of lines without a mistake."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; give a job file, for example jobs.txt.")
    lines = path.read_text(encoding="utf-8").splitlines()
    jobs: list[JobLine] = []
    problems: list[Problem] = []
    section = Section("", "", "", 0)
    for number, line in enumerate(lines, start=1):
        if line.startswith("##"):
            if number == 1 or not lines[number - 2].startswith("##"):
                section = _section(lines, number, problems)
        elif line.strip() and not line.lstrip().startswith("#"):
            try:
                jobs += _jobs_of_line(line, number, section)
            except _AtColumn as mistake:
                problems.append(Problem(number, mistake.column, mistake.message))
    return jobs, problems


class _AtColumn(Exception):
    def __init__(self, column: int, message: str) -> None:
        super().__init__(message)
        self.column, self.message = column, message


def _section(lines: list[str], number: int, problems: list[Problem]) -> Section:
    block = [line.lstrip("#").strip() for line in itertools.takewhile(lambda s: s.startswith("##"), lines[number - 1 :])]
    title, *rest = block
    criteria = [line for line in rest if line.lower().startswith(_CRITERION)]
    if not title:
        problems.append(Problem(number, 1, "a section has no title; write ## TITLE."))
    if len(criteria) != 1:
        problems.append(
            Problem(
                number,
                1,
                f"the section {title!r} has {len(criteria)} lines '## Criterion: ...'; say once when it has succeeded.",
            )
        )
    text = " ".join(line for line in rest if line not in criteria)
    return Section(title, text, criteria[0][len(_CRITERION) :].strip() if criteria else "", number)


def _jobs_of_line(line: str, number: int, section: Section) -> list[JobLine]:
    script, *words = _words(line)
    if script.text not in scripts():
        raise _AtColumn(script.column, f"a run starts with {' or '.join(scripts())}, not with {script.text!r}.")
    words = [word for word in words if word.text not in ("-m", "--multirun")]
    for word in words:
        if "=" not in word.text or word.text.startswith("-"):
            raise _AtColumn(word.column, f"{word.text!r} is no setting; write key=value without spaces around the equals sign.")
    _refuse_twice(words)
    try:
        entry = entry_for(script.text, [word.text for word in words])
    except ConfigError as error:
        raise _AtColumn(next(word.column for word in words if word.key == choice_key(script.text)), str(error)) from error
    names = [word for word in words if word.key == "name"]
    is_named = bool(names) and names[0].text.partition("=")[2] != ""
    if not is_named and (names or not ENTRIES[entry].names_itself):
        raise _AtColumn(script.column, "the run has no name, which is also its folder; add name=NAME.")
    choices = [_choices(word) for word in words]
    try:
        require_few({word.key: len(values) for word, values in zip(words, choices, strict=True)})
    except ConfigError as error:
        raise _AtColumn(script.column, str(error)) from error
    first = JobLine(number, script.column, section, script.text, entry, "", tuple(words), ())
    return [_job(first, choices, picked) for picked in itertools.product(*choices)]


def _job(line: JobLine, choices: list[list[str]], picked: tuple[str, ...]) -> JobLine:
    """picked: the value of every word. A swept name is taken as it is; else the other swept values go into it."""
    keys = [word.key for word in line.words]
    swept = {key: value for key, value, values in zip(keys, picked, choices, strict=True) if len(values) > 1}
    base = picked[keys.index("name")] if "name" in keys else ""
    name = base if "name" in swept else run_name(base, swept)
    settled = [word.text.partition("=")[0] + "=" + value for word, value in zip(line.words, picked, strict=True)]
    if "name" in keys:
        settled[keys.index("name")] = f"name={name}"
    elif name:
        settled.append(f"name={name}")
    return replace(line, name=name, overrides=tuple(settled))


def job_line(script: str, overrides: Sequence[str]) -> str:
    """A line of a jobs file, quoted for the shell, with every key once: of two overrides the last one counts."""
    last = {override.partition("=")[0].lstrip("+~"): override for override in overrides}
    return " ".join([script, *map(shlex.quote, last.values())])


def _words(line: str) -> list[Word]:
    """The shell's words of a line up to a comment."""
    words: list[Word] = []
    position = 0
    while position < len(line):
        if line[position].isspace():
            position += 1
            continue
        if line[position] == "#":
            break
        match = _WORD.match(line, position)
        if match is None or (match.end() < len(line) and not line[match.end()].isspace()):
            at = position if match is None else match.end()
            what = "a backslash at the end; a run is one line" if line[at] == "\\" else f"a quote {line[at]} that is not closed"
            raise _AtColumn(at + 1, f"{what}.")
        bare = _SHELL.search(_QUOTED.sub(lambda quoted: " " * len(quoted[0]), match[0]))
        if bare is not None:
            raise _AtColumn(
                match.start() + bare.start() + 1, f"{bare[0]!r} means something to the shell; put the setting in single quotes."
            )
        words.append(Word(shlex.split(match[0])[0], match.start() + 1))
        position = match.end()
    return words


def _refuse_twice(words: list[Word]) -> None:
    seen: set[str] = set()
    for word in words:
        if word.key in seen:
            raise _AtColumn(word.column, f"{word.key} is set twice on this line; drop one.")
        seen.add(word.key)


def _choices(word: Word) -> list[str]:
    """The values of a sweep; of a setting that is none, its one value."""
    text = word.text.partition("=")[2]
    if "," not in text and not re.search(r"\b(choice|range|interval|glob|shuffle|sort|tag)\(", text):
        return [text]
    return text.split(",") if _PLAIN_LIST.fullmatch(text) else _values_by_hydra(word)


def _values_by_hydra(word: Word) -> list[str]:
    """Sweeps with quotes, brackets or functions are read by Hydra's own grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import RangeSweep
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(word.text)
    except HydraException as error:
        reason = str(error).split("\n")[0]
        raise _AtColumn(word.column, f"{word.key}: {reason} (Hydra's grammar of values; see its page on overrides).") from error
    try:
        require_countable([override])
    except ConfigError as error:
        raise _AtColumn(word.column, str(error)) from error
    if not override.is_sweep_override():
        return [word.text.partition("=")[2]]
    if not (override.is_choice_sweep() or isinstance(override.value(), RangeSweep)):
        raise _AtColumn(word.column, f"{word.key} is a sweep without fixed values; list the values with commas.")
    return list(override.sweep_string_iterator())
