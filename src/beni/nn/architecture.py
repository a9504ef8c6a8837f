"""A Hugging Face architecture as data: from a YAML's own fields, or from a model's ``config.json``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from beni.errors import ConfigError, WeightsError
from beni.hub import require


def read_architecture(name: str | None, architecture: dict[str, Any] | None, group: str) -> PreTrainedConfig:
    """The Hugging Face config a part describes, from its own dict or from ``name``.

    Raises:
        ConfigError: when neither is given or the ``model_type`` is unknown.
        WeightsError: when ``name`` cannot be had on this machine.
    """
    if architecture is None:
        if name is None:
            raise ConfigError(f"{group}.architecture and {group}.name are both null; set one of them")
        require(name, group, architecture=True)
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:  # no such repository, or a model that brings code of its own
            raise WeightsError(
                f"{group}.name={name}: {str(error).strip().splitlines()[0]}\n"
                f"  fix: set {group}.name to a model whose type transformers knows, or to a local folder"
            ) from error
        return config.vision_config if group == "vision" and "vision_config" in config.sub_configs else config
    fields = dict(architecture)
    try:
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except KeyError as error:
        raise ConfigError(
            f"{group}.architecture needs a model_type that transformers knows; missing or unknown: {error}"
        ) from error
    except UNBUILDABLE as error:
        raise ConfigError(
            f"{group}.architecture: {_last_line(error)}\n  fix: correct the fields of {group}.architecture"
        ) from error


UNBUILDABLE = (
    *(ValueError, TypeError, AssertionError, RuntimeError, ZeroDivisionError, KeyError, ImportError),
    StrictDataclassError,
)


@contextmanager
def buildable(group: str, model_type: str, attention: str) -> Iterator[None]:
    """Around building a model: fields that do not fit each other, or an attention it lacks, are the user's to mend.

    Raises:
        ConfigError: instead of whatever transformers and torch raise.
    """
    try:
        yield
    except UNBUILDABLE as error:
        said = _last_line(error)
        if "attn_implementation" in str(error) or "attention implementation" in said:
            raise ConfigError(
                f"{group}.attn_implementation={attention}: {said.split('. ')[0]}\n"
                f"  fix: set {group}.attn_implementation=eager"
            ) from error
        raise ConfigError(
            f"{group}.architecture of model_type={model_type} cannot be built: {said}\n"
            f"  fix: correct the fields of {group}.architecture that this speaks of"
        ) from error


def _last_line(error: BaseException) -> str:
    """The last line of a message, in which transformers says why, after saying where."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
