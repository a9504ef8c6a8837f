"""Whether a ``save_pretrained`` folder of beni is whole, before anything is built from it."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from beni.errors import ResumeError
from beni.runs.files import read_json
from beni.runs.shape import Must

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
_CONFIG = {
    "model_type": Must(frozenset({"beni"})),
    "parts": Must({...: {}}),
    "plan": Must({...: str}),
    "bases": {...: {}},
    "image_token_id": int,
    "seed": int,
}


def require_whole(folder: Path, named: str, fix: str) -> None:
    """Reads the config, and the header of every file of weights.

    Args:
        folder: that ``save_pretrained`` wrote.
        named: how the user named it, for instance ``train.init_from=runs/a/b``.
        fix: what the user can do where it is damaged.

    Raises:
        ResumeError: names the file and its fault.
    """
    problem = read_json(folder / CONFIG, _CONFIG)[1] or _fault_of_weights(folder)
    if problem is not None:
        raise ResumeError(f"{named}: the saved model in {folder} is damaged: {problem}\n  fix: {fix}")


def _fault_of_weights(folder: Path) -> str | None:
    """What is wrong with the files of weights; None where their headers and sizes are right."""
    names: dict[str, set[str]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                names[file.name] = set(tensors.keys())
        except (OSError, SafetensorError) as error:
            return f"{file.name} cannot be read as safetensors ({error})"
    if not any(names.values()):
        return "it holds no weights (*.safetensors)"
    if not (folder / INDEX).exists():
        return None
    index, problem = read_json(folder / INDEX, {"weight_map": Must({...: str})})
    if problem is not None:
        return problem
    lost = [f"{name} in {file}" for name, file in index["weight_map"].items() if name not in names.get(file, ())]
    return f"{len(lost)} tensors of {INDEX} are not there, such as {lost[0]}" if lost else None
