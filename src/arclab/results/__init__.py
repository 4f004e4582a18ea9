"""Attempts at tasks, their scores, and result folders: written, read, compared."""
