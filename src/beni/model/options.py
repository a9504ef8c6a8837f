"""Options of ``generate``: those of the caller, as ``transformers`` means them, over those that a model was saved with.

``transformers`` generates from embeddings here, so lengths that count the prompt are counted before it does.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from transformers import GenerationConfig

from beni.errors import ConfigError

LENGTHS = (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens"))
"""Bounds on prompt and answer together, each with that on the answer alone."""


def over_saved(
    saved: GenerationConfig, given: dict[str, Any], prompt: int, taken: int, limit: int | None
) -> dict[str, Any]:
    """The options of one call: those given, over the model's own where a run has saved some.

    Args:
        prompt: its ids, those of images included.
        taken: positions of the llm that the prompt takes.
        limit: of the llm's positions, where it has one.

    Raises:
        ConfigError: when the prompt is as long as ``max_length``.
    """
    theirs, rest = _counted(given, prompt)
    if saved.eos_token_id is None:
        return rest if theirs is None else rest | {"generation_config": theirs}
    config = deepcopy(saved)
    if theirs is not None:
        config.update(**theirs.to_diff_dict())
    if limit is not None and config.max_new_tokens and "max_new_tokens" not in rest:
        config.max_new_tokens = max(1, min(config.max_new_tokens, limit - taken))
    rest = config.update(**rest)  # gives back what is no setting of generation: a streamer, say
    return rest | {"generation_config": config}


def _counted(given: dict[str, Any], prompt: int) -> tuple[GenerationConfig | None, dict[str, Any]]:
    """Configuration and options of the caller, in which lengths count new tokens; the model's own give way to them."""
    given = dict(given)
    theirs: GenerationConfig | None = deepcopy(given.pop("generation_config", None))
    asked = ({} if theirs is None else theirs.to_diff_dict()) | given
    for whole, new in LENGTHS:
        length = asked.get(whole)
        if (
            length is None or asked.get(new) is not None
        ):  # where both are given transformers warns, and takes the latter
            continue
        if whole == "max_length" and length <= prompt:
            raise ConfigError(
                f"max_length={length} counts the prompt, which has {prompt} tokens with those of its images\n"
                f"  fix: set max_new_tokens, or max_length of at least {prompt + 1}"
            )
        given.pop(whole, None)
        given.pop(new, None)
        count = max(0, length - prompt)
        if theirs is None:
            given[new] = count
        else:
            setattr(theirs, whole, None)
            setattr(theirs, new, count)
    return theirs, given
