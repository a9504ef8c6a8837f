"""What a user gets from the wheel: conf/ inside the package, its linked groups as plain files."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from beni.paths import PACKAGE, conf_dir

CHECKOUT = PACKAGE.parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked into a folder of its own."""
    if not (CHECKOUT / "pyproject.toml").is_file():
        pytest.skip("not a source checkout: there is nothing to build a wheel from")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(unpacked: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the unpacked wheel before everything else, in ``cwd``."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
    )


def test_the_wheel_composes_in_an_empty_folder_from_its_own_conf(unpacked: Path, tmp_path: Path) -> None:
    where = run(unpacked, tmp_path, "-c", "import beni.paths as p; print(p.conf_dir())")
    assert where.stdout.strip() == str(unpacked / "beni" / "conf")
    done = run(unpacked, tmp_path, "-m", "beni.train", "resampler=perceiver", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "num_latents: 64" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_file_of_conf_is_in_the_wheel_and_no_link(unpacked: Path) -> None:
    ours = {path.relative_to(conf_dir()) for path in conf_dir().glob("*.yaml")}
    for folder in conf_dir().iterdir():
        if folder.is_dir() and folder.name != "local":
            ours |= {path.relative_to(conf_dir()) for path in folder.glob("*.yaml")}
    shipped = unpacked / "beni" / "conf"
    assert {path.relative_to(shipped) for path in shipped.rglob("*.yaml")} == ours
    assert [path for path in shipped.rglob("*") if path.is_symlink()] == []


@pytest.mark.parametrize("group", ["experiment", "launcher"])
def test_the_linked_groups_compose_from_the_wheel(unpacked: Path, tmp_path: Path, group: str) -> None:
    option = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))[0]
    done = run(unpacked, tmp_path, "-m", "beni.train", f"{group}={option}", "--cfg", "job")
    assert done.returncode == 0, done.stderr


def test_files_that_the_package_reads_are_in_the_wheel(unpacked: Path) -> None:
    kinds = {".json", ".jinja", ".css", ".html", ".typed"}
    ours = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.suffix in kinds}
    assert {path for path in ours if not (unpacked / "beni" / path).is_file()} == set()
    assert (unpacked / "hydra_plugins" / "beni" / "sweeper.py").is_file()
    assert not (unpacked / "hydra_plugins" / "__init__.py").exists(), "hydra_plugins is a namespace shared with others"
