"""Task encoders: demonstrations -> context tokens. A new one is a module here, a schema, a YAML and an entry below."""

from __future__ import annotations

from typing import Any

from arclab.config.schema import EncoderConfig, StandardEncoderConfig
from arclab.models.encoders.base import Demonstrations, TaskContext, TaskEncoder
from arclab.models.encoders.standard import StandardEncoder

__all__ = ["Demonstrations", "TaskContext", "TaskEncoder", "build_encoder"]

_ENCODERS: dict[type[EncoderConfig], Any] = {StandardEncoderConfig: StandardEncoder}


def build_encoder(config: EncoderConfig, width: int, canvas: int) -> TaskEncoder:
    """The module of an encoder configuration; width is the decoder's."""
    return _ENCODERS[type(config)](config, width, canvas)
