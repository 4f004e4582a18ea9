"""Experiments of many runs: python -m experiments.NAME starts them and makes a table. Measures learning, not speed."""
