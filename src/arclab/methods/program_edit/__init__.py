"""Models that edit programs: sampled edits, what is kept of them, and training on it."""
