"""Where the package reasoning-gym keeps the ARC part that is used here: generators, verifiers and the language they are in.

    package_folder()                  # .../reasoning_gym/arc/rearc_utils; None: not installed
    import_part("generators")         # a module of that folder
    load_dsl("arc_dsl")               # the language, as a module of that name

Only this part of the package is imported: the rest needs packages that are not installed. Standard library alone, because the
sandbox loads the language with it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PACKAGE = "reasoning-gym"
INSTALL = "make rearc"
_NAME = "arclab_rearc"  # a name of our own, below which the package's relative imports work


def package_folder() -> Path | None:
    """The folder of the ARC part; None if the package is not installed, or has no such part."""
    package = importlib.util.find_spec("reasoning_gym")
    if package is None or not package.submodule_search_locations:
        return None
    folder = Path(package.submodule_search_locations[0]) / "arc" / "rearc_utils"
    return folder if folder.is_dir() else None


def import_part(name: str) -> ModuleType:
    """A module of the folder, which must be there."""
    folder = package_folder()
    assert folder is not None, f"{PACKAGE} is not installed"
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )  # fmt: skip
        assert spec is not None
        sys.modules[_NAME] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{_NAME}.{name}")


def load_dsl(name: str) -> ModuleType | None:
    """The language as a module of this name, which can be imported from then on; None if the package is not installed."""
    folder = package_folder()
    spec = None if folder is None else importlib.util.spec_from_file_location(name, folder / "dsl.py")
    if spec is None or spec.loader is None or not Path(str(spec.origin)).is_file():
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
