"""Task encoders: demonstrations -> context tokens. Which there are is written in arclab.config.encoders, and only there."""

from __future__ import annotations

from arclab.config.encoder_schema import EncoderConfig
from arclab.config.encoders import encoder_class
from arclab.config.schema import ColorEmbedding
from arclab.methods.recursive.encoders.base import Demonstrations, Memory, TaskContext, TaskEncoder
from arclab.methods.recursive.encoders.demo_tokens import DemoTokens

__all__ = ["Demonstrations", "Memory", "TaskContext", "TaskEncoder", "build_encoder"]


def build_encoder(config: EncoderConfig, width: int, canvas: int, colors: ColorEmbedding = ColorEmbedding.free) -> TaskEncoder:
    """The module of an encoder configuration; width and colors (how colours are embedded) are the decoder's. ValueError: it
    embeds grids in a way of its own, where colours cannot share weights."""
    encoder = encoder_class(config.kind)(config, width, canvas)
    if colors is ColorEmbedding.free:
        return encoder
    tables = [module for module in encoder.modules() if isinstance(module, DemoTokens)]
    if not tables:
        raise ValueError(
            f"decoder.color_embedding={colors.value} needs an encoder that embeds demonstrations with DemoTokens, and "
            f"encoder.kind={config.kind} does not; use decoder.color_embedding=free."
        )
    for module in tables:
        module.share_colors(colors)
    return encoder
