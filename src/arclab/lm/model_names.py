"""Is lm.name a model? Asked before a model is loaded, and before jobs are submitted that would each find out for themselves.

    require_model("models/smollm2_135m")          # ValueError: it is not there, or incomplete
    require_before_jobs(config, on_slurm=True)     # the same of a run's lm, where this machine can know

It needs no torch, opens nothing and asks no hub.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from arclab.config.llm_schema import HfModelConfig
from arclab.lm.smollm2 import FOLDER as SMOLLM2_FOLDER
from arclab.lm.smollm2 import INSTALL as SMOLLM2_INSTALL

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def require_before_jobs(config: Any, *, on_slurm: bool) -> None:
    """ValueError: config.lm is a model of the run's own process that is not there. An absolute path may lie on the disks of
    SLURM's nodes alone, so there only names and paths below this folder are looked at."""
    if isinstance(config.lm, HfModelConfig) and not (on_slurm and Path(folder_of(config.lm.name)).is_absolute()):
        require_model(config.lm.name)


def folder_of(name: str) -> str:
    """lm.name with ~ as the home folder."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


def require_model(name: str) -> None:
    """ValueError: an incomplete folder, or what is neither a folder nor looks like a name on the hub."""
    folder = Path(folder_of(name))
    if not folder.is_dir():
        if folder.parts[:1] == ("models",):
            made_by = SMOLLM2_INSTALL if folder == SMOLLM2_FOLDER else f"python -m arclab.lm.tiny {name}"
            raise ValueError(f"lm.name={name} is not a folder; make it with: {made_by}")
        if not _HUB_NAME.fullmatch(name) or name.startswith(".") or folder.exists():
            raise ValueError(
                f"lm.name={name} is not a folder; give the folder of a model, or a name on the Hugging Face hub such as "
                "Qwen/Qwen3-0.6B."
            )
        return
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        remedy = f"it is an adapter: give it as lm.adapter={name}" if adapter else "name a folder that save_pretrained wrote"
        raise ValueError(f"lm.name={name} has no config.json; {remedy}.")
    for what, files in (("weights", _WEIGHTS), ("tokenizer", _TOKENIZER)):
        if not any((folder / file).is_file() for file in files):
            raise ValueError(
                f"lm.name={name} has no {what}: none of {', '.join(files)} is there; copy the whole model into it."
            )
