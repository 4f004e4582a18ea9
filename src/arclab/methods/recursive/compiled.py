"""trainer.compile=true: which parts of a model torch.compile makes kernels of.

    compile_model(model)
    with uncompiled(): ...      # whatever sizes come: nothing is compiled for them

The decoder's layers have one graph for each canvas (static shapes), with and without gradient: both layers and all cycles share
it, so that it is made in seconds, where one of the whole decoder takes half a minute a canvas on a GPU. An encoder's layers are
compiled with dynamic sizes, because the number of demonstrations and of their tokens differs from step to step. Parameters keep
their names.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from arclab.methods.recursive.encoders.blocks import EncoderBlock, SetBlock
from arclab.methods.recursive.encoders.lpn import LpnBlock
from arclab.methods.recursive.model import RecursiveModel

_LAYERS = (EncoderBlock, SetBlock, LpnBlock)
# One for each canvas and micro-batch size; torch's own limit of 8 would leave the rest uncompiled, with no more than a warning.
_MAX_GRAPHS = 64


def compile_model(model: RecursiveModel, backend: str = "inductor") -> None:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_GRAPHS)
    for layer in model.decoder.layers:
        layer.compile(dynamic=False, backend=backend)
    if model.encoder is not None:
        for module in model.encoder.modules():
            if isinstance(module, _LAYERS):
                module.compile(dynamic=True, backend=backend)


def uncompiled() -> AbstractContextManager[object]:
    """Evaluation during training: its batches have as many sizes as rows that are still in flight, and each would be compiled
    for."""
    return torch.compiler.set_stance("force_eager")
