"""checkpoint=RUN@best, RUN@last or RUN@STEP: which checkpoint of a run a key asks for, as far as its text says.

    wish = checkpoint_wish("runs/quickstart/a@best")     # wish.path: runs/quickstart/a, wish.which: best
    problems = broken_checkpoint("checkpoint", text)     # a sentence for another word after @

A folder whose own name contains @ is taken as it is. It reads no checkpoint: arclab.runs.choice does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BEST, LAST = "best", "last"


@dataclass(frozen=True, slots=True)
class CheckpointWish:
    """path: a run folder, or one of its checkpoints. which: best, last, a step in digits, or "" (nothing was asked for)."""

    path: Path
    which: str

    @property
    def run_folder(self) -> Path:
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path

    @property
    def step(self) -> int | None:
        return int(self.which) if self.which.isdecimal() else None

    @property
    def suffix(self) -> str:
        """Keeps results apart from those of the newest checkpoint: -best, -step900, or nothing. A checkpoint's own folder is
        that of its step."""
        if self.which == BEST:
            return f"-{BEST}"
        is_step = self.run_folder != self.path and (number := self.path.name.removeprefix("step_")).isdecimal()
        step = int(number) if is_step else self.step
        return "" if step is None else f"-step{step}"


def checkpoint_wish(given: str | Path) -> CheckpointWish:
    path = Path(given).expanduser()
    name, sign, which = path.name.rpartition("@")
    if sign and name and not path.exists() and _is_known(which):
        return CheckpointWish(path.with_name(name), which)
    return CheckpointWish(path, "")


def broken_checkpoint(key: str, given: str) -> list[str]:
    """A sentence if what follows @ is no word that is known, and it is not a part of a folder's name."""
    path = Path(given).expanduser()
    name, sign, which = path.name.rpartition("@")
    if not sign or path.exists() or _is_known(which) or not (name and path.with_name(name).exists()):
        return []
    return [
        f"{key}={given} asks for {which!r} after @; give @{BEST}, @{LAST} or @STEP, for example {path.with_name(name)}@{BEST}."
    ]


def _is_known(which: str) -> bool:
    return which in (BEST, LAST) or (which.isascii() and which.isdecimal())
