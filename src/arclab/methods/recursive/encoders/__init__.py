"""Task encoders: demonstrations -> context tokens. Which there are is written in arclab.config.encoders, and only there."""

from __future__ import annotations

from arclab.config.encoder_schema import EncoderConfig
from arclab.config.encoders import encoder_class
from arclab.methods.recursive.encoders.base import Demonstrations, Memory, TaskContext, TaskEncoder

__all__ = ["Demonstrations", "Memory", "TaskContext", "TaskEncoder", "build_encoder"]


def build_encoder(config: EncoderConfig, width: int, canvas: int) -> TaskEncoder:
    """The module of an encoder configuration; width is the decoder's."""
    return encoder_class(config.kind)(config, width, canvas)
