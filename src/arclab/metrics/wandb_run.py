"""The W&B run of a training run: optional, offline without a key or where W&B's own settings say so, the same id after every
resume.

    run = start_wandb(config, folder, run_id)                # None: disabled
    with kept_in(folder):                                    # around whatever may write files: tables, the end of the run
        run.log({"eval_predictions": table}, step=step)

All that a run writes is in its folder (wandb/), unless WANDB_DATA_DIR or WANDB_CACHE_DIR say another place. Scores of
evaluate.py are not sent to W&B.
"""

from __future__ import annotations

import configparser
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arclab.config.compose import flat
from arclab.config.run import MAX_TAG_LENGTH, TrainingConfig, WandbMode
from arclab.files import write_atomically
from arclab.metrics.names import REGISTRY
from arclab.metrics.panels import save_workspace

log = logging.getLogger(__name__)

_SPELLINGS = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_NO = ("", "0", "false", "no", "off", "n", "f")
_STRICTNESS = ("online", "offline", "disabled")
# Where wandb puts the files of tables and its own logs: below the home folder unless these say otherwise.
_PLACES = {"WANDB_DATA_DIR": "wandb/data", "WANDB_CACHE_DIR": "wandb/cache"}


def wandb_mode(mode: WandbMode) -> str:
    """online, offline or disabled: what the configuration says, but never more than wandb's own settings allow. auto is what
    those say, else online where a key is set."""
    wished = wished_mode(os.environ)
    if mode is not WandbMode.auto:
        stricter = max(mode.value, wished or mode.value, key=_STRICTNESS.index)
        if stricter != mode.value:
            log.warning("wandb.mode=%s, but W&B's own settings on this machine say %s, which counts", mode.value, stricter)
        return stricter
    return wished or ("online" if has_key(os.environ) else "offline")


def has_key(environment: Mapping[str, str]) -> bool:
    """Whether wandb finds a key: in the environment, or in a netrc file that may be read."""
    if environment.get("WANDB_API_KEY"):
        return True
    try:
        return b"api.wandb.ai" in Path(environment.get("NETRC") or _home(environment) / ".netrc").read_bytes()
    except OSError:
        return False


def _home(environment: Mapping[str, str]) -> Path:
    """A path that is nowhere for a user who has no home (a container run under a number that it does not know)."""
    return Path(environment.get("HOME") or os.path.expanduser("~"))  # Path.home() raises RuntimeError there


def wished_mode(environment: Mapping[str, str]) -> str | None:
    """What WANDB_DISABLED and WANDB_MODE say, in any case of letters, else what `wandb offline` has written; None: nothing.
    ValueError for another word."""
    if environment.get("WANDB_DISABLED", "").strip().lower() not in _NO:
        return "disabled"
    word = environment.get("WANDB_MODE", "").strip().lower()
    if word and word not in _SPELLINGS:
        raise ValueError(
            f"WANDB_MODE={environment['WANDB_MODE']} is no mode of W&B; set it to online, offline or disabled, or unset it."
        )
    return _SPELLINGS[word] if word else _written_mode(environment)


def _written_mode(environment: Mapping[str, str]) -> str | None:
    """The mode in W&B's settings files, the working folder's before the user's."""
    own = Path(environment.get("WANDB_DIR", "."), "wandb")
    of_user = Path(environment.get("WANDB_CONFIG_DIR") or _home(environment) / ".config/wandb")
    for folder in (own, of_user):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(folder / "settings", encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError) as error:
            log.warning("%s cannot be read (%s); it counts as empty", folder / "settings", " ".join(str(error).split()))
            continue
        word = parser.get("default", "mode", fallback="").strip().lower()
        if word in _SPELLINGS:
            return _SPELLINGS[word]
    return None


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """wandb writes below this run folder and not below the home folder; a place that the user has set is left as it is.

    wandb has no setting for it but the environment, which is afterwards as it was: a process may hold several runs.
    """
    ours = {name: str(folder.resolve() / place) for name, place in _PLACES.items() if not os.environ.get(name)}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def tags_of(config: TrainingConfig) -> list[str]:
    """Those of the configuration and the user's, each once; a long name is cut to what W&B takes."""
    return list(dict.fromkeys(tag[:MAX_TAG_LENGTH] for tag in (*config.wandb_tags, *config.wandb.tags)))


def start_wandb(config: TrainingConfig, folder: Path, run_id: str) -> Any | None:
    """The started run, or None if disabled. Every registered metric is defined with its direction."""
    mode = wandb_mode(config.wandb.mode)
    if mode == "disabled":
        return None
    if os.path.expanduser("~") == "~":
        raise ValueError(
            "W&B keeps its settings in a home folder and this user has none; export HOME, or use wandb.mode=disabled."
        )
    import wandb

    if "WANDB_MODE" in os.environ:
        os.environ["WANDB_MODE"] = mode  # wandb refuses an empty one and other spellings
    with kept_in(folder):
        run = wandb.init(
            project=config.wandb.project,
            group=config.wandb.group,
            job_type=config.job_type,
            tags=tags_of(config),
            name=f"{config.experiment_name}/{config.name}",
            id=run_id,
            resume="allow" if mode == "online" else None,
            dir=folder,
            config=flat(config),
            mode=mode,  # pyright: ignore[reportArgumentType]
            settings=wandb.Settings(silent=True),
        )
    for metric in REGISTRY.values():
        summary = {"up": "max", "down": "min"}.get(metric.direction)
        # A dot would name a key within another: "all.steps" is a metric of its own.
        run.define_metric(metric.name.replace(".", "\\."), summary=f"{summary},last" if summary else "last")
    save_workspace(run, folder)
    # For the tracking sheet; url is null offline, where `wandb sync` makes one later.
    write_atomically(
        folder / "wandb.json", json.dumps({"id": run_id, "mode": mode, "url": run.url if mode == "online" else None}) + "\n"
    )
    return run
