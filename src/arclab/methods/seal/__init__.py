"""A language model adapted to one task at a time: test-time training."""
