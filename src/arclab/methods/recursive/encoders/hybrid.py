"""Hybrid encoder: each demonstration becomes the vector of a CLS token (as in LPN), the set goes to learned queries.

The standard encoder with pooling=cls and pre-norm blocks; a kind of its own because experiments are named after it.
"""

from __future__ import annotations

from arclab.methods.recursive.encoders.standard import StandardEncoder


class HybridEncoder(StandardEncoder):
    """See StandardEncoder; its configuration allows pooling=cls only."""
