"""Recursive models: the TRM decoder, what conditions it, halting, losses and loading weights."""
