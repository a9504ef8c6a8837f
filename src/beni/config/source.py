"""How Hydra reads the files of options: through ``option_file``, so that a fault in one of them is a user error.

Hydra's own reading ends in a traceback for whatever is no YAML, takes what it finds first where two folders have an
option of one name, and warns of a folder that is not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from hydra._internal.core_plugins import file_config_source as hydras
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from beni.config.given import note_given
from beni.config.option_file import PRESET_GROUPS, package_of, read_option_file
from beni.errors import ConfigError


class FileConfigSource(hydras.FileConfigSource):
    """One folder of the search path.

    It has the name of Hydra's class, since Hydra registers its own again in a job on another machine, and leaves
    a class of that name in its place there.
    """

    folders: ClassVar[set[str]] = set()
    """All folders of the search path."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        self.folders.add(self.path)

    def load_config(self, config_path: str) -> ConfigResult:
        path = self._file(config_path)
        if not path.is_file():
            raise ConfigLoadError(f"Config not found : {path}")
        self._require_one(path, config_path)
        package = package_of(path, config_path.partition("/")[0])
        content = read_option_file(path, whole=package == "_global_")
        if package == "_global_" and config_path.partition("/")[0] in PRESET_GROUPS:
            content = note_given(content)
        try:
            config = OmegaConf.create(content)
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"{path}: {str(error).splitlines()[0]}\n  fix: put a text that holds ${{ in order, or write it as \\${{"
            ) from error
        header = {"package": package}
        return ConfigResult(config=config, path=f"file://{self.path}", provider=self.provider, header=header)

    def _require_one(self, path: Path, config_path: str) -> None:
        """Refuses an option that two folders have with other contents: Hydra would read the first without a word."""
        name = self._normalize_file_name(config_path)
        for other in (Path(folder, name) for folder in sorted(self.folders)):
            if other.is_file() and not other.samefile(path) and other.read_bytes() != path.read_bytes():
                raise ConfigError(
                    f"{config_path} is in two folders: {path} is read, {other} is not\n"
                    "  fix: give the option of your own another name"
                )

    def available(self) -> bool:
        if not os.path.isdir(self.path):
            raise ConfigError(
                f"{self.path} ({self.provider}) is not a folder of options\n"
                "  fix: name a folder that is laid out like conf/"
            )
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        names = super().list(config_path, results_filter)
        if results_filter is ObjectType.CONFIG:  # Hydra lists each file without its ending, whatever that is
            return [name for name in names if self._file(os.path.join(config_path, name)).is_file()]
        return names

    def _file(self, config_path: str) -> Path:
        return Path(self.path, self._normalize_file_name(config_path))


@contextmanager
def option_files() -> Iterator[None]:
    """Files of options are read by ``FileConfigSource`` inside the block."""
    Plugins.instance()  # registers Hydra's own sources, and refuses to once another has their place
    types = SourcesRegistry.instance().types
    before = types["file"]
    FileConfigSource.folders.clear()
    types["file"] = FileConfigSource
    try:
        yield
    finally:
        types["file"] = before
