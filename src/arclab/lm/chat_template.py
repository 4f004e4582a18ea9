"""A conversation as the text and the tokens that a model reads, by the chat template of its tokenizer.

    text = conversation_text(tokenizer, "models/tiny", prompt, thinking=None, add_generation_prompt=True)
    ids = conversation_ids(tokenizer, "models/tiny", prompt, thinking=None)
    ids += [*sampled, *next_turn_ids(tokenizer, "models/tiny", "no, try again", thinking=None)]      # and the next reply

Templates are programs of others. One that expects a list of parts writes nothing where it gets a string, without an error, so
every message is looked for in what was written. Some write the day of the call; they get the same day every time, so that a
prompt is tomorrow what it is today. Messages are text only: nothing in them becomes a special token, and no images are sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from arclab.lm.language_model import Message, Prompt, begun_reply, is_plain

_PROBE = "0 1 2\n3 4 5\n\n6|7|8\n\n[[9, 0], [1, 2]]\n    return"  # how grids and programs are written

_DAY = datetime(2024, 7, 26)  # what templates are told that it is; Llama's own names it where it is told nothing
_CLOCK = re.compile(r"""\bstrftime_now\(\s*(["'])(.*?)\1\s*\)""")
_MASK, _REPLY = "\ue000", "\ue001"  # characters that mean nothing


class RefusedPromptError(ValueError):
    """The chat template raises an error for these messages."""


def conversation_text(tokenizer: Any, name: str, prompt: Prompt, *, thinking: bool | None, add_generation_prompt: bool) -> str:
    """thinking: passed on as enable_thinking, unless None. ValueError: a template that refuses the messages, or does not write
    what is in them, given as strings and as lists of parts."""
    given = {} if thinking is None else {"enable_thinking": thinking}
    refusal: Exception | None = None
    num_written = 0
    for as_parts in (False, True):
        messages = [
            {"role": message.role, "content": [{"type": "text", "text": message.content}] if as_parts else message.content}
            for message in prompt
        ]
        try:
            text = _rendered(tokenizer, messages, add_generation_prompt, given)
        except RefusedPromptError as error:
            refusal = refusal or error
            continue
        if not (lost := [message.role for message in prompt if _must_stand(message.role, message.content) not in text]):
            return text
        num_written += 1
    if refusal is not None and not num_written:
        raise RefusedPromptError(
            f"the chat template of lm.name={name} refuses a prompt with the roles {[m.role for m in prompt]} ({refusal}); "
            "give it other roles, for example one user message."
        ) from refusal
    raise ValueError(
        f"the chat template of lm.name={name} does not write what the {lost[0]} message holds ({len(prompt)} messages, as "
        "strings and as lists of text parts), so the model would not see it; use a model whose chat_template writes message "
        "content as it is."
    )


def _rendered(tokenizer: Any, messages: list[dict[str, Any]], add_generation_prompt: bool, given: dict[str, bool]) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            messages, chat_template=_frozen(tokenizer.chat_template), tokenize=False,
            add_generation_prompt=add_generation_prompt, date_string=_DAY.strftime("%d %b %Y"), **given
        )  # fmt: skip
    # What a template does with a value of another kind than it expects ends in an error of Python.
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        lines = str(error).splitlines()
        raise RefusedPromptError(lines[0] if lines else type(error).__name__) from error


def _frozen(template: Any) -> Any:
    """The template with the fixed day in place of today's. (transformers gives templates a clock, and takes no other one.)"""
    if not isinstance(template, str):
        return template
    return _CLOCK.sub(lambda found: repr(_DAY.strftime(found[2])), template)


def _must_stand(role: str, content: str) -> str:
    """What of a message the text must hold. Templates strip it, and leave out the thinking of earlier replies."""
    return (content.rpartition("</think>")[2] if role == "assistant" else content).strip()


def conversation_ids(tokenizer: Any, name: str, prompt: Prompt, *, thinking: bool | None) -> list[int]:
    """The tokens of conversation_text() up to where the reply begins, and of a reply that was begun behind them, as they are:
    its white space, which templates strip, is part of it. A special token's name within a message stays text, so that no
    message can end its turn, or begin another. ValueError: see there; a template that opens thinking where the reply goes
    on."""
    if is_plain(prompt):
        return plain_ids(tokenizer, prompt[0].content)
    asked, begun = begun_reply(prompt)
    ids = _tokens(tokenizer, *_written(tokenizer, name, asked, thinking))
    if not begun:
        return ids
    if opened_thinking(tokenizer, name, asked, thinking=thinking):
        raise ValueError(
            f"the chat template of lm.name={name} opens the reply with <think>, so a reply that was begun would go on "
            "inside its thinking; set lm.thinking=false, or use a model that does not think."
        )
    return [*ids, *plain_ids(tokenizer, begun)]


def marked_tokens(
    tokenizer: Any, name: str, prompt: Prompt, spans: Sequence[tuple[int, int]], *, thinking: bool | None
) -> list[bool]:
    """For each of conversation_ids(...) whether any of its characters lies in a span of the last message's content. ValueError:
    a tokenizer that does not tell where its tokens stand, a message that the template writes with other white space or twice,
    and one with special tokens' names in it."""
    text, other = _written(tokenizer, name, prompt, thinking)
    content = prompt[-1].content
    if text != other or text.count(content) != 1 or not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"the tokenizer and the chat template of lm.name={name} do not tell which tokens belong to which part of a "
            "message; learn from the reply alone (loss=last_output), or from everything (loss=all)."
        )
    start = text.index(content)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [any(a < start + high and b > start + low for low, high in spans) for a, b in encoded["offset_mapping"]]


def opened_thinking(tokenizer: Any, name: str, prompt: Prompt, *, thinking: bool | None) -> str:
    """The <think> and what follows it, if the chat template itself opens the thinking of the reply; else empty."""
    if is_plain(prompt):
        return ""
    whole, without = (
        conversation_text(tokenizer, name, prompt, thinking=thinking, add_generation_prompt=flag) for flag in (True, False)
    )
    _, mark, after = whole[len(without) :].rpartition("<think>")
    return mark + after if mark and "</think>" not in after else ""


def next_turn_ids(tokenizer: Any, name: str, told: str, *, thinking: bool | None) -> list[int]:
    """The tokens between two replies of a conversation: what ends the first, the user's turn in which something is told, and
    the header of the next reply. So the tokens of a conversation grow, and none is ever written anew. ValueError: as
    conversation_ids."""
    prompt = (Message("user", _PROBE), Message("assistant", _REPLY), Message("user", told.replace(_REPLY, " ")))
    text, other = _written(tokenizer, name, prompt, thinking)
    start = text.index(_REPLY) + len(_REPLY)
    return _tokens(tokenizer, text[start:], other[start:])


def after_reply_ids(tokenizer: Any, name: str, *, thinking: bool | None) -> list[int]:
    """What the template writes behind a reply where another one is asked for at once: the end of the first, and the header of
    the next. ValueError: as conversation_ids."""
    text, other = _written(tokenizer, name, (Message("user", _PROBE), Message("assistant", _REPLY)), thinking)
    start = text.index(_REPLY) + len(_REPLY)
    return _tokens(tokenizer, text[start:], other[start:])


def added_before(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts before a text that it is given without a template: a begin-of-text mark, or nothing."""
    alone, given = plain_ids(tokenizer, _PROBE), tokenizer.encode(_PROBE, verbose=False)
    places = [at for at in range(len(given)) if given[at : at + len(alone)] == alone]
    return given[: places[0]] if places else []


def _written(tokenizer: Any, name: str, prompt: Prompt, thinking: bool | None) -> tuple[str, str]:
    """The text of a conversation, and the same with other characters where messages hold the names of special tokens."""
    text = conversation_text(tokenizer, name, prompt, thinking=thinking, add_generation_prompt=True)
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    held = sorted({n for n in names for message in prompt if n in message.content}, key=len, reverse=True)
    if not held:
        return text, text
    masked = tuple(Message(message.role, _masked(message.content, held)) for message in prompt)
    other = conversation_text(tokenizer, name, masked, thinking=thinking, add_generation_prompt=True)
    if len(other) != len(text):
        raise ValueError(
            f"a message holds {held[0]}, a special token of lm.name={name}, which its chat template does not write as "
            "other text; leave it out of the message."
        )
    return text, other


def _tokens(tokenizer: Any, text: str, other: str) -> list[int]:
    """Where the two texts differ, a special token's name is text."""
    if text == other:
        return tokenizer.encode(text, add_special_tokens=False, verbose=False)
    ids: list[int] = []
    for is_name, places in groupby(range(len(text)), key=lambda at: text[at] != other[at]):
        piece = "".join(text[at] for at in places)
        ids += plain_ids(tokenizer, piece) if is_name else tokenizer.encode(piece, add_special_tokens=False, verbose=False)
    return ids


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that holds no special tokens, whatever is written in it."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)


def _masked(text: str, names: Sequence[str]) -> str:
    """With other characters, as many, in place of names."""
    for name in names:
        text = text.replace(name, _MASK * len(name))
    return text


def require_lossless(tokenizer: Any, name: str) -> None:
    """ValueError: a tokenizer that does not keep a grid as it is written (one that folds white space, for example)."""
    read = tokenizer.decode(plain_ids(tokenizer, _PROBE), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if read.strip() != _PROBE:
        raise ValueError(
            f"the tokenizer of lm.name={name} does not keep text as it is: {_PROBE!r} comes back as {read!r}, so the model "
            "would see other grids; use a model whose tokenizer keeps digits and white space."
        )
