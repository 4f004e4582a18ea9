"""Draw programs from a language model, run them, let them vote."""
