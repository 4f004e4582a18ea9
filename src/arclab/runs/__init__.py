"""The life of a run, for any method: its folder, lock, signals, ranks, memory, console, checkpoints and monitor."""
