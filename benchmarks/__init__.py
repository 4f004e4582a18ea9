"""Measurements of speed and memory: python -m benchmarks.NAME prints JSON and a table. Ratios are taken within one run."""
