"""The trained part of a MemGen model as a file: the weaver's adapter, its queries and its projections.

weights = MemoryWeights(model)
save_tensors(weights.tensors(), file)        # nothing of the reasoner
weights.load(tensors)                        # ValueError: a tensor lacks, is too many, or has another shape

saved = load_memgen(run_folder, device, Memory.trained)      # the reasoner of the run, with its weaver
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arclab.config.compose import ConfigError, thaw_run
from arclab.config.memgen_schema import Memory, PretrainMemGenConfig
from arclab.config.run import DeviceChoice
from arclab.lm.switched import adapter_parameters, load_adapter, require_same_tensors
from arclab.lm.training.life import WEIGHTS_FILE
from arclab.methods.memgen.model import WEAVER, MemGenModel
from arclab.methods.memgen.setting import Language, build_memgen, load_reasoner, reasoner_folder
from arclab.runs.checkpoints import load_tensors, read_state
from arclab.runs.choice import Choice, choose_checkpoint

log = logging.getLogger(__name__)
_ADAPTER, _WEAVER = "adapter.", "weaver."


class MemoryWeights:
    """What weaver training changes, by name: adapter.* and weaver.*."""

    def __init__(self, model: MemGenModel) -> None:
        self._model = model

    def tensors(self) -> dict[str, Tensor]:
        backbone = self._model.backbone
        adapter = adapter_parameters(backbone.written_by, WEAVER)
        found: dict[str, Tensor] = {_ADAPTER + name: value for name, value in adapter.items()}
        return found | {_WEAVER + name: value for name, value in backbone.weaver.named_parameters()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        backbone = self._model.backbone
        adapter = {name.removeprefix(_ADAPTER): value for name, value in tensors.items() if name.startswith(_ADAPTER)}
        rest = {name.removeprefix(_WEAVER): value for name, value in tensors.items() if not name.startswith(_ADAPTER)}
        own = dict(backbone.weaver.named_parameters())
        require_same_tensors(own, rest, "the weaver")  # before anything is changed
        num_adapter = load_adapter(backbone.written_by, WEAVER, adapter)
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(rest[name])
        log.info("loaded %d tensors of the weaver's adapter and %d of its queries and projections", num_adapter, len(own))


@dataclass(frozen=True, slots=True)
class SavedMemGen:
    config: PretrainMemGenConfig
    language: Language
    model: MemGenModel
    checkpoint: Path
    step: int
    choice: Choice


def run_config(folder: Path) -> PretrainMemGenConfig:
    """Of a run folder of pretrain_memgen.py. ConfigError: of another script."""
    config = thaw_run(folder / "config.yaml")
    if not isinstance(config, PretrainMemGenConfig):
        raise ConfigError(f"checkpoint {folder} is no run of pretrain_memgen.py; give one that is, or another solver=.")
    return config


def load_memgen(folder: Path, device: DeviceChoice, memory: Memory) -> SavedMemGen:
    """folder: a run (also RUN@best, RUN@last and RUN@STEP), or one of its checkpoints. memory=random: the weaver as it was
    before its first step. ValueError, in one sentence: no checkpoint, a damaged one, a reasoner that is not the one it was
    trained on."""
    choice = choose_checkpoint(folder, lambda run: run_config(run).selection_metric)
    checkpoint = choice.path
    log.info("%s", choice)
    config = run_config(checkpoint.parent.parent)
    state = read_state(checkpoint)
    config.lm = reasoner_config(config, checkpoint.parent.parent, device)
    language = load_reasoner(config.lm)
    if language.identity != state["reasoner"]:
        raise ValueError(
            f"lm.name={config.lm.name} is not the reasoner of {checkpoint}: its files have changed; restore it, "
            "or train the weaver again."
        )
    model = build_memgen(language, config.memgen.weaver, config.seed)
    if memory is Memory.trained:
        try:
            MemoryWeights(model).load(load_tensors(checkpoint, WEIGHTS_FILE, state))
        except ValueError as error:
            raise ValueError(
                f"{checkpoint} does not fit its config.yaml: {str(error).rstrip('.')}; restore that file, or give another "
                "checkpoint."
            ) from error
    return SavedMemGen(config, language, model.eval(), checkpoint, int(state["step"]), choice)


def reasoner_config(config: PretrainMemGenConfig, folder: Path, device: DeviceChoice) -> Any:
    """lm, with the folder of the reasoner that the run has made if it makes one."""
    name = str(reasoner_folder(folder)) if config.memgen.reasoner.scratch is not None else config.lm.name
    return replace(config.lm, name=name, device=device)
