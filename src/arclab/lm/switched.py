"""Several LoRA adapters on one language model, of which at most one is active: the base weights are there once.

    add_adapter(model, "weaver", LoraSettings(rank=16, alpha=32, dropout=0.0, target_modules=("q_proj", "v_proj")), seed=0)
    with active(model, "weaver"):
        ...                                  # passes of the model use the adapter
    ...                                      # everywhere else they are those of the base model, bit for bit

peft puts its layers in and computes them. What this adds is the switch: peft's own (set_adapter, disable_adapter) also changes
which parameters want a gradient, which loses gradients when a training step uses the model with and without the adapter. Active
adapters are a property of a forward pass: gradient checkpointing, which repeats passes later, is not supported.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """rank of the two matrices; their product is scaled by alpha / rank. target_modules: last parts of module names."""

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]


def linear_names(model: nn.Module) -> list[str]:
    """What target_modules may name: the last part of every linear layer's name, whether it has adapters already or not."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    parts = dict(model.named_modules())
    adapted = tuple(f"{name}." for name, part in parts.items() if isinstance(part, BaseTunerLayer))
    return sorted(
        {
            name.rpartition(".")[2]
            for name, part in parts.items()
            if isinstance(part, (nn.Linear, BaseTunerLayer)) and not name.startswith(adapted)
        }
    )


def add_adapter(model: Any, name: str, settings: LoraSettings, seed: int) -> None:
    """Put an adapter into the model, inactive, with weights drawn from seed; nothing else is drawn. They are float32 also in a
    model of half precision, where most steps of a usual size would round to nothing. Only its own parameters want a gradient,
    besides those that did. ValueError: target modules that the model lacks."""
    from peft import LoraConfig, inject_adapter_in_model

    there = linear_names(model)
    if unknown := [target for target in settings.target_modules if target not in there]:
        raise ValueError(
            f"target_modules={list(settings.target_modules)} names {unknown[0]}, which is no linear layer of the model; choose "
            f"among {', '.join(there)}."
        )
    wanted = {parameter for parameter in model.parameters() if parameter.requires_grad}
    options: Any = {"r": settings.rank, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout}
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=list(settings.target_modules), **options)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        with warnings.catch_warnings():  # peft takes a second adapter for an accident
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            inject_adapter_in_model(config, model, adapter_name=name)
    for parameter in adapter_parameters(model, name).values():
        parameter.data = parameter.data.float()
    own = {id(parameter) for parameter in adapter_parameters(model, name).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own or parameter in wanted)
    _switch(model, None)


def redraw_adapter(model: Any, name: str, seed: int) -> None:
    """The adapter's weights are drawn anew from seed, as peft begins an adapter; nothing else is drawn."""
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        for layer in adapter_layers(model):
            if name in layer.r:
                layer.reset_lora_parameters(name, init_lora_weights=True)


def adapter_layers(model: nn.Module) -> list[Any]:
    """The layers of the model that have adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [part for part in model.modules() if isinstance(part, BaseTunerLayer)]


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Parameters of one adapter: {name without the adapter's: parameter}."""
    mark = f".{name}."
    return {
        key.replace(mark, "."): parameter
        for key, parameter in model.named_parameters()
        if ".lora_" in key and mark in key.partition(".lora_")[2] + "."
    }


@contextmanager
def active(model: nn.Module, name: str | None) -> Iterator[None]:
    """Passes of the model inside the block use this adapter, or none; after it, those that were in use before."""
    before = _active_name(model)
    _switch(model, name)
    try:
        yield
    finally:
        _switch(model, before)


def _active_name(model: nn.Module) -> str | None:
    layers = adapter_layers(model)
    if not layers or layers[0].disable_adapters:
        return None
    (name,) = layers[0].active_adapters
    return name


def _switch(model: nn.Module, name: str | None) -> None:
    """Not through peft's enable_adapters and set_adapter: see the module."""
    for layer in adapter_layers(model):
        layer._disable_adapters = name is None
        if name is not None:
            layer._active_adapter = [name]


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The base model's own weights by their names in a model without adapters."""
    return {key.replace(".base_layer.", "."): value for key, value in model.state_dict().items() if ".lora_" not in key}


def require_same_tensors(own: dict[str, Any], saved: dict[str, Tensor], what: str) -> None:
    """ValueError, in one sentence, unless both have the same names and shapes."""
    if missing := sorted(own.keys() - saved.keys()):
        raise ValueError(f"{what} needs {missing[0]}, which was not saved ({len(missing)} of {len(own)} tensors are missing).")
    if stray := sorted(saved.keys() - own.keys()):
        raise ValueError(f"{what} has no {stray[0]}, which was saved ({len(stray)} tensors too many).")
    for key, value in own.items():
        if value.shape != saved[key].shape:
            raise ValueError(
                f"{what}: {key} has the shape {list(saved[key].shape)} in the file and {list(value.shape)} in the model."
            )
