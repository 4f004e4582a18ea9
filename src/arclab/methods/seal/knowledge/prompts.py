"""What the model is asked: to write about a passage, and to answer a question without it.

    prompt = edit_prompt(item, EditKind.implications, Style.chat)
    sequences = training_sequences(item, "1. ...\\n2. ...", split_lines=True)      # texts; the passage itself is the last one
    prompt = question_prompt(item.title, "Who ...?", Style.completion)

Style.completion is for base models: the text ends where the model goes on. Style.chat puts the same words into a user's
message of the chat template.
"""

from __future__ import annotations

import re

from arclab.config.seal_knowledge_schema import EditKind, Style
from arclab.lm.language_model import PLAIN, Message, Prompt
from arclab.methods.seal.knowledge.passages import Item

_WANTED = {
    EditKind.implications: ("a list of statements that follow from it, directly or indirectly", "Implications:"),
    EditKind.implications_long: ("a long list of statements that follow from it, directly or indirectly", "Implications:"),
    EditKind.implications_very_long: (
        "a very long list, as complete as you can, of statements that follow from it, directly or indirectly",
        "Implications:",
    ),
    EditKind.rewrite: ("the same content in several other wordings, each on a line of its own", "Rewritten passages:"),
    EditKind.self_qa: ("its content again as questions with their answers", "Question 1:"),
}
_LINES_FORM = "Write one statement a line, and nothing else."
_PAIRS_FORM = (
    "Write each question on a line that begins with 'Question 1:' and so on, and its answer on the next, after 'Answer:'."
)
_QUESTION = re.compile(r"(?m)^[ \t]*(?=Question[ \t]*\d+[ \t]*:)")
_HAS_PAIRS = re.compile(r"Question[ \t]*\d+[ \t]*:.*?Answer[ \t]*:", re.DOTALL)


def edit_prompt(item: Item, kind: EditKind, style: Style) -> Prompt:
    """Asks for what the model will be trained on. A reply of kind self_qa goes on behind "Question 1:"."""
    wanted, lead = _WANTED[kind]
    asked = f"Here is a passage. Read it, and write {wanted}.\n\nPassage:\n{item.title}\n{item.context}\n\n"
    if style is Style.completion:
        return (Message(PLAIN, f"{asked}{lead}"),)
    form = _PAIRS_FORM if kind is EditKind.self_qa else _LINES_FORM
    return (Message("user", f"{asked}{form}"),)


def whole_edit(text: str, kind: EditKind, style: Style) -> str:
    """A reply with what its prompt has begun."""
    begun = kind is EditKind.self_qa and style is Style.completion
    return f"Question 1:{text}" if begun and text.strip() else text


def question_prompt(title: str, question: str, style: Style) -> Prompt:
    """Without the passage."""
    asked = f"Answer the question directly and in a few words.\nQuestion: Topic: {title}\n{question}\n"
    if style is Style.completion:
        return (Message(PLAIN, f"{asked}Answer:"),)
    return (Message("user", asked.strip()),)


def answer_of(reply: str) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in reply.splitlines() if line.strip()]
    return lines[0].removeprefix("Answer:").strip() if lines else ""


def edit_lines(text: str, split_lines: bool) -> list[str]:
    """What a reply comes to: its parts between lines of dashes, and with split_lines each question with its answer, or else
    each line, without a first line that only leads to a numbered list."""
    found: list[str] = []
    for part in re.split(r"(?m)^\s*-{3,}\s*$", text):
        if not split_lines:
            found.append(part.strip())
        elif _HAS_PAIRS.search(part):
            found += [piece.strip() for piece in _QUESTION.split(part)]
        else:
            lines = [line.strip() for line in part.splitlines() if line.strip()]
            found += lines[1:] if len(lines) > 1 and lines[1].startswith("1.") else lines
    return [line for line in found if line]


def training_sequences(item: Item, edit: str, split_lines: bool) -> list[str]:
    """Each line behind the title, and the passage itself behind the title, last. An empty edit leaves the passage alone."""
    return [f"{item.title}\n{text}" for text in [*edit_lines(edit, split_lines), item.context]]
