"""Task encoders: demonstrations -> context tokens. Which there are is written in arclab.config.encoders, and only there."""

from __future__ import annotations

from arclab.config.encoder_schema import EncoderConfig
from arclab.config.encoders import ENCODERS
from arclab.entries import load
from arclab.methods.recursive.encoders.base import Demonstrations, Memory, TaskContext, TaskEncoder

__all__ = ["Demonstrations", "Memory", "TaskContext", "TaskEncoder", "build_encoder"]


def build_encoder(config: EncoderConfig, width: int, canvas: int) -> TaskEncoder:
    """The module of an encoder configuration; width is the decoder's."""
    module = ENCODERS[config.kind].module
    assert module is not None, f"{config.kind} encodes nothing"
    return load(module)(config, width, canvas)
