"""Views and recolourings of tokens are those of the data pipeline, and a row's augmented view keeps its rule's form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arclab.data.augment import Augmentation
from arclab.data.codec import FIRST_COLOR, encode
from arclab.methods.recursive.auxiliary import augmented
from arclab.methods.recursive.encoders import Demonstrations
from arclab.methods.recursive.token_views import dihedral_views, recolored
from arclab.methods.recursive.training.step import noise_generator

from .common import setup
from .test_encoders import CPU, Tiny, config_of

CANVAS = 6


@pytest.mark.parametrize("view", range(8))
def test_views_and_colours_are_those_of_the_augmentations(view: int) -> None:
    """EOS included, also where the grid fills the canvas or does not lie in its corner."""
    rng = np.random.default_rng(view)
    grids = [rng.integers(0, 10, shape, dtype=np.uint8) for shape in ((2, 3), (6, 6), (4, 4), (1, 4))]
    corners = [(0, 0), (0, 0), (2, 1), (1, 1)]
    colors = np.concatenate([[0], 1 + rng.permutation(9)]).astype(np.uint8)
    tokens = torch.from_numpy(np.stack([encode(g, CANVAS, *c) for g, c in zip(grids, corners, strict=True)]))
    wanted = np.stack(
        [encode(Augmentation(view, colors).apply_grid(g), CANVAS, *c) for g, c in zip(grids, corners, strict=True)]
    )
    seen = recolored(dihedral_views(tokens, CANVAS)[..., view], torch.from_numpy(colors).expand(4, -1), CANVAS)
    assert (seen.numpy() == wanted).all()


def test_an_augmented_row_is_one_view_of_all_its_grids(tiny: Tiny) -> None:
    """Nothing is cropped, input and output of all demonstrations of a row turn alike, and most rows do change."""
    _, _, batch = setup(config_of(tiny, "standard"))
    before, after = Demonstrations.from_batch(batch), augmented(batch, noise_generator((0, 1), CPU))
    assert (after.valid_BK == before.valid_BK).all()
    row_N = before.valid_BK.nonzero()[:, 0]
    shapes = [[[], []] for _ in range(len(batch))]
    for old, new in ((before.inputs_NS, after.inputs_NS), (before.outputs_NS, after.outputs_NS)):
        assert ((old >= FIRST_COLOR).sum(1) == (new >= FIRST_COLOR).sum(1)).all()
        for n, row in enumerate(row_N.tolist()):
            for place, tokens in enumerate((old[n], new[n])):
                grid = tokens.view(CANVAS, CANVAS) >= FIRST_COLOR
                shapes[row][place].append((int(grid.any(1).sum()), int(grid.any(0).sum())))
    assert all(new in (old, [shape[::-1] for shape in old]) for old, new in shapes)
    changed = {row for n, row in enumerate(row_N.tolist()) if (before.inputs_NS[n] != after.inputs_NS[n]).any()}
    assert len(changed) > len(batch) // 2
    again = augmented(batch, noise_generator((0, 1), CPU))
    assert (again.inputs_NS == after.inputs_NS).all()  # a function of the noise
