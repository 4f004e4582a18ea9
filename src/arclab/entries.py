"""The entry scripts: which configuration each has, and what runs it. Imports nothing of arclab, so that anybody may ask.

    entry = ENTRIES["pretrain_encoder"]
    schema, run = load(entry.schema), load(entry.run)        # only now are modules imported
    name = entry_named("evaluate.py", "program_sampling")    # "evaluate_programs"

A new method adds its row here; see docs/extending.md.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """References are "module:name". script: the file that starts it. solver, or method: the value of solver= (or method=) that
    chooses it among the entries of one script; None: the script has no such choice. config: the root in conf_dir (None:
    conf/). run: called as run(config, None) by a process that looks after the run folder itself, and as run(config, folder) by
    a rank whose parent does; returns the exit status. names_itself: a line of jobs.txt needs no name=. hint: what to do with a
    finished run, for the end of the sentence that says it is DONE; {run} stands for its folder. None: nothing is said. sizes:
    called as sizes(config, shared) by arclab.launch.sizes, returns {part: parameters} with "model" among the parts, and
    "puzzle_table" where there is one, and the fields of arclab.runs.cost.Cost if the method counts what a run needs; None: the
    run has no model of its own. shared: a dictionary, empty at first, that all calls of one process have in common.
    sizes_keys: dotted keys, or their beginnings, that decide what it returns. work: called as work(config), says how much there
    is to do in a run that can be divided by tasks (arclab.solvers.work); None: it cannot. needs: called
    as needs(config, on_slurm=...) before jobs are submitted, ValueError for what would end each of them; None: nothing is
    looked at. example: overrides that make a whole configuration, for help."""

    script: str
    config: str
    schema: str
    run: str
    solver: str | None = None
    method: str | None = None
    names_itself: bool = False
    conf_dir: str | None = None
    example: tuple[str, ...] = ()
    hint: str | None = None
    sizes: str | None = None
    sizes_keys: tuple[str, ...] = ()
    work: str | None = None
    needs: str | None = None

    @property
    def choice(self) -> str | None:
        """The value of choice_key(script) that chooses it."""
        return self.solver if self.method is None else self.method


ENTRIES = {
    "pretrain_encoder": Entry(
        script="pretrain_encoder.py",
        config="pretrain_encoder",
        schema="arclab.config.schema:ExperimentConfig",
        run="arclab.methods.recursive.run:pretrain",
        example=("experiment=quickstart", "name=a"),
        hint="evaluate it with: python evaluate.py checkpoint={run}",
        sizes="arclab.methods.recursive.sizes:count_sizes",
        sizes_keys=(
            "encoder.",
            "decoder.",
            "dataset.",
            "seed",
            "halting.",
            "evaluation.",
            "trainer.batch_size",
            "trainer.grad_accumulation",
            "trainer.canvas",
            "trainer.precision",
            "trainer.compile",
            "trainer.recompute",
            "trainer.device",
            "launch.gpus",
            "launch.cpus",
            "launch.nodes",
        ),
    ),
    "evaluate": Entry(
        script="evaluate.py",
        solver="recursive",
        config="evaluate",
        schema="arclab.config.evaluate_schema:EvaluateConfig",
        run="arclab.methods.recursive.evaluation:evaluate",
        example=("checkpoint=runs/quickstart/a",),
        names_itself=True,
    ),
    "evaluate_programs": Entry(
        script="evaluate.py",
        solver="program_sampling",
        config="evaluate_programs",
        schema="arclab.config.llm_schema:EvaluateProgramsConfig",
        run="arclab.methods.program_sampling.run:evaluate_programs",
        example=("solver=program_sampling", "lm=tiny", "dataset=toy"),
        names_itself=True,
        work="arclab.solvers.work:work_of",
        needs="arclab.lm.model_names:require_before_jobs",
    ),
    "evaluate_tree_search": Entry(
        script="evaluate.py",
        solver="tree_search",
        config="evaluate_tree_search",
        schema="arclab.config.tree_search_schema:EvaluateTreeSearchConfig",
        run="arclab.methods.tree_search.run:evaluate",
        example=("solver=tree_search", "lm=tiny", "dataset=toy"),
        names_itself=True,
        work="arclab.solvers.work:work_of",
        needs="arclab.lm.model_names:require_before_jobs",
    ),
    "self_improve_tree_search": Entry(
        script="self_improve.py",
        method="tree_search",
        config="self_improve_tree_search",
        schema="arclab.config.tree_learning_schema:TreeLearningConfig",
        run="arclab.methods.tree_search.learning.run:improve",
        example=("method=tree_search", "lm=tiny", "dataset=toy", "name=a"),
    ),
    "pretrain_memgen": Entry(
        script="pretrain_memgen.py",
        config="pretrain_memgen",
        schema="arclab.config.memgen_schema:PretrainMemGenConfig",
        run="arclab.methods.memgen.run:pretrain",
        example=("experiment=memgen_quickstart", "name=a"),
        hint="evaluate it with: python evaluate.py solver=memgen checkpoint={run}",
    ),
    "evaluate_memgen": Entry(
        script="evaluate.py",
        solver="memgen",
        config="evaluate_memgen",
        schema="arclab.config.memgen_schema:EvaluateMemGenConfig",
        run="arclab.methods.memgen.evaluation:evaluate",
        example=("solver=memgen", "checkpoint=runs/memgen/a"),
        names_itself=True,
    ),
    "evaluate_memgen_ltpo": Entry(
        script="evaluate.py",
        solver="memgen_ltpo",
        config="evaluate_memgen_ltpo",
        schema="arclab.config.memgen_schema:EvaluateMemGenLtpoConfig",
        run="arclab.methods.memgen.evaluation:evaluate",
        example=("solver=memgen_ltpo", "checkpoint=runs/memgen/a"),
        names_itself=True,
    ),
    "self_improve_program_edit": Entry(
        script="self_improve.py",
        method="program_edit",
        config="self_improve_program_edit",
        schema="arclab.config.program_edit_schema:ProgramEditConfig",
        run="arclab.methods.program_edit.run:improve",
        example=("method=program_edit", "lm=tiny", "dataset=toy", "name=a"),
    ),
    "evaluate_program_edit": Entry(
        script="evaluate.py",
        solver="program_edit",
        config="evaluate_program_edit",
        schema="arclab.config.program_edit_schema:EvaluateEditsConfig",
        run="arclab.methods.program_edit.solver:evaluate_edits",
        example=("solver=program_edit", "lm=tiny", "dataset=toy"),
        names_itself=True,
        work="arclab.solvers.work:work_of",
        needs="arclab.lm.model_names:require_before_jobs",
    ),
    "self_improve_seal_knowledge": Entry(
        script="self_improve.py",
        method="seal_knowledge",
        config="self_improve_seal_knowledge",
        schema="arclab.config.seal_knowledge_schema:SealKnowledgeConfig",
        run="arclab.methods.seal.knowledge.run:improve",
        example=("method=seal_knowledge", "lm=tiny", "name=a"),
    ),
    "evaluate_test_time_training": Entry(
        script="evaluate.py",
        solver="test_time_training",
        config="evaluate_test_time_training",
        schema="arclab.config.seal_schema:EvaluateTestTimeTrainingConfig",
        run="arclab.methods.seal.run:evaluate_test_time_training",
        example=("solver=test_time_training", "lm=tiny", "dataset=toy"),
        needs="arclab.lm.model_names:require_before_jobs",
        names_itself=True,
    ),
    "self_improve_seal_fewshot": Entry(
        script="self_improve.py",
        method="seal_fewshot",
        config="self_improve_seal_fewshot",
        schema="arclab.config.seal_fewshot_schema:SealFewshotConfig",
        run="arclab.methods.seal.fewshot.run:improve",
        example=("method=seal_fewshot", "lm=tiny", "dataset=toy", "name=a"),
    ),
    "evaluate_ensemble": Entry(
        script="evaluate.py",
        solver="ensemble",
        config="evaluate_ensemble",
        schema="arclab.config.ensemble_schema:EvaluateEnsembleConfig",
        run="arclab.methods.ensemble.run:evaluate",
        example=("solver=ensemble", "members=[runs/a/x/evaluation/evaluation,runs/a/y/evaluation/evaluation]"),
        names_itself=True,
    ),
}


def load(reference: str) -> Any:
    """What "module:name" refers to."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def scripts() -> list[str]:
    """The scripts that there are, each once."""
    return list(dict.fromkeys(entry.script for entry in ENTRIES.values()))


def choice_key(script: str) -> str:
    """The key that chooses among the entries of a script: solver, or method."""
    return "method" if any(entry.script == script and entry.method is not None for entry in ENTRIES.values()) else "solver"


def choices_of(script: str) -> list[str]:
    """The values of that key that a script knows; the first one is chosen where none is given."""
    return [entry.choice for entry in ENTRIES.values() if entry.script == script and entry.choice is not None]


def entry_named(script: str, choice: str | None = None) -> str:
    """The name of the entry that a script starts. KeyError: there is none."""
    for name, entry in ENTRIES.items():
        if entry.script == script and choice in (None, entry.choice):
            return name
    raise KeyError(script, choice)
