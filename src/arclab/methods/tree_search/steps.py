"""How the text of a reply is cut into steps, and what of it is the program.

    steps = Steps(program_begin="```python\\n", root="def solve(grid):\\n", step_end="# next step", program_end="```")
    steps.opening                            # what the model finds written already
    steps.source(steps.opening + text)       # the program: markers taken out, so that it runs as it is
    steps.prefix(source)                     # the same, made to run although it is not finished

A step is what the model writes up to step_end. The only rule for it is that the program so far compiles and runs. Nothing is
executed here.
"""

from __future__ import annotations

from dataclasses import dataclass

from arclab.config.tree_search_schema import StepsConfig
from arclab.lm.language_model import Completion, FinishReason


@dataclass(frozen=True, slots=True)
class Steps:
    """See StepsConfig."""

    program_begin: str
    root: str
    step_end: str
    program_end: str

    @classmethod
    def of(cls, config: StepsConfig) -> Steps:
        return cls(config.program_begin, config.root, config.step_end, config.program_end)

    @property
    def opening(self) -> str:
        return self.program_begin + self.root

    def stops(self, *, whole: bool) -> tuple[str, ...]:
        """What ends a draw: of a step, or of a whole program."""
        return (self.program_end,) if whole else (self.step_end, self.program_end)

    def source(self, written: str) -> str:
        """The program in the text of a reply."""
        assert written.startswith(self.program_begin), written[:100]
        return written.removeprefix(self.program_begin).replace(self.step_end, "").replace(self.program_end, "")

    def prefix(self, source: str) -> str:
        """An unfinished program that can be run: a function of comments alone gets a body. A loop or a branch without one stays
        what it is, an error."""
        lines = source.splitlines()
        while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
            lines.pop()
        last = lines[-1] if lines else ""
        if not (last.lstrip().startswith("def ") and last.rstrip().endswith(":")):
            return source
        indentation = last[: len(last) - len(last.lstrip())] + "    "
        return f"{source}\n{indentation}pass\n"

    def is_empty(self, text: str) -> bool:
        """Nothing but white space and markers."""
        return not text.replace(self.step_end, "").replace(self.program_end, "").strip()

    def ends_program(self, completion: Completion) -> bool:
        return completion.text.endswith(self.program_end)

    def ends_step(self, completion: Completion) -> bool:
        return completion.text.endswith(self.step_end) and not self.ends_program(completion)

    def is_cut(self, completion: Completion) -> bool:
        """It ran into its limit before it had an end."""
        return (
            completion.finish_reason is FinishReason.length
            and not self.ends_program(completion)
            and not completion.text.endswith(self.step_end)
        )
