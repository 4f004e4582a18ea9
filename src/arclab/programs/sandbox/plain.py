"""The answer of a program as lists of plain ints, or what is wrong with it.

    plain_rows(solve(grid))      # [[1, 2], [3, 4]]; BadOutput: no grid

An answer may be of any class, and its methods the program's: it may say something else when it is read a second time. So it is
copied once, by the methods of Python's and numpy's own classes, and only the copy is checked and used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arclab.data.tasks import MAX_SIDE, NUM_COLORS

_NUMBERS = (int, float, np.integer, np.floating)
_ROWS, _CELLS = "{} rows", "a row of {} cells"
_HUGE = 10**20  # longer numbers are not written out


class BadOutput(Exception):
    """The program returned something that is no grid."""


def plain_rows(value: object) -> list[list[int]]:
    """Arrays, tuples, numpy integers and whole floats are fine, and classes made from them, of which only the contents
    count."""
    if issubclass(type(value), np.ndarray):  # type(): isinstance() would ask the object
        rows = _rows_of_array(value)
    else:
        items = _items(value, _ROWS)
        if items is None:
            raise BadOutput(f"{name_of(type(value))}, not a list of rows")
        rows = [_row(row) for row in items]
    plain = [[cell if type(cell) is int and 0 <= cell < NUM_COLORS else _cell(cell) for cell in row] for row in rows]
    if any(len(row) != len(plain[0]) for row in plain):
        raise BadOutput("rows of different lengths")
    return plain


def _rows_of_array(value: Any) -> list[list[Any]]:
    array = value if type(value) is np.ma.MaskedArray else np.ndarray.view(value, np.ndarray)
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise BadOutput(f"array of {array.ndim} dimensions and type {array.dtype}, not a grid of whole numbers")
    height, width = array.shape
    if max(height, width) > MAX_SIDE:
        raise BadOutput(f"{height} x {width} is larger than {MAX_SIDE} x {MAX_SIDE}")
    _check(height, _ROWS)
    _check(width, _CELLS)
    return array.tolist()  # None where it is masked


def _row(value: Any) -> list[Any]:
    if issubclass(type(value), np.ndarray):
        array = np.ndarray.view(value, np.ndarray)
        if array.ndim == 1:
            _check(array.size, _CELLS)
            return array.tolist()
    row = _items(value, _CELLS)
    if row is None:
        raise BadOutput(f"a row is {name_of(type(value))}, not a list")
    return row


def _items(value: Any, size: str) -> list[Any] | None:
    """The items of a list or tuple as a new list; None: it is neither. BadOutput: too few or too many."""
    for kind in (list, tuple):
        if issubclass(type(value), kind):
            _check(kind.__len__(value), size)
            return list(kind.__getitem__(value, slice(None)))
    return None


def _check(count: int, size: str) -> None:
    if not 1 <= count <= MAX_SIDE:
        raise BadOutput(f"{size.format(count)}, not 1 to {MAX_SIDE}")


def _cell(value: Any) -> int:
    kind = type(value)
    if kind is bool or not issubclass(kind, _NUMBERS):
        raise BadOutput(f"a cell is {name_of(type(value))}, not a colour 0 to {NUM_COLORS - 1}")
    # Of a number of the program's own class, too, what it holds.
    if issubclass(kind, int):
        number = int.__add__(value, 0)
    else:
        number = float.__add__(value, 0.0) if issubclass(kind, float) else np.generic.item(value)
    if type(number) is np.longdouble:  # which is its own item()
        number = float(number)
    if not 0 <= number < NUM_COLORS or int(number) != number:
        text = str(number)[:20] if -_HUGE < number < _HUGE else "a huge number" if number == number else "nan"
        raise BadOutput(f"a cell is {text}, not a colour 0 to {NUM_COLORS - 1}")
    return int(number)


def name_of(kind: type) -> str:
    """The name of a class, read without running a line of the program, which may have made it of any class of text."""
    return str.__getitem__(type.__dict__["__name__"].__get__(kind), slice(None))
