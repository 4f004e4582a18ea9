"""Documents that are searched for words, by BM25 (the package bm25s).

    documents = read_documents(Path("wiki.jsonl"))           # {"title": ..., "text": ...} a line
    index = SearchIndex(documents)
    index.search(["capital of Peru"], top_k=3)               # [[Found(title, text, score), ...]]

The index is in memory: about as large as the file. Documents that share no word with a query are not found. It learns nothing
and knows no meanings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arclab.files import DamagedFile, numbered_lines

_WORDS = r"(?u)\b\w+\b"


@dataclass(frozen=True, slots=True)
class Document:
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    title: str
    text: str
    score: float


def read_documents(path: Path) -> list[Document]:
    """ValueError, in one sentence: no file, a line without title or text, no documents."""
    if not path.is_file():
        raise ValueError(
            f"there are no documents at {path}; give a JSONL file with title and text as dataset.search.documents."
        )
    kinds = {"title": str, "text": str}
    found = [Document(row["title"], row["text"]) for _, row in numbered_lines(path, kinds, is_log=False, needs_line_end=False)]
    if not found:
        raise DamagedFile(path, "it has no document")
    return found


class SearchIndex:
    """May be asked by several threads at once."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._bm25s = _library()
        self.documents = list(documents)
        self._index = self._bm25s.BM25()
        words = self._words([f"{each.title}\n{each.text}" for each in documents])
        if not any(words):
            raise ValueError("the documents hold no word, so nothing can be found; give dataset.search.documents others.")
        self._index.index(words, show_progress=False)

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Found]]:
        """The best top_k of every query, the best first; equally good ones in the order of the file."""
        return [self._best(words, top_k) for words in self._words(queries)]

    def _best(self, words: list[str], top_k: int) -> list[Found]:
        known = [word for word in words if word in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        top_k = min(top_k, len(scores))
        least = np.partition(scores, -top_k)[-top_k]
        candidates = np.flatnonzero((scores >= least) & (scores > 0))
        order = candidates[np.argsort(-scores[candidates], kind="stable")][:top_k]
        return [self._found(int(number), float(scores[number])) for number in order]

    def _found(self, number: int, score: float) -> Found:
        document = self.documents[number]
        return Found(document.title, document.text, score)

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        return self._bm25s.tokenize(
            list(texts), token_pattern=_WORDS, stopwords=[], return_ids=False, show_progress=False
        )  # fmt: skip


def _library() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise ValueError(f"the search tool needs the package bm25s ({error}): pip install bm25s.") from error
    return bm25s
