"""Questions that are answered with a search tool: those of TriviaQA, and generated ones about code words.

    splits = triviaqa_splits(config, needs_replies=False)      # of config.folder, else of the Hugging Face hub
    splits = code_word_splits(config)                          # generated, with worked episodes: search first, then answer
    write_documents(documents_of(config), file)                # what a generated data set is searched in

An example's answer is a JSON list of right names. TriviaQA (train.jsonl, validation.jsonl) has no worked replies, so it is for
reinforcement learning alone; its test split is the published validation split. The code word of a place cannot be guessed: it
stands in one document, and the question names the place. What is right is for short_answers.py, and what a search answers for
search_client.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from arclab.config.text_schema import SAMPLE_LIMITS, CodeWordsConfig, TextDatasetConfig, TriviaQaConfig
from arclab.files import DamagedFile, Kind, write_atomically
from arclab.text.examples import TextExample, TextSplits, separated, with_instruction
from arclab.text.rows import Row, RowSource, drawn_order, held_out
from arclab.text.search_index import Document, Found

COLUMNS: dict[str, Kind] = {"question_id": str, "question": str, "answer": dict}
_SPLITS = ("train", "validation")
_STARTS, _ENDS = ("ka", "lo", "mi", "ru", "se", "ta", "no", "vi"), ("ban", "dor", "fel", "gim", "hul", "pex", "tos", "zun")
_WORDS = (
    "amber", "birch", "cobalt", "dune", "ember", "frost", "grove", "heron", "ivory", "jade", "kelp", "lotus", "maple", "north",
    "opal", "pearl", "quartz", "raven", "sable", "topaz", "umber", "violet", "willow", "zinc",
)  # fmt: skip


def triviaqa_splits(config: TriviaQaConfig, needs_replies: bool) -> TextSplits:
    """ValueError, in one sentence: no such data, a row without question or names, an empty split."""
    notes: list[str] = []
    if config.sample:
        notes.append("dataset.sample=true: a few questions that were generated here, not TriviaQA")
        made = {split: [_example(fact, config.instruction, "triviaqa") for fact in facts] for split, facts in _sampled(config)}
        return separated(config, made["train"], made["validation"], made["test"], notes, needs_replies=needs_replies)
    source = RowSource(
        "triviaqa", config.hub_name, config.hub_config, config.folder, COLUMNS, _SPLITS, has_more=True
    )  # fmt: skip
    examples = {
        split: [_of_row(row, source.path(split), split, config) for row in source.rows(split, notes)] for split in _SPLITS
    }
    held = held_out(len(examples["train"]), config)
    validation = [examples["train"][number] for number in held]
    train = [example for number, example in enumerate(examples["train"]) if number not in held]
    return separated(config, train, validation, examples["validation"], notes, needs_replies=needs_replies)


def _of_row(row: Row, path: Path, split: str, config: TriviaQaConfig) -> TextExample:
    answer = row.values["answer"]
    names = [answer.get("value"), *(answer.get("aliases") or [])]
    kept = list(dict.fromkeys(name.strip() for name in names if isinstance(name, str) and name.strip()))
    if not kept or kept == ["<unk>"]:
        raise DamagedFile(
            path, "its answer has neither a value nor aliases", line=row.line, remedy="correct that row, or remove it"
        )
    question = with_instruction(row.values["question"].strip(), config.instruction)
    return TextExample(f"{config.name}_{split}_{row.values['question_id'].strip()}", question, "", json.dumps(kept))


class _Fact:
    """A place and its code word. number: of the question within its split."""

    def __init__(self, place: str, word: str, split: str, number: int) -> None:
        self.place, self.word, self.split, self.number = place, word, split, number

    @property
    def document(self) -> Document:
        return Document(self.place, f"the word is {self.word}")


def code_word_splits(config: CodeWordsConfig) -> TextSplits:
    """ValueError: there are not as many places."""
    made: dict[str, list[TextExample]] = {}
    for split, facts in _facts(config, config.limits):
        guess = random.Random(f"{config.seed} guessed {split}")
        made[split] = []
        for fact in facts:
            is_guessed = guess.random() < config.guessed_share and split == "train"
            made[split].append(_example(fact, config.instruction, config.name, guess if is_guessed else None))
    return separated(config, made["train"], made["validation"], made["test"])


def documents_of(config: TextDatasetConfig) -> list[Document] | None:
    """Of a generated data set: what its questions are about. None: it brings none."""
    if isinstance(config, CodeWordsConfig):
        return [fact.document for _, facts in _facts(config, config.limits) for fact in facts]
    if isinstance(config, TriviaQaConfig) and config.sample:
        return [fact.document for _, facts in _sampled(config) for fact in facts]
    return None


def write_documents(documents: Sequence[Document], path: Path) -> None:
    write_atomically(path, "".join(json.dumps({"title": each.title, "text": each.text}) + "\n" for each in documents))


def shown(found: Sequence[Found]) -> str:
    """The observation of a search."""
    if not found:
        return "<information>nothing was found</information>"
    listed = "\n".join(f"{each.title}: {each.text}" for each in found)
    return f"<information>{listed}</information>"


def _sampled(config: TriviaQaConfig) -> Iterator[tuple[str, list[_Fact]]]:
    return _facts(config, SAMPLE_LIMITS)


def _facts(config: TextDatasetConfig, limits: dict[str, int] | dict[str, int | None]) -> Iterator[tuple[str, list[_Fact]]]:
    """Each place is asked for in one split alone. Two syllables and a number make a place."""
    counts = {split: count for split, count in limits.items() if count is not None}
    total, most = sum(counts.values()), len(_STARTS) * len(_ENDS) * 100
    if total > most:
        raise ValueError(
            f"dataset.num_train={counts['train']} with the other splits needs {total} places, and there are {most}; lower it."
        )
    order = iter(drawn_order(most, f"{config.seed} places")[:total])
    words = random.Random(f"{config.seed} words")
    for split, count in counts.items():
        places = [next(order) for _ in range(count)]
        yield (
            split,
            [
                _Fact(_place(place), _WORDS[int(words.random() * len(_WORDS))], split, number)
                for number, place in enumerate(places)
            ],
        )


def _place(number: int) -> str:
    rest, digits = divmod(number, 100)
    return f"{_STARTS[rest // len(_ENDS)]}{_ENDS[rest % len(_ENDS)]}{digits:02d}"


def _example(fact: _Fact, instruction: str, name: str, guess: random.Random | None = None) -> TextExample:
    """guess: draws an answer that is given without a search."""
    question = with_instruction(f"Code word of {fact.place}?", instruction)
    own_id, answer = f"{name}_{fact.split}_{fact.number:05d}", json.dumps([fact.word])
    if guess is not None:
        return TextExample(own_id, question, f"<answer>{_WORDS[int(guess.random() * len(_WORDS))]}</answer>", answer)
    document = fact.document
    turns = ((shown([Found(document.title, document.text, 0.0)]), f"<answer>{fact.word}</answer>"),)
    return TextExample(own_id, question, f"<search>{fact.place}</search>", answer, turns=turns)
