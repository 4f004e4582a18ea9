"""For every encoder and every option it has: another value builds or computes something else, and what that is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from arclab.config.compose import to_typed
from arclab.config.encoder_schema import TaskEncoderConfig
from arclab.config.encoders import ENCODER_SCHEMAS
from arclab.config.schema import ExperimentConfig
from arclab.methods.recursive.auxiliary import auxiliary_losses, auxiliary_weights
from arclab.methods.recursive.training.step import noise_generator

from ..conftest import TINY, compose
from ..methods.recursive.common import setup
from .table import Parts, Table, differences, effect, leaves, require_a_row_for_each, require_the_named_tests, shown_here

CPU = torch.device("cpu")
# shapes: of the weights. encoded: the context. computed: the prefix that the decoder gets, and its answer. losses: the encoder's own.
# factors: what these losses are multiplied by. refused: what the checks say.
TABLE: Table = {
    "demo_layout": ("symmetry", "shapes"),
    "context.num_tokens": (3, "shapes"),
    "context.gain": (0.5, "computed"),
    "context.match_gain": (True, "computed"),
    "contrastive.weight": (0.7, "losses factors"),
    "contrastive.temperature": (0.5, "losses"),
    "contrastive.view": ("augmentations", "losses"),
    "reconstruction.weight": (0.6, "losses factors"),
    "inner_steps": (1, "methods/recursive/search/test_inner_steps.py::test_a_training_step_has_them_as_its_keys_say"),
    "inner_lr": (0.3, "methods/recursive/search/test_inner_steps.py::test_a_training_step_has_them_as_its_keys_say"),
    "width": (16, "shapes"),
    "num_layers": (3, "shapes"),
    "num_heads": (4, "encoded"),
    "expansion": (16.0, "shapes"),
    "norm": ("pre", "encoded"),
    "layer_scale": (0.3, "shapes"),
    "qk_norm": (True, "encoded"),
    "pooling": ("max", "shapes"),
    "tokens_per_demo": (3, "shapes"),
    "set_layers": (2, "shapes"),
    "latent_dim": (4, "shapes"),
    "kl.weight": (0.3, "factors"),
    "kl.free_bits": (2.0, "losses"),
    "kl.anneal_steps": (9, "factors"),
    "kl.allow_zero_weight": (True, "refused"),
    "h_cycles": (1, "encoded"),
    "l_cycles": (2, "encoded"),
    "cycle_layers": (1, "shapes"),
    "cross_layers": (2, "shapes"),
    "grid_layers": (1, "shapes"),
    "induced_layers": (1, "shapes"),
    "num_induced": (3, "shapes"),
    "demo_attention": ("varlen", "methods/recursive/test_varlen.py::test_end_to_end_gives_what_padded_and_grouped_demonstrations_give"),
    "kind": ("another", "every_key/test_pretrain.py::test_another_encoder_is_another_run"),
    "optim.lr": (0.001, "every_key/test_pretrain.py::test_a_key_changes_what_its_row_says"),
    "optim.weight_decay": (0.9, "every_key/test_pretrain.py::test_a_key_changes_what_its_row_says"),
    "optim.freeze_steps": (2, "every_key/test_pretrain.py::test_a_key_changes_what_its_row_says"),
}  # fmt: skip
# What must be set for a key to matter.
GIVEN: dict[str, dict[str, Any]] = {
    "contrastive.temperature": {"contrastive.weight": 1.0},
    "contrastive.view": {"contrastive.weight": 1.0},
    "kl.allow_zero_weight": {"kl.weight": 0.0},
}
OF_HYBRIDS = {"norm": "post", "pooling": None, "tokens_per_demo": None}  # None: there is only one value
KINDS = sorted(kind for kind, schema in ENCODER_SCHEMAS.items() if issubclass(schema, TaskEncoderConfig))


def test_every_option_has_a_row() -> None:
    require_a_row_for_each(set().union(*(leaves(ENCODER_SCHEMAS[kind]) for kind in KINDS)), TABLE)
    require_the_named_tests(TABLE)


def built(base: ExperimentConfig, changes: dict[str, Any]) -> Parts:
    """What an encoder configuration builds and computes."""
    node = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(base), enum_to_str=True))
    assert isinstance(node, DictConfig)
    for key, value in changes.items():
        OmegaConf.update(node, f"encoder.{key}", value)
    try:
        config = to_typed(node, ExperimentConfig)
    except ValueError as refusal:
        return {"shapes": None, "encoded": None, "computed": None, "losses": None, "factors": None, "refused": str(refusal)}
    model, _, batch = setup(config)
    context = model.condition(batch, noise=noise_generator((1,), CPU)).context
    assert context is not None and isinstance(config.encoder, TaskEncoderConfig)
    losses = auxiliary_losses(config.encoder, model, batch, context, noise_generator((2,), CPU))
    return {
        "shapes": {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        "encoded": [context.tokens_BTD.tolist(), context.summary_BTD.tolist()],
        "computed": [model.condition(batch).prefix_BPD.tolist(), model.predict(batch)[0].tolist()],
        "losses": {name: value.tolist() for name, value in losses.items()},
        "factors": [auxiliary_weights(config.encoder, step) for step in (1, 50)],
        "refused": "",
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_an_option_changes_what_its_row_says(kind: str) -> None:
    keys = leaves(ENCODER_SCHEMAS[kind])
    is_hybrid = kind.startswith("hybrid")
    overrides = [f"encoder={kind}", "encoder.num_heads=2", "encoder.width=32", "encoder.num_layers=1"]
    overrides += ["encoder.latent_dim=8"] if "latent_dim" in keys else []
    overrides += ["encoder.pooling=attention"] if "tokens_per_demo" in keys and not is_hybrid else []
    base = compose("pretrain_encoder", [*TINY, "dataset.max_train_tasks=4", *overrides])
    unchanged = built(base, {})
    assert built(base, {}) == unchanged
    # Only a variational encoder has a loss of its own here, and that is of what it encodes.
    follows = {
        "shapes": "encoded",
        "encoded": "computed losses" if unchanged["losses"] else "computed",
        "refused": "shapes losses factors",
    }
    for key in keys & {*shown_here(TABLE)}:
        value, what = TABLE[key]
        value = OF_HYBRIDS.get(key, value) if is_hybrid else value
        if value is None:
            continue
        given = GIVEN.get(key, {})
        before = built(base, given) if given else unchanged
        assert differences(before, built(base, {**given, key: value})) == effect(what, follows), key
