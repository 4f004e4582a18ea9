"""Adaptation to the scored tasks: rows, adapters, training, and evaluations with them."""
