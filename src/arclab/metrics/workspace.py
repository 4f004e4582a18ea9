"""The experiment guide's four panels as a saved view of a run's W&B project.

    python -m arclab.metrics.workspace RUN                          a view named "arclab" in the project, for all of its runs
    python -m arclab.metrics.workspace [--output workspace.json]    the panels as JSON: nothing is sent

RUN is the folder of a run that trains. The view needs the package wandb-workspaces (pip install 'arclab[wandb-workspaces]')
and W&B online; without one of them RUN/workspace.json is written instead, which says where panels would be, and it is said
why. W&B has no import for that file: add the sections by hand in a manual workspace ("Add panel", line plot, the names under
y). Each call makes a view of its own; none is replaced or removed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from arclab.config.compose import ConfigError, run_main
from arclab.config.run import WandbMode
from arclab.config.saved_file import saved_key
from arclab.files import naming, read_object, write_atomically
from arclab.metrics.panels import workspace_spec, workspace_text
from arclab.metrics.wandb_run import kept_in, wandb_mode

VIEW_NAME = "arclab"


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.run is None and arguments.output is not None:
        write_atomically(arguments.output, workspace_text())
        return
    text = workspace_text() if arguments.run is None else f"{_write_view(arguments.run, arguments.entity)}\n"
    with naming("standard output"):
        sys.stdout.write(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m arclab.metrics.workspace", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("run", nargs="?", type=Path, metavar="RUN", help="run folder; without it the panels are shown as JSON")
    where.add_argument("--output", type=Path, metavar="FILE", help="write the JSON into a file")
    parser.add_argument("--entity", metavar="NAME", help="user or team at W&B (default: where the run was sent)")
    return parser


def _write_view(run: Path, entity: str | None) -> str:
    """What was done, as a sentence."""
    project = _project_of(run)
    libraries, reason = _libraries()
    if libraries is None:
        file = run / "workspace.json"
        write_atomically(file, workspace_text())
        return f"no panels were made at W&B: {reason}; wrote them as JSON into {file}"
    url = _saved(*libraries, entity or _entity_of(run), project, run)
    return f"panels saved as the view {VIEW_NAME} of the project {project}: {url}"


def _project_of(run: Path) -> str:
    file = run / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{run} has no {file.name}; give the folder of a run that trains, such as runs/quickstart/a.")
    project = saved_key(file, "wandb.project")
    if not isinstance(project, str) or not project:
        raise ConfigError(f"{file} says no wandb.project; give the folder of a run that trains (no evaluation is at W&B).")
    return project


def _entity_of(run: Path) -> str:
    """Who owns the project, from the address of the W&B run: https://HOST/ENTITY/PROJECT/runs/ID."""
    file = run / "wandb.json"
    url = read_object(file).get("url") if file.is_file() else None
    parts = urlsplit(url).path.split("/") if isinstance(url, str) else []
    if len(parts) < 3 or not parts[1]:
        raise ConfigError(
            f"{run} was not sent to W&B when it ran, so its owner is not known; give --entity NAME, a user or team."
        )
    return parts[1]


def _libraries() -> tuple[tuple[Any, Any] | None, str]:
    """(workspaces, panels) of wandb-workspaces; None, and why not."""
    mode = wandb_mode(WandbMode.auto)
    if mode != "online":
        return None, f"W&B is {mode} here (no key, or its own settings say so; see python -m arclab.launch doctor)"
    try:
        names = ("wandb_workspaces.workspaces", "wandb_workspaces.reports.v2")
        workspaces, panels = (importlib.import_module(name) for name in names)
    except ImportError as error:
        return None, f"{error}; the package is installed by pip install 'arclab[wandb-workspaces]'"
    return (workspaces, panels), ""


def _saved(workspaces: Any, panels: Any, entity: str, project: str, run: Path) -> str:
    """The address of the new view. ConfigError: the server did not take it."""
    import wandb.errors

    view = built_view(workspaces, panels, entity, project)
    try:
        with kept_in(run):
            return str(view.save().url)
    except (wandb.errors.Error, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"W&B did not take the panels for {entity}/{project} ({reason}); nothing was saved: check the key, --entity and "
            "the network, or leave RUN away for the JSON."
        ) from error


def built_view(workspaces: Any, panels: Any, entity: str, project: str) -> Any:
    """The Workspace of the library, not yet saved. The healthy range of a metric stands in the title of its panel: W&B draws
    no bands."""
    sections = [
        workspaces.Section(
            name=section["name"],
            panels=[panels.LinePlot(title=_title(p), x="Step", y=p["y"]) for p in section["panels"]],
            is_open=True,
        )
        for section in workspace_spec()["sections"]
    ]
    return workspaces.Workspace(entity=entity, project=project, name=VIEW_NAME, sections=sections)


def _title(panel: dict[str, Any]) -> str:
    low, high = panel["healthy"]["low"], panel["healthy"]["high"]
    ends = [f"{word} {value}" for word, value in (("from", low), ("to", high)) if value is not None]
    title = f"{', '.join(panel['y'])}: {panel['title']}"
    return f"{title} (healthy: {' '.join(ends)})" if ends else title


if __name__ == "__main__":
    run_main(main)
