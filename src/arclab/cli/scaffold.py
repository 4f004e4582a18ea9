"""The files of a new encoder or a new method, and its one row in the table that registers it.

    arclab new-encoder mine         # then: python pretrain_encoder.py experiment=quickstart encoder=mine name=a
    arclab new-method search        # then: python search.py name=a

What is written works as it stands, is formatted and has a test; it is there to be changed. The files come from templates/
beside this module. A name that cannot be used is one sentence, and then, as after any other error, nothing is written.
"""

from __future__ import annotations

import ast
import importlib.util
import keyword
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from arclab.config.compose import CONF_DIR, ConfigError, group_options
from arclab.config.encoders import ENCODERS
from arclab.entries import ENTRIES
from arclab.files import naming, read_text, write_atomically

ROOT = CONF_DIR.parent
_TEMPLATES = Path(__file__).parent / "templates"
_MAX_LENGTH = 30


@dataclass(frozen=True, slots=True)
class Kind:
    """files: {template: path below the root, with {name}}. table: the file and the dictionary in which it is registered. row:
    its entry there. hint: what to do next."""

    what: str
    templates: str
    files: Mapping[str, str]
    table: tuple[str, str]
    row: str
    hint: str


_ENCODER = Kind(
    what="encoder",
    templates="new_encoder",
    files={
        "module.py.j2": "src/arclab/methods/recursive/encoders/{name}.py",
        "schema.py.j2": "src/arclab/config/encoder_{name}.py",
        "conf.yaml.j2": "conf/encoder/{name}.yaml",
        "test.py.j2": "tests/methods/recursive/test_{name}_encoder.py",
    },
    table=("src/arclab/config/encoders.py", "ENCODERS"),
    row="""\
    "{name}": EncoderKind(
        "arclab.config.encoder_{name}:{cls}EncoderConfig",
        f"{{_MODULES}}.{name}:{cls}Encoder",
    ),
""",
    hint="python pretrain_encoder.py experiment=quickstart encoder={name} name={name}",
)
_METHOD = Kind(
    what="method",
    templates="new_method",
    files={
        "script.py.j2": "{name}.py",
        "conf.yaml.j2": "conf/{name}.yaml",
        "package.py.j2": "src/arclab/methods/{name}/__init__.py",
        "schema.py.j2": "src/arclab/methods/{name}/schema.py",
        "run.py.j2": "src/arclab/methods/{name}/run.py",
        "tests.py.j2": "tests/methods/{name}/__init__.py",
        "test.py.j2": "tests/methods/{name}/test_{name}.py",
    },
    table=("src/arclab/entries.py", "ENTRIES"),
    row="""\
    "{name}": Entry(
        script="{name}.py",
        config="{name}",
        schema="arclab.methods.{name}.schema:{cls}Config",
        run="arclab.methods.{name}.run:pretrain",
        example=("name=a",),
    ),
""",
    hint="python {name}.py name=a",
)


def new_encoder(argv: Sequence[str]) -> int:
    """arclab new-encoder NAME. ConfigError: the name cannot be used; nothing was written."""
    return _new(_ENCODER, argv, {*ENCODERS, *group_options("encoder")})


def new_method(argv: Sequence[str]) -> int:
    """arclab new-method NAME. ConfigError: the name cannot be used; nothing was written."""
    return _new(_METHOD, argv, {*ENTRIES, *(entry.config for entry in ENTRIES.values())})


def _new(kind: Kind, argv: Sequence[str], taken: set[str]) -> int:
    is_asked = bool({"-h", "--help"} & set(argv))
    if is_asked or not argv:
        listed = "\n".join(f"  {path.format(name='NAME')}" for path in [*kind.files.values(), kind.table[0]])
        sys.stdout.write(
            f"usage: arclab new-{kind.what} NAME\n\n"
            f"Writes a small {kind.what} that works, with its test, and registers it (in the last file):\n\n{listed}\n\n"
            f"Then: {kind.hint.format(name='NAME')}\n"
        )
        return 0 if is_asked else 2
    if len(argv) > 1:
        raise ConfigError(f"arclab new-{kind.what} takes one name, not {' '.join(argv)}; give each by itself.")
    name = argv[0]
    _require_name(kind, name, taken)
    paths = write_files(kind, name, ROOT)
    sys.stdout.write("".join(f"wrote {path.relative_to(ROOT)}\n" for path in paths))
    sys.stdout.write(f"registered in {kind.table[0]}; now: {kind.hint.format(name=name)}\n")
    return 0


def _require_name(kind: Kind, name: str, taken: set[str]) -> None:
    said = f"{kind.what} name {name[:60]!r}"
    if len(name) > _MAX_LENGTH or not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"{said} becomes the name of a module: it must be lower-case letters, digits and single _ between them, begin with "
            f"a letter, be no word of Python, and have at most {_MAX_LENGTH} characters; choose another name."
        )
    if name in taken or (ROOT / name).exists():
        raise ConfigError(f"{said} is taken by one that there is; choose another name.")
    if kind is _METHOD and importlib.util.find_spec(name) is not None:  # its script would hide that module from everybody
        raise ConfigError(f"{said} is that of a module that Python can import; choose another name.")


def write_files(kind: Kind, name: str, root: Path) -> list[Path]:
    """All files and the row, or nothing: an error leaves everything as it was. Returns the new files. ConfigError: one of them
    is there, or the table has been changed beyond what can be added to."""
    cls = "".join(part.capitalize() for part in name.split("_"))
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES / kind.templates), undefined=StrictUndefined, keep_trailing_newline=True
    )
    texts = {
        root / path.format(name=name): environment.get_template(template).render(name=name, cls=cls)
        for template, path in kind.files.items()
    }
    for path in texts:
        if path.exists():
            raise ConfigError(f"{path} is there already; choose another name, or remove that file.")
    table = root / kind.table[0]
    registered = with_row(read_text(table), kind.table[1], kind.row.format(name=name, cls=cls), table)
    with ExitStack() as undo:
        for path, text in texts.items():
            for folder in (folder for folder in reversed(path.parents) if not folder.is_dir()):
                folder.mkdir()
                undo.callback(folder.rmdir)
            undo.callback(path.unlink, missing_ok=True)
            with naming(path):
                write_atomically(path, text)
        write_atomically(table, registered)
        undo.pop_all()
    return list(texts)


def with_row(text: str, dictionary: str, row: str, path: Path) -> str:
    """The source text with a row at the end of the dictionary of that name. ConfigError: it does not hold one, over several
    lines."""
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if names == [dictionary] and isinstance(value, ast.Dict) and value.end_lineno != value.lineno:
            assert value.end_lineno is not None
            lines = text.splitlines(keepends=True)
            lines.insert(value.end_lineno - 1, row)
            return "".join(lines)
    raise ConfigError(f"{path} has no dictionary {dictionary} over several lines to add a row to; restore that file.")
