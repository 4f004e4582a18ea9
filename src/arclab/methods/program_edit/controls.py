"""Is the trained model better than the one that it began with, and is that so because of what it learned from?

    found = compared(config, run, progress, sandbox, starts, records)        # metrics edits/*; empty with controls=none

The model of the first round's start, and with controls=twin the twin (which learned edits drawn at random, then rewards dealt
out at random), edit the same start programs as often, with the same seeds. Compared is, program by program, whether an edit of
the first turn reproduces every demonstration: McNemar's exact test, two-sided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from arclab.config.llm_schema import ModelConfig
from arclab.config.program_edit_schema import EditControls, ProgramEditConfig
from arclab.lm.models import load_language_model
from arclab.methods.program_edit.editing import EDIT_ITEMS, EditRecord, kept_edits, model_editor
from arclab.methods.program_edit.sample import begun_with, made_model, maker_of, model_config, to_sampling
from arclab.methods.program_edit.starts import Start
from arclab.programs.sandbox.pool import Sandbox
from arclab.results.paired import PairedTest
from arclab.runs.folder import RunDir
from arclab.runs.lifecycle import WorkProgress
from arclab.runs.worklist import Worklist

START, TWIN = "start", "twin"
_SURE = 0.05  # the p below which a difference is one
Solved = Mapping[str, bool]


def scored_inputs(config: ProgramEditConfig) -> dict[str, Path]:
    """The files of an evaluation's models: the trained one's, and those that it is compared with."""
    found = begun_with(config, config.round + 1)
    if config.controls is not EditControls.none:
        found |= _named(START, begun_with(config, 0))
    if config.controls is EditControls.twin:
        found |= _named(TWIN, begun_with(config, config.round + 1, twin=True))
    return found


def _named(name: str, files: Mapping[str, Path]) -> dict[str, Path]:
    """The one file, if there is one, under another name."""
    return dict.fromkeys([name] if files else [], next(iter(files.values()), Path()))


def compared(
    config: ProgramEditConfig, run: RunDir, progress: WorkProgress, sandbox: Sandbox, starts: Sequence[Start],
    records: Sequence[EditRecord],
) -> dict[str, float]:  # fmt: skip
    """records: of the trained model. ToldToEnd: the progress said so, and what was drawn is kept."""
    if config.controls is EditControls.none:
        return {}
    models: dict[str, ModelConfig] = {START: model_config(config, 0)}
    twin = maker_of(config, config.round + 1, twin=True)
    if config.controls is EditControls.twin and twin is not None:
        models[TWIN] = made_model(config, twin)
    others = {name: solved_of(_edited(config, given, name, run, progress, sandbox, starts)) for name, given in models.items()}
    return tested(solved_of(records), others)


def _edited(
    config: ProgramEditConfig, given: ModelConfig, name: str, run: RunDir, progress: WorkProgress, sandbox: Sandbox,
    starts: Sequence[Start],
) -> list[EditRecord]:  # fmt: skip
    wished, model = config.evaluate, load_language_model(given)
    worklist = Worklist(run.path / f"edits_{name}.jsonl", {"seed": config.seed, "round": config.round}, EDIT_ITEMS)
    editor = model_editor(model, to_sampling(config.sample.sampling, config.seed), config.think)
    return kept_edits(
        worklist, editor, sandbox, starts, config, wished.num_samples, at_once=model.num_prompts(wished.num_samples),
        progress=progress, split=wished.split,
    )  # fmt: skip


def solved_of(records: Sequence[EditRecord]) -> dict[str, bool]:
    """Start program -> put right by an edit of the first turn."""
    found: dict[str, bool] = {}
    for record in records:
        if record.turn == 0:
            place = f"{record.task}/{record.root}"
            found[place] = found.get(place, False) or record.is_right
    return found


def tested(trained: Solved, others: Mapping[str, Solved]) -> dict[str, float]:
    """The trained model against the model of the start, and the twin against it. edits/wins is 0 where that difference may be
    chance, and where the twin has gained, too."""
    found = {f"edits/{name}_solved_share": sum(solved.values()) / len(solved) for name, solved in others.items()}
    paired = _paired(trained, others[START])
    found |= {"edits/discordant": float(paired.discordant), "edits/p_value": paired.p_value}
    is_sure, twin = paired.p_value < _SURE, _paired(others[TWIN], others[START]) if TWIN in others else None
    if twin is not None:
        found["edits/twin_p_value"] = twin.p_value
        is_sure = is_sure and not (twin.only_first > twin.only_second and twin.p_value < _SURE)
    if paired.discordant:
        found["edits/wins"] = paired.only_first / paired.discordant if is_sure else 0.0
    return found


def _paired(first: Solved, second: Solved) -> PairedTest:
    return PairedTest.count("programs", [(first[id_], second[id_]) for id_ in first if id_ in second])
