"""The recursive model as a solver: votes over augmented views."""
