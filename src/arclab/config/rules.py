"""Rules that many keys share: how small and how large a number may be, as sentences.

    problems = [*sized(path, 1, num_layers=self.num_layers), *within(path, 0.1, 16, expansion=self.expansion)]

Rules of one key alone stand in its schema.
"""

from __future__ import annotations

# The largest value of a key that decides how much is computed or kept, by its name. Far above what anybody trains: these catch
# slips of the keyboard before memory or threads are asked for.
_SIZES = {
    16_384: "width num_heads",
    256: "num_layers set_layers grid_layers cross_layers induced_layers cycle_layers h_cycles l_cycles",
    4096: "tokens_per_demo num_induced rank",
    1024: "num_threads num_workers cpus_per_rank cpus gpus samples inner_steps",
    100_000: "num_augmentations",
    1_000_000: "batch_size rows_per_step halt_max_steps",
    2**63 - 1: "seed",  # what torch takes
}
LARGEST = {key: high for high, keys in _SIZES.items() for key in keys.split()}


def _dotted(path: str, key: str) -> str:
    """The key below a node; the root has no name."""
    return f"{path}.{key}" if path else key


def at_least(path: str, low: float, **values: float) -> list[str]:
    """A sentence for every value below `low`."""
    return [
        f"{_dotted(path, key)}={value} must be at least {low}; raise it." for key, value in values.items() if not value >= low
    ]


def sized(path: str, low: float, **values: float | None) -> list[str]:
    """A sentence for every value below `low` or above the largest one of its key; None is no value."""
    given = {key: value for key, value in values.items() if value is not None}
    large = {key: value for key, value in given.items() if value > LARGEST[key]}
    return [
        *at_least(path, low, **given),
        *(f"{_dotted(path, key)}={value} must be at most {LARGEST[key]}; lower it." for key, value in large.items()),
    ]


def within(path: str, low: float, high: float, **values: float) -> list[str]:
    """A sentence for every value outside [low, high]."""
    return [
        f"{_dotted(path, key)}={value} must be between {low} and {high}; choose a value in that range."
        for key, value in values.items()
        if not low <= value <= high
    ]
