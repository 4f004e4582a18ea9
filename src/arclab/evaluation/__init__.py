"""Scoring attempts of any solver, writing results and reports."""
