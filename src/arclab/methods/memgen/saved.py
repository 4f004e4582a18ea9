"""The trained part of a MemGen model as a file: the weaver's adapter, its queries and its projections, and a trained trigger.

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
from torch import Tensor, nn

from arclab.config.compose import ConfigError, thaw_run
from arclab.config.llm_schema import TriggerConfig
from arclab.config.memgen_schema import Memory, PretrainMemGenConfig
from arclab.config.run import DeviceChoice
from arclab.lm.switched import adapter_parameters, require_same_tensors
from arclab.lm.training.life import WEIGHTS_FILE, Weights
from arclab.methods.memgen.model import TRIGGER, WEAVER, MemGenModel
from arclab.methods.memgen.setting import Language, build_memgen, load_reasoner, reasoner_folder
from arclab.methods.memgen.trigger import Trigger, chosen_trigger
from arclab.runs.checkpoints import load_tensors, read_state
from arclab.runs.choice import Choice, choose_checkpoint

log = logging.getLogger(__name__)
_TRIGGER = "trigger"  # names of a trigger's tensors begin so


class MemoryWeights:
    """What is trained, by name: adapter.* and weaver.*; of a model with a trained trigger also trigger.* and, with an adapter
    of its own, trigger_adapter.*. weaver_alone: without the trigger's."""

    def __init__(self, model: MemGenModel, *, weaver_alone: bool = False) -> None:
        self._model, self._weaver_alone = model, weaver_alone

    def tensors(self) -> dict[str, Tensor]:
        return {f"{part}.{name}": value for part, (_, own) in self._parts().items() for name, value in own.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        parts = self._parts()
        given: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            given.setdefault(part, {})[name] = value
        if stray := sorted(given.keys() - parts.keys()):
            raise ValueError(f"the model has no {stray[0]}, which was saved.")
        for part, (what, own) in parts.items():  # all of them before anything is changed
            require_same_tensors(own, given[part], what)
        with torch.no_grad():
            for part, (_, own) in parts.items():
                for name, parameter in own.items():
                    parameter.copy_(given[part][name])
        log.info("loaded %s", ", ".join(f"{len(own)} tensors of {what}" for what, own in parts.values()))

    def _parts(self) -> dict[str, tuple[str, dict[str, nn.Parameter]]]:
        """{beginning of the names: (what it is, its parameters)}."""
        backbone = self._model.backbone
        parts = {
            "adapter": (f"the {WEAVER} adapter", adapter_parameters(backbone.written_by, WEAVER)),
            "weaver": ("the weaver", dict(backbone.weaver.named_parameters())),
        }
        if backbone.trigger is None or self._weaver_alone:
            return parts
        parts[_TRIGGER] = ("the trigger", dict(backbone.trigger.named_parameters()))
        if backbone.trigger.reads_tokens:
            parts[f"{_TRIGGER}_adapter"] = ("the trigger's adapter", adapter_parameters(backbone.reasoner, TRIGGER))
        return parts


@dataclass(frozen=True, slots=True)
class SavedMemGen:
    config: PretrainMemGenConfig
    language: Language
    model: MemGenModel
    checkpoint: Path
    step: int
    choice: Choice

    def trigger(self, wish: TriggerConfig, key: str) -> Trigger:
        """See trigger.chosen_trigger."""
        return chosen_trigger(wish, self.config.memgen.trigger, self.model.backbone.trigger, key)


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
    model = build_memgen(language, config.memgen, config.seed)
    if memory is Memory.trained:
        try:
            load_weights(checkpoint, MemoryWeights(model))
        except ValueError as error:
            raise ValueError(
                f"{checkpoint} does not fit its config.yaml: {str(error).rstrip('.')}; restore that file, or give another "
                "checkpoint."
            ) from error
    return SavedMemGen(config, language, model.eval(), checkpoint, int(state["step"]), choice)


def load_weights(checkpoint: Path, weights: Weights) -> None:
    """ValueError: a damaged checkpoint, or weights of another shape."""
    weights.load(load_tensors(checkpoint, WEIGHTS_FILE, read_state(checkpoint)))


def start_from(given: str, model: MemGenModel, language: Language) -> None:
    """memgen.weaver.start_from: its weaver, whatever trigger it has. ValueError, which names the key: there is no such weaver,
    or it is of another reasoner."""
    try:
        checkpoint = choose_checkpoint(Path(given), lambda run: run_config(run).selection_metric).path
        if read_state(checkpoint).get("reasoner") != language.identity:
            raise ValueError(
                f"its weaver was trained for another reasoner than lm.name={language.config.name}; give that one "
                "(memgen/reasoner=given lm.name=RUN/reasoner where the run has made its own)"
            )
        tensors = load_tensors(checkpoint, WEIGHTS_FILE, read_state(checkpoint))
        of_weaver = {name: value for name, value in tensors.items() if not name.startswith(_TRIGGER)}
        MemoryWeights(model, weaver_alone=True).load(of_weaver)
    except ValueError as error:
        raise ValueError(f"memgen.weaver.start_from={given}: {str(error).rstrip('.')}.") from error


def reasoner_config(config: PretrainMemGenConfig, folder: Path, device: DeviceChoice) -> Any:
    """lm, with the folder of the reasoner that the run has made if it makes one."""
    name = str(reasoner_folder(folder)) if config.memgen.reasoner.scratch is not None else config.lm.name
    return replace(config.lm, name=name, device=device)
