"""Does a killed run end like one that was left alone? Twenty runs on two ranks, each hit once at a random moment, then started
again.

    python -m benchmarks.kills                 # about ten minutes on two cores; writes results/kills.json and kills.md
    python -m benchmarks.kills --trials 4 --steps 40

Hit are, in turn: a worker, torchrun and the parent with SIGKILL, and the parent with SIGUSR2 (told to save). Every fifth is hit
while it starts, the others at a moment drawn over the time that the uninterrupted run trained; a run that was done before its
moment is no trial and is drawn again. The same command then continues, and all files of the last
checkpoint are compared with those of the uninterrupted run by their SHA-256; metrics.jsonl must have each step once.
It covers one machine without SLURM (tests/slurm has the queue), and kills of processes, not losses of power.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from arclab.config.compose import run_main
from arclab.files import step_folders
from arclab.metrics.logger import read_rows
from arclab.runs.folder import RunDir, State, provenance
from benchmarks.arguments import at_least_0, at_least_1

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TARGETS = ("worker", "torchrun", "parent", "parent, SIGUSR2")
SETTINGS = [
    "experiment=quickstart",
    "decoder.width=16",
    "decoder.num_heads=2",
    "trainer.batch_size=8",
    "trainer.warmup_steps=0",
    "trainer.eval_every=0",
    "trainer.checkpoint_every=3",
    "trainer.log_every=1",
    "evaluation.max_tasks=2",
    "wandb.mode=disabled",
    "launch.cpus=2",
]


def command(folder: Path, name: str, steps: int) -> list[str]:
    return [sys.executable, "pretrain_encoder.py", *SETTINGS, f"trainer.steps={steps}", f"runs_dir={folder}", f"name={name}"]


def start(folder: Path, name: str, steps: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(folder, name, steps), cwd=ROOT, stderr=subprocess.DEVNULL)


def weights(run: RunDir) -> dict[str, str]:
    """{file: SHA-256} of the newest checkpoint's tensors: raw, averaged, optimiser, and the rows in flight of both ranks."""
    newest = step_folders(run.checkpoints)[-1]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(newest.glob("*.safetensors"))}


def find(parent: psutil.Process, target: str) -> psutil.Process | None:
    """The process to hit; None if it has not been started yet."""
    if target.startswith("parent"):
        return parent
    torchrun = [c for c in parent.children() if "torch.distributed.run" in c.cmdline()]
    if target == "torchrun" or not torchrun:
        return torchrun[0] if torchrun else None
    workers = [c for c in torchrun[0].children() if "arclab.launch.worker" in c.cmdline()]
    return random.choice(workers) if workers else None


def hit(process: subprocess.Popen[bytes], run: RunDir, target: str, after_s: float, in_training: bool) -> bool:
    """Hit the target a while after the start (or after the first row), or as soon as it exists. False if the run ended
    before."""
    parent = psutil.Process(process.pid)
    while in_training and not read_rows(run.metrics) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(after_s)
    while process.poll() is None:
        try:
            victim = find(parent, target)
            if victim is not None:
                victim.send_signal(signal.SIGUSR2 if target.endswith("SIGUSR2") else signal.SIGKILL)
                return True
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.02)
    return False


def trial(number: int, name: str, folder: Path, steps: int, training_s: float, reference: dict[str, str]) -> dict[str, Any]:
    """One run, hit once and started again until it ends by itself."""
    run, target = RunDir(folder / "quickstart" / name), TARGETS[number % len(TARGETS)]
    in_training = number % 5 != 4
    after_s = random.uniform(0.0, 0.95 * training_s) if in_training else random.uniform(1.0, 8.0)
    process = start(folder, run.path.name, steps)
    was_hit = hit(process, run, target, after_s, in_training)
    exit_status = process.wait(120)
    family_left = _left_behind(run)
    rows, status = read_rows(run.metrics), run.read_status() or {"state": "not started"}
    record = {
        "trial": number,
        "target": target,
        "after_s": round(after_s, 2),
        "in_training": in_training,
        "hit": was_hit,
        "exit_status": exit_status,
        "step": rows[-1]["_step"] if rows else 0,
        "state": status["state"],
        "left_behind": family_left,
    }
    starts = 1
    while run.state is not State.done and starts < 4:
        start(folder, run.path.name, steps).wait(300)
        starts += 1
    steps_seen = [row["_step"] for row in read_rows(run.metrics)]
    return record | {
        "starts": starts, "identical": weights(run) == reference, "each_step_once": steps_seen == list(range(steps + 1)),
    }  # fmt: skip


def _left_behind(run: RunDir) -> int:
    """Processes of the run that are still there two seconds after its parent has ended."""
    deadline = time.monotonic() + 2
    while True:
        left = [p for p in psutil.process_iter(["cmdline", "status"]) if str(run.path) in (p.info["cmdline"] or [])]
        left = [p for p in left if p.info["status"] != psutil.STATUS_ZOMBIE]
        if not left or time.monotonic() > deadline:
            return len(left)
        time.sleep(0.05)


def markdown(result: dict[str, Any]) -> str:
    trials = result["trials"]
    good = sum(t["identical"] and t["each_step_once"] and not t["left_behind"] for t in trials)
    resumed = [t for t in trials if t["starts"] > 1]
    origin = result["provenance"]
    lines = [
        "# Kill table",
        "",
        f"{good}/{len(trials)} runs that were hit once end with the bits of the uninterrupted run ({result['steps']} steps on "
        f"two ranks, {result['files']} files of the last checkpoint, a checkpoint every third step), have each step once and "
        "leave no process behind.",
        "",
        f"{len(resumed)} of them had to be continued ({sum(t['step'] == 0 for t in resumed)} were hit before their first "
        f"step); the others were hit when training was already over (status DONE). {result['missed']} runs had ended before "
        "their moment came and were drawn again.",
        "",
        f"`{origin['command']}` at commit {origin['commit']}, {origin['machine']}, torch {origin['torch']}, "
        f"{origin['started']}, seed {result['seed']}",
        "",
        "| trial | hit | after | at step | exit status | status.json then | starts | bit-identical | each step once | left "
        "behind |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for t in trials:
        lines.append(
            f"| {t['trial']} | {t['target']} | {t['after_s']:.1f} s of {'training' if t['in_training'] else 'the start'} | "
            f"{t['step']} | {t['exit_status']} | {t['state']} | {t['starts']} | {'yes' if t['identical'] else '**no**'} | "
            f"{'yes' if t['each_step_once'] else '**no**'} | {t['left_behind']} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=at_least_1, default=20)
    parser.add_argument("--steps", type=at_least_1, default=60)
    parser.add_argument("--seed", type=at_least_0, default=0)
    arguments = parser.parse_args(argv)
    random.seed(arguments.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert start(folder, "whole", arguments.steps).wait(300) == 0
        whole = RunDir(folder / "quickstart" / "whole")
        reference, rows = weights(whole), read_rows(whole.metrics)
        training_s = rows[-1]["_runtime"] - rows[0]["_runtime"]
        trials, missed = [], 0
        while len(trials) < arguments.trials:
            record = trial(len(trials), f"trial{len(trials)}_{missed}", folder, arguments.steps, training_s, reference)
            print(json.dumps(record), flush=True)
            if record["hit"]:
                trials.append(record)
            else:
                missed += 1
    result = {
        "trials": trials,
        "steps": arguments.steps,
        "seed": arguments.seed,
        "training_s": round(training_s, 1),
        "files": len(reference),
        "missed": missed,
        "settings": SETTINGS,
        "provenance": {**provenance(), "command": " ".join(["python -m benchmarks.kills", *sys.argv[1:]])},
    }
    (RESULTS / "kills.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "kills.md").write_text(markdown(result))
    print(markdown(result))
    return 0 if all(t["identical"] and t["each_step_once"] and not t["left_behind"] for t in trials) else 1


if __name__ == "__main__":
    run_main(main)
