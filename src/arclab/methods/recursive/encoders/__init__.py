"""Task encoders: demonstrations -> context tokens. A new one is a module here, a schema, a YAML and an entry below."""

from __future__ import annotations

from typing import Any

from arclab.config.encoder_schema import EncoderConfig
from arclab.methods.recursive.encoders.base import Demonstrations, Memory, TaskContext, TaskEncoder
from arclab.methods.recursive.encoders.cross_attention import CrossAttentionEncoder
from arclab.methods.recursive.encoders.hierarchical import HierarchicalEncoder
from arclab.methods.recursive.encoders.hybrid import HybridEncoder
from arclab.methods.recursive.encoders.in_context import InContextEncoder
from arclab.methods.recursive.encoders.lpn import LpnEncoder, LpnVariationalEncoder
from arclab.methods.recursive.encoders.recurrent import RecurrentEncoder, RecurrentTrmEncoder
from arclab.methods.recursive.encoders.set_transformer import SetTransformerEncoder
from arclab.methods.recursive.encoders.standard import StandardEncoder
from arclab.methods.recursive.encoders.variational import VariationalEncoder

__all__ = ["Demonstrations", "Memory", "TaskContext", "TaskEncoder", "build_encoder"]

# By EncoderConfig.kind; the schema of each kind is in arclab.config.encoder_schema.
_ENCODERS: dict[str, Any] = {
    "standard": StandardEncoder,
    "variational": VariationalEncoder,
    "lpn": LpnEncoder,
    "lpn_variational": LpnVariationalEncoder,
    "hybrid": HybridEncoder,
    "hybrid_variational": VariationalEncoder,
    "recurrent": RecurrentEncoder,
    "recurrent_trm": RecurrentTrmEncoder,
    "cross_attention": CrossAttentionEncoder,
    "hierarchical": HierarchicalEncoder,
    "set_transformer": SetTransformerEncoder,
    "in_context": InContextEncoder,
}


def build_encoder(config: EncoderConfig, width: int, canvas: int) -> TaskEncoder:
    """The module of an encoder configuration; width is the decoder's."""
    return _ENCODERS[config.kind](config, width, canvas)
