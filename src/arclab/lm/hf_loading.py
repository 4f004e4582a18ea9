"""Loading what HfModel needs: the checks before, the tokenizer, the weights, the end tokens.

Every ValueError is one sentence with the key, what is wrong and what to do. Weights that a checkpoint lacks are an error here
(transformers would make them up, with a warning).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from arclab.config.llm_schema import Dtype, HfModelConfig, LmAttention
from arclab.config.run import DeviceChoice
from arclab.files import step_folders
from arclab.lm.chat_template import conversation_text, require_lossless
from arclab.lm.language_model import Message
from arclab.lm.model_names import folder_of, require_model

_SENTINEL = "Reply"
log = logging.getLogger(__name__)


def load_tokenizer(config: HfModelConfig) -> Any:
    """With a chat template, padding on the left."""
    from transformers import AutoTokenizer

    require_model(config.name)
    with _one_sentence(config):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder_of(config.name), padding_side="left")
    if tokenizer.chat_template is None:
        raise ValueError(
            f"lm.name={config.name} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json), "
            "which says how a conversation is written; use the instruction-tuned model, or add that file."
        )
    require_lossless(tokenizer, config.name)
    if config.thinking is not None and "enable_thinking" not in str(tokenizer.chat_template):
        log.warning(
            "lm.thinking=%s changes nothing: the chat template of %s has no enable_thinking.", config.thinking, config.name
        )
    return tokenizer


def load_model(config: HfModelConfig) -> Any:
    """On its device, in its dtype."""
    from transformers import AutoModelForCausalLM

    device = _device(config)
    _check_attention(config, device)
    with _one_sentence(config):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder_of(config.name),
            dtype=getattr(torch, config.dtype.value),
            attn_implementation=config.attention.value,
            output_loading_info=True,
        )
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"lm.name={config.name} has no weights for {missing[0]} ({len(missing)} missing); it is incomplete, or not a "
            "language model: download it again, or name another."
        )
    return model.to(device)


@contextmanager
def _one_sentence(config: HfModelConfig) -> Iterator[None]:
    """What transformers and the hub raise, shortened."""
    import httpx
    from safetensors import SafetensorError

    try:
        yield
    # KeyError: an architecture that this version does not know. RuntimeError: shapes that do not fit, memory.
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, httpx.HTTPError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0].rstrip(".: ") if lines else type(error).__name__
        if Path(folder_of(config.name)).is_dir():
            remedy = "check that its files are complete and made for this version of transformers"
        else:
            remedy = "check the name and the network, or download it elsewhere and give its folder as lm.name"
        raise ValueError(f"lm.name={config.name} cannot be loaded ({reason}); {remedy}.") from error


def _device(config: HfModelConfig) -> torch.device:
    if config.device is DeviceChoice.cuda and not torch.cuda.is_available():
        raise ValueError(
            "lm.device=cuda was asked for but torch sees no CUDA device; use lm.device=cpu or a CUDA build of torch."
        )
    return torch.device("cpu" if config.device is DeviceChoice.cpu or not torch.cuda.is_available() else "cuda")


def _check_attention(config: HfModelConfig, device: torch.device) -> None:
    if config.attention is not LmAttention.flash_attention_2:
        return
    asked = "lm.attention=flash_attention_2"
    if device.type != "cuda":
        raise ValueError(f"{asked} needs CUDA, and the model runs on the {device.type}; use lm.attention=sdpa.")
    if find_spec("flash_attn") is None:
        raise ValueError(f"{asked} needs the package flash-attn: pip install 'arclab[flash]', or use lm.attention=sdpa.")
    if config.dtype is Dtype.float32:
        raise ValueError(f"{asked} has no float32 (lm.dtype=float32); use lm.dtype=bfloat16, or lm.attention=sdpa.")


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Whatever model, generation_config and tokenizer call the end; each may name one, several or none."""
    ends: set[int] = set()
    for source in (model.config.get_text_config(), model.generation_config, tokenizer):
        named = getattr(source, "eos_token_id", None)
        ends |= set() if named is None else {named} if isinstance(named, int) else set(named)
    return ends


def turn_end(config: HfModelConfig, tokenizer: Any) -> int:
    """The token that the chat template writes after a reply, if it is a special one; else the tokenizer's end token.

    (A base model's tokenizer may end texts with another token than its chat template ends turns with.)
    """
    turns = (Message("user", "Question"), Message("assistant", _SENTINEL))
    try:
        written = conversation_text(tokenizer, config.name, turns, thinking=None, add_generation_prompt=False)
    except ValueError:  # a template for other roles, or of no use: the prompt itself shows that
        written = ""
    after = tokenizer.encode(written.rpartition(_SENTINEL)[2], add_special_tokens=False)
    if after and after[0] in tokenizer.added_tokens_decoder:
        return after[0]
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"lm.name={config.name} has no end token: neither its chat template nor its tokenizer names one; set eos_token "
            "in tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)


def model_identity(name: str) -> str:
    """A name of the hub as it is; of a folder, what names its content; of a run, that of its newest checkpoint."""
    folder = Path(name).expanduser()
    if step_folders(folder / "checkpoints"):
        folder = step_folders(folder / "checkpoints")[-1]
    return folder_digest(folder) if folder.is_dir() else name


def folder_digest(folder: Path) -> str:
    """Names a model folder's content: every byte of every file counts, which reads gigabytes that are read again for the
    model."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
