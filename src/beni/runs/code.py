"""A frozen copy of the code that a run is started with: what is edited later, while jobs wait, reaches none of them.

The copy holds the package and those that ``BENI_TRUSTED`` names, where they are folders that a person edits; installed
packages stay where they are. It lies in the study, named by the hash of its content, so that arms share it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from beni.config.check import trusted_prefixes
from beni.errors import ResourceError
from beni.paths import PACKAGE

FOLDER = ".code"
"""Where in a study its copies lie."""
MOST_MIB = 64
"""Size above which a package is no code, and is not copied."""
LEFT_OUT = ("__pycache__", ".git", ".venv", "node_modules")


def environment(code: Path) -> dict[str, str]:
    """Variables with which a process imports a copy: it comes first, and the working directory not at all."""
    paths = [str(code.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def exports(code: Path) -> tuple[list[str], list[str]]:
    """``environment`` as shell lines, before and after those of a user, whose ``PYTHONPATH`` stays behind the copy."""
    before = [f"export PYTHONPATH={shlex.quote(own)}" for own in filter(None, [os.environ.get("PYTHONPATH")])]
    copy = shlex.quote(str(code.resolve()))
    return before, [f"export PYTHONPATH={copy}${{PYTHONPATH:+:$PYTHONPATH}}", "export PYTHONSAFEPATH=1"]


def is_copy(package: Path) -> bool:
    """Whether a package is part of a copy that ``take_snapshot`` has made."""
    return package.parent.parent.name == FOLDER


def take_snapshot(study: Path) -> Path:
    """Copies the code that a process which begins now would run into the study, unless it is there.

    Returns:
        The folder that ``environment`` is given.

    Raises:
        ResourceError: when a package is too large to be code.
        OSError: when the disk does not take it.
    """
    packages = list(_packages())
    target = snapshot_of(study, code_hash(packages))
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        for package in packages:
            for path in _files(package):
                copy = partial / path.relative_to(package.parent)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        partial.chmod(0o755)
        partial.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def snapshot_of(study: Path, code: str) -> Path:
    """Where in a study the copy of a code lies, where it has one."""
    return study / FOLDER / code


@cache
def running_code() -> str:
    """``code_hash`` when this process first asked for it: what is edited later, it has imported already.

    Raises:
        ResourceError: when a package is too large to be code.
    """
    return code_hash()


def code_hash(packages: list[Path] | None = None) -> str:
    """Twelve hexadecimal digits of the code that a process which begins now would run, equal for equal files.

    Raises:
        ResourceError: when a package is too large to be code.
    """
    total = hashlib.sha256()
    for package in list(_packages()) if packages is None else packages:
        size = 0
        for path in _files(package):
            content = path.read_bytes()
            size += len(content)
            if size > MOST_MIB * 2**20:
                raise ResourceError(
                    f"{package} is a trusted package of more than {MOST_MIB} MiB, and is copied into each study\n"
                    "  fix: move what is no code out of it, or install it (pip install, not editable)"
                )
            total.update(f"{path.relative_to(package.parent)}\0{len(content)}\0".encode())
            total.update(content)
    return total.hexdigest()[:12]


def _packages() -> Iterator[Path]:
    """Packages and modules that a run imports and a person may edit, beni first."""
    yield PACKAGE
    for prefix in trusted_prefixes():
        name = prefix.split(".")[0]
        found = importlib.util.find_spec(name) if name != "beni" else None
        places = [] if found is None else [*(found.submodule_search_locations or filter(None, [found.origin]))]
        for place in places:
            if not {"site-packages", "dist-packages"} & set(Path(place).parts):
                yield Path(place).resolve()


def _files(package: Path) -> Iterator[Path]:
    """Files of a package in one order, without what Python and tools leave; of a module, itself."""
    if package.is_file():
        yield package
        return
    for folder, folders, names in os.walk(package):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and path.suffix != ".pyc":
                yield path
