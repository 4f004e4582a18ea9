"""LoRA adapters on a transformers model, through peft: for good, or inside a block after which the model is as before.

peft puts its layers into the model itself and takes them out again with unload(): the base weights are never written to, so
what follows a block is bit-identical to what came before it. merge_adapter does write to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from arclab.files import Kind, read_object, require_kinds
from arclab.lm.switched import linear_names

if TYPE_CHECKING:
    from peft import PeftModel

_COPY = "copy the whole folder again"
# peft takes anything, and fails on it far from here.
_KINDS: dict[str, Kind] = {
    "r": int,
    "lora_alpha": float,
    "lora_dropout": float,
    "target_modules": str | list[str] | None,
    "rank_pattern": dict[str, int],
    "alpha_pattern": dict[str, float],
}


@contextmanager
def loaded_adapter(model: Any, folder: Path) -> Iterator[None]:
    """The adapter of a folder inside the block, in eval mode. ValueError: no adapter, or not one for this model."""
    adapted = _load(model, folder)
    try:
        adapted.eval()
        yield
    finally:
        adapted.unload()


@contextmanager
def fresh_adapter(
    model: Any, rank: int, alpha: float, target_modules: str | list[str], dropout: float, seed: int
) -> Iterator[PeftModel]:
    """A new adapter inside the block, in train mode."""
    from peft import LoraConfig

    if rank < 1:
        raise ValueError(f"the rank={rank} of a LoRA adapter must be at least 1; raise it.")
    settings: Any = {"r": rank, "lora_alpha": alpha, "target_modules": target_modules, "lora_dropout": dropout}
    config = LoraConfig(task_type="CAUSAL_LM", **settings)  # peft takes more than it declares: alpha may be no whole number
    try:
        adapted = _inject(model, config, seed)
    except ValueError as error:
        raise ValueError(
            f"target_modules={target_modules} cannot be adapted ({_first_line(error)}); {_there_are(model)}."
        ) from error
    try:
        yield adapted.train()
    finally:
        adapted.unload()


def merge_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter added to its weights, in the weights' dtype."""
    return _load(model, folder).merge_and_unload(safe_merge=True)


def _inject(model: Any, config: Any, seed: int) -> Any:
    """The peft model around model, its weights as peft makes them. Draws nothing from the global generator."""
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def _load(model: Any, folder: Path) -> Any:
    """Not through PeftModel.from_pretrained: that leaves weights which are not in the file at random, with a warning."""
    from peft import LoraConfig, load_peft_weights, set_peft_model_state_dict
    from safetensors import SafetensorError

    _check(folder)
    adapted = None
    try:
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted = _inject(model, config, seed=0)
        loaded = set_peft_model_state_dict(adapted, load_peft_weights(str(folder), device=str(model.device)))
        own = [key for key in loaded.missing_keys if "lora_" in key or "modules_to_save" in key]
        if strays := own + list(loaded.unexpected_keys):
            raise ValueError(f"{strays[0]} is only in one of them")
    # peft checks little of what it reads: megatron_config=true, say, makes it import a package.
    except (
        OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ArithmeticError, ImportError, SafetensorError
    ) as error:  # fmt: skip
        if adapted is not None:
            adapted.unload()
        raise ValueError(
            f"the adapter {folder} does not fit this model ({_first_line(error)}); use one that was trained on it."
        ) from error
    return adapted


def _check(folder: Path) -> None:
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ValueError(
            f"the adapter {folder} has no adapter_config.json; give the folder that save_pretrained of a peft model wrote."
        )
    if not any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        raise ValueError(f"the adapter {folder} has no weights (adapter_model.safetensors); copy the whole folder.")
    config = read_object(file, remedy=_COPY)
    require_kinds(config, _KINDS, file, may_lack=True, remedy=_COPY)
    for key, wanted in (("peft_type", "LORA"), ("bias", "none")):  # other kinds are not undone by unload()
        if config.get(key, wanted) != wanted:
            raise ValueError(f"the adapter {folder} has {key}={config[key]}, and only {wanted} is supported here; train it so.")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__


def _there_are(model: Any) -> str:
    return f"its linear layers are {', '.join(linear_names(model))}"
