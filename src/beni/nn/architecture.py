"""A Hugging Face architecture as data: from a YAML's own fields, or from a model's ``config.json``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from beni.errors import ConfigError


def read_architecture(name: str | None, architecture: dict[str, Any] | None, group: str) -> PreTrainedConfig:
    """The Hugging Face config a part describes, from its own dict or from ``name``.

    Raises:
        ConfigError: when neither is given or the ``model_type`` is unknown.
    """
    if architecture is None:
        if name is None:
            raise ConfigError(f"{group}.architecture and {group}.name are both null; set one of them")
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        return config.vision_config if group == "vision" and "vision_config" in config.sub_configs else config
    fields = dict(architecture)
    try:
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except KeyError as error:
        raise ConfigError(
            f"{group}.architecture needs a model_type that transformers knows; missing or unknown: {error}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{group}.architecture: {str(error).splitlines()[0]}") from error


@contextmanager
def known_attention(group: str, implementation: str) -> Iterator[None]:
    """Around building a model: one that has no such attention is the user's to fix.

    Raises:
        ConfigError: instead of transformers' ValueError.
    """
    try:
        yield
    except ValueError as error:
        if "attn_implementation" not in str(error):
            raise
        raise ConfigError(
            f"{group}.attn_implementation={implementation}: {str(error).split('. ')[0]}\n"
            f"  fix: set {group}.attn_implementation=eager"
        ) from error
