"""Where a decoder's weights come from: scratch, or a TRM checkpoint of ours or in the published layout.

    report = apply_decoder_init(config.decoder_init, model, config.encoder)  # LoadReport: expected, loaded, missing, dropped

A source may be a run folder (also RUN@best and RUN@STEP), a checkpoint folder, a .safetensors file or a torch state dict. Every
decoder tensor must be found with its shape, or the load is an error. Everything else in the source (a puzzle table, an encoder)
is dropped and named.
A source that was trained on demonstrations of scored tasks stamps every result of the run that uses it, and so does one whose
own training tasks are among the tasks that this run holds out.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from arclab.config.checkpoint_key import checkpoint_wish
from arclab.config.dataset_schema import Regime
from arclab.config.encoder_schema import TaskEncoderConfig
from arclab.config.schema import DecoderInitConfig, InitKind, SplitName, WeightsKind
from arclab.data.record import demos_digest, rearc_demos
from arclab.data.splits import load_tasks
from arclab.data.tasks import ArcTask
from arclab.methods.recursive.decoder import Decoder
from arclab.methods.recursive.model import ContextAdapter, RecursiveModel
from arclab.methods.recursive.saved import TrainedRun

_WRAPPERS = ("_orig_mod.", "module.", "model.", "inner.")
_TORCH_STARTS = (b"PK\x03\x04", b"\x80")  # a zip archive, or a pickle as older versions wrote it
# What torch's reader of pickles raises on bytes that only look like one.
_NO_STATE_DICT = (
    pickle.UnpicklingError, EOFError, RuntimeError, LookupError, AttributeError, TypeError, ValueError, ArithmeticError,
    AssertionError, ImportError, struct.error,
)  # fmt: skip
OUR_DECODER, OUR_TABLE = "decoder.", "puzzle_table.weight"
# Published name -> ours, for one block {i}; the rest of the network below.
_BLOCK_NAMES = {
    "self_attn.qkv_proj.weight": "attention.qkv.weight",
    "self_attn.o_proj.weight": "attention.out.weight",
    "mlp.gate_up_proj.weight": "mlp.gate_up.weight",
    "mlp.down_proj.weight": "mlp.down.weight",
    "mlp_t.gate_up_proj.weight": "mlp_t.gate_up.weight",
    "mlp_t.down_proj.weight": "mlp_t.down.weight",
}
_NAMES = {
    "embed_tokens.embedding_weight": "embed_tokens.weight",
    "embed_pos.embedding_weight": "position_table.weight",
    "lm_head.weight": "lm_head.weight",
    "q_head.weight": "q_head.weight",
    "q_head.bias": "q_head.bias",
    "H_init": "start_H",
    "L_init": "start_L",
}


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a decoder init did. transductive: the weights have seen demonstrations of scored tasks."""

    source: str
    expected: tuple[str, ...]
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    dropped: tuple[str, ...]
    transductive: bool

    def __str__(self) -> str:
        stamp = "; TRANSDUCTIVE source: it was trained on demonstrations of scored tasks" if self.transductive else ""
        dropped = f" ({', '.join(self.dropped[:4])}{', ...' if len(self.dropped) > 4 else ''})" if self.dropped else ""
        return (
            f"decoder from {self.source}: {len(self.expected)} tensors expected, {len(self.loaded)} loaded, "
            f"{len(self.missing)} missing, {len(self.dropped)} dropped{dropped}{stamp}"
        )


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the published layout (with or without its wrappers' prefixes) under our names; unknown keys stay."""
    renamed = {}
    for name, tensor in state.items():
        bare = name
        while bare.startswith(_WRAPPERS):
            bare = bare.split(".", 1)[1]
        renamed[_our_name(bare)] = tensor
    return renamed


def _our_name(bare: str) -> str:
    if bare in _NAMES:
        return OUR_DECODER + _NAMES[bare]
    if bare == "puzzle_emb.weights":
        return OUR_TABLE
    if bare.startswith("L_level.layers."):
        index, _, rest = bare.removeprefix("L_level.layers.").partition(".")
        if rest in _BLOCK_NAMES:
            return f"{OUR_DECODER}layers.{index}.{_BLOCK_NAMES[rest]}"
    return bare


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or a torch state dict. ValueError if it is missing, truncated or something else."""
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist; check the path.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except (SafetensorError, *_NO_STATE_DICT) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"checkpoint {path} is truncated or no weights file ({reason}); take another copy.") from error
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise ValueError(f"checkpoint {path} is not a state dict (name -> tensor); save model.state_dict().")
    return state


def _load_torch(path: Path) -> object:
    with path.open("rb") as file:
        if not file.read(4).startswith(_TORCH_STARTS):
            raise ValueError("it is neither safetensors nor what torch.save writes")
    return torch.load(path, map_location="cpu", weights_only=True)


def _saw_scored(source: TrainedRun) -> bool:
    """Have its weights seen demonstrations of scored tasks?"""
    config = source.config
    is_table_of_scored = config.dataset.regime is Regime.puzzle_id and config.evaluation.split is not SplitName.train
    return is_table_of_scored or bool(source.state["stamps"])


def load_decoder(decoder: Decoder, state: dict[str, Tensor], source: str, *, transductive: bool) -> LoadReport:
    """Copy every decoder tensor from `state` (our names). ValueError if one is missing or has another shape."""
    own = decoder.state_dict()
    found = {name.removeprefix(OUR_DECODER): t for name, t in state.items() if name.startswith(OUR_DECODER)}
    missing = sorted(own.keys() - found.keys())
    dropped = sorted(state.keys() - {OUR_DECODER + n for n in own})
    if missing:
        raise ValueError(
            f"checkpoint {source} lacks {len(missing)} of {len(own)} decoder tensors ({missing[0]}, ...); it is not a TRM of "
            "this shape: match decoder.* to it."
        )
    for name, tensor in own.items():
        if found[name].shape != tensor.shape:
            raise ValueError(
                f"checkpoint {source}: decoder tensor {name} has shape {tuple(found[name].shape)}, this configuration builds "
                f"{tuple(tensor.shape)}; set decoder.* (width, num_layers, expansion) as the checkpoint was trained."
            )
    decoder.load_state_dict({name: found[name] for name in own})
    return LoadReport(source, tuple(own), tuple(own), (), tuple(dropped), transductive)


def apply_decoder_init(config: DecoderInitConfig, model: RecursiveModel, encoder: object) -> LoadReport | None:
    """Load the decoder if the configuration asks for it; None for scratch. Also sets a matched context gain."""
    if config.kind is InitKind.scratch:
        return None
    assert config.path is not None
    path = Path(config.path)
    if checkpoint_wish(path).path.is_dir():
        source = TrainedRun.open(path)
        _require_same_attention(model.decoder, source)
        state, transductive = source.tensors(WeightsKind.ema), _saw_scored(source)
    else:
        # The published TRM checkpoints were trained on the evaluation tasks' demonstrations; assume so for any bare file.
        state, transductive = from_published(read_tensors(path)), True
    report = load_decoder(model.decoder, state, config.path, transductive=transductive)
    if model.adapter is not None and isinstance(encoder, TaskEncoderConfig) and encoder.context.match_gain:
        _match_gain(model.adapter, state)
    return report


def _require_same_attention(decoder: Decoder, source: TrainedRun) -> None:
    """ValueError if the source computes something else with tensors of the same shapes."""
    for key in ("num_heads", "positions", "color_embedding"):
        theirs, ours = getattr(source.config.decoder, key), getattr(decoder.config, key)
        if theirs != ours:
            raise ValueError(
                f"checkpoint {source.folder} was trained with decoder.{key}={getattr(theirs, 'name', theirs)}, this "
                f"configuration has {getattr(ours, 'name', ours)}, which makes another function of the same weights; set "
                f"decoder.{key} as it was trained."
            )


def source_stamps(path: Path, decoder: Decoder, held_out: Mapping[str, Sequence[ArcTask]]) -> list[str]:
    """What every result must carry if the source is a run of ours: that it was trained with other cycles, or on tasks that this
    run holds out (split name -> tasks)."""
    if not checkpoint_wish(path).path.is_dir():
        return []
    source = TrainedRun.open(path)
    return [stamp for stamp in (_other_cycles(source, decoder), _held_out_overlap(source, held_out)) if stamp]


def _other_cycles(source: TrainedRun, decoder: Decoder) -> str:
    """A stamp if it was trained with other cycles: the same weights, worked through more or less often."""
    theirs, ours = (f"{c.h_cycles} x {c.l_cycles}" for c in (source.config.decoder, decoder.config))
    if theirs == ours:
        return ""
    return f"decoder initialised from {source.folder}, trained with h_cycles x l_cycles = {theirs}, here {ours}"


def _held_out_overlap(source: TrainedRun, held_out: Mapping[str, Sequence[ArcTask]]) -> str:
    """A stamp if it was trained on tasks that are held out here.

    Tasks are the same if their demonstrations are, whatever they are called. A source without a record of its training tasks is
    judged by what its configuration loads today.
    """
    record = source.record()
    if record is None:
        try:
            trained = load_tasks(source.config.dataset).learned
        except ValueError as error:
            return f"decoder initialised from {source.folder}, whose training tasks cannot be read ({error})"
        seen = {demos_digest(task) for task in trained}
    else:
        seen = {task.demos for task in record.tasks if task.learns_tests} | rearc_demos(record)
    known = {name: sum(demos_digest(task) in seen for task in tasks) for name, tasks in held_out.items()}
    shares = [f"{count} of {len(held_out[name])} {name} tasks" for name, count in known.items() if count]
    return f"decoder initialised from a run that was trained on {' and '.join(shares)} ({source.folder})" if shares else ""


@torch.no_grad()
def _match_gain(adapter: ContextAdapter, state: dict[str, Tensor]) -> None:
    """Give context tokens the RMS of the trained puzzle vectors, which is what the decoder has learned to read."""
    table = state.get(OUR_TABLE)
    if table is None:
        return
    trained = table[table.abs().sum(1) > 0]
    if len(trained):
        adapter.gain.copy_(trained.square().mean().sqrt())
