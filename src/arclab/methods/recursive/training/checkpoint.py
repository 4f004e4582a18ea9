"""What a checkpoint of a recursive model holds, from which a run continues bit for bit.

A checkpoint is a folder checkpoints/step_00001234 (see arclab.runs.checkpoints, which writes, seals and thins them out):
    model.safetensors      raw weights, puzzle table included      ema.safetensors    averaged parameters
    optimizer.safetensors  moments by parameter name               carry_rank0.safetensors ...   rows in flight (optional)
    tasks.json             the training tasks (arclab.data.record)
    state.json             step, data cursor, counts, settings, stamps, and the size and digest of every file
Random draws are functions of (seed, step), so there is no generator state to keep. arclab.methods.recursive.saved opens a run
at a checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from arclab.data.sampler import Batch, Cursor, RowsOfRank
from arclab.methods.recursive.decoder import Latents
from arclab.methods.recursive.model import Carry
from arclab.runs.checkpoints import OLDER


@dataclass(slots=True)
class TrainingProgress:
    """Everything of a checkpoint that is not a tensor. best: validation score of the best checkpoint so far, and its step.

    stamps: sentences that every result of these weights must carry. run_id: the W&B run. settings: what makes the run this
    experiment (config.compose.identity), None in checkpoints that kept a hash of it alone.
    """

    step: int
    cursors: tuple[Cursor, ...]
    ema_updates: int
    runtime_s: float
    run_id: str
    settings: dict[str, Any] | None
    stamps: list[str]
    best_score: float | None
    best_step: int | None


def carry_tensors(carries: list[Carry], num_parts: int) -> dict[str, Tensor]:
    """Flat tensors of a rank's carries: the micro-batches of one part of the batch after those of another, as "part.name"."""
    size = len(carries) // num_parts
    tensors = {}
    for part in range(num_parts):
        rows = [_flat_carry(carry) for carry in carries[part * size : (part + 1) * size]]
        tensors |= {f"{part}.{name}": torch.cat([row[name] for row in rows]).contiguous() for name in rows[0]}
    return tensors


def _flat_carry(carry: Carry) -> dict[str, Tensor]:
    flat = {"z_H": carry.latents.z_H, "z_L": carry.latents.z_L, "steps": carry.steps_B, "halted": carry.halted_B}
    flat |= {f"data.{f.name}": getattr(carry.data, f.name) for f in fields(Batch)}
    own = {"encoder_state": carry.encoder_state, "identities": carry.identities_BCC}
    return flat | {name: tensor for name, tensor in own.items() if tensor is not None}


def split_carry(files: list[dict[str, Tensor]], share: RowsOfRank, num_micro: int, device: torch.device) -> list[Carry]:
    """One rank's carries, num_micro for each part of the batch, from the files of all ranks that saved them."""
    carries = []
    for part in range(len({name.split(".")[0] for name in files[0]})):
        names = [name.removeprefix(f"{part}.") for name in files[0] if name.startswith(f"{part}.")]
        merged = {name: torch.cat([file[f"{part}.{name}"] for file in files]) for name in names}
        rows = slice(*share(len(merged["steps"])))
        chunks = {name: tensor[rows].to(device).chunk(num_micro) for name, tensor in merged.items()}
        carries += [_carry({name: chunk[i] for name, chunk in chunks.items()}) for i in range(num_micro)]
    return carries


def _carry(flat: dict[str, Tensor]) -> Carry:
    data = Batch(**{f.name: flat[f"data.{f.name}"] for f in fields(Batch)})
    latents = Latents(flat["z_H"], flat["z_L"])
    return Carry(latents, flat["steps"], flat["halted"], data, flat.get("encoder_state"), flat.get("identities"))


def progress_from(state: dict[str, Any]) -> TrainingProgress:
    """The progress in a state.json. ValueError if it is of a release, was written by a version that kept less, or holds other
    kinds of values."""
    if state.get("is_release"):
        raise ValueError(
            f"the checkpoint at step {state['step']} is a release: weights without the optimiser's state, to be evaluated "
            "and not continued; start a run under another name (decoder_init=pretrained decoder_init.path=FOLDER takes its "
            "decoder)."
        )
    values = {"settings": None, **state}
    missing = [f.name for f in fields(TrainingProgress) if f.name not in values]
    if missing:
        raise ValueError(
            f"the checkpoint at step {state['step']} was written by an older version (its state.json has no {missing[0]}) and "
            "cannot be continued, only evaluated; start the run under another name."
        )
    try:
        cursors = tuple(Cursor(**cursor) for cursor in values["cursors"])
    except TypeError:
        cursors = ()
    number, whole = (int, float), (int,)
    kinds = {
        "ema_updates": whole, "runtime_s": number, "run_id": (str,),
        "best_score": (*number, type(None)), "best_step": (*whole, type(None)),
    }  # fmt: skip
    wrong = [key for key, kind in kinds.items() if type(values[key]) not in kind]
    if not cursors or any(type(value) is not int for cursor in cursors for value in asdict(cursor).values()):
        wrong.append("cursors")
    if wrong:
        raise ValueError(
            f"state.json of the checkpoint at step {state['step']} is damaged ({wrong[0]} is not what it should be); {OLDER}."
        )
    return TrainingProgress(**{**{f.name: values[f.name] for f in fields(TrainingProgress)}, "cursors": cursors})
