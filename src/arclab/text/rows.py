"""Rows of a data set with named columns: of JSONL files in a folder, or of the Hugging Face hub, in the same form.

    source = RowSource("gsm8k", config.hub_name, config.hub_config, config.folder, {"question": str, "answer": str}, files)
    rows = source.rows("train", notes)              # Row(values, line), every column there and no text of it empty
    held = held_out(len(rows), config)              # which rows are for validation, drawn by the seed

A file that is missing or damaged, and a hub that cannot be reached, are one sentence. Columns that are not asked for are named
in a note, unless the data set is known to have more. It does not know what rows mean.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arclab.config.text_schema import TextDatasetConfig
from arclab.files import DamagedFile, Kind, is_kind, numbered_lines


@dataclass(frozen=True, slots=True)
class Row:
    """values: the columns that were asked for. line: of its file, or its number on the hub; None: it was generated."""

    values: Mapping[str, Any]
    line: int | None


@dataclass(frozen=True, slots=True)
class RowSource:
    """kind: of the data set, for messages. hub_name, hub_config: as datasets.load_dataset takes them. folder: None: the hub.
    columns: name -> kind. files: split -> name of its file, without .jsonl. has_more: other columns need no note.
    hub_configs: split -> (configuration, split) on the hub where they are not hub_config and the split itself."""

    kind: str
    hub_name: str
    hub_config: str | None
    folder: str | None
    columns: Mapping[str, Kind]
    files: Sequence[str]
    has_more: bool = False
    hub_configs: Mapping[str, tuple[str, str]] | None = None

    def path(self, name: str) -> Path:
        """Where the rows of a file are from, for messages."""
        return Path(self.hub_name) / name if self.folder is None else Path(self.folder).expanduser() / f"{name}.jsonl"

    def rows(self, name: str, notes: list[str]) -> list[Row]:
        """ValueError, in one sentence: there is no such data, or a row that lacks a column."""
        path = self.path(name)
        found = self._of_hub(name, path, notes) if self.folder is None else self._of_file(path, notes)
        if not found:
            raise DamagedFile(path, "it has no row")
        return found

    @property
    def _named_files(self) -> str:
        named = [f"{name}.jsonl" for name in self.files]
        return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)

    def _of_file(self, path: Path, notes: list[str]) -> list[Row]:
        if not path.is_file():
            raise ValueError(
                f"dataset.folder={path.parent} has no {path.name}; give a folder with {self._named_files}, or "
                "dataset.folder=null for the Hugging Face hub."
            )
        rows: list[Row] = []
        unused: dict[str, None] = {}
        for line, row in numbered_lines(path, is_log=False, needs_line_end=False):
            self._require_columns(list(row), path, line)
            rows.append(self._row(row, path, line))
            unused |= dict.fromkeys(key for key in row if key not in self.columns)
        self._note_unused(list(unused), path, notes)
        return rows

    def _of_hub(self, name: str, path: Path, notes: list[str]) -> list[Row]:
        """By the library datasets, which keeps what it has downloaded."""
        import datasets
        import httpx
        from datasets.exceptions import DatasetsError

        configuration, split = (self.hub_configs or {}).get(name, (self.hub_config, name))
        try:
            data: Any = datasets.load_dataset(self.hub_name, configuration, split=split)
        # DatasetNotFoundError and ConnectionError are OSErrors; an unknown configuration or split is a ValueError.
        except (OSError, ValueError, RuntimeError, httpx.HTTPError, DatasetsError) as error:
            lines = str(error).strip().splitlines()
            why = (lines[0] if lines else type(error).__name__).rstrip(".")
            raise ValueError(
                f"dataset.hub_name={self.hub_name} cannot be loaded ({why}); check the name, hub_config and the network, or "
                f"give a folder with {self._named_files} as dataset.folder."
            ) from error
        self._require_columns(list(data.column_names), path, None)
        self._note_unused([name for name in data.column_names if name not in self.columns], path, notes)
        return [self._row(row, path, number) for number, row in enumerate(data, start=1)]

    def _note_unused(self, unused: Sequence[str], path: Path, notes: list[str]) -> None:
        if unused and not self.has_more:
            notes.append(f"{path}: the columns {', '.join(unused)} are not used")

    def _require_columns(self, columns: Sequence[str], path: Path, line: int | None) -> None:
        if missing := [name for name in self.columns if name not in columns]:
            raise DamagedFile(
                path,
                f"it has no {' and no '.join(missing)}, but {', '.join(columns) or 'no columns'}",
                line=line,
                remedy=f"dataset.kind={self.kind} needs the columns {' and '.join(self.columns)}: rename them, or remove the "
                "row",
            )

    def _row(self, row: Mapping[str, Any], path: Path, line: int) -> Row:
        for name, kind in self.columns.items():
            value = row[name]
            if kind is str and (not isinstance(value, str) or not value.strip()):
                raise DamagedFile(path, f"its {name} is empty or no text", line=line, remedy="correct that row, or remove it")
            if kind is not str and not is_kind(value, kind):
                raise DamagedFile(
                    path, f"its {name} is not of the right kind", line=line, remedy="correct that row, or remove it"
                )
        return Row({name: row[name] for name in self.columns}, line)


def held_out(num_rows: int, config: TextDatasetConfig) -> list[int]:
    """Which rows of train are for validation, in order."""
    count = config.limits["validation"]
    assert count is not None, "checked with the configuration"
    if count >= num_rows:
        raise ValueError(
            f"dataset.num_validation={count} must be below the number of training rows ({num_rows}), from which they are "
            "drawn; lower it."
        )
    return sorted(drawn_order(num_rows, f"{config.seed} validation")[:count])


def drawn_order(count: int, seed: str) -> list[int]:
    """The numbers below count in a random order. random() alone is promised to stay the same from version to version of
    Python."""
    rng = random.Random(seed)
    return sorted(range(count), key=lambda _: rng.random())
