"""trainer.compile=true: which parts of a model torch.compile makes kernels of.

    compile_model(model)

The decoder has one graph for each canvas (static shapes). An encoder's layers are compiled one by one with dynamic sizes, because the
number of demonstrations and of their tokens differs from step to step. Parameters stay where they are and keep their names.
"""

from __future__ import annotations

import torch

from arclab.models.encoders.blocks import EncoderBlock, SetBlock
from arclab.models.encoders.lpn import LpnBlock
from arclab.models.recursive import RecursiveModel

_LAYERS = (EncoderBlock, SetBlock, LpnBlock)
# Six canvases, each in training and in evaluation; torch's own limit of 8 would leave the rest uncompiled, with no more than a warning.
_MAX_GRAPHS = 64


def compile_model(model: RecursiveModel, backend: str = "inductor") -> None:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_GRAPHS)
    model.decoder.compile(dynamic=False, backend=backend)
    if model.encoder is not None:
        for module in model.encoder.modules():
            if isinstance(module, _LAYERS):
                module.compile(dynamic=True, backend=backend)
