"""Every kind of encoder, registered once: its schema, and the class that encodes. Imports no torch.

    ENCODER_SCHEMAS["standard"]         # the class of its configuration
    encoder_class("standard")           # the class of its module; only now is it imported, and torch with it

`arclab new-encoder NAME` writes the files of a new one and adds its row; its YAML is conf/encoder/NAME.yaml. All that lists
encoders (composing, building, help, completion, tests) reads this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arclab.config.encoder_schema import EncoderConfig, TaskEncoderConfig
from arclab.entries import load

_MODULES = "arclab.methods.recursive.encoders"
_SCHEMAS = "arclab.config.encoder_schema"


@dataclass(frozen=True, slots=True)
class EncoderKind:
    """References are "module:name". module: a TaskEncoder, whose schema is a TaskEncoderConfig; None: nothing encodes, as with
    the puzzle table of TRM."""

    schema: str
    module: str | None


ENCODERS = {
    "puzzle_table": EncoderKind(f"{_SCHEMAS}:PuzzleTableConfig", None),
    "standard": EncoderKind(f"{_SCHEMAS}:StandardEncoderConfig", f"{_MODULES}.standard:StandardEncoder"),
    "variational": EncoderKind(f"{_SCHEMAS}:VariationalEncoderConfig", f"{_MODULES}.variational:VariationalEncoder"),
    "lpn": EncoderKind(f"{_SCHEMAS}:LpnEncoderConfig", f"{_MODULES}.lpn:LpnEncoder"),
    "lpn_variational": EncoderKind(f"{_SCHEMAS}:LpnVariationalEncoderConfig", f"{_MODULES}.lpn:LpnVariationalEncoder"),
    "hybrid": EncoderKind(f"{_SCHEMAS}:HybridEncoderConfig", f"{_MODULES}.hybrid:HybridEncoder"),
    "hybrid_variational": EncoderKind(
        f"{_SCHEMAS}:HybridVariationalEncoderConfig", f"{_MODULES}.variational:VariationalEncoder"
    ),
    "recurrent": EncoderKind(f"{_SCHEMAS}:RecurrentEncoderConfig", f"{_MODULES}.recurrent:RecurrentEncoder"),
    "recurrent_trm": EncoderKind(f"{_SCHEMAS}:RecurrentTrmEncoderConfig", f"{_MODULES}.recurrent:RecurrentTrmEncoder"),
    "cross_attention": EncoderKind(
        f"{_SCHEMAS}:CrossAttentionEncoderConfig", f"{_MODULES}.cross_attention:CrossAttentionEncoder"
    ),
    "hierarchical": EncoderKind(f"{_SCHEMAS}:HierarchicalEncoderConfig", f"{_MODULES}.hierarchical:HierarchicalEncoder"),
    "set_transformer": EncoderKind(
        f"{_SCHEMAS}:SetTransformerEncoderConfig", f"{_MODULES}.set_transformer:SetTransformerEncoder"
    ),
    "in_context": EncoderKind(f"{_SCHEMAS}:InContextEncoderConfig", f"{_MODULES}.in_context:InContextEncoder"),
}


def _schema(kind: str, row: EncoderKind) -> type[EncoderConfig]:
    schema = load(row.schema)
    # Everything else asks the schema whether there is an encoder: a wrong parent would silently train and count a puzzle table.
    assert issubclass(schema, TaskEncoderConfig) == (row.module is not None), (
        f"ENCODERS[{kind!r}]: {row.schema} must inherit TaskEncoderConfig exactly if there is a module"
    )
    return schema


ENCODER_SCHEMAS = {kind: _schema(kind, row) for kind, row in ENCODERS.items()}


def encoder_class(kind: str) -> Any:
    """The TaskEncoder of a kind, called as encoder_class(kind)(config, decoder_width, canvas)."""
    module = ENCODERS[kind].module
    assert module is not None, f"{kind} encodes nothing"
    return load(module)
