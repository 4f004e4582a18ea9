"""The prompts of a tree: the task, asked for in steps, with worked examples and with or without a description of its rule.

    examples = load_examples(config.examples, steps)              # [] without a file
    hints = load_hints(Path("hints.json"), [task.id for task in tasks])
    for shown in shown_prompts(task, config, examples, hint): ...  # one for each root below the task's
    prompt = continued(shown.prompt, node.written)                 # the model goes on where the program ends

An example is an earlier turn of the conversation: its task as the user's message, its program as the reply. Test outputs are
never shown, those of examples neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from arclab.config.compose import ConfigError
from arclab.config.llm_schema import PromptConfig
from arclab.config.tree_search_schema import ExamplesConfig, TreeSearchConfig
from arclab.data.tasks import ArcTask
from arclab.files import DamagedFile, is_kind, read_json, read_object, short
from arclab.lm.language_model import Message, Prompt
from arclab.methods.tree_search.steps import Steps
from arclab.programs.feedback import feedback
from arclab.programs.outcomes import Outcome
from arclab.programs.prompts import Parsed, ParseProblem, task_text


@dataclass(frozen=True, slots=True)
class Example:
    """A task and a program for it in steps, as a model would write it behind the opening."""

    name: str
    task: ArcTask
    written: str


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """One way to ask for the program of a task. id: equal for equal examples and hint. prompt: up to where the reply begins."""

    id: str
    examples: tuple[str, ...]
    hinted: bool
    prompt: Prompt


def load_examples(config: ExamplesConfig, steps: Steps) -> list[tuple[Example, ...]]:
    """The sets of examples that prompts show, one prompt each; empty: there are none. ValueError, in one sentence: a file or a
    name that is none."""
    if config.file is None:
        return []
    path, found = Path(config.file), dict[str, Example]()
    if not path.is_file():
        raise ConfigError(f"solver.examples.file={config.file} is no file; give the path of a JSON list of worked examples.")
    entries = read_json(path)
    if not is_kind(entries, list) or not entries:
        raise DamagedFile(path, "it is no list of worked examples")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not all(is_kind(entry.get(key), str) for key in ("name", "program")):
            raise DamagedFile(path, f"example {number} has no name or no program")
        if not isinstance(entry.get("task"), dict):
            raise DamagedFile(path, f"example {short(entry['name'])} has no task")
        found[entry["name"]] = _example(entry, path, steps)
    sets = [[name] for name in found] if config.sets is None else config.sets
    for name in (name for names in sets for name in names):
        if name not in found:
            raise ConfigError(
                f"solver.examples.sets names {short(name)}, which {path} does not hold; choose among "
                f"{', '.join(map(short, list(found)[:20]))}."
            )
    return [tuple(found[name] for name in names) for names in sets]


def _example(entry: dict[str, str], path: Path, steps: Steps) -> Example:
    program = entry["program"]
    if not program.startswith(steps.root):
        raise DamagedFile(path, f"the program of {short(entry['name'])} does not begin with solver.steps.root={steps.root!r}")
    task = ArcTask.from_json(entry["task"], entry["name"])  # pyright: ignore[reportArgumentType]
    end = "" if program.rstrip().endswith(steps.program_end) else f"\n{steps.program_end}"
    return Example(entry["name"], task, steps.program_begin + program.rstrip("\n") + end)


def load_hints(path: Path, task_ids: Iterable[str]) -> dict[str, str]:
    """A description for every task: a JSON object by id, or by file name (id.json). ConfigError: a task has none."""
    if not path.is_file():
        raise ConfigError(f"search.hints={path} is no file; give the path of a JSON object {{task id: description}}.")
    found = {key.removesuffix(".json"): text for key, text in read_object(path).items()}
    wanted = list(task_ids)
    missing = [id_ for id_ in wanted if not (is_kind(found.get(id_), str) and found[id_].strip())]
    if missing:
        raise ConfigError(
            f"search.hints={path} has no description of {len(missing)} of the {len(wanted)} tasks (first: "
            f"{short(missing[0])}); add them, or choose tasks that have one."
        )
    return {id_: found[id_].strip() for id_ in wanted}


def shown_prompts(
    task: ArcTask, config: TreeSearchConfig, sets: Sequence[tuple[Example, ...]], hint: str | None
) -> list[ShownPrompt]:
    """The prompts of a task: one for each set of examples, or one without; with a hint, each of them with and without it."""
    return [
        _shown(task, config, examples, shown_hint)
        for shown_hint in ([hint, None] if hint is not None else [None])
        for examples in (sets or [()])
    ]


def _shown(task: ArcTask, config: TreeSearchConfig, examples: tuple[Example, ...], hint: str | None) -> ShownPrompt:
    ending = _ending(config.prompt, Steps.of(config.steps))
    messages: list[Message] = []
    for example in examples:
        messages += [Message("user", task_text(example.task, config.prompt, ending)), Message("assistant", example.written)]
    text = task_text(task, config.prompt, ending)
    if hint is not None:
        text += f"\n\n## What the rule does\n\n{hint}" if config.prompt.instructions else f"\n\n{hint}"
    names = tuple(example.name for example in examples)
    return ShownPrompt(
        f"{'+'.join(names) or 'plain'}{'' if hint is None else ':hinted'}",
        names,
        hint is not None,
        (*messages, Message("user", text)),
    )


def _ending(config: PromptConfig, steps: Steps) -> str:
    return (
        "Write the program in small steps: a few lines each, which must run as far as they go, and then a line with "
        f"{steps.step_end}. End the whole program with {steps.program_end}"
        f". It begins like this:\n\n{steps.opening.rstrip()}"
    )


def continued(prompt: Prompt, written: str) -> Prompt:
    """The prompt with a reply that was begun."""
    return (*prompt, Message("assistant", written))


def correction(shown: Prompt, task: ArcTask, written: str, outcome: Outcome, config: TreeSearchConfig, steps: Steps) -> Prompt:
    """What asks for a better program than this one: it, and what is wrong with it on the demonstrations."""
    said = feedback(task, Parsed(outcome.source, ParseProblem.none), outcome, config.prompt)
    end = "" if written.endswith(steps.program_end) else f"\n{steps.program_end}"
    return continued((*shown, Message("assistant", written + end), Message("user", said)), steps.opening)
