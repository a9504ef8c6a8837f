"""What a file of GGUF holds, before it is written and after it was read: fields and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from beni.errors import WeightsError


@dataclass
class Content:
    """A file of GGUF.

    Attributes:
        architecture: as llama.cpp calls it.
        fields: key -> a number, a text, a truth value, or a list of one kind of them.
        tensors: name -> values, in the shape that torch has.
    """

    architecture: str
    fields: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Adds tensors in fp32."""
        self.tensors |= {name: tensor.detach().float().cpu().contiguous().numpy() for name, tensor in tensors.items()}


def library() -> Any:
    """The package ``gguf``.

    Raises:
        WeightsError: when it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise WeightsError(
            "--format gguf: the Python package gguf is not installed\n  fix: pip install 'beni[gguf]'"
        ) from None
    return gguf


def write_file(path: Path, content: Content) -> None:
    """Writes a file of GGUF."""
    gguf = library()
    writer = gguf.GGUFWriter(path, content.architecture)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for key, value in content.fields.items():
        _add(writer, key, value)
    for name, values in content.tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def differences(path: Path, content: Content) -> list[str]:
    """In what a file differs from what it was to hold: fields, names, shapes and values."""
    reader = library().GGUFReader(path)
    found = [
        f"{key} is {read!r:.60}, written was {value!r:.60}"
        for key, value in content.fields.items()
        if not _alike(read := _field(reader, key), value)
    ]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if tensors.keys() != content.tensors.keys():
        found.append(f"tensors {sorted(tensors.keys() ^ content.tensors.keys())[:3]} are in one of both only")
    for name in tensors.keys() & content.tensors.keys():
        values, wanted = np.asarray(tensors[name].data), content.tensors[name]
        if values.shape != wanted.shape or not np.array_equal(values, wanted):
            found.append(f"{name} has shape {values.shape} or values that were not written")
    return found


def _field(reader: Any, key: str) -> Any:
    held = reader.get_field(key)
    return None if held is None else held.contents()


def _alike(read: Any, written: Any) -> bool:
    if isinstance(written, list):
        return isinstance(read, list) and len(read) == len(written) and all(map(_alike, read, written))
    if isinstance(written, float):
        return isinstance(read, float) and np.float32(written) == np.float32(read)
    return bool(read == written)
