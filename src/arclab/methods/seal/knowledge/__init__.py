"""Passages that a language model takes into its weights: it writes what it is then trained on, and learns to write better."""
